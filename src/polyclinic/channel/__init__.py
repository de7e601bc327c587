"""Steps of the channel: what becomes of all that leaves a site, and how the server undoes it."""

from polyclinic.channel import (
    adaptive_clip,
    attention,
    clip,
    distributed_noise,
    dynamic_fusion,
    homomorphic_sum,
    low_rank,
    noise,
    packing,
    quantised,
    secure_sum,
    sparse,
    weight_noise,
)

__all__ = [
    "adaptive_clip",
    "attention",
    "clip",
    "distributed_noise",
    "dynamic_fusion",
    "homomorphic_sum",
    "low_rank",
    "noise",
    "packing",
    "quantised",
    "secure_sum",
    "sparse",
    "weight_noise",
]
