"""What a federated round costs over the local training inside it.

Each line compares Polyclinic's own loop (`run_rounds` on its engine, with messages, aggregation and an atomic
checkpoint after every round) with the same work written by hand in plain PyTorch, taking turns in the same process.
Numbers are medians over rounds; the ratio is what counts. Run it on a machine that does nothing else:

    python benchmarks/rounds.py [NAME ...]
"""

from __future__ import annotations

import copy
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from polyclinic.client.personal.models import PERSONAL
from polyclinic.communication.message import Message
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.public_set import prepare_public
from polyclinic.engine import CheckedEngine, Engine, LocalEngine
from polyclinic.engine.channel import read_frame, write_frame
from polyclinic.engine.planner import choose_plan
from polyclinic.engine.processes import ProcessEngine
from polyclinic.models import build_model
from polyclinic.parts import Now, build_part
from polyclinic.rounds import run_rounds
from polyclinic.running.progress import Checkpoint
from polyclinic.server.chain import Chain
from polyclinic.server.mean import Mean
from polyclinic.site.run import not_stackable
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job
from polyclinic.study.jobs import JobRunner
from polyclinic.study.planning import work_of
from polyclinic.study.public import Public
from polyclinic.tasks import Task, build_task

REPEATS = 5


def study(
    model: dict[str, object],
    task: str,
    batch_size: int,
    rounds: int,
    method: object = "fedavg",
    *,
    images: bool = False,
    public: bool = False,
) -> Declaration:
    """A study of one method; its data entries are never read."""
    masks = task == "segmentation"
    cases = {"image": "image", "size": [8, 8]} if masks or images else {"features": "*"}
    data = {"table": "-", "site": "site", **cases, **({"mask": "mask"} if masks else {"label": "label"})}
    if public:
        data["public"] = "-"
    optimizer = {"sgd": {"lr": 0.05, "momentum": 0.9}}
    return Declaration.check({
        "data": data, "task": task, "model": model, "methods": [method],
        "training": {"rounds": rounds, "batch_size": batch_size, "optimizer": optimizer},
        "evaluation": {"best_round": "last", "subgroups": ["sex"]},
    })  # fmt: skip


class Ours:
    """Rounds of Polyclinic on prepared sites.

    Args:
        mode: as ``execution: {mode: ...}`` of a study file.
    """

    def __init__(self, declaration: Declaration, data: dict[str, SiteData], workdir: Path, mode: str = "auto") -> None:
        first = next(iter(data.values()))
        shape = tuple(first.inputs.shape[1:])
        outputs = 2 if first.targets.dim() == 1 else 1
        name, options = declaration.model_part
        template = build_model(name, options, shape, outputs)
        method = declaration.study_methods[0]
        work = work_of(method.method, method.training, list(data), mixed=False)
        personal = PERSONAL[method.method.personal[0]] if method.method.personal else None
        ends = [build_part(*part).at_site() for part in method.method.parts]
        self.plan = choose_plan(
            mode=mode, device="cpu", threads=None, workers=None, model=template, works=[work], shape=shape,
            cases=[len(cases) for cases in data.values()], passes=1000, obstacles=[not_stackable(personal, work, ends)],
        )  # fmt: skip
        self.local = LocalEngine(data, stacked=self.plan.mode == "stacked")
        self.engine: Engine = self.local
        if self.plan.mode == "processes":
            self.engine = ProcessEngine(
                data, workers=self.plan.workers, threads=self.plan.worker_threads, folders=dict.fromkeys(data)
            )
        request = Message({
            "fold": 0, "folds": None, "validation": 0.0, "split_seed": 0, "small_sites": "train",
            "steps": [["own_scaling", {"standardise": False, "imputation": "mean"}]], "augmentation": [],
            "classes": outputs,
        })  # fmt: skip
        self.engine.ask("prepare", dict.fromkeys(data, request))
        cases = {site: len(found) for site, found in data.items()}
        nothing = dict.fromkeys(data, 0)
        fold = Fold(0, cases, nothing, nothing, {site: [] for site in data})
        initial = template.vector.clone()
        public = None
        if first.public is not None:
            dataset = prepare_public(first.public, request.fields["steps"], [{}])
            public = Public((len(first.public), outputs), lambda: dataset)
        runner = JobRunner(
            declaration, self.engine, self.local, template, lambda seed: initial, ["no", "yes"], public=public
        )
        job = Job((method,), 0, 0)
        self.make = lambda: runner.plan(job, fold, list(data))
        self.checkpoint = workdir / "checkpoint"

    def rounds(self) -> list[float]:
        """Seconds of each round but the first, which warms up; ``traffic`` is then that of a site in the last one."""
        times = [time.perf_counter()]
        threads = torch.get_num_threads()
        torch.set_num_threads(self.plan.threads)
        folder = Path(tempfile.mkdtemp(dir=self.checkpoint.parent))
        plan = self.make()
        _, rows = run_rounds(
            plan, CheckedEngine(self.engine, plan.known), checkpoint=Checkpoint(folder),
            report=lambda done, total: times.append(time.perf_counter()),
        )  # fmt: skip
        self.traffic = (rows[-1]["bytes_up"], rows[-1]["bytes_down"])
        torch.set_num_threads(threads)
        return [after - before for before, after in pairwise(times[1:])]


