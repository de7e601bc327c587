"""The entries of a study file that stand for themselves: their names, types, defaults and meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, Strict

from polyclinic.data.opening.subgroups import Subgroup
from polyclinic.errors import nearest
from polyclinic.limits import AboveZero
from polyclinic.options import EntryError, Place

Entry = str | dict[str, Any]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class Part(BaseModel):
    """A part of a study file: nothing but what it knows, and no infinite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Training(Part):
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
    loss: Entry | None = None
    """One of the task's losses, with or without options; default: its first."""
    class_weights: Literal["none", "balanced"] | list[PositiveFloat] = "none"
    """``balanced`` weights classes by the inverse of their number over all training sites. The loss is the mean over
    cases of weight x loss, not divided by the sum of weights as in PyTorch's ``CrossEntropyLoss(weight)``."""
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


class Evaluation(Part):
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
    times: list[PositiveFloat] = []
    """For survival: times, in the unit of the data, at which survival is predicted and measured."""
    surface_tolerance: PositiveFloat = 2.0
    """Distance between outlines that the metric ``nsd`` forgives: millimetres where known, else pixels."""
    space: Literal["grid", "original"] = "grid"
    """For segmentation: whether test cases are measured on the study's grid, or as the images are on disk."""
    threshold: Literal["validation"] | Annotated[float, Field(gt=0, lt=1)] = "validation"
    """Decision threshold: chosen on validation data (highest balanced accuracy, or Dice), or a number. It plays no part
    for several classes or structures, or for regression."""
    best_round: Literal["loss", "metric", "last"] = "loss"
    """What chooses the round whose model is tested: validation loss, the primary metric, or simply the last round."""
    unseen_sites: bool | list[str] = False
    """Also train without each site in turn and test on it: True for all federated methods and mix, or their names."""
    small_sites: Literal["train", "drop", "stop"] = "train"
    """A site with too few patients to be split: train on it without testing, leave it out, or stop."""
    voters: list[str] = []
    """Sites that train nothing: all their cases outside the test part choose the best round and the threshold."""
    min_cases_per_class: Annotated[int, Field(ge=1)] = 5
    """A site with fewer cases of a class (for survival: with the event) is not scored by itself; its cases still count
    in the whole."""
    split_seed: int = 0
    """Decides the folds; the same for all seeds, so that seeds differ in training only."""
    bootstrap: Annotated[int, Field(ge=0)] = 1000
    """Resamples of patients for confidence intervals."""
    subgroups: list[str | dict[str, list[float]]] = []
    """Columns by whose groups results are given besides: ``sex``, or ``{age: [0, 50, 65, 120]}``, cut at edges."""
    subgroup_patients: PositiveInt = 10
    """A group with fewer patients has no numbers."""
    predictions: Literal["coordinator", "sites"] | None = None
    """Where predictions of test cases are kept. ``coordinator``: all in ``predictions.csv``. ``sites``: each site keeps
    its own and answers with metrics, sums and evidence, of no single case. Default: ``sites`` where sites are on
    machines of their own, else ``coordinator``."""
    disclosure_floor: Annotated[int, Field(ge=1)] = 5
    """With ``sites``: of test cases of fewer patients a site says only how many there are."""

    @property
    def number_of_folds(self) -> int | None:
        """Number of folds, or None where a column fixes the split or one part is held out."""
        return None if self.split or self.holdout else self.folds or 5

    @property
    def grouped_by(self) -> list[Subgroup]:
        """By what patients are grouped."""
        return [Subgroup.of(entry) for entry in self.subgroups]


class Search(Part):
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


class FinalModel(Part):
    """The ``final_model:`` part: the study ends with a model that is used, trained once on all cases."""

    method: str
    """Label of one of the study's methods."""
    rounds: PositiveInt | None = None
    """Rounds of the training; default: the median of the best rounds of the study's folds."""
    calibrate: bool = False
    """Recalibrate probabilities by the study's test predictions."""
    site_models: bool = False
    """Put the whole models of all sites into the model, for use at others, where a method keeps parts of them there."""
    alone: bool = False
    """Make the model and nothing else: no folds, no results. Without ``rounds`` a validation part chooses the best."""


class RayOptions(Part):
    """The ``ray:`` entry of ``engine:``: trainings on a cluster of one institution."""

    address: Annotated[str, Field(pattern=r"^(local|auto|[A-Za-z0-9._-]+:\d+|\[[0-9a-fA-F:]+\]:\d+)$")] = "local"
    """``HOST:PORT`` of the cluster's head; ``auto`` if this machine is one of its nodes; or ``local``: one is
    started on this machine, and ended with the study."""
    cpus: PositiveInt | None = None
    """Cores that each training takes of a node; default: as many as its arithmetic threads."""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs that each training takes of a node: 0.5 lets two share one. Default: none."""
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?[MGT]B$")] | None = None
    """Memory that each training takes of a node, such as ``6GB``; default: not counted."""

    @property
    def memory_bytes(self) -> int:
        """``memory`` as a number; 0 where it is not counted."""
        if self.memory is None:
            return 0
        return int(float(self.memory[:-2]) * 10 ** {"M": 6, "G": 9, "T": 12}[self.memory[-2]])


class EngineOptions(Part):
    """The ``engine:`` part."""

    mode: Literal["auto", "sequential", "stacked", "processes"] = "auto"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")] = "auto"
    precision: Literal["float32", "mixed"] = "float32"
    """``mixed`` trains in half precision where that is safe, on a GPU; a processor, which gains nothing, does not."""
    threads: PositiveInt | None = None
    """Threads of the arithmetic libraries; default: one for each core, at most 8."""
    workers: PositiveInt | None = None
    """Worker processes in ``processes`` mode; default: one for each core, at most one a site."""
    jobs: Literal["auto"] | Annotated[int, Field(strict=True, ge=1)] = "auto"
    """How many trainings go side by side, each in a process of its own; ``auto``: as many as cores, where that pays."""
    ray: RayOptions | None = None
    """Trainings side by side on a cluster of one institution, by Ray; default: in processes of this machine."""
    deadline: PositiveFloat = 86400.0
    """Seconds within which a site on a machine of its own must answer whatever it is asked."""

    def mixed_on(self, device: str) -> bool:
        """Whether training on ``device`` is in mixed precision."""
        return self.precision == "mixed" and device != "cpu"


class PrivacyOptions(Part):
    """The ``privacy:`` part: what trainings with noise may cost the privacy of patients, and what is told in sums."""

    epsilon: AboveZero | None = None
    """ε that may be spent; parts without a noise of their own get as much as keeps it, and training ends before it is
    more. Default: none; noise is as the parts say."""
    delta: Annotated[float, Strict(), Field(gt=0, lt=1)] = 1e-5
    """δ at which ε is told: below one by the number of patients of each site."""
    over: Literal["training", "study"] = "training"
    """Whether ε is for each training, or for all trainings of the study together."""
    summaries: Literal["secure_sum"] | None = None
    """``secure_sum``: of what sites say of their cases for a common scale, ComBat, landmarks, the threshold, survival
    and validation, the coordinator sees sums over three sites or more, and no site's own. Default: in the clear."""


class ReportOptions(Part):
    """The ``report:`` part."""

    overlays: bool = True
    """Whether the report of a study of masks or reconstructions shows images (patients' pixels: only where they may
    be)."""
    tables: Literal["csv", "parquet"] = "csv"
    """The form of the tables that grow with the study: rounds, predictions, results and such."""


def check_keys(model: type[BaseModel], content: object, place: Place) -> None:
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
                check_keys(part, value, (*place, key))
