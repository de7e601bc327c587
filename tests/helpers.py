"""Small federations in memory, and studies on disk, for the tests of the core."""

from __future__ import annotations

import copy
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from polyclinic.communication.message import Message
from polyclinic.data.bags import Bags
from polyclinic.data.cases import Counts, SiteData
from polyclinic.data.dataset import Dataset
from polyclinic.data.scaling import Summary
from polyclinic.data.spec import Undersampling
from polyclinic.engine import CheckedEngine, Engine, LocalEngine
from polyclinic.models import build_model
from polyclinic.models.catalogue import MODELS
from polyclinic.parts import FEDERATION, Memory
from polyclinic.rounds import run_rounds
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Checkpoint, Progress, Row
from polyclinic.site.messages import Prepare, Train
from polyclinic.site.run import Kept
from polyclinic.state import FlatModule
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job, Outcome
from polyclinic.study.jobs import JobRunner
from polyclinic.study.kinds import ATTACKED, PLAIN, RUN, RUNS, UNSEEN, titled
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.planning import networks_at
from polyclinic.study.preparing import prepare
from polyclinic.study.public import Public
from polyclinic.tasks import build_task

#: With batches of 8: a single case left over, two cases more than a batch, smaller than a batch, several batches.
SIZES = {"Aachen": 33, "Bonn": 10, "Celle": 5, "Dresden": 20}


def table_site(name: str, cases: int, *, features: int = 5, classes: int = 2, part: str | None = "train") -> SiteData:
    """A table site whose features carry its labels and differ from other sites in mean and scale."""
    rng = np.random.default_rng(sum(map(ord, name)) + cases)
    labels = np.arange(cases) % classes
    rng.shuffle(labels)
    directions = np.random.default_rng(0).normal(size=(classes, features))
    inputs = directions[labels] + rng.normal(size=(cases, features)) + rng.normal(scale=0.5, size=features)
    return site_of(name, torch.from_numpy(inputs).float(), torch.from_numpy(labels), part)


def number_site(name: str, cases: int, *, features: int = 5, part: str | None = "train") -> SiteData:
    """A table site with a number to predict, far from 0 and wide, that depends on the features."""
    rng = np.random.default_rng(sum(map(ord, name)) + cases)
    inputs = rng.normal(size=(cases, features))
    numbers = 60 + 15 * inputs @ np.linspace(1, -1, features) + rng.normal(size=cases)
    return site_of(name, torch.from_numpy(inputs).float(), torch.from_numpy(numbers).float(), part)


def survival_site(name: str, cases: int, *, features: int = 5, part: str | None = "train") -> SiteData:
    """A table site with times of an event, some of them cut off; each site has hazards of another size."""
    rng = np.random.default_rng(sum(map(ord, name)) + cases)
    inputs = rng.normal(size=(cases, features))
    hazards = np.exp(inputs @ np.linspace(1, -1, features)) / (20 * len(name))
    times, seen = rng.exponential(1 / hazards), rng.uniform(10, 200, size=cases)
    targets = np.stack([np.ceil(np.minimum(times, seen)), times <= seen], axis=1)
    return site_of(name, torch.from_numpy(inputs).float(), torch.from_numpy(targets).float(), part)


def finding_site(
    name: str, cases: int, has: Sequence[int] = (0, 1), *, features: int = 4, part: str | None = "train"
) -> SiteData:
    """A table site with labels of some of two findings, each of which follows half of the features."""
    rng = np.random.default_rng(sum(map(ord, name)) + cases)
    inputs = rng.normal(size=(cases, features))
    half = features // 2
    known = [inputs[:, :half].sum(axis=1) > 0, inputs[:, half:].sum(axis=1) > 0]
    targets = np.stack([own + 2 * place if place in has else np.full(cases, -1) for place, own in enumerate(known)], 1)
    return site_of(name, torch.from_numpy(inputs).float(), torch.from_numpy(targets), part)


