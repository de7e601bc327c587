"""What sites and server exchange besides the model, declared so that people can see it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

#: The model itself.
MODEL = ("state", "change", "statistics")


def describe(tensors: Mapping[str, Tensor], reveals: Mapping[str, str]) -> str:
    """Name, shape, bytes of everything but the model, and what it could reveal; separated by semicolons.

    Args:
        tensors: of a message.
        reveals: name -> what it could reveal.
    """
    return "; ".join(
        f"{name} {list(tensor.shape)} {tensor.numel() * tensor.element_size()} bytes: {reveals[name].replace(';', ',')}"
        for name, tensor in tensors.items()
        if name not in MODEL
    )
