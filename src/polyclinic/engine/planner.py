"""Choosing how the sites are run on this machine, and saying why.

The choice depends on the study and the machine only, never on a measured time: the same study on the same machine must
give the same bytes. Nor does it depend on how many trainings a person wants at a time, which change no byte: what
changes them, the mode and the number of arithmetic threads, is chosen for as many as go well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from polyclinic.client.stacked.training import reason_not_stackable
from polyclinic.client.work import Work
from polyclinic.errors import StudyError
from polyclinic.state import FlatModule

Mode = Literal["sequential", "stacked", "processes"]

#: A step below this is mostly the overhead of PyTorch's operators, which stacking shares among the sites.
STACK_BELOW = 2e7
#: Below this much training in all, starting processes costs more than it saves (about a minute on one core).
PROCESSES_ABOVE = 2e12
#: Seconds that trainings side by side must save, by the estimate, to be worth the start of processes (about 5 s).
SIDE_BY_SIDE_ABOVE = 15.0
#: What a step, a site's part in a round, and an operation take on one core, in seconds, about; for the estimate only.
STEP, VISIT, OPERATION = 1e-3, 5e-4, 5e-11
#: Memory of a process that trains, in bytes, before there is a network; and how many vectors of its size there are
#: besides two of each site.
PROCESS_MEMORY, VECTORS = 6e8, 10


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
        jobs: how many trainings go side by side, in processes of their own; with 1 all are in this one.
    """

    mode: Mode
    device: str
    threads: int
    workers: int
    worker_threads: int
    reason: str
    jobs: int = 1


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
    shape: tuple[int, ...], cases: list[int], passes: int, obstacles: Sequence[str] = (), trainings: int = 1,
    others: Sequence[FlatModule] = (),
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
        obstacles: for each of ``works``, why its sites can't be trained together besides what it and the networks
            say; empty where nothing speaks against it.
        trainings: of the whole study, none of which needs another; 1 where they have to go one after another.
        others: networks of sites that have another than ``model``.

    Raises:
        StudyError: P104 if the mode asked for is impossible.
    """
    models = [model, *others]
    many = threads or min(cores(), 8)
    count = min(workers or cores(), max(len(cases), 1))
    forward = max(forward_operations(model, shape) for model in models)
    per_case = 3 * forward  # backward costs about twice as much as forward
    batch = max(work.batch_size for work in works)
    step, total = per_case * min(batch, max(cases)), per_case * sum(cases) * passes
    own = list(obstacles) or [""] * len(works)
    if mode == "stacked" or step < STACK_BELOW:  # otherwise it does not matter, and the network may be large
        own = [
            next(filter(None, (reason, *(reason_not_stackable(model, work, shape) for model in models))), "")
            for reason, work in zip(own, works, strict=True)
        ]
    obstacle, none_can = next(filter(None, own), ""), all(own)
    side = min(max(trainings, 1), cores(), *(fitting(model, len(cases)) for model in models)) if device == "cpu" else 1

    def plan(chosen: Mode, reason: str) -> EnginePlan:
        beside = 1 if chosen == "processes" else side
        # Operators of stacked training are so short that handing them to a second thread costs more than it saves.
        few = threads or (1 if chosen == "stacked" else max(1, many // beside))
        steps = [-(-number // batch) for number in cases]
        seconds = passes * ((max if chosen == "stacked" else sum)(steps) * STEP + len(cases) * VISIT)
        saved = (seconds + total * OPERATION) * (1 - 1 / beside)
        jobs = beside if saved > SIDE_BY_SIDE_ABOVE else 1
        return EnginePlan(chosen, device, few, count, max(1, many // count), reason, jobs)

    if mode == "stacked" and obstacle:
        raise StudyError("P104", f"`engine: {{mode: stacked}}` is impossible: {obstacle}.", "Use `mode: auto`.")
    if mode != "auto":
        return plan(mode, "as the study file says")  # type: ignore[arg-type]
    if len(cases) > 1 and not none_can and step < STACK_BELOW:
        but = f", but one after another where {obstacle}" if obstacle else ""
        small = f"small network ({step / 1e6:.2g} million operations a step)"
        return plan("stacked", f"{small}: sites trained together{but}")
    if len(cases) > 1 and count > side and device == "cpu" and total > PROCESSES_ABOVE:
        return plan("processes", f"much to train ({total / 1e12:.2g} trillion operations): {count} worker processes")
    why = obstacle if none_can and step < STACK_BELOW else f"{step / 1e6:.2g} million operations a step"
    return plan("sequential", f"one site after another ({why})")


def fitting(model: FlatModule, sites: int) -> int:
    """How many processes that train a network with so many sites have room in this machine's memory, about; 1 at least.

    What a batch takes while it is trained on is not known before.
    """
    size = model.vector.numel() * model.vector.element_size()
    return max(1, int(0.7 * memory() / (PROCESS_MEMORY + (2 * sites + VECTORS) * size)))


def memory() -> int:
    """Bytes of memory that this process may use: those of the machine, or of the container that it is in."""
    known = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else []
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such limit, or none that is a number
            known.append(int(Path(limit).read_text(encoding="ascii")))
    return min(known, default=2**62)


def forward_operations(model: FlatModule, shape: tuple[int, ...]) -> float:
    """Floating-point operations of a forward pass over one case (matrix products and convolutions)."""
    counter = FlopCounterMode(display=False)
    model.module.eval()
    with counter, torch.no_grad():
        model.module(torch.zeros(1, *shape, device=model.vector.device))
    return float(counter.get_total_flops())
