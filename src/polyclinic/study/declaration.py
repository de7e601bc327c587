"""The study file: what a user asks for, checked before anything is read or written."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, PrivateAttr, ValidationError

from polyclinic.audit.poisoning import Attack, read_attack
from polyclinic.client.optimizers import Named, resolve_optimizer, resolve_schedule
from polyclinic.client.personal import PERSONAL
from polyclinic.client.rules import LOCAL_RULES
from polyclinic.communication.topology import TOPOLOGIES
from polyclinic.data.partition import check_partition
from polyclinic.data.spec import DataSpec
from polyclinic.data.volumes.fingerprint import VolumePlan
from polyclinic.data.volumes.prepare import check_volumes
from polyclinic.errors import StudyError, nearest
from polyclinic.methods import METHODS, SHARES, Method
from polyclinic.models.catalogue import MODELS
from polyclinic.options import Catalogue, EntryError, Place, check_options, first_entry_error, split_entry
from polyclinic.server import SERVER_RULES
from polyclinic.server.selection import PARTICIPATION, Participation
from polyclinic.study.compatibility import Local, refusal
from polyclinic.tasks import TASKS

Entry = str | dict[str, Any]
#: Parts that any federated method may be given instead of its own, or besides.
COMPOSED = ("share", "personal", "server", "local", "topology")
#: An entry that is planned from the images of all sites.
AUTO = "auto"
Fraction = Annotated[float, Field(ge=0, lt=1)]
#: Names in the catalogue of the methods that all others are compared with.
BASELINES = ("single", "fedavg")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(_Part):
    """The ``training:`` part. Methods may override any of it with ``training:`` in their entry."""

    rounds: PositiveInt = 50
    local_epochs: PositiveInt | dict[str, PositiveInt] | None = None
    """Passes over a site's training cases in each round; 1 unless ``local_steps`` is given. Or by site: {A: 5}."""
    local_steps: PositiveInt | dict[str, PositiveInt] | None = None
    """Optimiser steps in each round, instead of ``local_epochs``. Sites may differ; those not named do epochs."""
    time_budget: PositiveFloat | dict[str, PositiveFloat] | None = None
    """Seconds after which a site stops its local work of a round, though not before one step."""
    step_seconds: PositiveFloat | dict[str, PositiveFloat] | None = None
    """Declared time of a step, by which ``time_budget`` and deadlines are then kept instead of the clock."""
    batch_size: PositiveInt = 32
    optimizer: Entry = {"sgd": {"lr": 0.01, "momentum": 0.9}}
    """Any element of torch.optim that needs no closure: ``{adamw: {lr: 0.001}}``."""
    optimizer_state: Literal["reset", "keep"] = "reset"
    """Whether a site's optimiser starts anew each round; methods without a server always keep it."""
    schedule: Entry | None = None
    """Any torch.optim.lr_scheduler, stepped once a round: ``{cosine_annealing: {T_max: 50}}``."""
    loss: str | None = None
    """One of the task's losses; default: its first."""
    class_weights: Literal["none", "balanced"] | list[PositiveFloat] = "none"
    """``balanced`` weights classes by the inverse of their number over all training sites."""
    clip: PositiveFloat | None = None
    """Largest norm of a gradient."""
    weights: Literal["cases", "uniform"] = "cases"
    """Weight of a site's update: its number of training cases, or the same for all."""
    early_stopping: PositiveInt | None = None
    """Stop after so many rounds without a better validation result."""
    participation: Entry | list[Entry] | None = None
    """Who takes part in a round: a way to choose sites, or several applied one after another; default: all sites."""
    quorum: PositiveInt | None = None
    """Least number of sites that must answer each round; default: all that are asked."""


