"""The report's section on what noise guarantees to patients, item by item as NIST SP 800-226 asks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from polyclinic.privacy import Statement
from polyclinic.study.columns import NOISY_PARTS, TRUST
from polyclinic.study.report.folder import Folder, of_run
from polyclinic.study.report.tables import ordered


@dataclass(frozen=True)
class Words:
    """What holds of a part whose noise protects someone, whatever its options."""

    neighbours: str
    contribution: str
    trust: str
    released: str
    sampling: str


_SITE = (
    "one has the data of a site, and the other any other data in their place; so each patient of the site is covered"
)
_CHANGE = "the changes of the weights that the site sends in all rounds, and all that is made of them"
#: Part -> what holds of it.
WORDS = {
    "dp_sgd": Words(
        "one has a patient more than the other, with all of the patient's images",
        "in each step a patient's gradient is shortened to `norm`, the mean over the patient's images",
        "each site, of its own patients: noise is added before anything leaves it",
        _CHANGE,
        "in each step every patient takes part with the same probability, independently of all others (the rate above)",
    ),
    "gaussian_noise": Words(
        _SITE, "the site's change is shortened by `clip`", "each site, of its own patients: noise is added before "
        "anything leaves it", _CHANGE, "none: all patients of the site are used in each round",
    ),
    "laplace_noise": Words(
        _SITE, "the site's change is shortened in the L1 norm", "each site, of its own patients: noise is added before "
        "anything leaves it", _CHANGE, "none: all patients of the site are used in each round",
    ),
    "sparse_vector": Words(
        _SITE, "each weight's change is clipped to ± `bound`", "each site, of its own patients: noise is added before "
        "anything leaves it", _CHANGE, "none: all patients of the site are used in each round",
    ),
    "distributed_noise": Words(
        _SITE, "the site's change is shortened by `clip`; of the whole numbers that it becomes the length is known",
        "{trust}; not the server, which gets the sum with its noise and no site's change",
        "the sums of the sites' changes in all rounds, and all that is made of them",
        "none: all patients of the site are used in each round",
    ),
    "central_noise": Words(
        "one has the data of a site, and the other any other data in their place", "each site's change is shortened by "
        "`clip` or `adaptive_clip`",
        "the server, which sees the sites' changes before it adds noise (a secure sum hides these)",
        "the models that the server gives out after each round, and the lengths of `adaptive_clip`",
        "none: which sites take part in a round is no secret",
    ),
}  # fmt: skip
_OTHER = Words("see the part's own description", "see the part's own description", "{trust}", _CHANGE,
               "see the mechanism")  # fmt: skip
_NOT_COVERED = (
    "Validation and test cases: losses, thresholds, metrics and predictions of them leave the sites without noise.",
    "What sites say when a study is opened and prepared: numbers of patients, cases and classes, ranges, and sums for "
    "common scaling and harmonisation.",
    "How long a round takes, and how many bytes it has.",
    "What is known of patients from elsewhere, or where their data were collected.",
)


@dataclass(frozen=True)
class Guarantee:
    """What one method guarantees.

    Attributes:
        method: its label.
        sentence: in plain words.
        mechanism: as the rows have it.
        epsilon: of a training: from the least to the greatest over sites, folds and seeds.
        lifetime: greatest ε of all trainings of the study together, at one site.
        rows: title and text of each item.
    """

    method: str
    sentence: str
    mechanism: str
    epsilon: str
    lifetime: str
    rows: list[tuple[str, str]]


@dataclass(frozen=True)
class Guarantees:
    """The section.

    Attributes:
        methods: with noise.
        others: federated methods without any.
        simulated: whether noise followed from a seed.
        without: most trainings of the study on the same patients, or sites, that are in no ε.
        over_study: whether the budget is of the whole study.
    """

    methods: list[Guarantee]
    others: list[str]
    simulated: bool
    without: int
    over_study: bool


def guaranteed(folder: Folder) -> Guarantees | None:
    """What methods with noise guarantee; None if there is none."""
    table = of_run(folder.privacy)
    if table.empty:
        return None
    methods = ordered(folder.methods, table["method"].unique())
    federated = [m for m in folder.methods if m not in methods and m not in ("single", "cross", "ensemble", "mix")]
    found = [_guarantee(folder, method, table[table["method"] == method]) for method in methods]
    bare = table.get("without_noise", pd.Series(dtype=float)).max()  # older results don't say it
    return Guarantees(found, federated, _simulated(table), 0 if pd.isna(bare) else int(bare), _over_study(folder))


def _guarantee(folder: Folder, method: str, rows: pd.DataFrame) -> Guarantee:
    worst = rows.sort_values("epsilon", kind="stable").iloc[-1]
    part = str(worst[NOISY_PARTS])
    words, lifetime = WORDS.get(part, _OTHER), float(rows["lifetime_epsilon"].max())
    budget = (folder.study.get("privacy") or {}).get("epsilon")
    searched = bool(folder.study.get("search"))
    statement = Statement(
        unit=str(worst["unit"]),
        neighbours=words.neighbours,
        contribution=words.contribution,
        trust=words.trust.format(trust=worst[TRUST]),
        released=words.released,
        mechanism=f"{part}: {worst['mechanism']}",
        sampling=words.sampling,
        epsilon=float(worst["epsilon"]),
        delta=float(worst["delta"]),
        budget=math.inf,
        accountant=f"{worst['accountant']}, over all steps of a training; of several the least upper bound",
        tuning=(
            "a search tried settings on the same patients; its trainings count in ε of the whole study"
            if searched
            else "settings are those of the study file; trying others on the same patients is not part of this ε"
        ),
        implementation=f"random numbers from {worst['source']}; {_rounding(part)}",
        utility=(
            "noise and shortening cost accuracy, most for groups with few patients: compare with methods without "
            "noise, and within subgroups where the study names some"
        ),
        access="data stay on the site's own machines" if not _simulated(rows) else "a simulation on one machine",
        not_covered=_NOT_COVERED,
    )
    low, high = float(rows["epsilon"].min()), float(rows["epsilon"].max())
    spread = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
    kept, kept_over_study = "" if budget is None else f" (of {budget:g})", ""
    if _over_study(folder):
        kept, kept_over_study = "", kept
    mechanism, said = f"{part}: {worst['mechanism']}", statement.sentence()
    return Guarantee(method, said, mechanism, spread + kept, f"{lifetime:.4g}{kept_over_study}", statement.rows())


def _over_study(folder: Folder) -> bool:
    return (folder.study.get("privacy") or {}).get("over") == "study"


def _rounding(part: str) -> str:
    if part == "distributed_noise":
        return "drawn and added as whole numbers, exactly"
    return "sums in 64 bits, rounded once after noise was added"


def _simulated(rows: pd.DataFrame) -> bool:
    return bool(rows["source"].astype(str).str.contains("seed").any())
