"""Volumes on one grid: prepared once, kept on disk, cut into boxes, planned from all sites."""