def image_site(
    name: str, cases: int, *, channels: int = 1, size: int = 8, masks: bool = False, part: str | None = "train"
) -> SiteData:
    """An image site: the label (or the mask) shows as a bright square, the background differs between sites."""
    rng = np.random.default_rng(sum(map(ord, name)) + cases)
    labels = np.arange(cases) % 2
    pixels = rng.integers(20, 60 + rng.integers(60), size=(cases, channels, size, size))
    marks = np.zeros((cases, 1, size, size), dtype=np.uint8)
    for case in range(cases):
        row, column = rng.integers(0, size // 2, size=2)
        marks[case, 0, row : row + size // 2, column : column + size // 2] = 1
    bright = marks if masks else marks * labels[:, None, None, None]
    inputs = torch.from_numpy((pixels + 100 * bright).clip(0, 255).astype(np.uint8))
    return site_of(name, inputs, torch.from_numpy(marks if masks else labels), part)


#: What is measured of images to be reconstructed.
LINES = Undersampling(acceleration=3, center=0.125)


def measured_site(name: str, cases: int, *, size: int = 16, part: str | None = "train") -> SiteData:
    """Images to be reconstructed: bright squares on a background that differs between sites."""
    data = image_site(name, cases, size=size, masks=True, part=part)
    return replace(data, targets=data.inputs, undersampling=LINES)


def bag_site(
    name: str, bags: int, *, features: int = 5, most: int = 4, far: float = 4.0, part: str | None = "train"
) -> SiteData:
    """A site whose cases are bags of one to ``most`` instances; in those of class 1 one instance alone is ``far``."""
    rng = np.random.default_rng(sum(map(ord, name)) + bags)
    labels, counts = np.arange(bags) % 2, rng.integers(1, most + 1, size=bags)
    instances = rng.normal(size=(counts.sum(), features)) + rng.normal(scale=0.3, size=features)
    starts = np.cumsum(counts) - counts
    instances[starts + rng.integers(counts), 0] += far * labels
    inputs = Bags.of(torch.from_numpy(instances).float(), counts.tolist())
    return site_of(name, inputs, torch.from_numpy(labels), part)


def bag_sites(sizes: Mapping[str, int] = SIZES, **options: Any) -> dict[str, SiteData]:
    """A site of bags for each name."""
    return {name: bag_site(name, bags, **options) for name, bags in sizes.items()}


def site_of(name: str, inputs: Tensor | Bags, targets: Tensor, part: str | None = "train") -> SiteData:
    """A site with a patient for each case, all in one part unless ``part`` is None."""
    cases = len(inputs)
    subjects, rows = [f"{name} patient {i}" for i in range(cases)], [f"row {i + 1}" for i in range(cases)]
    return SiteData(
        name, inputs, targets, subjects, rows, None if part is None else [part] * cases, Counts(cases, cases)
    )


def table_sites(sizes: Mapping[str, int] = SIZES, **options: Any) -> dict[str, SiteData]:
    """A table site for each name."""
    return {name: table_site(name, cases, **options) for name, cases in sizes.items()}


def image_sites(sizes: Mapping[str, int] = SIZES, **options: Any) -> dict[str, SiteData]:
    """An image site for each name."""
    return {name: image_site(name, cases, **options) for name, cases in sizes.items()}


def sites_apart() -> dict[str, SiteData]:
    """Two sites: the first feature tells the class, the second the site, at which classes are as frequent."""
    labels = torch.tensor([0, 1] * 8)
    signal = 2.0 * labels - 1
    return {
        name: site_of(name, torch.stack([signal, torch.full((16,), place)], 1), labels)
        for name, place in (("A", 1.0), ("B", -1.0))
    }


def straight(shape: Sequence[int], outputs: int) -> tuple[nn.Module, list[nn.Module]]:
    """A network for two inputs whose features are a linear picture of them, at first the inputs themselves."""
    body, head = nn.Linear(2, 2, bias=False), nn.Linear(2, outputs)
    body.weight.data, head.weight.data, head.bias.data = torch.eye(2), torch.eye(2), torch.zeros(2)
    return nn.Sequential(body, head), [head]


class Federation:
    """A study in memory, with prepared sites: the real declaration, job runner and loop, without files.

    Args:
        data: the sites' cases.
        methods: as in a study file.
        model: as in a study file.
        networks: as in a study file.
        training: as in a study file, on top of one round of one epoch with batches of 8 and plain SGD.
        evaluation: as in a study file; without ``folds`` the sites' own parts are used.
        task: classification or segmentation.
        classes: number of classes.
        engine: who runs the sites; default: a local engine with ``options``.
        preparation: changes of the message that prepares sites.
        options: of the local engine.
    """

    def __init__(
        self,
        data: Mapping[str, SiteData],
        methods: Sequence[Any] = ("fedavg",),
        *,
        model: Any = "logistic",
        networks: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        evaluation: Mapping[str, Any] | None = None,
        task: str = "classification",
        classes: int = 2,
        engine: Engine | None = None,
        preparation: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        training = {"rounds": 1, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.1}}} | dict(training or {})
        evaluation = {"validation": 0, "best_round": "last"} | dict(evaluation or {})
        folds = evaluation.get("folds")
        pictures = next(iter(data.values())).inputs.ndim == 4 and task == "classification"
        images = {"table": "cases.csv", "site": "site", "image": "image", "label": "label", "size": [8, 8]}
        bags = isinstance(next(iter(data.values())).inputs, Bags)
        images |= {"bag": {}, "subject": "subject"} if bags else {}
        tables = {"table": "cases.csv", "site": "site", "subject": "subject", "features": "x*", "bag": {}}
        tables |= {"time": "time", "event": "event", "time_unit": "days"} if task == "survival" else {"label": "label"}
        public = next(iter(data.values())).public
        self.declaration = declare(
            model=model, networks=dict(networks or {}), training=training, evaluation=evaluation,
            methods=list(methods), task=task,
            **({"data": images} if pictures else {"data": tables} if bags else {}), public=public is not None,
        )  # fmt: skip
        self.data, self.classes = data, classes
        self.shape = next(iter(data.values())).shape
        loss, grid = self.declaration.loss_of(self.declaration.training), self.declaration.grid
        self.outputs = build_task(task, classes, loss, grid=grid, heads=self.declaration.heads).outputs
        self.engine = engine or LocalEngine(data, **options)
        self.local = self.engine if isinstance(self.engine, LocalEngine) else LocalEngine(data)
        self.preparation = {
            "folds": folds, "validation": self.declaration.evaluation.validation, "split_seed": 0,
            "small_sites": "train", "steps": scaling_steps("none"), "augmentation": [], "classes": classes,
            **(preparation or {}),
        }  # fmt: skip
        self.fold = self.prepare(0)
        self.template = self.network(0)
        names = [f"class {i}" for i in range(classes)]
        places = prod(self.shape[1:]) if task == "segmentation" else 1
        found = None if public is None else Public((len(public), self.outputs * places), self.public)
        self.runner = JobRunner(
            self.declaration, self.engine, self.local, self.template, self.initial, names, public=found,
            networks=lambda seed: networks_at(self.declaration, self.shape, self.outputs, seed),
        )  # fmt: skip

    def public(self) -> Dataset | None:
        """The public set as the sites have it."""
        return next(iter(self.local.members.values())).public

    def prepare(self, number: int) -> Fold:
        """Split and scale at every site."""
        request = Prepare.model_validate({"fold": number, **self.preparation})
        replies = [prepare(one, request) for one in {id(e): e for e in (self.engine, self.local)}.values()][-1].replies
        parts = ("train", "validation", "test", "classes")
        targets = {
            site: Summary(*(reply.tensors[f"target_{name}"] for name in ("count", "mean", "m2")))
            for site, reply in replies.items()
            if "target_count" in reply.tensors
        }
        unlabelled = {site: reply.fields.get("unlabelled", 0) for site, reply in replies.items()}
        counts = ({site: reply.fields[part] for site, reply in replies.items()} for part in parts)
        return Fold(number, *counts, targets, unlabelled=unlabelled)

    def network(self, seed: int) -> FlatModule:
        """The study's network with the initial weights of a seed."""
        name, options = self.declaration.model_part
        return build_model(name, options, self.shape, self.outputs, seed=seed)

    def initial(self, seed: int) -> Tensor:
        """Initial model state of a seed."""
        return self.network(seed).vector

    def method(self, label: str | None = None) -> StudyMethod:
        """A method of the study; without a label, the first."""
        methods = self.declaration.study_methods
        return methods[0] if label is None else next(method for method in methods if method.label == label)

    def plan(self, label: str | None = None, seed: int = 0) -> Plan:
        """What the loop is given."""
        job = Job((self.method(label),), seed, self.fold.number)
        return self.runner.plan(job, self.fold, self.fold.trains(job.methods[0].method))

    def rounds(
        self, label: str | None = None, seed: int = 0, *, checkpoint: Checkpoint | None = None, **options: Any
    ) -> tuple[Progress, list[Row]]:
        """Train."""
        plan = self.plan(label, seed)
        return run_rounds(plan, CheckedEngine(self.engine, plan.known), checkpoint=checkpoint, **options)

    def state(self, label: str | None = None, seed: int = 0) -> Tensor:
        """The shared state after all rounds."""
        return self.rounds(label, seed)[0].model(FEDERATION)

    def kept(self, progress: Progress) -> dict[str, Kept]:
        """What each site keeps after the training that ended with ``progress``, of the rounds that counted."""
        for site, member in self.local.members.items():
            member.run.settle(progress.counted.get(site, 0))
        return {site: member.run.kept for site, member in self.local.members.items()}

    def outcome(self, *labels: str, seed: int = 0) -> Outcome:
        """Train and test, as one job for all ``labels``."""
        methods = tuple(self.method(label) for label in labels) or (self.method(),)
        return self.runner.run(Job(methods, seed, self.fold.number), self.fold)


def has_numbers(size: int, numbers: int, messages: int = 1) -> bool:
    """Whether so many bytes are those of numbers, with what is around them in so many messages."""
    return 100 * messages < size - numbers < 800 * messages


def trained_state(request: Message, reply: Message) -> Tensor:
    """The shared state ``[Q]`` that a site trained, up to the rounding of its change."""
    change, statistics = reply.tensors["change"], reply.tensors["statistics"]
    return torch.cat([request.tensors["state"][: len(change)] + change, statistics])


def training_message(number: int, state: Tensor, *, exchange: int = 99, **tensors: Tensor) -> tuple[Train, Memory]:
    """What `polyclinic.site.round.Round` is given for a round: fields and tensors."""
    return Train(round=number, exchange=exchange, learning_rate=0.1, after_rounds=number), {"state": state, **tensors}


def scaling_steps(scaling: str, imputation: str = "mean") -> list[Any]:
    """The chain of preparation of a study that scales only."""
    if scaling == "federated":
        return [["common_scaling", {}]]
    return [["own_scaling", {"standardise": scaling == "per_site", "imputation": imputation}]]


def script(path: Path) -> ModuleType:
    """A Python file that belongs to no package, imported."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(str(path))
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)  # dataclasses look for it there
    spec.loader.exec_module(module)
    return module


def with_public(sites: dict[str, SiteData], public: Tensor) -> dict[str, SiteData]:
    """The sites, with a public set."""
    return {name: replace(data, public=public) for name, data in sites.items()}


def declare(*, public: bool = False, **entries: Any) -> Declaration:
    """A declaration; data and model are filled in where not given."""
    images = entries.get("task") == "segmentation"
    data: dict[str, Any] = {"table": "cases.csv", "site": "site"}
    data |= {"image": "image", "mask": "mask", "size": [8, 8]} if images else {"features": "x*"}
    if entries.get("task") == "survival":
        data |= {"time": "time", "event": "event", "time_unit": "days"}
    elif entries.get("task") == "multi_label":
        data["findings"] = ["tb", "edema"]
    elif entries.get("task") == "reconstruction":
        del data["features"]
        data |= {"image": "image", "size": [16, 16], "undersampling": LINES.model_dump()}
    elif not images:
        data["label"] = "label"
    entries = {"data": data, "model": "logistic", **entries}
    if public:
        entries["data"] = {**entries["data"], "public": "public.csv"}
    return Declaration.check(entries)


@contextmanager
def recorded(engine: Engine) -> Iterator[list[tuple[str, str, Message, Any]]]:
    """Everything said between ``engine`` and its sites: (function, site, request, reply), as it comes."""
    said: list[tuple[str, str, Message, Any]] = []
    original = engine.call

    def call(function: str, requests: Mapping[str, Message]) -> Iterator[tuple[str, Any]]:
        for site, reply in original(function, requests):
            said.append((function, site, requests[site], reply))
            yield site, reply

    engine.call = call  # type: ignore[method-assign]
    try:
        yield said
    finally:
        del engine.call


@contextmanager
def catalogued(name: str, build: Any) -> Iterator[str]:
    """Enter a network into the catalogue for the time of a test: ``build(shape, outputs) -> (module, head)``."""
    MODELS.add(name)(build)
    try:
        yield name
    finally:
        del MODELS._parts[name]


def plain_module(model: FlatModule, vector: Tensor) -> nn.Module:
    """An ordinary module of the same kind, whose parameters are tensors of their own, with the state ``vector``."""
    module = copy.deepcopy(model.module)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in model.layout.split(vector).items():
        tensors[name].data = value.clone()
        tensors[name].grad = None
    return module


def flat(model: FlatModule, module: nn.Module) -> Tensor:
    """The state of an ordinary module, in the order of ``model``'s layout."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return torch.cat([tensors[entry.name].detach().reshape(-1) for entry in model.layout.entries])


def exchange(model: FlatModule, module: nn.Module, start: Tensor) -> Tensor:
    """An ordinary module that trained from ``start [P]`` goes on from what a server has of it: sites send the change of
    their weights, which is rounded. Returns its state ``[P]``."""
    end, weights = flat(model, module), model.layout.trainable
    end[:weights] = start[:weights] + (end[:weights] - start[:weights])
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    for name, value in model.layout.split(end).items():
        tensors[name].data.copy_(value)
    return end


def write_table_study(folder: Path, sizes: Mapping[str, int], *, classes: int = 2, features: int = 3) -> dict[str, Any]:
    """A table of several sites in ``folder``, and the entries of a study that takes a second or two."""
    rng, rows = np.random.default_rng(5), []
    for site, cases in sizes.items():
        for case in range(cases):
            label = case % classes
            values = rng.normal(size=features) + label * np.linspace(1, 2, features)
            rows.append([site, f"MRN-{site[0]}{case:04d}-secret", f"kind {label}", *np.round(values, 4)])
    columns = ["site", "patient", "diagnosis", *(f"x{i}" for i in range(features))]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cases.csv", index=False)
    data = {"table": "cases.csv", "site": "site", "subject": "patient", "label": "diagnosis", "features": "x*"}
    return {
        "study": "A small study",
        "data": data,
        "model": {"mlp": {"hidden": [4], "norm": "batch"}},
        "training": {"rounds": 3, "batch_size": 8, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}},
        "evaluation": {"folds": 2, "bootstrap": 0, "metrics": ["auc", "acc"]},
        "methods": ["single", "cross", "ensemble", "mix", "fedavg", "fedbn", "fedadam"],
        "engine": {"threads": 1, "mode": "sequential"},
    }


