"""Client end: local training and the parts that change it."""

from polyclinic.client import alignment, dp_sgd, drift, labels, personal

__all__ = ["alignment", "dp_sgd", "drift", "labels", "personal"]
