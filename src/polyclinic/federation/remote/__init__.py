"""How a coordinator's calls reach sites in other processes."""
