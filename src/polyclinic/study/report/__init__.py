"""The report of a study: one HTML page, computed from its results folder alone."""
