"""What methods cost. Run it on a machine that does nothing else:

python benchmarks/methods.py [--only NAME] [--method NAME ...] [--threads N]

Each line compares work of Polyclinic with something plain on the same data, taking turns in the same process. Numbers
are medians over repeats; the ratio is what counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from rounds import Ours, study, synthetic
from torch import Tensor

from polyclinic.client import LOCAL_RULES
from polyclinic.client.rules import GradientRule
from polyclinic.methods import METHODS
from polyclinic.server import ServerRule, build_server
from polyclinic.server.distances import gram
from polyclinic.server.robust import NormBound
from polyclinic.server.rules import ServerRound, Update
from polyclinic.study.declaration import Declaration

REPEATS = 5
#: Runs of each method in the section on rounds.
TURNS = 8
GRADIENT_RULES = {name for name in LOCAL_RULES if issubclass(LOCAL_RULES[name], GradientRule)}

Work = Callable[[], object]


def medians(*works: Work, repeats: int = REPEATS) -> list[float]:
    """Median seconds of each, taking turns; the first turn does not count."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, found in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return [statistics.median(found[1:]) for found in times]


def show(name: str, seconds: float, plain: float, of: str, budget: float | None) -> None:
    """A line with the ratio, its budget if it has one, and both times."""
    asked = f"(at most {budget})" if budget else ""
    print(
        f"{name:<26} {seconds / plain:6.2f} x {of:<22} {asked:<14} {1000 * seconds:7.0f} ms, {1000 * plain:6.0f} ms",
        flush=True,
    )


def robust_rules() -> None:
    """Server rules on 16 updates of 10 million weights: against reading each once, sorting them, or a Gram matrix."""
    sites, size = 16, 10_000_000
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(size, generator=generator)
    updates = [
        Update(f"site{site:02}", start + 0.01 * torch.randn(size, generator=generator), 1.0) for site in range(sites)
    ]
    now = ServerRound(0, start, size, float(sites), {update.site: 1.0 for update in updates})

    def one_round(rule: ServerRule) -> Tensor:
        rule.begin(now)
        for update in updates:
            rule.add(update)
        return rule.finish()

    def reading() -> None:
        for update in updates:
            update.state.sum()

    def matrix() -> Tensor:
        return gram([update.state for update in updates], start)

    def against(plain: Work, of: str, budget: float | None, names: dict[str, dict[str, object]]) -> None:
        for name, options in names.items():
            rule = build_server([(name, options)])
            ours, theirs = medians(lambda rule=rule: one_round(rule), plain)  # type: ignore[misc]
            show(name, ours, theirs, of, budget)

    against(reading, "reading", 2.5, {"mean": {}, "norm_bound": {"bound": 1e9}, "fltrust": {"trusted": "site00"}})
    corrupt: dict[str, object] = {"corrupt": 3}
    against(matrix, "Gram matrix", None, {
        "geometric_median": {}, "dos": {}, "krum": corrupt, "multi_krum": corrupt, "bulyan": corrupt
    })  # fmt: skip

    def bounding() -> None:
        bound = NormBound(bound=1e9)
        bound.begin(now)
        for update in updates:
            bound.update(update)

    def sorting() -> float:
        stacked = torch.stack([update.state for update in updates])
        return medians(lambda: stacked.sort(dim=0), repeats=3)[0]

    show("norm_bound without a mean", *medians(bounding, reading), "reading", None)
    plain = sorting()
    for name, options in (("median", {}), ("trimmed_mean", {"trim": 1}), ("trimmed_mean", {"trim": 4})):
        rule = build_server([(name, options)])
        (ours,) = medians(lambda rule=rule: one_round(rule))  # type: ignore[misc]
        show(f"{name} {options.get('trim', '')}", ours, plain, "torch.sort", 0.5)


#: Options that a method can't do without, and those that eight sites allow.
OPTIONS: dict[str, dict[str, object]] = {"fltrust": {"trusted": "site00"}}


class Network(NamedTuple):
    """What is trained in the section on rounds: eight sites, batches of 32.

    Attributes:
        title: for the output.
        model: as in a study file.
        shape: of a case.
        cases: of each site.
        rounds: of a run.
    """

    title: str
    model: dict[str, object]
    shape: tuple[int, ...]
    cases: int
    rounds: int


NETWORKS = (
    Network("MLP 90-64-2 (batch norm)", {"mlp": {"hidden": [64], "norm": "batch"}}, (90,), 640, 12),
    Network("CNN, 28x28", {"cnn": {"channels": [16, 32, 64]}}, (1, 28, 28), 160, 5),
)


def rounds_of_methods(only: Sequence[str] = ()) -> None:
    """A round of each method over one of fedavg on the same work, and its traffic a site and round over fedavg's."""
    for network in NETWORKS:
        data = synthetic(8, network.cases, network.shape)
        with tempfile.TemporaryDirectory() as folder:

            def trained(name: str, network: Network = network) -> Declaration:
                method = {name: OPTIONS.get(name, {})}
                return study(network.model, "classification", 32, network.rounds, method)

            plain = Ours(trained("fedavg"), data, Path(folder))
            for name in only or METHODS:
                method = METHODS[name](**OPTIONS.get(name, {}))
                if method.scope != "federation" or name == "fedavg":
                    continue
                own = Ours(trained(name), data, Path(folder))
                turns = [(statistics.median(own.rounds()), statistics.median(plain.rounds())) for _ in range(TURNS)]
                # The machine's speed drifts by more than most methods cost: each turn is compared with its neighbour.
                seconds = statistics.median(theirs for _, theirs in turns)
                times = seconds * statistics.median(ours / theirs for ours, theirs in turns), seconds
                up, down = (mine / fedavgs for mine, fedavgs in zip(own.traffic, plain.traffic, strict=True))
                budget = 1.05 if {rule for rule, _ in method.local} & GRADIENT_RULES else None
                show(name, *times, f"fedavg ({own.plan.mode})", budget)
                print(f"{'':<26} up {up:.2f}, down {down:.2f}   {network.title}", flush=True)
                own.engine.close()
            plain.engine.close()


def main() -> None:
    """Run all sections, or one."""
    parser = argparse.ArgumentParser(description="What methods cost.")
    parser.add_argument("--only", choices=("robust_rules", "rounds"), help="run this section alone")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), help="rounds of these methods alone")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    if arguments.only != "rounds" and not arguments.method:
        print(f"-- {robust_rules.__doc__}", flush=True)
        robust_rules()
    if arguments.only != "robust_rules":
        print(f"-- {rounds_of_methods.__doc__}", flush=True)
        rounds_of_methods(arguments.method or ())


if __name__ == "__main__":
    main()
