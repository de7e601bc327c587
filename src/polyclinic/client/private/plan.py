"""Which way patients' gradients are got, and how many cases at a time: from counts, and a trial of whether it works."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polyclinic.client.private.layers import trained_layers
from polyclinic.client.private.rows import Places, Rows
from polyclinic.client.private.ways import Way, add_gradient, by_layers, by_vmap, without_dropout
from polyclinic.models import pools_bags
from polyclinic.randomness import own_randomness
from polyclinic.seeds import generator
from polyclinic.state import FlatModule, Selection

#: Numbers that the cases taken at a time may need beyond the model, 4 bytes each: gradients of patients, and twice what
#: layers give (these, and gradients there).
ROOM = {"cpu": 1 << 27, "cuda": 1 << 29}
#: Cases at a time at most. On a processor, 16 to 64 are equally fast; two are up to six times as fast as one after
#: another, also where a case is a volume, since PyTorch's convolutions of single cases are slow.
_MOST = {"cpu": 64, "cuda": 512}
#: Largest difference that is rounding: as a share of a tensor's gradient, and of the whole gradient.
_ROUNDING, _OF_ALL = 1e-3, 1e-5


@dataclass(frozen=True)
class PrivatePlan:
    """How patients' gradients are got.

    Attributes:
        way: ``layers``: one backward pass over many cases, see `polyclinic.client.private.layers`. ``vmap``: the
            same by `torch.func`, for layers without a rule. ``patients``: one after another.
        together: cases at a time, at most.
        outer: names of weights whose gradient is an outer product of two vectors for each case.
    """

    way: Way
    together: int
    outer: frozenset[str]


def choose_private_plan(
    model: FlatModule, shape: tuple[int, ...], trained: Selection | None = None, *, way: Way | None = None
) -> PrivatePlan:
    """The fastest way that works.

    It follows from counts alone, and so is the same wherever it is asked for: with A numbers that the layers give for a
    case and Q trained weights, ``ROOM / (2 A + Q)`` cases are taken at a time. If that is less than two, patients are
    taken one after another, which needs no memory for their gradients. Else it is layers where each has a rule, or
    `torch.func` where one has none. Either is tried on made-up cases, and not taken unless it gives what single cases
    give.

    Args:
        model: the network, on its device; neither its state nor any random generator is changed.
        shape: of one input.
        trained: the coordinates that are trained, whole tensors; None for all.
        way: this one, without asking whether it works or is fast.
    """
    device = model.vector.device
    put_back, gradient = model.remember(), model.gradient.clone()
    training = model.module.training
    model.module.train()
    with warnings.catch_warnings(), own_randomness("trial of private gradients", device=device):
        warnings.simplefilter("ignore")  # PyTorch's, of operators that are slow under vmap
        try:
            with without_dropout(model.module):
                return _choose(model, shape, trained, way)
        finally:
            put_back()
            model.gradient.copy_(gradient)
            model.module.train(training)


def _choose(model: FlatModule, shape: tuple[int, ...], trained: Selection | None, way: Way | None) -> PrivatePlan:
    source = generator("trial of private gradients")
    noise = torch.randn(model.layout.trainable, generator=source)
    model.vector[: model.layout.trainable] += 0.1 * noise.to(model.vector.device)  # at 0 there is little to see
    inputs = torch.randn(2, *shape, generator=source).to(model.vector.device)
    given, outer = _counted(model, inputs[:1])
    size = Places.of(model, trained, outer).size
    kind = "cuda" if inputs.device.type == "cuda" else "cpu"
    together = min(ROOM[kind] // (2 * given + size), _MOST[kind])
    if way is not None:
        return PrivatePlan(way, max(together, 1), frozenset(outer) if way == "layers" else frozenset())
    if together < 2:
        return PrivatePlan("patients", 1, frozenset())
    if pools_bags(model.module):  # which the trial below, with bags of one instance, would not show
        return PrivatePlan("patients", together, frozenset())
    tensors = dict(model.module.named_parameters())
    entries = Places.of(model, trained, outer).entries
    if trained_layers(model.module, {tensors[entry.name] for entry in entries}) is not None:
        plan = PrivatePlan("layers", together, frozenset(outer))
        if _works(model, plan, trained, inputs):
            return plan
    plan = PrivatePlan("vmap", together, frozenset())
    return plan if _works(model, plan, trained, inputs) else PrivatePlan("patients", together, frozenset())


def _counted(model: FlatModule, inputs: Tensor) -> tuple[int, set[str]]:
    """How many numbers the layers give for one case, and the weights that are used on one vector of it."""
    given, uses = 0, dict.fromkeys(model.layout.split(model.vector), 0)
    vectors: set[str] = set()

    def see(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(layer: nn.Module, found: tuple[Tensor, ...], outputs: Tensor) -> None:
            nonlocal given
            given += outputs.numel() if isinstance(outputs, Tensor) else 0
            weight = f"{name}.weight" if name else "weight"
            uses[weight] = uses.get(weight, 0) + 1
            if type(layer) is nn.Linear and found[0].dim() == 2 and len(found[0]) == 1:
                vectors.add(weight)

        return hook

    leaves = [(name, layer) for name, layer in model.module.named_modules() if not list(layer.children())]
    handles = [layer.register_forward_hook(see(name)) for name, layer in leaves]
    with torch.no_grad():
        model.module(inputs)
    for handle in handles:
        handle.remove()
    return given, {name for name in vectors if uses[name] == 1}


def _works(model: FlatModule, plan: PrivatePlan, trained: Selection | None, inputs: Tensor) -> bool:
    """Whether a way gives for two cases what each gives alone, of two patients and of one."""
    weights = torch.tensor([1.0, 2.0], device=inputs.device)
    # By unlike numbers, so that what belongs to another patient is found: a plain sum would be the same.
    for members, by in (([0, 1], [1.0, -3.0]), ([0, 0], [1.0])):
        single = len(by) == len(members)
        model.gradient.zero_()
        for case, weight, member in zip(inputs.split(1), weights.split(1), members, strict=True):
            add_gradient(model, case, _losses, weight * by[member], nullcontext)
        wanted = model.gradient.double()
        places = Places.of(model, trained, set(plan.outer))
        memory = inputs.new_empty(2 * places.size, dtype=torch.float32)
        rows = Rows(places, memory, torch.tensor(members, device=inputs.device), len(by), outer=single)
        found = torch.zeros_like(wanted)
        try:
            (by_layers if plan.way == "layers" else by_vmap)(model, inputs, _losses, weights, rows, nullcontext)
        except Exception:  # of any kind: the network's own, or of an operator that vmap does not know
            return False
        rows.add_to(found, torch.tensor(by, dtype=torch.float64, device=inputs.device))
        for entry in places.entries:
            place = slice(entry.offset, entry.offset + entry.size)
            limit = _ROUNDING * wanted[place].norm() + _OF_ALL * wanted.norm()
            if not bool((found[place] - wanted[place]).norm() <= limit):
                return False
    return True


def _losses(outputs: Tensor) -> Tensor:
    """For each case ``[B]`` a number that depends on each of its outputs ``[B, ...]`` in a way of its own."""
    flat = outputs.flatten(1)
    scale = torch.linspace(1.0, 2.0, flat.shape[1], dtype=flat.dtype, device=flat.device)
    return (flat * scale).mean(1).tanh() + flat.square().mean(1)
