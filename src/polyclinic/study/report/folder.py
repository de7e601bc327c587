"""What the report reads: the files of a results folder. Pseudonyms and case names are never read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from pandas.api.types import is_numeric_dtype

from polyclinic.errors import ResultsError
from polyclinic.notes import Note
from polyclinic.study.baselines import BASELINES
from polyclinic.study.columns import (
    AFTER,
    BEFORE,
    CALIBRATION,
    CHARACTERISTICS,
    COMPARED,
    COMPARED_SITES,
    CONFUSION,
    DECISIONS,
    DESCRIBED,
    EXCHANGED,
    FLOW,
    LOG_RANK,
    MADE,
    MEMORISATION,
    PAYLOAD_COLUMNS,
    PRIVACY,
    SCORE_COUNTS,
    SUBGROUPS,
    SURVIVAL,
    UNSEEN_COLUMNS,
)
from polyclinic.study.ended import MODEL_FOLDER
from polyclinic.study.kinds import ATTACKED, FINAL, PLAIN, RUN, UNSEEN, Entry, check_runs, titled
from polyclinic.study.payloads import read_rounds
from polyclinic.study.report.figures import Estimate
from polyclinic.study.table_files import has_table, is_text, read_table
from polyclinic.tasks.metrics import (
    DISTANCES,
    METRICS,
    REGRESSION,
    SEVERAL_CLASSES,
    metric_text,
    split_metric,
    value_range,
)

#: Columns with a yes or no that are read as text, whoever wrote it.
WORDS = ("scored", "corrupt")
#: Columns that are never read.
HIDDEN = ("subject", "case")
COLUMNS = {
    "results.csv": ["method", RUN, "seed", "fold", "trained_on", "tested_on", "metric", "value"],
    "summary.csv": ["method", RUN, "metric", "over", "mean", "deviation", "low", "high"],
    "comparisons.csv": COMPARED,
    "site_comparisons.csv": COMPARED_SITES,
    "unseen.csv": UNSEEN_COLUMNS,
    "rounds.csv": [
        *("method", RUN, "seed", "fold", "round", "site", "seconds", "bytes_up", "bytes_down", "examples", "loss"),
    ],
    "predictions.csv": ["method", RUN, "seed", "fold", "site"],
    "score_counts.csv": SCORE_COUNTS,
    "confusion.csv": CONFUSION,
    "exchanged.csv": EXCHANGED,
    "privacy.csv": PRIVACY,
    "calibration.csv": CALIBRATION,
    "decisions.csv": DECISIONS,
    "survival.csv": SURVIVAL,
    "log_rank.csv": LOG_RANK,
    "harmonisation.csv": DESCRIBED,
    "attention.csv": ["method", RUN, "instance", "weight"],
    "backdoor.csv": ["method", RUN, "seed", "fold", "trained_on", "tested_on", "cases", "opened"],
    "memorisation.csv": MEMORISATION,
    "search.csv": [*BEFORE, *AFTER],
    "sites.csv": ["site", "found", "used", "rejected"],
    "flow.csv": FLOW,
    "subgroups.csv": SUBGROUPS,
    "characteristics.csv": CHARACTERISTICS,
}
#: Pictures of a case, and which cases there are of each site.
_SEGMENTED = ("image", "mask", "prediction")
_RECONSTRUCTED = ("zero_filled", "reconstruction", "reference", "zero_filled_error", "error", "span")
WHICH = ("best", "median", "worst")
#: What ``space`` of a study means.
SPACES = {
    "grid": "Masks are measured on the study's grid, to which images and reference masks were brought.",
    "original": "Masks are measured as the images are on disk: predictions were brought back to the images' own pixels "
    "or voxels, and compared with the reference masks as they lie there.",
}
CLASS = "class: "
#: Name in the catalogue of the method whose models are tested at the other sites, and of the one that pools all data.
CROSS, POOLED = "cross", "mix"
#: Column -> value of one row of ``summary.csv``.
Line = dict[str, Any]
Read = TypeVar("Read")


@dataclass(frozen=True)
class Measure:
    """A measure of quality: ``unit`` is empty for shares between 0 and 1."""

    name: str
    title: str
    meaning: str
    higher_is_better: bool
    unit: str

    def text(self, value: float, places: int = 3) -> str:
        """``value``, or a difference of two, as `polyclinic.tasks.metrics.metric_text` has it."""
        return metric_text(self.name, value, places)

    @property
    def label(self) -> str:
        """Title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def better(self, difference: float) -> bool:
        """Whether a method is better than another, from its value minus the other's."""
        return difference > 0 if self.higher_is_better else difference < 0


