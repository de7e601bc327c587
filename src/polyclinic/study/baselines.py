"""The methods that all others are compared with."""

from __future__ import annotations

#: Their names in the catalogue.
BASELINES = ("single", "fedavg")
