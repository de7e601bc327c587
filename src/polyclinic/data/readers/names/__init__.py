"""Patients, visits and contrasts from the names of files and folders."""