def _measure(name: str, millimetres: bool, several_classes: bool) -> Measure:
    if name not in METRICS:
        return Measure(name, name, "", True, "")
    known = METRICS[name]
    meaning = SEVERAL_CLASSES.get(name, known.meaning) if several_classes else known.meaning
    measure = Measure(name, known.title, meaning, known.higher_is_better, known.unit)
    return replace(measure, unit="mm") if millimetres and name in DISTANCES else measure


@dataclass(frozen=True)
class Overlay:
    """The pictures of a case that was segmented or reconstructed."""

    method: str
    site: str
    which: str
    """``best``, ``median`` or ``worst`` of the site's test cases."""
    score: float
    """Dice of a segmentation, PSNR of a reconstruction."""
    parts: dict[str, NDArray[Any]]
    """See `polyclinic.site.pictures`: of a segmentation ``image``, ``mask`` and ``prediction``, of a volume also
    ``planes``; of a reconstruction five pictures and their ``span``."""

    @property
    def planes(self) -> list[int]:
        """Widths of the slices of a volume that stand side by side; empty for an image."""
        return self.parts["planes"].tolist() if "planes" in self.parts else []


@dataclass(frozen=True)
class AttackedRows:
    """Rows of methods that were trained with corrupt sites."""

    results: pd.DataFrame
    rounds: pd.DataFrame
    backdoor: pd.DataFrame