def write_survival_study(folder: Path, sizes: Mapping[str, int], *, features: int = 3) -> dict[str, Any]:
    """A table with times of death or last visit at several sites in ``folder``, and a study of them."""
    rng, rows = np.random.default_rng(3), []
    for site, cases in sizes.items():
        for case in range(cases):
            values = rng.normal(size=features)
            death, visit = rng.exponential(400 / np.exp(1.5 * values[0] - values[1])), rng.uniform(50, 900)
            name = f"MRN-{site[0]}{case:04d}-secret"
            rows.append([site, name, np.ceil(min(death, visit)), 2 if death <= visit else 1, *np.round(values, 4)])
    columns = ["site", "patient", "days", "status", *(f"x{i}" for i in range(features))]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cases.csv", index=False)
    return {
        "study": "Survival",
        "task": "survival",
        "data": {
            "table": "cases.csv", "site": "site", "subject": "patient", "features": "x*",
            "time": "days", "event": "status", "positive": 2, "time_unit": "days",
        },
        "model": "logistic",
        "training": {"rounds": 8, "batch_size": 64, "optimizer": {"sgd": {"lr": 0.5}}},
        "evaluation": {"folds": 2, "bootstrap": 20, "times": [100, 200, 400]},
        "methods": ["single", "cross", "ensemble", "mix", "fedavg", "fedsgd"],
        "engine": {"threads": 1, "mode": "sequential"},
    }  # fmt: skip