class ByHand:
    """The same rounds as a plain PyTorch loop over sites."""

    def __init__(self, declaration: Declaration, data: dict[str, SiteData]) -> None:
        first = next(iter(data.values()))
        self.task: Task = build_task(declaration.task, 2, declaration.filled()["training"]["loss"])
        name, options = declaration.model_part
        outputs = 2 if first.targets.dim() == 1 else 1
        self.model: nn.Module = build_model(name, options, tuple(first.inputs.shape[1:]), outputs).module
        self.model = copy.deepcopy(self.model)
        for parameter in self.model.parameters():
            parameter.grad = None
        self.sites = [(_floats(cases.inputs), cases.targets) for cases in data.values()]
        self.batch_size, self.count = declaration.training.batch_size, declaration.training.rounds
        self.state = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def train(self, inputs: Tensor, targets: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """One site's epoch."""
        self.model.load_state_dict(state)
        self.model.train()
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        for index in torch.randperm(len(targets)).split(self.batch_size):
            optimizer.zero_grad()
            self.task.loss(self.model(inputs[index]), targets[index]).mean().backward()
            optimizer.step()
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}

    def round(self) -> None:
        """All sites, then the mean."""
        total = sum(len(targets) for _, targets in self.sites)
        mean: dict[str, Tensor] = {}
        for inputs, targets in self.sites:
            share = len(targets) / total
            for name, tensor in self.train(inputs, targets, self.state).items():
                if tensor.is_floating_point():
                    mean[name] = tensor * share if name not in mean else mean[name].add_(tensor, alpha=share)
                else:
                    mean[name] = tensor
        self.state = mean

    def rounds(self) -> list[float]:
        """Seconds of each round but the first."""
        times = []
        for _ in range(self.count):
            started = time.perf_counter()
            self.round()
            times.append(time.perf_counter() - started)
        return times[1:]


