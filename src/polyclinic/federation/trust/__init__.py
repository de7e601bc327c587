"""Keys and certificates: who may take part."""
