"""What a private step costs: over an ordinary one, and over those of Opacus, in time and memory.

A step is forward and backward, clipping, noise and the optimiser, on a batch at hand, every case of another patient.
Those compared take turns in the same process, on one thread; numbers are medians, and the ratio is what counts. Memory
is what a process of its own, for each of them, holds at its peak above what it held before its first step. It needs the
package Opacus (``pip install opacus``); modes of it that can't do a network say so. Run it on a machine that does
nothing else:

    python benchmarks/privacy.py [NAME ...]
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rounds import show
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from polyclinic.client.private.gradients import PatientGradients
from polyclinic.client.private.noise import private_gradient
from polyclinic.client.private.plan import PrivatePlan, choose_private_plan
from polyclinic.client.private.ways import Way
from polyclinic.models import build_model
from polyclinic.privacy.draws import RepeatableDraws
from polyclinic.tasks import build_task

NORM, NOISE, CLASSES = 1.0, 1.0, 3
#: Steps of each in turn, and turns; those of large networks are fewer.
TURNS = 15
#: Opacus' ways to get gradients of single cases: its rules for each layer, torch.func, PyTorch's expanded weights, and
#: ghost clipping.
OPACUS = ("hooks", "functorch", "ew", "ghost")
OURS: tuple[Way, ...] = ("layers", "vmap", "patients")
#: What a private step may take of the fastest of Opacus.
LIMIT = 1.0


@dataclass(frozen=True)
class Case:
    """A network and a batch for it."""

    title: str
    model: tuple[str, dict[str, Any]]
    shape: tuple[int, ...]
    cases: int
    task: str = "classification"
    turns: int = TURNS

    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the batch."""
        source = torch.Generator().manual_seed(0)
        inputs = torch.randn(self.cases, *self.shape, generator=source)
        size = (self.cases, 1, *self.shape[1:]) if self.task == "segmentation" else (self.cases,)
        return inputs, torch.randint(0, CLASSES, size, generator=source)


CASES = {
    "mlp": Case("MLP 90-256-64-3, batch 64", ("mlp", {"hidden": [256, 64]}), (90,), 64),
    "cnn": Case("CNN 28x28, batch 64", ("cnn", {"norm": "group"}), (1, 28, 28), 64),
    "wide": Case("CNN 64x64, batch 64", ("cnn", {"norm": "group"}), (3, 64, 64), 64),
    "volumes": Case("3D CNN 32x32x32, batch 8", ("cnn", {"norm": "group"}), (1, 32, 32, 32), 8),
    "unet": Case(
        "3D U-Net 32x32x32, batch 8", ("unet", {"norm": "instance"}), (1, 32, 32, 32), 8, "segmentation", 5
    ),
}  # fmt: skip


class Losses(nn.Module):
    """The task's losses as Opacus wants them."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.task, self.reduction = build_task(case.task, CLASSES, _loss(case)), "mean"

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean, or the loss of each case."""
        losses = self.task.loss(outputs, targets)
        return losses if self.reduction == "none" else losses.mean()


def _loss(case: Case) -> str:
    return "dice_ce" if case.task == "segmentation" else "cross_entropy"


def plain(case: Case) -> Callable[[], None]:
    """An ordinary step."""
    model, task = build_model(*case.model, case.shape, CLASSES), build_task(case.task, CLASSES, _loss(case))
    inputs, targets = case.data()
    optimizer = torch.optim.SGD([model.weights], lr=1e-3)
    model.module.train()

    def step() -> None:
        model.gradient.zero_()
        task.loss(model.module(inputs), targets).mean().backward()
        optimizer.step()

    return step


def ours(case: Case, way: Way | None = None) -> Callable[[], None]:
    """A private step of ours, in the planner's way or another one."""
    model, task = build_model(*case.model, case.shape, CLASSES), build_task(case.task, CLASSES, _loss(case))
    inputs, targets = case.data()
    optimizer = torch.optim.SGD([model.weights], lr=1e-3)
    plan: PrivatePlan = choose_private_plan(model, case.shape, way=way)
    model.module.train()
    gradients = PatientGradients(model, task, NORM, case.shape, plan=plan)
    patients, draws = torch.arange(case.cases), RepeatableDraws(torch.Generator().manual_seed(0))

    def step() -> None:
        found = gradients.clipped_sum(lambda index: (inputs[index], targets[index]), patients)
        model.gradient.copy_(private_gradient(found.total, NORM, NOISE, case.cases, draws))
        optimizer.step()

    return step