def write_number_study(folder: Path, sizes: Mapping[str, int], *, features: int = 3) -> dict[str, Any]:
    """A table with the age of patients of several sites in ``folder``, and the entries of a regression study."""
    rng, rows = np.random.default_rng(8), []
    for site, cases in sizes.items():
        for case in range(cases):
            values = rng.normal(size=features)
            age = 50 + 12 * values[0] - 6 * values[1] + rng.normal()
            rows.append([site, f"MRN-{site[0]}{case:04d}-secret", round(float(age), 2), *np.round(values, 4)])
    columns = ["site", "patient", "age", *(f"x{i}" for i in range(features))]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "cases.csv", index=False)
    data = {"table": "cases.csv", "site": "site", "subject": "patient", "label": "age", "features": "x*"}
    return {
        "study": "Age",
        "task": "regression",
        "data": data,
        "model": {"mlp": {"hidden": [8]}},
        "training": {"rounds": 15, "batch_size": 8, "optimizer": {"adam": {"lr": 0.05}}},
        "evaluation": {"folds": 2, "bootstrap": 50},
        "methods": ["single", "cross", "ensemble", "mix", "fedavg"],
        "engine": {"threads": 1, "mode": "sequential"},
    }


def write_image_study(folder: Path, sizes: Mapping[str, int], *, size: int = 16) -> dict[str, Any]:
    """Grey PNG images with masks of several sites in ``folder``, and the entries of a segmentation study."""
    rows = []
    for name, cases in sizes.items():
        site = image_site(name, cases, size=size, masks=True)
        (folder / name).mkdir()
        for case in range(cases):
            paths = [f"{name}/scan-secret-{case}.png", f"{name}/mask-secret-{case}.png"]
            Image.fromarray(site.inputs[case, 0].numpy()).save(folder / paths[0])
            Image.fromarray(site.targets[case, 0].numpy() * 255).save(folder / paths[1])
            rows.append([name, f"MRN-{name[0]}{case:04d}-secret", *paths])
    pd.DataFrame(rows, columns=["site", "patient", "image", "mask"]).to_csv(folder / "cases.csv", index=False)
    data = {"table": "cases.csv", "site": "site", "subject": "patient", "image": "image", "mask": "mask"}
    return {
        "study": "A small segmentation",
        "task": "segmentation",
        "data": {**data, "size": [size, size], "channels": "grey"},
        "model": {"unet": {"channels": [4, 8], "residual_units": 0}},
        "training": {"rounds": 2, "batch_size": 4, "optimizer": {"adam": {"lr": 0.01}}},
        "evaluation": {"folds": 2, "bootstrap": 0},
        "methods": ["single", "fedavg", "fedbn"],
        "engine": {"threads": 1, "mode": "sequential"},
    }


def with_runs(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose labels say in words how methods were run, as a study writes it: with a column for that."""
    labels = table["method"]
    runs = {run: labels.str.endswith(words) for run, words in RUNS.items() if words}
    table = table.assign(method=labels.str.removesuffix(RUNS[UNSEEN]).str.removesuffix(RUNS[ATTACKED]))
    table.insert(1, RUN, np.select(list(runs.values()), list(runs), PLAIN))
    return table


def named(table: pd.DataFrame) -> pd.DataFrame:
    """The opposite: labels that say in words how a method was run, which are easier to index by."""
    return table.assign(method=[titled(*one) for one in zip(table["method"], table[RUN], strict=True)])
