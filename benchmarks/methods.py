"""What methods cost. Run it on a machine that does nothing else:

python benchmarks/methods.py [--only NAME] [--method NAME ...] [--threads N]

Each line compares work of Polyclinic with something plain on the same data, taking turns in the same process. Numbers
of rounds are medians over repeats, those of server rules the least; the ratio is what counts. Memory is measured in a
process for each method.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from rounds import Ours, study, synthetic
from torch import Tensor

from polyclinic.composition import METHODS
from polyclinic.data.cases import SiteData
from polyclinic.errors import StudyError
from polyclinic.methods import PUBLISHED
from polyclinic.parts import SERVER_PARTS, Now, Part, Update, build_part
from polyclinic.parts.site_end import overrides
from polyclinic.server.chain import Chain
from polyclinic.server.distances import gram
from polyclinic.server.robust import NormBound

#: Turns of each rule, and runs of each method in the section on rounds.
TURNS = 8
#: Weights of a change in the section on server rules.
SIZE = 10_000_000

Work = Callable[[], object]


def show(name: str, seconds: float, plain: float, of: str, budget: float | None) -> None:
    """A line with the ratio, its budget if it has one, and both times."""
    asked = f"(at most {budget})" if budget else ""
    print(
        f"{name:<26} {seconds / plain:6.2f} x {of:<22} {asked:<14} {1000 * seconds:7.0f} ms, {1000 * plain:6.0f} ms",
        flush=True,
    )


def least(*works: Work, turns: int = TURNS) -> list[float]:
    """Least seconds of each, taking turns: what the work costs where nothing else is in the way."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(turns):
        for work, found in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
    return [min(found) for found in times]


def robust_rules() -> None:
    """Server rules on 16 changes of 10 million weights: against reading each once, sorting them, or a Gram matrix."""
    sites, size = 16, SIZE
    generator = torch.Generator().manual_seed(0)
    start, none = torch.randn(size, generator=generator), torch.zeros(0)
    changes = {f"site{site:02}": 0.01 * torch.randn(size, generator=generator) for site in range(sites)}
    now = Now(0, 1, 0.1, start, none, float(sites), dict.fromkeys(changes, 1.0))

    def chain_of(name: str, options: dict[str, object]) -> Chain:
        return Chain({name: SERVER_PARTS[name](**options).at_server()})

    def one_round(chain: Chain) -> object:
        chain.begin(now)
        for site, change in changes.items():
            chain.take(site, {"change": change, "statistics": none}, 1.0)
        return chain.finish()

    def reading() -> None:
        for change in changes.values():
            change.sum()

    def matrix() -> Tensor:
        return gram(list(changes.values()))

    def against(plain: Work, of: str, names: dict[str, tuple[dict[str, object], float | None]]) -> None:
        for name, (options, budget) in names.items():
            chain = chain_of(name, options)
            ours, theirs = least(lambda chain=chain: one_round(chain), plain)  # type: ignore[misc]
            show(name, ours, theirs, of, budget)

    against(reading, "reading", {
        "mean": ({}, 3.2), "norm_bound": ({"bound": 1e9}, 4.0), "fltrust": ({"trusted": "site00"}, 4.0)
    })  # fmt: skip
    corrupt: dict[str, object] = {"corrupt": 3}
    against(matrix, "Gram matrix", {
        "geometric_median": ({}, None), "dos": ({}, None), "krum": (corrupt, None), "multi_krum": (corrupt, None),
        "bulyan": (corrupt, None),
    })  # fmt: skip

    def bounding() -> None:
        bound = NormBound(bound=1e9)
        bound.begin(now)
        for site, change in changes.items():
            bound.take(Update(site, change, none, 1.0))

    def sorting() -> float:
        stacked = torch.stack(list(changes.values()))
        return least(lambda: stacked.sort(dim=0), turns=4)[0]

    show("norm_bound without a mean", *least(bounding, reading), "reading", None)
    plain = sorting()
    for name, options in (("median", {}), ("trimmed_mean", {"trim": 1}), ("trimmed_mean", {"trim": 4})):
        chain = chain_of(name, options)
        (ours,) = least(lambda chain=chain: one_round(chain))  # type: ignore[misc]
        show(f"{name} {options.get('trim', '')}", ours, plain, "torch.sort", 0.5)


#: Options that a method can't do without, and those that eight sites allow.
OPTIONS: dict[str, dict[str, object]] = {
    "fltrust": {"trusted": "site00"}, "fairfed": {"subgroup": "sex", "group": "F"},
    "fedmoco": {"pretraining_rounds": 1}, "fl_mrcm": {"target": "site00"}, "style_generator": {"style_rounds": 1},
}  # fmt: skip


#: They have rounds of two kinds, or need a file of weights.
OTHER_WORK = {"asyndgan", "fed_gan", "public_teacher"}


class Network(NamedTuple):
    """What is trained in the sections on rounds and memory: eight sites, batches of 32.

    Attributes:
        title: for the output.
        model: as in a study file.
        shape: of a case.
        cases: of each site.
        rounds: of a run.
        mode: how it is run; two runs in several processes each would be in each other's way.
    """

    title: str
    model: dict[str, object]
    shape: tuple[int, ...]
    cases: int
    rounds: int
    mode: str


