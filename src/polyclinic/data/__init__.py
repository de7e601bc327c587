"""Readers, splits, scaling and quality checks of the data a site owns."""
