"""Trainings of a study side by side, each in a process of its own."""
