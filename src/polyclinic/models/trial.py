"""Whether a network can work on the inputs of a study, found out before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from polyclinic.errors import TrainingError
from polyclinic.models import build_model
from polyclinic.state import FlatModule

#: Sides that are tried to find the least that work.
_SIDES = (2, 4, 8, 16, 32, 64, 128)
#: What networks raise on inputs that they can't take.
_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AssertionError)


def try_network(name: str, options: dict[str, Any], shape: Sequence[int], outputs: int, *, masks: bool) -> FlatModule:
    """Send two empty cases through the network, in training and in testing, without computing anything.

    Tensors are on PyTorch's device ``meta``, which knows shapes and no numbers, so that this takes no memory.

    Args:
        name: of the network.
        options: its options.
        shape: of one input: ``(F,)``, ``(C, H, W)`` or ``(C, D, H, W)``.
        outputs: channels or numbers that the task needs.
        masks: whether there is to be an output for each pixel or voxel.

    Returns:
        The network; it may be on the device ``meta``.

    Raises:
        TrainingError: P302, the network can't be built for this shape, can't work on it, or gives something else than
            the task needs. P503 if it needs a package that is missing.
    """
    shape = tuple(shape)
    network = build_model(name, options, shape, outputs)
    try:
        given = _run(network.module, shape)
    except NotImplementedError:  # an operation that has no form for shapes alone
        return network
    except _ERRORS as error:
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        if re.search(r"\bmeta\b", reason):  # of the device that has shapes and no numbers
            return network
        raise TrainingError(
            "P302",
            f"The model {name} can't work on inputs of shape {shape}: {reason}.",
            _hint(name, options, shape, outputs),
        ) from None
    wanted = (outputs, *(shape[1:] if masks else ()))
    if given != wanted:
        kind = "a value for each pixel" if masks else "one answer for the whole case"
        raise TrainingError(
            "P302",
            f"The model {name} gives outputs of shape {given} for inputs of shape {shape}, and the task needs "
            f"{wanted}: {kind}.",
            "Choose a model for the task: `unet` and its like give masks, `cnn`, `resnet` and their like give labels.",
        )
    return network


def _run(module: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the output for one case."""
    module = module.to("meta")
    with torch.no_grad():
        cases = torch.empty(2, *shape, device="meta")
        module.train()(cases)
        found = module.eval()(cases)
    if not isinstance(found, torch.Tensor):
        raise TypeError(f"it gives {type(found).__name__}, not one tensor")
    return tuple(found.shape[1:])


def _hint(name: str, options: dict[str, Any], shape: tuple[int, ...], outputs: int) -> str:
    """What to do, with the least sides that work where they are found."""
    change = "Change the images' `size` (or `patch`) under `data`, or the model's options."
    for least in _SIDES:
        sides = [max(side, least) for side in shape[1:]]
        try:
            _run(build_model(name, options, (shape[0], *sides), outputs).module, (shape[0], *sides))
        except (TrainingError, *_ERRORS):
            continue
        return f"Sides of {least} or more work. {change}"
    return change