def opacus(case: Case, mode: str) -> Callable[[], None]:
    """A private step of Opacus."""
    from opacus import PrivacyEngine

    module = build_model(*case.model, case.shape, CLASSES).module
    for parameter in module.parameters():
        parameter.data, parameter.grad = parameter.detach().clone(), None
    inputs, targets = case.data()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=case.cases)
    found = PrivacyEngine().make_private(
        module=module.train(), optimizer=torch.optim.SGD(module.parameters(), lr=1e-3), criterion=Losses(case),
        data_loader=loader, noise_multiplier=NOISE, max_grad_norm=NORM, poisson_sampling=False, grad_sample_mode=mode,
    )  # fmt: skip
    model, optimizer, criterion = found[0], found[1], found[2] if mode == "ghost" else Losses(case)

    def step() -> None:
        optimizer.zero_grad()
        criterion(model(inputs), targets).backward()
        optimizer.step()

    return step


STEPS: dict[str, Callable[[Case], Callable[[], None]]] = {
    "plain": plain,
    "ours": ours,
    **{f"ours {way}": lambda case, way=way: ours(case, way) for way in OURS},
    **{f"opacus {mode}": lambda case, mode=mode: opacus(case, mode) for mode in OPACUS},
}


def benchmark(name: str) -> None:
    """Times in turn, then memory of each in a process of its own."""
    case = CASES[name]
    plan = choose_private_plan(build_model(*case.model, case.shape, CLASSES), case.shape)
    steps: dict[str, Callable[[], None]] = {}
    times: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for kind, make in STEPS.items():
        if kind == f"ours {plan.way}":
            continue  # is "ours"
        try:
            step = make(case)
            step()
            step()
        except Exception as error:  # of any kind: what a mode of Opacus can't do, it says in many ways
            failed[kind] = (str(error).strip() or type(error).__name__).splitlines()[0][:90]
            continue
        steps[kind], times[kind] = step, []
    for _ in range(case.turns):
        for kind, step in steps.items():
            started = time.perf_counter()
            step()
            times[kind].append(time.perf_counter() - started)
    found = {kind: statistics.median(own) for kind, own in times.items()}
    memory = {kind: _memory(name, kind) for kind in steps}
    detail = ", ".join(f"{kind} {1000 * value:.1f} ms {memory[kind]:.0f} MB" for kind, value in found.items())
    fastest = min((value, kind) for kind, value in found.items() if kind.startswith("opacus"))
    leanest = min((memory[kind], kind) for kind in found if kind.startswith("opacus"))
    show(f"{case.title}: time", found["ours"] / fastest[0], LIMIT, f"over {fastest[1]}; {detail}")
    show(f"{case.title}: memory", memory["ours"] / leanest[0], LIMIT, f"over {leanest[1]}")
    over = f"time {found['ours'] / found['plain']:.2f}, memory {memory['ours'] / memory['plain']:.2f}"
    print(f"{'':<34} way {plan.way}; over an ordinary step: {over}")
    for kind, reason in failed.items():
        print(f"{'':<34} {kind} can't do it: {reason}")


def _memory(name: str, kind: str) -> float:
    command = [sys.executable, __file__, "--memory", name, kind]
    given = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed goes back to the system at once
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=given).stdout.split()[-1])


def memory(case: Case, kind: str) -> float:
    """Megabytes at the peak of three steps above what was held before them."""
    STEPS[kind](replace(case, cases=2))()  # loads what is loaded once
    step = STEPS[kind](case)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    for _ in range(3):
        step()
    return _resident("VmHWM") - before


def _resident(what: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in lines if line.startswith(what)).split()[1]) / 1024


def main(names: list[str]) -> None:
    """Each benchmark in a process of its own."""
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.exit(f"There is no benchmark {unknown[0]!r}; there are: {', '.join(CASES)}.")
    print(json.dumps({"torch": torch.__version__, "threads": 1}), flush=True)
    for name in names or CASES:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    if sys.argv[1:2] == ["--memory"]:
        print(memory(CASES[sys.argv[2]], sys.argv[3]))
    elif sys.argv[1:2] == ["--one"]:
        benchmark(sys.argv[2])
    else:
        main(sys.argv[1:])
