"""Steps of the channel: what becomes of all that leaves a site, and how the server undoes it."""

from polyclinic.channel import low_rank, packing, quantised, sparse

__all__ = ["low_rank", "packing", "quantised", "sparse"]
