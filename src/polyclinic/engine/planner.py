"""Choosing how the sites are run on this machine, and saying why.

The choice depends on the study and the machine only, never on a measured time: the same study on the same machine must
give the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from polyclinic.client.stacked import reason_not_stackable
from polyclinic.client.work import Work
from polyclinic.errors import StudyError
from polyclinic.state import FlatModule

Mode = Literal["sequential", "stacked", "processes"]

#: A step below this is mostly the overhead of PyTorch's operators, which stacking shares among the sites.
STACK_BELOW = 2e7
#: Below this much training in all, starting processes costs more than it saves (about a minute on one core).
PROCESSES_ABOVE = 2e12


@dataclass(frozen=True)
class EnginePlan:
    """How the sites are run.

    Attributes:
        mode: sequential, stacked or processes.
        device: where networks run.
        threads: arithmetic threads of this process.
        workers: worker processes, in that mode.
        worker_threads: arithmetic threads of each.
        reason: why, for people.
    """

    mode: Mode
    device: str
    threads: int
    workers: int
    worker_threads: int
    reason: str


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose_device(wanted: str) -> str:
    """``wanted``, or the best there is for ``auto``.

    Raises:
        StudyError: P102 if the device is not there.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = wanted.split(":")[0]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        raise StudyError("P102", f"`engine: {{device: {wanted}}}`: this machine has no such device.",
                         "Use `device: auto`.")  # fmt: skip
    return wanted


def choose_plan(
    *, mode: str, device: str, threads: int | None, workers: int | None, model: FlatModule, works: Sequence[Work],
    shape: tuple[int, ...], cases: list[int], passes: int, obstacles: Sequence[str] = (),
) -> EnginePlan:  # fmt: skip
    """The plan for a study.

    Args:
        mode: ``auto`` or what the study file asks for.
        device: as `choose_device` gave it.
        threads: asked for, or None.
        workers: asked for, or None.
        model: the network.
        works: local work of each method.
        shape: of one input.
        cases: number of cases of each site.
        passes: how often each case is trained on in the whole study, about.
        obstacles: for each of ``works``, why its sites can't be trained together besides what it and ``model`` say;
            empty where nothing speaks against it.

    Raises:
        StudyError: P104 if the mode asked for is impossible.
    """
    many = threads or min(cores(), 8)
    count = min(workers or cores(), max(len(cases), 1))
    per_case = 3 * forward_operations(model, shape)  # backward costs about twice as much as forward
    step, total = per_case * min(max(work.batch_size for work in works), max(cases)), per_case * sum(cases) * passes
    own = list(obstacles) or [""] * len(works)
    if mode == "stacked" or step < STACK_BELOW:  # otherwise it does not matter, and the network may be large
        own = [reason or reason_not_stackable(model, work, shape) for reason, work in zip(own, works, strict=True)]
    obstacle, none_can = next(filter(None, own), ""), all(own)

    def plan(chosen: Mode, reason: str) -> EnginePlan:
        # Operators of stacked training are so short that handing them to a second thread costs more than it saves.
        few = threads or (1 if chosen == "stacked" else many)
        return EnginePlan(chosen, device, few, count, max(1, many // count), reason)

    if mode == "stacked" and obstacle:
        raise StudyError("P104", f"`engine: {{mode: stacked}}` is impossible: {obstacle}.", "Use `mode: auto`.")
    if mode != "auto":
        return plan(mode, "as the study file says")  # type: ignore[arg-type]
    if len(cases) > 1 and not none_can and step < STACK_BELOW:
        but = f", but one after another where {obstacle}" if obstacle else ""
        small = f"small network ({step / 1e6:.2g} million operations a step)"
        return plan("stacked", f"{small}: sites trained together{but}")
    if len(cases) > 1 and count > 1 and device == "cpu" and total > PROCESSES_ABOVE:
        return plan("processes", f"much to train ({total / 1e12:.2g} trillion operations): {count} worker processes")
    why = obstacle if none_can and step < STACK_BELOW else f"{step / 1e6:.2g} million operations a step"
    return plan("sequential", f"one site after another ({why})")


def forward_operations(model: FlatModule, shape: tuple[int, ...]) -> float:
    """Floating-point operations of a forward pass over one case (matrix products and convolutions)."""
    counter = FlopCounterMode(display=False)
    model.module.eval()
    with counter, torch.no_grad():
        model.module(torch.zeros(1, *shape, device=model.vector.device))
    return float(counter.get_total_flops())
