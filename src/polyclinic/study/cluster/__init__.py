"""Trainings of a study on a cluster of one institution, by Ray. Never between hospitals: all nodes see all data."""
