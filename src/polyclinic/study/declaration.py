"""The study file: what a user asks for, checked before anything is read or written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PrivateAttr, ValidationError, field_validator

from polyclinic.audit.poisoning import Attack, read_attack
from polyclinic.composition import METHODS
from polyclinic.data.masks.entries import unannotated
from polyclinic.data.preparation import needs_all_sites
from polyclinic.data.spec import DataSpec, Target
from polyclinic.data.tables.findings import finding_classes
from polyclinic.data.volumes.fingerprint import VolumePlan
from polyclinic.errors import StudyError, nearest
from polyclinic.methods import Method
from polyclinic.options import EntryError, first_entry_error
from polyclinic.parts import build_part
from polyclinic.site.messages import LEAST_DRAWS, Allowance
from polyclinic.study.baselines import BASELINES
from polyclinic.study.candidates import check_rounds, find_candidates
from polyclinic.study.compatibility import around_changes, protecting
from polyclinic.study.data_entry import check_data
from polyclinic.study.entries import (
    EngineOptions,
    Entry,
    Evaluation,
    FinalModel,
    Part,
    PrivacyOptions,
    ReportOptions,
    Search,
    Training,
    check_keys,
)
from polyclinic.study.final_model.entry import check_final_model
from polyclinic.study.findings_entry import check_finding_losses
from polyclinic.study.method_entries import (
    Candidate,
    MethodReader,
    StudyMethod,
    check_training,
    filled_training,
    loss_of,
)
from polyclinic.study.networks_entry import AUTO, Named, read_network, read_networks
from polyclinic.study.side_by_side.jobs_entry import check_ray, wanted_jobs
from polyclinic.study.subgroup_entries import check_subgroups
from polyclinic.study.table_files import parquet_problem
from polyclinic.study.times_entry import check_times, time_grid
from polyclinic.study.tracking.entry import Options, read_trackers
from polyclinic.tasks import TASKS, build_task
from polyclinic.tasks.base import Head, TimeGrid


class Declaration(Part):
    """A whole study file."""

    study: str = "Federated study"
    data: DataSpec
    task: str = "classification"
    model: Entry
    networks: dict[str, Entry] = Field(default={})
    """Site -> its network, of sites that have another than ``model``."""
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    search: Search | None = None
    methods: list[Entry] = Field(default=["single", "cross", "ensemble", "mix", "fedavg"])
    final_model: FinalModel | None = None
    """The method whose model the study ends with; its label alone is enough."""
    seeds: list[int] | None = None
    seed: int | None = None
    engine: EngineOptions = EngineOptions()
    privacy: PrivacyOptions = PrivacyOptions()
    report: ReportOptions = ReportOptions()
    tracking: list[Entry] = Field(default=[])
    """Who is told of the study while it runs; it changes nothing of it, and is no part of what it is known by."""
    attack: dict[str, Any] | None = None
    """Sites that are turned bad in a simulation; see `polyclinic.audit.poisoning`."""

    _attack: Attack | None = PrivateAttr(default=None)
    _methods: list[StudyMethod] = PrivateAttr(default_factory=list)
    _trackers: dict[str, Options] = PrivateAttr(default_factory=dict)
    _candidates: dict[str, list[Candidate]] = PrivateAttr(default_factory=dict)
    _model: Named = PrivateAttr(default=("", {}))
    _network: Named | None = PrivateAttr(default=None)
    _networks: dict[str, Named] = PrivateAttr(default_factory=dict)
    _weights: Path | None = PrivateAttr(default=None)
    _folder: Path | None = PrivateAttr(default=None)

    @field_validator("final_model", mode="before")
    @classmethod
    def _named_alone(cls, given: Any) -> Any:
        return {"method": given} if isinstance(given, str) else given

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        if name not in TASKS:
            *others, last = map(repr, TASKS)
            raise ValueError(f"expected {', '.join(others)} or {last}")
        return name

    @classmethod
    def check(cls, content: dict[str, Any]) -> Declaration:
        """A declaration from the content of a study file.

        Raises:
            EntryError: with the place of the first entry that does not fit.
        """
        check_keys(cls, content, ())
        try:
            declaration = cls.model_validate(content)
        except ValidationError as error:
            raise first_entry_error(error, content) from None
        declaration._resolve()
        return declaration

    @property
    def study_methods(self) -> list[StudyMethod]:
        """The methods with their parts."""
        return self._methods

    @property
    def baselines(self) -> dict[str, str]:
        """``single`` and ``fedavg`` -> label of the method of the study that all others are compared with under it.

        It is the first one of that name in the catalogue whose parts are the catalogue's own; one that has the study's
        own training goes before one that changes it. A baseline that the study does not have is not there.
        """
        found = {}
        for name in BASELINES:
            plain = METHODS[name]().text
            own = [one for one in self._methods if one.name == name and one.method.text == plain]
            for one in sorted(own, key=lambda one: one.training != self.training)[:1]:
                found[name] = one.label
        return found

    def candidates(self, method: StudyMethod) -> list[Candidate]:
        """What a search tries for a method of the study; the first is the method as the study file has it."""
        return self._candidates.get(method.label, [Candidate(method, {})])

    @property
    def configurations(self) -> list[StudyMethod]:
        """Everything that may be trained: the methods, and what a search tries of them."""
        return [one.method for method in self.study_methods for one in self.candidates(method)]

    @property
    def trackers(self) -> dict[str, Options]:
        """Name -> options of all that are told of the study."""
        return self._trackers

    @property
    def corrupted_by(self) -> Attack | None:
        """What is done to some of the sites, as the study file says it."""
        return self._attack

    @property
    def model_part(self) -> Named:
        """Name and complete options of the network, as the sites are told: a bundle is what was read from it."""
        return self._network or self._model

    @property
    def own_networks(self) -> dict[str, Named]:
        """Site -> the same of its network, of the sites that have another than the study's."""
        return {site: named for site, named in self._networks.items() if named != self.model_part}

    @property
    def all_networks(self) -> list[Named]:
        """The networks of the study, its own first, each once."""
        found = [self.model_part]
        for named in self.own_networks.values():
            if named not in found:
                found.append(named)
        return found

    @property
    def initial_weights(self) -> Path | None:
        """File with the weights that training starts from; None starts from random ones."""
        return self._weights

    @property
    def folder(self) -> Path | None:
        """To which paths of the study are relative, once it is known."""
        return self._folder

    def read_bundle(self, folder: Path) -> None:
        """Read the definition of the network where the model is a bundle; its path is relative to ``folder``.

        Raises:
            EntryError: P102, the bundle can't be used.
        """
        self._folder = folder
        name, options = self._model
        if name != "bundle":
            return
        from polyclinic.models.bundle import read_bundle

        try:
            found = read_bundle(folder / options["path"], weights=options["weights"])
        except StudyError as error:
            raise EntryError(error.code, error.message, error.hint, place=("model", "bundle", "path")) from None
        arguments = {"network": found.network, "arguments": found.arguments, "head": options["head"]}
        self._network, self._weights = ("monai", arguments), found.weights

    @property
    def target(self) -> Target:
        """What is predicted of each case: labels, numbers, masks, times, findings or images."""
        return TASKS[self.task].target

    @property
    def metrics(self) -> list[str]:
        """The metrics asked for; the first is the primary one."""
        return self.evaluation.metrics or TASKS[self.task].metrics_by_default(self.grid)

    @property
    def grid(self) -> TimeGrid:
        """The times at which survival is predicted, and the intervals of time; empty for other tasks."""
        return time_grid(self.data, self.evaluation)

    @property
    def heads(self) -> list[Head]:
        """The labels that are predicted, where they are several; empty for other tasks."""
        weights = {name: one.weight for name, one in (self.data.findings or {}).items()}
        return [Head(name, len(classes), weights[name]) for name, classes in finding_classes(self.data).items()]

    @property
    def until(self) -> float | None:
        """Up to when survival is asked for."""
        return self.grid.times[-1] if self.grid.times else None

    @property
    def validation_metric(self) -> str:
        """The metric that is measured on validation cases."""
        return TASKS[self.task].validation_metric(self.metrics[0])

    def loss_of(self, training: Training) -> tuple[str, dict[str, Any]]:
        """Name and options of the loss of a training of this study."""
        return loss_of(training, self.task)

    @property
    def folds(self) -> int | None:
        """Number of folds, or None where a column fixes the split or one part is held out."""
        return self.evaluation.number_of_folds

    @property
    def fold_numbers(self) -> list[int]:
        """The folds that are tested; none where the study makes a model alone."""
        alone = self.final_model is not None and self.final_model.alone
        return [] if alone else list(range(self.folds or 1))

    @property
    def final_fold(self) -> int:
        """Number of the split whose training part has all cases that are not held out for good: one after the folds, so
        that no training on it draws what one of a fold draws."""
        return self.folds or 1

    @property
    def final_validation(self) -> float:
        """Share of the patients that choose the best round of the final model; 0 where the rounds are known."""
        asked = self.final_model
        return self.evaluation.validation if asked is not None and asked.alone and asked.rounds is None else 0.0

    @property
    def all_seeds(self) -> list[int]:
        """The seeds of the repetitions."""
        return self.seeds if self.seeds is not None else [self.seed or 0]

    @property
    def search_seeds(self) -> list[int]:
        """The model seeds of a search's trials."""
        given = self.search.seeds if self.search else None
        return given if given is not None else [max(self.all_seeds) + 1]

    @property
    def search_folds(self) -> int | None:
        """On how many folds each trial of the one search is run; None where each fold has its own."""
        return None if self.search is None or self.search.nested else self.search.folds or 1

    @property
    def search_by(self) -> Literal["loss", "metric"]:
        """What the best trial is chosen by."""
        given = self.search.choose_by if self.search else None
        return given or ("metric" if self.evaluation.best_round == "metric" else "loss")

    @property
    def wants_plan(self) -> bool:
        """Whether grid, boxes or network are to be planned from the sites' images."""
        return self.data.wants_plan or self.model == AUTO

    def planned(self, plan: VolumePlan) -> Declaration:
        """This study with the values of a plan where it says ``auto``."""
        content = self.filled()
        data = content["data"]
        for key, value in (("spacing", plan.spacing), ("size", plan.size)):
            if data["preprocessing"][key] == AUTO:
                data["preprocessing"][key] = list(value)
        if data["preprocessing"]["intensity"] == AUTO:
            if not plan.intensity:
                raise EntryError(
                    "P102", "some images look like CT (air at -1000), and others don't.",
                    "Say how values are normalised: `window` for CT, `zscore` for MR.",
                    place=("data", "preprocessing", "intensity"),
                )  # fmt: skip
            data["preprocessing"]["intensity"] = plan.intensity
        if data["patch"] == AUTO:
            data["patch"] = None if plan.patch is None else {"size": list(plan.patch)}
        if self.model == AUTO:
            content["model"] = plan.model
        content["tracking"] = self.tracking
        planned = Declaration.check({key: value for key, value in content.items() if value is not None})
        planned._folder = self._folder
        return planned

    def allowance(self, method: Method) -> Allowance | None:
        """What noise of a method is to guarantee; None where it has none."""
        if not protecting(method):
            return None
        asked = self.privacy
        return Allowance(epsilon=asked.epsilon, delta=asked.delta, over=asked.over)

    def hides_of(self, method: Method) -> bool:
        """Whether sites tell in sums alone what is told of their cases in a training of a method. Where each site has a
        model of its own, or a pool all cases, there is nothing to sum."""
        return self.privacy.summaries is not None and method.scope == "federation"

    def is_unseen(self, method: StudyMethod) -> bool:
        """Whether the method is also run without each site in turn."""
        wanted = self.evaluation.unseen_sites
        if isinstance(wanted, list):
            return method.label in wanted or method.name in wanted
        return wanted and method.method.scope != "sites"

    def filled(self) -> dict[str, Any]:
        """The content of a study file that says everything: this study with every default filled in.

        All but ``tracking``, so that a study is the same, whoever is told of it.
        """
        content = self.model_dump(mode="json", exclude={"seed", "tracking"})
        content["model"] = {self._model[0]: self._model[1]}
        content["networks"] = {site: {name: options} for site, (name, options) in self._networks.items()}
        if not self._networks:
            del content["networks"]
        del content["attack"]
        if self._attack is not None:
            content["attack"] = self._attack.entry()
        content["methods"] = [method.entry for method in self._methods]
        content["seeds"] = self.all_seeds
        content["training"].update(filled_training(self.training, self.task))
        content["evaluation"].update(folds=self.folds, metrics=self.metrics)
        if self.evaluation.predictions == "sites":
            content["report"]["overlays"] = False
        if self.final_model is None:
            del content["final_model"]
        if self.search is None:
            del content["search"]
        else:
            content["search"].update(seeds=self.search_seeds, folds=self.search_folds, choose_by=self.search_by)
        return content

    def _check_space(self) -> None:
        """Whether there are masks where it is said in which space they are measured."""
        if self.target != "masks" and self.evaluation.space == "original":
            message = f"`space: original` is for segmentation: {self.task} has no masks to bring back to the images."
            raise EntryError("P104", message, "Leave it out.", place=("evaluation", "space"))

    def _check_predictions(self) -> None:
        """What does not go with predictions that stay at the sites."""
        evaluation, report = self.evaluation, self.report
        if evaluation.predictions != "sites":
            return
        if "overlays" in report.model_fields_set and report.overlays:
            message = "With `predictions: sites` nothing of a single patient leaves a site, and overlays show patients."
            raise EntryError("P104", message, "Set `overlays: false`, or leave it out.", place=("report", "overlays"))
        self.check_kept_at_sites()

    def check_kept_at_sites(self) -> None:
        """What sites that keep their predictions refuse; between hospitals they do so unless the study asks for them.

        Raises:
            EntryError: P104, a bootstrap of few draws.
        """
        evaluation = self.evaluation
        if evaluation.predictions != "coordinator" and 0 < evaluation.bootstrap < LEAST_DRAWS:
            message = (
                f"Where sites keep their predictions, a bootstrap has {LEAST_DRAWS} draws or more: few of them tell of "
                "patients."
            )
            hint = f"Set `bootstrap: 0`, or {LEAST_DRAWS} or more."
            raise EntryError("P104", message, hint, place=("evaluation", "bootstrap"))

    def _check_summaries(self, methods: list[StudyMethod]) -> None:
        """What does not go with summaries of which the coordinator sees sums alone."""
        if self.privacy.summaries is None:
            return
        place, combat = ("privacy", "summaries"), self.data.harmonisation.combat
        if find_spec("cryptography") is None:
            hint = "pip install 'polyclinic[secure]'"
            raise EntryError("P503", "Secure sums need the package cryptography.", hint, place=place)
        if combat is not None and combat.reference_site is not None:
            message = "`reference_site` makes the summary of one site known, and `summaries: secure_sum` hides it."
            raise EntryError("P104", message, "Leave one of the two out.", place=place)
        unseen = [method.label for method in methods if self.is_unseen(method)]
        if unseen and needs_all_sites(self.data):
            message = (
                f"For `unseen_sites` cases are prepared again without each site ({unseen[0]}): the sum over all sites "
                "less that over the others would be the summary of that site."
            )
            hint = "Use `scaling: per_site` and no `harmonisation`, or leave out `unseen_sites` or `summaries`."
            raise EntryError("P104", message, hint, place=place)

    def _check_bare(self, method: StudyMethod, place: tuple[str | int, ...]) -> None:
        """What leaves sites at the end that noise on changes does not reach."""
        noisy = around_changes(method.method)
        if not noisy:
            return
        if self.is_unseen(method) and method.method.share != "all":
            message = (
                f"What {method.label} keeps at the sites has no noise of {noisy[0]}, and for `unseen_sites` whole "
                "models leave them."
            )
            hint = "Use `share: all`, noise in training (`dp_sgd`), or leave it out of `unseen_sites`."
            raise EntryError("P104", message, hint, place=place)
        if build_task(self.task, 0, self.loss_of(method.training), grid=self.grid).needs_sums:
            message = (
                f"Survival at the `times` by Cox's model needs sums over training patients, which leave the sites "
                f"without noise of {noisy[0]}."
            )
            hint = "Use `loss: discrete_time`, or leave out `times`."
            raise EntryError("P104", message, hint, place=place)

    # Checks that need more than one entry -------------------------------------------------------------------------

    def _resolve(self) -> None:
        self._model = read_network(self.model, self.data)
        self._networks = read_networks(self.networks, self.data)
        if self.model == AUTO and self.data.preprocessing is None:
            raise EntryError("P104", "`model: auto` is planned from volumes.", "Name a model.", place=("model",))
        check_data(self.data, self.task)
        check_training(self.training, self.task, ("training",))
        self._check_predictions()
        self._check_space()
        evaluation = self.evaluation
        check_subgroups(evaluation, self.data)
        ways = [way for way in ("folds", "split", "holdout") if getattr(evaluation, way)]
        if len(ways) > 1:
            message = f"`{ways[0]}` and `{ways[1]}` exclude each other; give one."
            raise EntryError("P102", message, place=("evaluation", ways[1]))
        for position, metric in enumerate(evaluation.metrics):
            valid = TASKS[self.task].all_metrics()
            if metric not in valid:
                hint = nearest(metric, valid)
                place = ("evaluation", "metrics", position)
                raise EntryError("P103", f"{metric!r} is no metric of {self.task}.", hint, place=place)
        if self.seeds is not None and self.seed is not None:
            raise EntryError("P102", "`seed` and `seeds` exclude each other; give one.", place=("seed",))
        if not self.methods or (self.seeds is not None and not self.seeds):
            key = "methods" if not self.methods else "seeds"
            raise EntryError("P102", f"`{key}` is empty; give at least one.", place=(key,))
        if self.engine.precision == "mixed" and self.engine.mode == "stacked":
            hint = "Use `mode: sequential`, or `precision: float32`."
            raise EntryError("P104", "Stacked training has no mixed precision.", hint, place=("engine", "precision"))
        try:
            wanted_jobs(self.engine, None)
        except StudyError as error:
            raise EntryError(error.code, error.message, error.hint, place=("engine", "jobs")) from None
        try:
            check_ray(self.engine)
        except StudyError as error:
            raise EntryError(error.code, error.message, error.hint, place=("engine", "ray")) from None
        if self.report.tables == "parquet" and (problem := parquet_problem()):
            message = f"Tables as Parquet need {problem}."
            hint = "Run: pip install 'polyclinic[parquet]', or use `tables: csv`."
            raise EntryError("P503", message, hint, place=("report", "tables"))
        self._trackers = read_trackers(self.tracking)
        if self.attack is not None:
            self._attack = read_attack(self.attack, self.target, self.data.image is not None)
        mixed, images = self.engine.precision == "mixed", self.data.image is not None
        subgroups = [one.column for one in self.evaluation.grouped_by]
        public = self.data.public is not None
        networks = bool(self.own_networks)
        partial = bool(self.data.structures and unannotated(self.data))
        reader = MethodReader(
            self.task, self.training, mixed, images, subgroups, self._model[0], public, networks, partial
        )
        methods = [reader.read(entry, ("methods", i)) for i, entry in enumerate(self.methods)]
        labels = [method.label for method in methods]
        for position, label in enumerate(labels):
            if label in labels[:position]:
                hint = "Give one of them another `label:`."
                raise EntryError("P102", f"The method {label} is there twice.", hint, place=("methods", position))
        if isinstance(evaluation.unseen_sites, list):
            for position, name in enumerate(evaluation.unseen_sites):
                known = labels + [method.name for method in methods]
                if name not in known:
                    hint = nearest(name, sorted(set(known)))
                    place = ("evaluation", "unseen_sites", position)
                    raise EntryError("P103", f"{name!r} is not among the study's methods.", hint, place=place)
                if any(m.method.scope == "sites" for m in methods if name in (m.label, m.name)):
                    hint = "Every site is unseen to the others in `cross`."
                    place = ("evaluation", "unseen_sites", position)
                    raise EntryError("P104", f"{name} trains each site alone.", hint, place=place)
        if self.privacy.epsilon is not None and not any(protecting(method.method) for method in methods):
            message = "The study has a budget of `privacy`, and no method has noise that could keep it."
            hint = "Add a part such as `dp_sgd`, `gaussian_noise` or `central_noise` to a method, or leave it out."
            raise EntryError("P104", message, hint, place=("privacy",))
        if self.privacy.over == "study" and self.privacy.epsilon is None:
            message = "`over: study` says for what ε is, and there is none."
            raise EntryError("P104", message, "Give `epsilon`, or leave `over` out.", place=("privacy", "over"))
        if self._attack is not None and self._attack.changes_updates:
            for position, method in enumerate(methods):
                coded = [name for name, options in method.method.channel if build_part(name, options).encodes]
                if coded:
                    message = f"{self._attack.name} forges updates, and {method.label} sends them coded by {coded[0]}."
                    hint = f"Leave {coded[0]} out, or choose an attack on the cases of sites."
                    raise EntryError("P104", message, hint, place=("methods", position))
        check_times(self.data, evaluation, self.task, [self.loss_of(method.training)[0] for method in methods])
        check_finding_losses(self.data, self.task, [self.loss_of(method.training)[0] for method in methods])
        for position, method in enumerate(methods):
            self._check_bare(method, ("methods", position))
        self._check_summaries(methods)
        self._methods = methods
        if self.search is not None:
            self._candidates = find_candidates(self.search, methods, reader, evaluation, self.all_seeds[0])
            check_rounds(self.search, [one for found in self._candidates.values() for one in found])
        if self.final_model is not None:
            check_final_model(
                self.final_model, methods, lambda label: len(self._candidates.get(label, ())) > 1,
                networks=networks,
            )  # fmt: skip
