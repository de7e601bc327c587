"""Processes of parties: how they are started, looked at and ended."""