NETWORKS = (
    Network("MLP 90-64-2 (batch norm)", {"mlp": {"hidden": [64], "norm": "batch"}}, (90,), 640, 12, "auto"),
    Network("CNN, 28x28", {"cnn": {"channels": [16, 32, 64]}}, (1, 28, 28), 160, 5, "sequential"),
)


#: Whose memory is looked at: its weights take 4.6 MB, what it makes of a batch 0.3 MB.
LARGE = (
    Network("MLP 90-1024-1024-2", {"mlp": {"hidden": [1024, 1024]}}, (90,), 64, 3, "sequential"),
    Network("CNN, 28x28", {"cnn": {"channels": [64, 128, 256]}}, (1, 28, 28), 64, 3, "sequential"),
)


def adds_to_gradient(part: Part) -> bool:
    """Whether a part adds something to each gradient, and runs nothing of its own."""
    end = part.at_site()
    return overrides(end, "gradient") and not overrides(end, "loss")


def partly_labelled(network: Network) -> dict[str, SiteData]:
    """Eight sites with as many cases without a label as with one, and the public set that some methods need."""
    data = synthetic(8, 2 * network.cases, network.shape)
    labelled = torch.arange(2 * network.cases) < network.cases
    public = next(iter(data.values())).inputs[:64]
    return {site: replace(found, labelled=labelled, public=public) for site, found in data.items()}


def runner(name: str, network: Network, data: dict[str, SiteData], folder: str) -> Ours:
    """Rounds of a method."""
    method, images = {name: OPTIONS.get(name, {})}, len(network.shape) > 1
    declared = study(network.model, "classification", 32, network.rounds, method, images=images, public=True)
    return Ours(declared, data, Path(folder), network.mode)


def covered(name: str) -> bool:
    """Whether a method trains the study's network in rounds of one kind."""
    if name in OTHER_WORK or PUBLISHED[name].network:
        return False
    return METHODS[name](**OPTIONS.get(name, {})).scope == "federation"


def rounds_of_methods(only: Sequence[str] = ()) -> None:
    """A round of each method over one of fedavg on the same work, and its traffic a site and round over fedavg's."""
    for network in NETWORKS:
        data = partly_labelled(network)
        with tempfile.TemporaryDirectory() as folder:
            plain = runner("fedavg", network, data, folder)
            for name in only or filter(covered, METHODS):
                try:
                    own = runner(name, network, data, folder)
                except StudyError as refused:
                    print(f"{name:<26} left out: {refused.message}", flush=True)
                    continue
                turns = [(statistics.median(own.rounds()), statistics.median(plain.rounds())) for _ in range(TURNS)]
                # The machine's speed drifts by more than most methods cost: each turn is compared with its neighbour.
                seconds = statistics.median(theirs for _, theirs in turns)
                times = seconds * statistics.median(ours / theirs for ours, theirs in turns), seconds
                up, down = (mine / fedavgs for mine, fedavgs in zip(own.traffic, plain.traffic, strict=True))
                parts = [build_part(part, options) for part, options in METHODS[name](**OPTIONS.get(name, {})).local]
                budget = 1.05 if any(map(adds_to_gradient, parts)) else None
                show(name, *times, f"fedavg ({own.plan.mode})", budget)
                print(f"{'':<26} up {up:.2f}, down {down:.2f}   {network.title}", flush=True)
                own.engine.close()
            plain.engine.close()


def memory_of_methods(only: Sequence[str] = ()) -> None:
    """What three rounds of a method and of fedavg take at most: eight sites and the server in one process."""
    for number, network in enumerate(LARGE):
        plain = 0.0
        for name in ("fedavg", *(only or filter(covered, METHODS))):
            command = [sys.executable, __file__, "--peak", name, str(number)]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                print(f"{name:<26} left out: {done.stderr.strip().splitlines()[-1]}", flush=True)
                continue
            peak = float(done.stdout)
            plain = plain or peak
            print(f"{name:<26} {peak:6.0f} MB, fedavg {plain:6.0f} MB   {network.title}", flush=True)


def peak_of(name: str, network: Network) -> float:
    """Megabytes that the process takes more at its peak than before the first round."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            own = runner(name, network, partly_labelled(network), folder)
        except StudyError as refused:
            sys.exit(refused.message)
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        own.rounds()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - pages * resource.getpagesize() / 1024) / 1024


def main() -> None:
    """Run all sections, or one."""
    parser = argparse.ArgumentParser(description="What methods cost.")
    parser.add_argument("--only", choices=("robust_rules", "rounds", "memory"), help="run this section alone")
    parser.add_argument("--method", nargs="+", choices=list(METHODS), help="rounds and memory of these methods alone")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    if arguments.only in (None, "robust_rules") and not arguments.method:
        print(f"-- {robust_rules.__doc__}", flush=True)
        robust_rules()
    if arguments.only in (None, "rounds"):
        print(f"-- {rounds_of_methods.__doc__}", flush=True)
        rounds_of_methods(arguments.method or ())
    if arguments.only in (None, "memory"):
        print(f"-- {memory_of_methods.__doc__}", flush=True)
        memory_of_methods(arguments.method or ())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        print(peak_of(sys.argv[2], LARGE[int(sys.argv[3])]))
    else:
        main()
