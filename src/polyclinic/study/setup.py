"""What every training of a study needs: networks of its kind, and the engine that runs its sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from polyclinic.audit.poisoning import Attack
from polyclinic.client.personal.models import PERSONAL
from polyclinic.client.work import Work
from polyclinic.data.dataset import Dataset
from polyclinic.data.opening.cohort import Cohort
from polyclinic.engine import Engine, LocalEngine
from polyclinic.engine.planner import EnginePlan, choose_plan, cores
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import StudyError
from polyclinic.methods import Method
from polyclinic.models import build_model
from polyclinic.models.bundle import load_weights
from polyclinic.parts import build_part
from polyclinic.running.plan import OwnNetwork
from polyclinic.site.run import not_stackable
from polyclinic.state import FlatModule
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.fit.networks import input_shape, network_outputs
from polyclinic.study.given.plugins import of_python
from polyclinic.study.job import Job
from polyclinic.study.planning import networks_at, work_of
from polyclinic.study.public import Public, public_of


class Setup:
    """Networks and engine of a study.

    Args:
        study: the study.
        cohort: what is known of its sites.
        sites: who carries messages to them.
        folder: the sites' own folders are made in here, if they are on this machine; None keeps nothing.
        attack: what is done to sites.

    Attributes:
        outputs: of the network.
        engines: that were started.
    """

    def __init__(
        self, study: CheckedStudy, cohort: Cohort, sites: Engine, folder: Path | None, attack: Attack | None = None
    ) -> None:
        self.declaration, self.cohort, self.sites, self.folder, self.attack = (
            study.declaration, cohort, sites, folder, attack,
        )  # fmt: skip
        self.outputs = network_outputs(self.declaration, cohort.classes)
        self.engines: list[Engine] = []
        self._start: tuple[int, torch.Tensor] | None = None
        self._own: tuple[tuple[int, str], dict[str, OwnNetwork]] | None = None
        self._device = "cpu"

    def close(self) -> None:
        """End worker processes."""
        for engine in self.engines:
            engine.close()

    def template(self, device: str) -> FlatModule:
        """A network of the study's kind on a device, on which those of single sites are from now on, too."""
        self._device = device
        name, options = self.declaration.model_part
        return self._with_weights(build_model(name, options, self._shape(), self.outputs, device=device))

    def initial(self, seed: int) -> torch.Tensor:
        """Initial model state ``[P]`` of a seed, which nobody writes into. The last one is kept: the methods of a fold
        start from the same."""
        if self._start is None or self._start[0] != seed:
            self._start = None  # not two at a time in memory
            self._start = seed, self._network(seed).vector
        return self._start[1]

    def _network(self, seed: int) -> FlatModule:
        name, options = self.declaration.model_part
        return self._with_weights(build_model(name, options, self._shape(), self.outputs, seed=seed))

    def networks(self, seed: int) -> dict[str, OwnNetwork]:
        """See `networks_at`; those of the last seed are kept."""
        wanted = seed, self._device
        if self._own is None or self._own[0] != wanted:
            self._own = None
            self._own = wanted, networks_at(self.declaration, self._shape(), self.outputs, *wanted)
        return self._own[1]

    def _with_weights(self, model: FlatModule) -> FlatModule:
        if self.declaration.initial_weights is not None:
            load_weights(model.module, self.declaration.initial_weights)
        return model

    def public(self, prepared: Callable[[], Dataset | None]) -> Public | None:
        """What trainings are given of the public set, which ``prepared`` gives."""
        return public_of(self.cohort, self.outputs, prepared, masks=self.declaration.target == "masks")

    def _shape(self) -> tuple[int, ...]:
        return input_shape(self.declaration, self.cohort)

    def plan(self, template: FlatModule, jobs: Sequence[Job] = (), *, nodes: str = "") -> EnginePlan:
        """How the sites will be run, for these trainings; without any for one at a time. ``nodes`` is the device of the
        nodes of a cluster, where these train."""
        options, training = self.declaration.engine, self.declaration.training
        device = nodes or str(template.vector.device)
        given = of_python(self.declaration)
        if options.mode == "processes" and given:
            raise StudyError("P104", "`engine: {mode: processes}` runs sites in processes of their own, which have not "
                             "the network or loss that a Python program gave.",
                             "Use `mode: auto`, or make a plug-in (`polyclinic plugin new NAME`).")  # fmt: skip
        if not isinstance(self.sites, LocalEngine):
            threads = options.threads or cores()
            why = "each site computes by itself, for one training after another"
            return EnginePlan("sequential", str(template.vector.device), threads, 0, 1, why)
        methods = self.declaration.configurations
        mixed = options.mixed_on(device)
        sites = self.cohort.sites
        works = [work_of(m.method, m.training, sites, mixed=mixed) for m in methods]
        obstacles = [_obstacle(m.method, work) for m, work in zip(methods, works, strict=True)]
        epochs = training.local_epochs if isinstance(training.local_epochs, int) else 1
        each = training.rounds * len(methods) * (self.declaration.folds or 1) * len(self.declaration.all_seeds)
        own = {one.model: None for one in self.networks(self.declaration.all_seeds[0]).values()}
        rounds = sum(job.methods[0].training.rounds for job in jobs) if jobs else each
        return choose_plan(
            mode=options.mode, device=device, threads=options.threads,
            workers=1 if given or nodes else options.workers,
            model=template, others=list(own), works=works, obstacles=obstacles, shape=self._shape(),
            cases=[facts.labelled for facts in self.cohort.facts.values()],
            passes=rounds * epochs, trainings=max(len(jobs), 1),
        )  # fmt: skip

    def start(self, plan: EnginePlan) -> tuple[Engine, LocalEngine | None]:
        """The engine that trains, and the same sites in this process if they are here."""
        torch.set_num_threads(plan.threads)
        local = self.sites
        if not isinstance(local, LocalEngine):
            self.engines = [local]
            return local, None
        local.settle(device=plan.device, stacked=plan.mode == "stacked", folder=self.folder)
        engine: Engine = local
        if plan.mode == "processes":
            engine = ProcessEngine(
                {name: site.data for name, site in local.members.items()}, workers=plan.workers,
                threads=plan.worker_threads, device=plan.device,
                folders={name: site.folder for name, site in local.members.items()},
                corruptible=self.attack is not None,
            )  # fmt: skip
        self.engines = [engine]
        return engine, local


def _obstacle(method: Method, work: Work) -> str:
    """Why sites can't be trained together with a method, besides what its network says; empty if they can."""
    personal = None if method.personal is None else PERSONAL[method.personal[0]]
    return not_stackable(personal, work, [build_part(name, options).at_site() for name, options in method.parts])
