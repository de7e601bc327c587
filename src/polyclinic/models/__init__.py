"""Networks by name, each with its own declaration of what is its head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from polyclinic.errors import TrainingError
from polyclinic.models.catalogue import MODELS
from polyclinic.models.pooling import ATTENDING, POOLING, attention_of, pools_bags, resolve_pooled
from polyclinic.models.unrolled import RECONSTRUCTING, reconstructs, resolve_unrolled
from polyclinic.options import Place
from polyclinic.randomness import own_randomness
from polyclinic.state import FlatModule

__all__ = ["ATTENDING", "MODELS", "POOLING", "RECONSTRUCTING", "attention_of", "build_model", "has_batch_norm",
           "keeps_statistics", "networks_in", "pools_bags", "reconstructs", "resolve_inner"]  # fmt: skip


def build_model(
    name: str,
    options: dict[str, Any],
    shape: Sequence[int],
    outputs: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> FlatModule:
    """The network ``name`` for inputs of ``shape`` (without the batch axis), initialised from ``seed``.

    Raises:
        TrainingError: P302 if the network can't be built for this shape, P503 if it needs a package that is missing.
    """
    with own_randomness(seed, "initial weights"):
        try:
            module, head = MODELS[name](tuple(shape), outputs, **options)
        except (ValueError, TypeError, RuntimeError) as error:
            raise TrainingError(
                "P302",
                f"The model {name} can't be built for inputs of shape {tuple(shape)}: {str(error).rstrip('.')}.",
                "Change the model's options, or the images' `size` (or `patch`) under `data`.",
            ) from error
    return FlatModule(module, head, device, shape)


def resolve_inner(name: str, options: dict[str, Any], place: Place) -> dict[str, Any]:
    """``options`` of a network that is made of another one, in which those of the other are complete, too.

    Raises:
        EntryError: P103 or P104, there is no such network, or it can't be part of this one.
    """
    return resolve_unrolled(name, resolve_pooled(name, options, place), place, unfit=POOLING)


def networks_in(name: str, options: dict[str, Any]) -> list[str]:
    """Names of all networks of the catalogue that a network is made of."""
    inner = {**dict.fromkeys(POOLING, "encoder"), **dict.fromkeys(RECONSTRUCTING, "network")}.get(name)
    return [name] if inner is None else [name, *options[inner]]


def has_batch_norm(module: nn.Module) -> bool:
    """Whether a case's output in training depends on the other cases of its batch."""
    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def keeps_statistics(module: nn.Module) -> bool:
    """Whether it matters to normalisation which cases are in a batch: for their outputs or its running statistics."""
    norms = (layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._NormBase))
    return has_batch_norm(module) or any(norm.track_running_stats for norm in norms)
