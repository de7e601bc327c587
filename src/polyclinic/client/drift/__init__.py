"""Against client drift: local models that move apart because the sites' data differ."""
