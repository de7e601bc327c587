"""Masks: what their values mean, in pictures and volumes."""
