"""Client end: local training and the parts that change it."""

from polyclinic.client import alignment, drift, labels, personal

__all__ = ["alignment", "drift", "labels", "personal"]
