"""Watching a study by its results folder: nothing is locked, written or waited for, so the run notices nothing."""
