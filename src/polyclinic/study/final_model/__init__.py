"""The model that is used: one method of a study trained once on all cases, described, and written into a folder."""