class Evaluation(_Part):
    """The ``evaluation:`` part."""

    folds: Annotated[int, Field(ge=2)] | None = None
    """Number of cross-validation folds; 5 unless ``split`` or ``holdout`` is given."""
    split: str | None = None
    """Instead of ``folds``: column with train / validation / test."""
    holdout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Instead of ``folds``: share of each site's patients that are tested, once, and never trained on."""
    validation: Fraction = 0.2
    """Share of the patients outside the test part that choose the best round and the threshold."""
    metrics: list[str] = []
    """Default: the usual ones of the task; the first is the primary one."""
    surface_tolerance: PositiveFloat = 2.0
    """Distance between outlines that the metric ``nsd`` forgives: millimetres where known, else pixels."""
    threshold: Literal["validation"] | Annotated[float, Field(gt=0, lt=1)] = "validation"
    """Decision threshold: chosen on validation data (highest balanced accuracy, or Dice), or a number. It plays no part
    for several classes or structures, or for regression."""
    best_round: Literal["loss", "metric", "last"] = "loss"
    """What chooses the round whose model is tested: validation loss, the primary metric, or simply the last round."""
    unseen_sites: bool | list[str] = False
    """Also train without each site in turn and test on it: True for all federated methods and mix, or their names."""
    small_sites: Literal["train", "drop", "stop"] = "train"
    """A site with too few patients to be split: train on it without testing, leave it out, or stop."""
    min_cases_per_class: Annotated[int, Field(ge=1)] = 5
    """A site with fewer cases of a class is not scored by itself (its cases still count in the whole)."""
    split_seed: int = 0
    """Decides the folds; the same for all seeds, so that seeds differ in training only."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples of patients for confidence intervals."""


class Search(_Part):
    """The ``search:`` part: values tried on validation data, with the same budget for every method."""

    trials: PositiveInt = 8
    """Configurations tried for each method; all there are, where there are fewer. The study's own is the first."""
    parameters: dict[str, Any] = {}
    """Entry of ``training`` -> values, for every method: ``training.optimizer.sgd.lr: [0.01, 0.1]``. Values are a list,
    ``{uniform: [low, high]}`` or ``{log: [low, high]}``."""
    methods: dict[str, dict[str, Any]] = {}
    """Label or name of a method -> its own parameters, such as ``mu``; they replace shared ones of the same name."""
    seeds: list[int] | None = None
    """Model seeds of the trials; default: one that is not among the study's."""
    nested: bool = True
    """Whether each fold (and each site left out) has a search of its own, on its own training and validation part."""
    folds: PositiveInt | None = None
    """Without ``nested``: on how many folds each trial is run; default 1."""
    rounds: PositiveInt | None = None
    """Most rounds of a trial; default: those of the method's training."""
    choose_by: Literal["loss", "metric"] | None = None
    """Validation loss, or the metric that the best round can be chosen by; default: as ``best_round``, else loss."""


