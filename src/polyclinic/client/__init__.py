"""Client end: local training and the parts that change it."""

from polyclinic.client import alignment, drift, labels, personal
from polyclinic.client.private import dp_sgd

__all__ = ["alignment", "dp_sgd", "drift", "labels", "personal"]
