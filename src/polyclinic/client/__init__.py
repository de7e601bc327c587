"""Client end: local training and the rules that change it."""

from polyclinic.client import drift
from polyclinic.client.rules import LOCAL_RULES, GradientRule

__all__ = ["LOCAL_RULES", "GradientRule", "drift"]
