"""Client end: local training and the parts that change it."""

from polyclinic.client import alignment, drift, few_labels, frequencies, labels, personal
from polyclinic.client.private import dp_sgd

__all__ = ["alignment", "dp_sgd", "drift", "few_labels", "frequencies", "labels", "personal"]
