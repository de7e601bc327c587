"""Client end: local training and the rules that change it."""

from polyclinic.client import alignment, drift, labels, personal
from polyclinic.client.rules import LOCAL_RULES, LocalRule

__all__ = ["LOCAL_RULES", "LocalRule", "alignment", "drift", "labels", "personal"]