class TwoByHand(ByHand):
    """The same by hand with two worker processes of one thread each, states over pipes."""

    def __init__(self, declaration: Declaration, data: dict[str, SiteData]) -> None:
        super().__init__(declaration, data)
        names = list(data)
        self.workers = []
        for half in (names[::2], names[1::2]):
            process = subprocess.Popen(  # our own file
                [sys.executable, __file__, "--hand-worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            fields = {"model": list(declaration.model_part), "task": declaration.task, "sites": half,
                      "batch_size": self.batch_size}  # fmt: skip
            tensors = {f"{kind}/{name}": getattr(data[name], kind) for name in half for kind in ("inputs", "targets")}
            write_frame(process.stdin, Message(fields, tensors).to_bytes())
            self.workers.append(process)

    def round(self) -> None:
        """Send the state to both, and put their weighted sums together."""
        for worker in self.workers:
            write_frame(worker.stdin, Message({}, self.state).to_bytes())
        answers = [Message.from_bytes(read_frame(worker.stdout)) for worker in self.workers]
        cases = sum(answer.fields["cases"] for answer in answers)
        first, second = (answer.tensors for answer in answers)
        self.state = {
            name: (tensor + second[name]) / cases if tensor.is_floating_point() else tensor
            for name, tensor in first.items()
        }

    def close(self) -> None:
        """End the workers."""
        for worker in self.workers:
            if worker.stdin:
                worker.stdin.close()
            worker.wait()


def hand_worker() -> None:
    """The worker of ``TwoByHand``."""
    torch.set_num_threads(1)
    start = Message.from_bytes(read_frame(sys.stdin.buffer))
    tensors = start.tensors
    data = {
        name: SiteData(name, tensors[f"inputs/{name}"], tensors[f"targets/{name}"], [], [], None, Counts())
        for name in start.fields["sites"]
    }
    name, options = start.fields["model"]
    hand = ByHand(study({name: options}, start.fields["task"], start.fields["batch_size"], 1), data)
    cases = sum(len(targets) for _, targets in hand.sites)
    while frame := read_frame(sys.stdin.buffer):
        state = Message.from_bytes(frame).tensors
        total: dict[str, Tensor] = {}
        for inputs, targets in hand.sites:
            for key, tensor in hand.train(inputs, targets, state).items():
                scaled = tensor * len(targets) if tensor.is_floating_point() else tensor
                total[key] = total[key] + scaled if key in total and tensor.is_floating_point() else scaled
        write_frame(sys.stdout.buffer, Message({"cases": cases}, total).to_bytes())


def _floats(inputs: Tensor) -> Tensor:
    return inputs if inputs.is_floating_point() else inputs.float() / 255


def synthetic(sites: int, cases: int, shape: tuple[int, ...], masks: bool = False) -> dict[str, SiteData]:
    """Random cases of two groups; tables are float32, images bytes."""
    source = torch.Generator().manual_seed(0)
    data = {}
    for number in range(sites):
        if len(shape) == 1:
            inputs = torch.randn(cases, *shape, generator=source)
        else:
            inputs = torch.randint(0, 256, (cases, *shape), generator=source, dtype=torch.uint8)
        size = (cases, 1, *shape[1:]) if masks else (cases,)
        targets = torch.randint(0, 2, size, generator=source, dtype=torch.uint8 if masks else torch.int64)
        names = [str(case) for case in range(cases)]
        name = f"site{number:02d}"
        groups = {"sex": ["FM"[case % 2] for case in range(cases)]}
        counts = Counts(cases, cases)
        data[name] = SiteData(name, inputs, targets, names, names, ["train"] * cases, counts, groups=groups)
    return data


def compare(
    name: str, declaration: Declaration, data: dict[str, SiteData], limit: float, *, two: bool = False,
    repeats: int = REPEATS,
) -> None:  # fmt: skip
    """Take turns and print the ratio of the medians."""
    with tempfile.TemporaryDirectory() as folder:
        ours, hand = Ours(declaration, data, Path(folder)), ByHand(declaration, data)
        others: dict[str, ByHand] = {"loop": hand}
        if two:
            others["two processes by hand"] = TwoByHand(declaration, data)
        times: dict[str, list[float]] = {"ours": []} | {other: [] for other in others}
        for _ in range(repeats):
            times["ours"] += ours.rounds()
            for other, runner in others.items():
                times[other] += runner.rounds()
        ours.engine.close()
        for runner in others.values():
            if isinstance(runner, TwoByHand):
                runner.close()
    medians = {key: statistics.median(values) for key, values in times.items()}
    best = min(value for key, value in medians.items() if key != "ours")
    parts = ", ".join(f"{key} {1000 * value:.1f} ms" for key, value in medians.items())
    show(name, medians["ours"] / best, limit, f"{parts}; mode {ours.plan.mode}")


def show(name: str, ratio: float, limit: float, detail: str) -> None:
    """One line of the results."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    verdict = "reached" if ratio <= limit else "NOT reached"
    print(
        f"{name:<34} ratio {ratio:5.2f}  (to reach: {limit:.2f}, {verdict})  {detail}; peak {memory:.0f} MB", flush=True
    )


def mlp(sites: int, limit: float) -> None:
    """Multi-layer perceptron 90-64-2, 160 cases a site, batch 32."""
    declaration = study({"mlp": {"hidden": [64]}}, "classification", 32, max(248 // sites, 9))
    compare(f"MLP 90-64-2, {sites} sites", declaration, synthetic(sites, 160, (90,)), limit)


def cnn() -> None:
    """2D network with batch normalisation, 28x28, 320 cases a site, 8 sites."""
    declaration = study({"cnn": {"channels": [16, 32, 64]}}, "classification", 32, 4)
    compare(
        "CNN with BatchNorm, 28x28, 8 sites", declaration, synthetic(8, 320, (1, 28, 28)), 1.03, two=True, repeats=15
    )


def unet() -> None:
    """MONAI 3D U-Net (16, 32, 64, 128), 48x48x48, 4 sites with 4 cases, batch 2."""
    declaration = study({"unet": {"channels": [16, 32, 64, 128]}}, "segmentation", 2, 3)
    data = synthetic(4, 4, (1, 48, 48, 48), masks=True)
    compare("3D U-Net, 48x48x48, 4 sites", declaration, data, 1.03, two=True)


def adding() -> None:
    """The next model from 16 changes of 100 MB against reading each of them once."""
    size = 25_000_000
    updates = [torch.rand(size) for _ in range(16)]
    state, nothing = torch.zeros(size), torch.zeros(0)
    chain = Chain({"mean": Mean()})

    def mean() -> None:
        chain.begin(Now(0, 1, 0.1, state, nothing, 16.0))
        for number, update in enumerate(updates):
            chain.take(f"site{number}", {"change": update, "statistics": nothing}, 1.0)
        chain.finish()

    def read() -> None:
        for update in updates:
            update.sum()

    times: dict[Callable[[], None], list[float]] = {mean: [], read: []}
    for _ in range(7):
        for function, found in times.items():
            started = time.perf_counter()
            function()
            found.append(time.perf_counter() - started)
    ours, reading = (statistics.median(times[function]) for function in (mean, read))
    detail = f"mean {1000 * ours:.0f} ms, reading {1000 * reading:.0f} ms"
    show("Adding 16 updates of 100 MB", ours / reading, 2.5, detail)


def adding_memory() -> None:
    """Peak memory at the server when changes come one at a time, in models of 100 MB.

    It is what the process holds above its memory just before, to a hundredth of a model.
    """
    size, nothing = 25_000_000, torch.zeros(0)

    def arriving() -> Iterator[Tensor]:
        for number in range(16):
            yield torch.full((size,), float(number))

    def one_round(size: int, changes: Iterator[Tensor]) -> None:
        """A round of 16 changes."""
        chain = Chain({"mean": Mean()})
        chain.begin(Now(0, 1, 0.1, torch.zeros(size).fill_(1.0), nothing, 16.0))
        for change in changes:
            chain.take("site", {"change": change, "statistics": nothing}, 1.0)
            del change
        chain.finish()

    one_round(8, (torch.ones(8) for _ in range(16)))  # loads what is loaded once
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    before = pages * resource.getpagesize() / 1024
    one_round(size, arriving())
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 / (4 * size / 2**20)
    show(
        "Peak memory of adding, in models",
        round(peak, 2),
        3.0,
        "global model, running sum, and one change or the next model",
    )


BENCHMARKS: dict[str, Callable[[], None]] = {
    "mlp8": lambda: mlp(8, 0.5),
    "mlp64": lambda: mlp(64, 0.2),
    "cnn": cnn,
    "unet": unet,
    "adding": adding,
    "memory": adding_memory,
}


def main(names: list[str]) -> None:
    """Each benchmark in a process of its own, so that peak memory is its own."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"There is no benchmark {unknown[0]!r}; there are: {', '.join(BENCHMARKS)}.")
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for name in names or BENCHMARKS:
        subprocess.run([sys.executable, __file__, "--one", name], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--hand-worker"]:
        hand_worker()
    elif sys.argv[1:2] == ["--one"]:
        BENCHMARKS[sys.argv[2]]()
    else:
        main(sys.argv[1:])