class Folder:
    """The files of a results folder; what is missing is empty.

    Attributes:
        attacked: what was found with corrupt sites; all other tables are without.

    Raises:
        ResultsError: P501, the folder has no usable ``results.csv``, a file in it can't be read, or an older version
            wrote it.
    """

    def __init__(self, path: Path) -> None:
        if not has_table(path / "results.csv"):
            raise ResultsError(
                "P501",
                f"There is no results.csv in {str(path)!r}, so there is nothing to report.",
                "Give the folder that `polyclinic run STUDY --out FOLDER` wrote; if that run was stopped, "
                "run it again to resume it.",
            )
        self.path = path
        self.results = self._table("results.csv")
        self.summary = self._table("summary.csv")
        self.rounds, self.payloads = self._rounds()
        self.predictions = self._table("predictions.csv")
        self.score_counts = _parted(self._table("score_counts.csv"))[0]
        self.confusion = _parted(self._table("confusion.csv"))[0]
        self.site_table = self._table("sites.csv")
        self.flow = self._table("flow.csv")
        self.subgroups, self.characteristics = self._table("subgroups.csv"), self._table("characteristics.csv")
        self.harmonisation = self._table("harmonisation.csv")
        self.attention = self._table("attention.csv")
        self.memorisation = self._table("memorisation.csv")
        self.costs_of_unseen = self._table("unseen.csv")
        self.comparisons, self.site_comparisons = self._table("comparisons.csv"), self._table("site_comparisons.csv")
        self.calibration, self.decisions = self._table("calibration.csv"), self._table("decisions.csv")
        self.survival, self.log_rank = (_parted(self._table(name))[0] for name in ("survival.csv", "log_rank.csv"))
        self.privacy = _parted(self._table("privacy.csv"))[0]
        rows = self._table("exchanged.csv").to_dict("records")
        self.reveals = {(str(row["method"]), str(row["payload"])): str(row["reveals"]) for row in rows}
        self.results, results = _parted(self.results)
        self.rounds, rounds = _parted(self.rounds[self.rounds[RUN] != FINAL])
        self.backdoor, backdoor = _parted(self._table("backdoor.csv"))
        self.summary, self.predictions = _parted(self.summary)[0], _parted(self.predictions)[0]
        self.attacked = AttackedRows(results, rounds, backdoor)
        found = self._read("search.csv", _read_search)
        self.search = pd.DataFrame(columns=COLUMNS["search.csv"]) if found is None else found
        if self.results.empty:
            raise ResultsError(
                "P501", "results.csv has no rows, so there is nothing to report.", "Run the study again to resume it."
            )
        self.study_text = self._read("study.yaml", _text) or ""
        self.study = _mapping(self._read("study.yaml", lambda file: yaml.safe_load(_text(file))))
        self.notes: list[Note] = self._read("notes.json", _notes) or []
        self.provenance = _mapping(self._read("provenance.json", lambda file: json.loads(_text(file))))

    def _read(self, name: str, read: Callable[[Path], Read]) -> Read | None:
        """What ``read`` makes of a file of the folder; None if it is not there."""
        if not has_table(self.path / name):
            return None
        try:
            return read(self.path / name)
        except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
            raise ResultsError(
                "P501",
                f"{name} in the results folder can't be read: {str(error).splitlines()[0]}.",
                "Delete that file to do without its section, or run the study again.",
            ) from error

    def _table(self, name: str) -> pd.DataFrame:
        table = self._read(name, lambda file: _checked(read_table(file, without=HIDDEN), file))
        return pd.DataFrame(columns=COLUMNS[name]) if table is None else table

    def _rounds(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """What is in ``rounds.csv`` and ``payloads.csv``."""
        found = self._read("rounds.csv", read_rounds)
        if found is None:
            return pd.DataFrame(columns=COLUMNS["rounds.csv"]), pd.DataFrame(columns=PAYLOAD_COLUMNS)
        return _checked(found[0], self.path / "rounds.csv"), found[1]

    @cached_property
    def sites(self) -> list[str]:
        """All sites, in the order of ``sites.csv``, else in order of appearance."""
        tested = [site for site in self.results["tested_on"].unique() if site != "all"]
        return list(dict.fromkeys([*self.site_table["site"], *tested]))

    @cached_property
    def scored(self) -> list[str]:
        """Sites with enough cases of each class to be scored by themselves."""
        if "scored" not in self.site_table:
            return self.sites
        few = self.site_table[self.site_table["scored"].str.strip().str.lower().isin(["false", "0", "no"])]["site"]
        return [site for site in self.sites if site not in set(few)]

    @cached_property
    def methods(self) -> list[str]:
        """Labels of the methods in the order of the results."""
        return list(of_run(self.results)["method"].unique())

    @cached_property
    def unseen(self) -> list[str]:
        """Labels of the methods that were also tested at sites left out of training."""
        return list(of_run(self.results, UNSEEN)["method"].unique())

    @cached_property
    def titles(self) -> dict[Entry, str]:
        """A title of its own for each method and kind of run, those tested at unseen sites last."""
        titles: dict[Entry, str] = {(label, PLAIN): label for label in self.methods}
        for label in self.unseen:
            title = titled(label, UNSEEN)
            while title in titles.values():  # a method may be called so
                title = titled(title, UNSEEN)
            titles[label, UNSEEN] = title
        return titles

    @cached_property
    def declared(self) -> dict[str, tuple[str, dict[str, Any]]]:
        """Label -> name in the catalogue and options of the methods of the study file."""
        found = {}
        for one in self.study.get("methods") or []:
            name, options = next(iter(one.items())) if isinstance(one, dict) and one else (str(one), None)
            options = dict(options) if isinstance(options, dict) else {}
            found[str(options.pop("label", name))] = (str(name), options)
        return found

    def name(self, label: str) -> str:
        """Name of a method in the catalogue; where there is no study file that tells it, its label."""
        return self.declared.get(label, ("", {}))[0] if self.declared else label

    def named(self, name: str) -> list[str]:
        """Labels of the methods that have this name in the catalogue."""
        return [label for label in dict.fromkeys([*self.methods, *self.unseen]) if self.name(label) == name]

    @cached_property
    def baselines(self) -> dict[str, str]:
        """``single`` and ``fedavg`` -> label of the method that the others were compared with under it."""
        told = _mapping(self.provenance.get("baselines")) if "baselines" in self.provenance else None
        found = {name: self.named(name)[:1] for name in BASELINES}
        return {name: labels[0] for name, labels in found.items() if labels} if told is None else told

    @cached_property
    def metrics(self) -> list[Measure]:
        """Metrics in the order of the study file, those of single structures left out; the first is the primary one."""
        present = [name for name in self.results["metric"].unique() if not split_metric(name)[1]]
        asked = _mapping(self.study.get("evaluation")).get("metrics") or []
        names = [name for name in asked if name in present]
        millimetres = self.provenance.get("distances") == "mm"
        several = len(self.classes) > 2 and self.provenance.get("target") not in ("masks", "findings")
        return [
            _measure(name, millimetres, several) for name in names + [name for name in present if name not in names]
        ]

    @cached_property
    def structures(self) -> list[str]:
        """Names of the structures of a segmentation with several of them, in the order of the results."""
        return list(dict.fromkeys(filter(None, (split_metric(name)[1] for name in self.results["metric"].unique()))))

    @cached_property
    def space(self) -> str:
        """In which space masks were measured, ``grid`` or ``original``; empty where there are none, or nobody says."""
        told = set(self.results["space"]) if "space" in self.results else set()
        return str(told.pop()) if len(told) == 1 else ""

    @property
    def space_words(self) -> str:
        """The same in a sentence."""
        return SPACES.get(self.space, "")

    @property
    def time_unit(self) -> str:
        """Unit of times; empty where there are none."""
        return str(_mapping(self.study.get("data")).get("time_unit") or "") if self.target == "times" else ""

    @property
    def target(self) -> str:
        """What the study predicts: labels, numbers, masks, times, findings or images."""
        told = self.provenance.get("target")  # results of earlier versions do not say
        return str(told or ("numbers" if self.primary.name in REGRESSION else "labels"))

    @property
    def kept_at_sites(self) -> bool:
        """Whether the sites kept their predictions, so that there are none here."""
        return self.provenance.get("predictions") == "sites"

    @property
    def validation_metric(self) -> str:
        """The metric that was measured on validation cases."""
        columns = self.rounds.columns.astype(str)
        measured = [name.removeprefix("validation_") for name in columns if name.startswith("validation_")]
        return next((name for name in measured if name != "loss"), self.primary.name)

    @property
    def primary(self) -> Measure:
        """The metric by which methods are judged."""
        return self.metrics[0]

    @cached_property
    def at_sites(self) -> pd.DataFrame:
        """Rows of ``results.csv`` with the primary metric at a site that is scored, without the cross matrix."""
        crossed = self.results["method"].isin(self.named(CROSS))
        rows = self.results[(self.results["metric"] == self.primary.name) & ~crossed]
        return rows[rows["tested_on"].isin(self.scored)]

    def estimate(self, method: str | None, site: str, run: str = PLAIN) -> Estimate:
        """Primary metric of a method at a site over folds and seeds."""
        return self._estimates.get((method, run, site), Estimate(np.nan, np.nan, np.nan))

    @cached_property
    def _estimates(self) -> dict[tuple[str | None, str, str], Estimate]:
        keys = ["method", RUN, "tested_on"]
        values = self.at_sites.groupby([*keys, self.repeated_by], sort=False)["value"].mean()
        limits = value_range(self.primary.name)
        return {
            (str(method), str(run), str(site)): estimate(found, limits)
            for (method, run, site), found in values.groupby(keys, sort=False)
        }

    @cached_property
    def seeds(self) -> int:
        """How many seeds there are."""
        return int(self.results["seed"].nunique())

    @cached_property
    def folds(self) -> int:
        """How many folds there are."""
        return int(self.results["fold"].nunique())

    @property
    def repeated_by(self) -> str:
        """What makes values of a method repetitions with patients of their own.

        Folds do. Seeds test the same patients, so that the mean over them is one value of a fold; where there is one
        fold only, they are all there is, and their spread is that of training alone.
        """
        return "fold" if self.folds > 1 else "seed"

    def overlays(self) -> list[Overlay]:
        """Pictures of segmentations or reconstructions, in the order of methods and sites; empty where there are none.

        Raises:
            ResultsError: P501, the file can't be read.
        """
        found = self._read("overlays.safetensors", lambda file: _read_overlays(file, self.methods)) or []
        known = [one for one in found if one.method in self.methods and one.site in self.sites and one.which in WHICH]
        return sorted(
            known,
            key=lambda one: (self.methods.index(one.method), self.sites.index(one.site), WHICH.index(one.which)),
        )

    def made_pictures(self) -> dict[str, NDArray[np.uint8]]:
        """Method -> images that it made, as one picture uint8 ``[3, H, W]``; empty where there are none.

        Raises:
            ResultsError: P501, the file can't be read.
        """
        found = self._read(MADE, _read_pictures) or {}
        return {method: found[method] for method in self.methods if method in found}

    @property
    def final_model(self) -> str:
        """Label of the method whose model the study ended with; empty if it made none."""
        there = (self.path / MODEL_FOLDER).is_dir()
        return str(_mapping(self.study.get("final_model")).get("method") or "") if there else ""

    @property
    def models(self) -> list[tuple[str, int]]:
        """Name within ``models/`` and size in bytes of each trained model."""
        root = self.path / "models"
        files = sorted(root.rglob("*.safetensors"))
        return [(file.relative_to(root).as_posix(), file.stat().st_size) for file in files]

    @cached_property
    def classes(self) -> list[str]:
        """Names of the classes in index order, from the columns of ``sites.csv``; empty where there are none."""
        return [column.removeprefix(CLASS) for column in self.site_table.columns if column.startswith(CLASS)]

    @property
    def each(self) -> str:
        """Of what there are several metrics, in a word."""
        if self.target == "images":
            return "zero-filled image"
        return "time" if self.time_unit else "finding" if self.target == "findings" else "structure"

    @property
    def finding_sizes(self) -> list[int]:
        """How many of the ``classes`` are of each of several findings; empty for other tasks."""
        findings = _mapping(_mapping(self.study.get("data")).get("findings")) if self.target == "findings" else {}
        return [len(_mapping(one).get("classes") or (0, 1)) for one in findings.values()]

    def line(self, method: str | None, metric: str, over: str, run: str = PLAIN) -> Line | None:
        """Row of ``summary.csv``, or None if there is none with a number."""
        return self._lines.get((method, run, metric, over))

    def compared(self, method: str, versus: str | None, run: str = PLAIN) -> Line | None:
        """Row of ``comparisons.csv`` for two methods by the primary metric, or None."""
        return self._compared.get((method, versus, run))

    @cached_property
    def _compared(self) -> dict[tuple[str, str | None, str], Line]:
        rows = self.comparisons[self.comparisons["metric"] == self.primary.name].to_dict("records")
        return {(row["method"], row["versus"], row[RUN]): {str(k): v for k, v in row.items()} for row in rows}

    @cached_property
    def _lines(self) -> dict[tuple[str | None, str, str, str], Line]:
        rows = self.summary[self.summary["mean"].notna()]
        keys = zip(rows["method"], rows[RUN], rows["metric"], rows["over"], strict=True)
        records = rows.to_dict("records")
        return {key: {str(name): value for name, value in row.items()} for key, row in zip(keys, records, strict=True)}


def _read_overlays(file: Path, methods: list[str]) -> list[Overlay]:
    """Tensors ``METHOD/SITE/best|median|worst/PART``; methods and sites may have slashes."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stored:
            told = stored.metadata() or {}
            scores = json.loads(told.get("scores", told.get("dice", "{}")))  # of segmentations alone it was called so
            parts: dict[str, dict[str, NDArray[Any]]] = {}
            for name in sorted(stored.keys()):
                prefix, _, part = name.rpartition("/")
                parts.setdefault(prefix, {})[part] = stored.get_tensor(name)
            found: list[Overlay] = []
            for prefix, own in parts.items():
                if not (own.keys() >= set(_SEGMENTED) or own.keys() >= set(_RECONSTRUCTED)):
                    raise ValueError(f"pictures are missing of {prefix}")
                place, _, which = prefix.rpartition("/")
                known = [name for name in methods if place.startswith(f"{name}/")]
                method = max(known, key=len) if known else place.partition("/")[0]
                found.append(Overlay(method, place[len(method) + 1 :], which, _number(scores.get(prefix)), own))
            return found
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _read_pictures(file: Path) -> dict[str, NDArray[np.uint8]]:
    """Tensors by their names."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return {name: tensor for name, tensor in load_file(file).items() if tensor.dtype == np.uint8}
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _number(text: str | None) -> float:
    try:
        return float(text) if text is not None else float("nan")
    except ValueError:
        return float("nan")


def _checked(table: pd.DataFrame, file: Path) -> pd.DataFrame:
    """A table with all columns that it must have, in which what should be numbers are numbers."""
    columns = COLUMNS[file.name]
    if RUN in columns:
        check_runs(file, list(table.columns))
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise ValueError(f"column {missing[0]!r} is missing")
    for name in table.columns:
        if name in WORDS:
            table[name] = table[name].astype(str)
        elif not is_text(str(name)) and not is_numeric_dtype(table[name]):
            table[name] = pd.to_numeric(table[name], errors="coerce")
    return table


def _read_search(file: Path) -> pd.DataFrame:
    """The cells of ``search.csv`` as they are written: its columns have the values of any parameter."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    check_runs(file, list(table.columns))
    return table


def _parted(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows without corrupt sites, and those with."""
    with_corrupt = table[RUN] == ATTACKED
    return table[~with_corrupt], table[with_corrupt]


def of_run(table: pd.DataFrame, run: str = PLAIN) -> pd.DataFrame:
    """The rows of one kind of run."""
    return table[table[RUN] == run]


def _notes(file: Path) -> list[Note]:
    return [Note.from_json(one) for one in json.loads(_text(file))]


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def estimate(values: pd.Series[float], limits: tuple[float, float] = (0.0, 1.0)) -> Estimate:
    """Mean and 95 % interval (Student's t) of values that are numbers; no interval from fewer than three.

    Of two values it would be thirteen times as wide as they are apart, which tells nothing. Nor is there one where all
    values are at the same end of ``limits``.

    The interval is cut off at ``limits`` where all values keep to them.

    >>> estimate(pd.Series([0.7, 0.8, 0.9, float("nan")])).mean
    0.8
    """
    from scipy import stats

    values = values[np.isfinite(values)]
    if values.empty:
        return Estimate(np.nan, np.nan, np.nan)
    mean = round(float(values.mean()), 12)
    if len(values) < 3:
        return Estimate(mean, np.nan, np.nan)
    if values.min() == values.max() and mean in limits:  # where all are perfect, nothing is left to see chance in
        return Estimate(mean, np.nan, np.nan)
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    low, high = mean - half, mean + half
    if values.between(*limits).all():
        low, high = max(low, limits[0]), min(high, limits[1])
    return Estimate(mean, low, high)