class EngineOptions(_Part):
    """The ``engine:`` part."""

    mode: Literal["auto", "sequential", "stacked", "processes"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    precision: Literal["float32", "mixed"] = "float32"
    """``mixed`` trains in half precision where that is safe, on a GPU; a processor, which gains nothing, does not."""
    threads: PositiveInt | None = None
    """Threads of the arithmetic libraries; default: one for each core, at most 8."""
    workers: PositiveInt | None = None
    """Worker processes in ``processes`` mode; default: one for each core, at most one a site."""

    def mixed_on(self, device: str) -> bool:
        """Whether training on ``device`` is in mixed precision."""
        return self.precision == "mixed" and device != "cpu"


class ReportOptions(_Part):
    """The ``report:`` part."""

    overlays: bool = True
    """Whether the report of a segmentation study shows images (they are patients' pixels: only where they may be)."""


@dataclass(frozen=True)
class StudyMethod:
    """A method as the study asks for it.

    Attributes:
        label: name in all results.
        name: name in the catalogue.
        method: its parts.
        training: the study's training with the method's own changes.
        entry: the entry with every default filled in.
    """

    label: str
    name: str
    method: Method
    training: Training
    entry: dict[str, Any]

    @property
    def course(self) -> str:
        """Methods with the same text are trained in the same way, so that one training serves them all."""
        return repr((replace(self.method, tests="own"), self.training))


@dataclass(frozen=True)
class Candidate:
    """A configuration of a method that a search tries.

    Attributes:
        method: the method with these values.
        values: name of each parameter -> its value.
    """

    method: StudyMethod
    values: dict[str, Any]


class Declaration(_Part):
    """A whole study file."""

    study: str = "Federated study"
    data: DataSpec
    task: Literal["classification", "segmentation", "regression"] = "classification"
    model: Entry
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    search: Search | None = None
    methods: list[Entry] = ["single", "cross", "ensemble", "mix", "fedavg"]
    seeds: list[int] | None = None
    seed: int | None = None
    engine: EngineOptions = EngineOptions()
    report: ReportOptions = ReportOptions()
    attack: dict[str, Any] | None = None
    """Sites that are turned bad in a simulation; see `polyclinic.audit.poisoning`."""

    _attack: Attack | None = PrivateAttr(default=None)
    _methods: list[StudyMethod] = PrivateAttr(default_factory=list)
    _candidates: dict[str, list[Candidate]] = PrivateAttr(default_factory=dict)
    _model: tuple[str, dict[str, Any]] = PrivateAttr(default=("", {}))
    _network: tuple[str, dict[str, Any]] | None = PrivateAttr(default=None)
    _weights: Path | None = PrivateAttr(default=None)

    @classmethod
    def check(cls, content: dict[str, Any]) -> Declaration:
        """A declaration from the content of a study file.

        Raises:
            EntryError: with the place of the first entry that does not fit.
        """
        _check_keys(cls, content, ())
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
            plain = _as_text(METHODS[name]())
            own = [one for one in self._methods if one.name == name and _as_text(one.method) == plain]
            for one in sorted(own, key=lambda one: one.training != self.training)[:1]:
                found[name] = one.label
        return found

    def candidates(self, method: StudyMethod) -> list[Candidate]:
        """What a search tries for a method of the study; the first is the method as the study file has it."""
        return self._candidates.get(method.label, [Candidate(method, {})])

    def with_options(self, method: StudyMethod, options: dict[str, Any]) -> StudyMethod:
        """A method of the study with other options (all of its entry), under the same label.

        Raises:
            EntryError: an option does not fit.
        """
        return self._method({method.name: {**options, "label": method.label}}, ("methods",))

    @property
    def corrupted_by(self) -> Attack | None:
        """What is done to some of the sites, as the study file says it."""
        return self._attack

    @property
    def model_part(self) -> tuple[str, dict[str, Any]]:
        """Name and complete options of the network, as the sites are told: a bundle is what was read from it."""
        return self._network or self._model

    @property
    def initial_weights(self) -> Path | None:
        """File with the weights that training starts from; None starts from random ones."""
        return self._weights

    def read_bundle(self, folder: Path) -> None:
        """Read the definition of the network where the model is a bundle; its path is relative to ``folder``.

        Raises:
            EntryError: P102, the bundle can't be used.
        """
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
    def metrics(self) -> list[str]:
        """The metrics asked for; the first is the primary one."""
        return self.evaluation.metrics or list(TASKS[self.task].default_metrics)

    @property
    def folds(self) -> int | None:
        """Number of folds, or None where a column fixes the split or one part is held out."""
        return None if self.evaluation.split or self.evaluation.holdout else self.evaluation.folds or 5

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
        if data["patch"] == AUTO:
            data["patch"] = None if plan.patch is None else {"size": list(plan.patch)}
        if self.model == AUTO:
            content["model"] = plan.model
        return Declaration.check({key: value for key, value in content.items() if value is not None})

    def is_unseen(self, method: StudyMethod) -> bool:
        """Whether the method is also run without each site in turn."""
        wanted = self.evaluation.unseen_sites
        if isinstance(wanted, list):
            return method.label in wanted or method.name in wanted
        return wanted and method.method.scope != "sites"

    def filled(self) -> dict[str, Any]:
        """The content of a study file that says everything: this study with every default filled in."""
        content = self.model_dump(mode="json", exclude={"seed"})
        content["model"] = {self._model[0]: self._model[1]}
        del content["attack"]
        if self._attack is not None:
            content["attack"] = self._attack.entry()
        content["methods"] = [method.entry for method in self._methods]
        content["seeds"] = self.all_seeds
        content["training"].update(_filled_training(self.training, self.task))
        content["evaluation"].update(folds=self.folds, metrics=self.metrics)
        if self.search is None:
            del content["search"]
        else:
            content["search"].update(seeds=self.search_seeds, folds=self.search_folds, choose_by=self.search_by)
        return content

    # Checks that need more than one entry -------------------------------------------------------------------------

    def _resolve(self) -> None:
        self._model = (AUTO, {}) if self.model == AUTO else MODELS.resolve(self.model, ("model",))
        if self.model == AUTO and self.data.preprocessing is None:
            raise EntryError("P104", "`model: auto` is planned from volumes.", "Name a model.", place=("model",))
        _check_data(self.data, self.task)
        _check_training(self.training, self.task, ("training",))
        evaluation = self.evaluation
        ways = [way for way in ("folds", "split", "holdout") if getattr(evaluation, way)]
        if len(ways) > 1:
            message = f"`{ways[0]}` and `{ways[1]}` exclude each other; give one."
            raise EntryError("P102", message, place=("evaluation", ways[1]))
        for position, metric in enumerate(evaluation.metrics):
            valid = list(TASKS[self.task].metrics)
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
        if self.attack is not None:
            self._attack = read_attack(self.attack, self.task, self.data.image is not None)
        methods = [self._method(entry, ("methods", i)) for i, entry in enumerate(self.methods)]
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
        self._methods = methods
        if self.search is not None:
            from polyclinic.study.candidates import find_candidates

            self._candidates = find_candidates(self, self.search)

    def _method(self, entry: object, place: Place) -> StudyMethod:
        name, given = split_entry(entry, place, "method")
        METHODS.name(name, place)
        inner = (*place, name)
        general = ("label", *COMPOSED, "training")
        common: dict[str, Any] = {key: given.pop(key) for key in general if key in given}
        own = check_options(METHODS[name], given, inner, name)
        method = METHODS[name](**own)
        method, parts = _composed(name, method, common, inner)
        training = self.training
        if "training" in common:
            training = _override(training, common["training"], (*inner, "training"))
            _check_training(training, self.task, (*inner, "training"))
        keeps = method.keep_optimizer or training.optimizer_state == "keep"
        mixed = self.engine.precision == "mixed"
        chosen = bool(training.participation)
        refused = refusal(method, Local(self.task, optimizer_of(training)[0], keeps, mixed, chosen))
        if refused is not None:
            raise EntryError("P104", refused.message, refused.hint, place=(*inner, *refused.place(common)))
        options = ", ".join(f"{key}={_short(value)}" for key, value in {**given, **parts}.items())
        label = common.get("label", f"{name}({options})" if options else name)
        if not isinstance(label, str) or not re.fullmatch(r"[\w .,=()+\-:/\[\]]{1,80}", label):
            message = f"got the label {label!r}; expected up to 80 letters, digits, blanks or . , = ( ) + - : /."
            hint = "" if "label" in common else "It is made of the method's options; give a shorter one with `label:`."
            raise EntryError("P102", message, hint, place=(*inner, "label"))
        filled = {"label": label, **own}
        if method.scope == "federation":
            own_rules = len(METHODS[name](**own).local)
            filled |= {
                "share": method.share,
                "personal": None if method.personal is None else {method.personal[0]: dict(method.personal[1])},
                "server": [{part: dict(options)} for part, options in method.server],
                "local": [{rule: dict(options)} for rule, options in method.local[own_rules:]],
                "topology": method.topology,
            }
        if "training" in common:
            filled["training"] = common["training"]
        return StudyMethod(label, name, method, training, {name: filled})


def _composed(name: str, method: Method, common: dict[str, Any], place: Place) -> tuple[Method, dict[str, Any]]:
    """The method with other parts, and those parts for its label."""
    parts = {key: common[key] for key in COMPOSED if key in common}
    if parts and method.scope != "federation":
        key = next(iter(parts))
        hint = "Use a federated method such as fedavg."
        raise EntryError("P104", f"{name} has no server, so `{key}` means nothing.", hint, place=(*place, key))
    if "share" in parts:
        valid = [share for share in SHARES if share != "none"]
        if parts["share"] not in valid:  # a list: what is given need not be hashable
            hint = (
                "To share nothing, use the method single."
                if parts["share"] == "none"
                else nearest(str(parts["share"]), valid)
            )
            raise EntryError("P103", f"{parts['share']!r} can't be shared.", hint, place=(*place, "share"))
        method = replace(method, share=parts["share"])
    if "server" in parts:
        method = replace(method, server=_parts(parts["server"], SERVER_RULES, (*place, "server")))
    if "personal" in parts:
        taken_out = parts["personal"] is None
        if taken_out and method.personal is not None:
            parts["personal"] = "shared_model"  # as the label has it
        own = None if taken_out else PERSONAL.resolve(parts["personal"], (*place, "personal"))
        method = replace(method, personal=own)
    if "local" in parts:
        if not isinstance(parts["local"], list):
            raise EntryError("P102", f"got {parts['local']!r}; expected a list of rules.", place=(*place, "local"))
        method = replace(method, local=[*method.local, *_parts(parts["local"], LOCAL_RULES, (*place, "local"))])
    if "topology" in parts:
        topology = TOPOLOGIES.name(parts["topology"], (*place, "topology"))
        method = replace(method, topology=topology)
    return method, {k: v for k, v in parts.items() if v not in ([], "all", "star", None)}


def _as_text(method: Method) -> str:
    """The parts of a method: the same text for the same parts, whether they were spelt out or not."""
    return json.dumps(asdict(method))


def _parts(entry: object, catalogue: Catalogue[Any], place: Place) -> list[Named]:
    """An entry, or a list of entries, of a catalogue."""
    if not isinstance(entry, list):
        return [catalogue.resolve(entry, place)]
    return [catalogue.resolve(one, (*place, position)) for position, one in enumerate(entry)]


def _check_keys(model: type[BaseModel], content: object, place: Place) -> None:
    """Unknown keys first, with the nearest valid one: a typo is the most frequent mistake."""
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key not in model.model_fields:
            where = f"`{place[-1]}`" if place else "A study file"
            raise EntryError("P103", f"{where} has no entry {key!r}.", nearest(str(key), list(model.model_fields)),
                             place=(*place, key))  # fmt: skip
        annotation = model.model_fields[key].annotation
        for part in (annotation, *get_args(annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                _check_keys(part, value, (*place, key))


def _check_data(data: DataSpec, task: str) -> None:
    def refuse(key: str, message: str, hint: str = "") -> None:
        raise EntryError("P102", message, hint, place=("data", key))

    if (data.table is None) == (data.tables is None):
        refuse("table", "give either `table` (one file with a `site` column) or `tables` (one file a site).")
    if data.table is not None and data.site is None and data.partition is None:
        refuse(
            "site",
            "the entry 'site' is missing: the column of `table` that names the site.",
            "Without such a column, `partition` can make simulated sites.",
        )
    if data.tables is not None and data.site is not None:
        refuse("site", "with `tables` the sites are its keys; leave `site` out.")
    if data.image is None and data.features is None and not data.categorical:
        refuse("features", "give `features` (columns of the table) or `image` (column with image files).")
    if data.image is not None and data.features is not None:
        refuse("features", "a study has either `features` or `image`, not both.")
    check_volumes(data, task)
    check_partition(data, task)
    if data.image is not None and data.preprocessing is None:
        if data.size is None:
            refuse(
                "size", "the entry 'size' is missing: [height, width] in pixels to which images are brought.",
                "For NIfTI and DICOM give `preprocessing` instead.",
            )  # fmt: skip
        if not isinstance(data.image, str):
            refuse("image", "several image columns are channels of volumes, which need `preprocessing`.")
    if data.size is not None and min(data.size) < 8:
        refuse("size", f"got {list(data.size)}; expected at least 8 pixels each way.")
    if task == "classification" and data.label is None:
        refuse("label", "the entry 'label' is missing: the column with the class to predict.")
    if task == "regression" and data.label is None:
        refuse("label", "the entry 'label' is missing: the column with the number to predict.")
    for key in ("positive", "classes"):
        if task == "regression" and getattr(data, key) is not None:
            refuse(key, f"a number has no classes, so `{key}` means nothing.", "Use `task: classification`.")
    if data.mask_classes is not None and task != "segmentation":
        refuse("mask_classes", f"`mask_classes` is for segmentation, and the task is {task}.")
    if task == "segmentation":
        from polyclinic.data.masks.classes import MaskClasses

        try:
            MaskClasses.of(data)
        except StudyError as error:
            key = "mask_classes" if "`mask`" not in error.message else "mask"
            raise EntryError(error.code, error.message, error.hint, place=("data", key)) from None
    if task == "segmentation" and (data.mask is None or data.image is None):
        refuse("mask", "segmentation needs `image` and `mask`: columns with image and mask files.")
    if data.imputation == "median" and data.scaling == "federated":
        refuse(
            "imputation",
            "medians can't be put together from summaries.",
            "Use `imputation: mean`, or per_site scaling.",
        )
    _check_harmonisation(data)
    if data.augmentation and data.image is None:
        refuse("augmentation", "augmentation is for images; this study has features.")
    sides: tuple[int, ...] | None = data.size
    if data.preprocessing is not None:
        sides = data.box.size if data.box else data.preprocessing.sides
    if data.augmentation and sides is not None:
        from polyclinic.data.augmentation import Augmentation

        try:
            Augmentation(data.augmentation, sides)
        except StudyError as error:
            raise EntryError(error.code, error.message, error.hint, place=("data", "augmentation")) from None
    if data.subject_pattern is not None:
        try:
            groups = re.compile(data.subject_pattern).groups
        except re.error as error:
            refuse("subject_pattern", f"not a regular expression: {error}.")
        else:
            if groups < 1:
                refuse("subject_pattern", "the pattern needs a group in parentheses: the patient's part of the cell.")


def _check_harmonisation(data: DataSpec) -> None:
    combat = data.harmonisation.combat
    if combat is None:
        return
    place: Place = ("data", "harmonisation")
    if data.image is not None:
        raise EntryError("P104", "ComBat is for features of a table; this study has images.", place=place)
    for name in [*combat.covariates, *combat.groups]:
        if name == data.label:
            raise EntryError(
                "P104", f"the label {name!r} can't be a covariate: the covariates of test cases are used to harmonise "
                "them, so their labels would be known before they are predicted.",
                "Take it out of `covariates`.", place=place,
            )  # fmt: skip
        if name in (data.site, data.subject):
            raise EntryError(
                "P104", f"{name!r} names the {'site' if name == data.site else 'patient'}, so its effect can't be kept "
                "while differences between sites are taken out.", "Take it out of `covariates`.", place=place,
            )  # fmt: skip


def _check_training(training: Training, task: str, place: Place) -> None:
    if training.local_epochs and isinstance(training.local_steps, int):
        message = "`local_epochs` and `local_steps` exclude each other; give one."
        raise EntryError("P102", message, place=(*place, "local_steps"))
    if isinstance(training.local_epochs, dict) and isinstance(training.local_steps, dict):
        both = [site for site in training.local_steps if site in training.local_epochs]
        if both:
            message = f"{both[0]} has both `local_epochs` and `local_steps`; give one."
            raise EntryError("P102", message, place=(*place, "local_steps", both[0]))
    valid = list(TASKS[task].losses)
    if training.loss is not None and training.loss not in valid:
        hint = nearest(training.loss, valid)
        raise EntryError("P103", f"{training.loss!r} is no loss of {task}.", hint, place=(*place, "loss"))
    if training.class_weights != "none" and task != "classification":
        raise EntryError("P104", f"{task} has no class weights.", place=(*place, "class_weights"))
    _check_participation(training, place)
    optimizer = resolve_optimizer(training.optimizer, (*place, "optimizer"))
    if training.schedule is not None:
        resolve_schedule(training.schedule, optimizer, (*place, "schedule"), training.rounds)


def _check_participation(training: Training, place: Place) -> None:
    most = [part.most for part in build_participation(training, place) if part.most is not None]
    if most and training.quorum is not None and training.quorum > min(most):
        raise EntryError(
            "P104", f"`participation` leaves {min(most)} sites and `quorum` wants {training.quorum}, so every round "
            "would be skipped.", "Lower the quorum, or let more sites take part.", place=(*place, "quorum"),
        )  # fmt: skip


def optimizer_of(training: Training) -> Named:
    """Name and options of the local optimiser."""
    return resolve_optimizer(training.optimizer, ("training", "optimizer"))


def build_participation(training: Training, place: Place = ("training",)) -> list[Participation]:
    """Who takes part in a round."""
    place = (*place, "participation")
    entries = [] if training.participation is None else _parts(training.participation, PARTICIPATION, place)
    try:
        return [PARTICIPATION[name](**options) for name, options in entries]
    except StudyError as error:
        raise EntryError(error.code, error.message, error.hint, place=place) from None


def schedule_of(training: Training) -> Named | None:
    """Name and options of the schedule, if there is one."""
    if training.schedule is None:
        return None
    return resolve_schedule(training.schedule, optimizer_of(training), ("training", "schedule"))


def _override(training: Training, changes: object, place: Place) -> Training:
    if not isinstance(changes, dict):
        raise EntryError("P102", f"got {changes!r}; expected entries of `training`.", place=place)
    _check_keys(Training, changes, place)
    content = training.model_dump()
    if changes.keys() & {"local_epochs", "local_steps"}:
        content |= {"local_epochs": None, "local_steps": None}
    try:
        return Training.model_validate({**content, **changes})
    except ValidationError as error:
        raise first_entry_error(error, changes, place) from None


def _filled_training(training: Training, task: str) -> dict[str, Any]:
    epochs = None if isinstance(training.local_steps, int) else training.local_epochs or 1
    name, options = optimizer_of(training)
    return {"local_epochs": epochs, "loss": training.loss or TASKS[task].losses[0], "optimizer": {name: options}}


def _short(value: object) -> str:
    if isinstance(value, dict) and len(value) == 1:
        name, options = next(iter(value.items()))
        return f"{name}" if not options else f"{name}({', '.join(f'{k}={_short(v)}' for k, v in options.items())})"
    if isinstance(value, list):
        return "+".join(map(_short, value))
    return str(value)


def study_folder(path: Path) -> Path:
    """The folder that paths in the study file are relative to."""
    return path.resolve().parent
