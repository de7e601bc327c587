"""Putting a federation to the test: what it loses where some of its sites go wrong."""
