"""Whether methods help where their papers say so: runs the studies of studies/benefits and writes docs/benefits.md.

``python studies/make_benefits.py`` runs what is missing, goes on with what was interrupted, and writes the page anew:
what results are there replaces what docs/benefits.csv tells of their studies, and the page is made of that table. Each
study is repeated with other simulated sites, another split of the patients and another
initial model; each repeat is a study of its own in ``results/benefits/NAME-REPEAT``. A method's effect is its result
minus fedavg's in the same repeat.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
import yaml
from rich.console import Console

from effects import BASELINE, effects, finished_in, last_day, measure_of, values_of, verdicts
from phantoms import phantoms_of
from polyclinic import PolyclinicError, Results, Study
from polyclinic.methods import PUBLISHED
from polyclinic.study.display import RichDisplay

HERE = Path(__file__).resolve().parent
STUDIES = HERE / "benefits"
CLAIMS = STUDIES / "claims.csv"
PAGE = HERE.parent / "docs" / "benefits.md"
#: Of the table from which the page is made.
COLUMNS = ("study", "finished", "repeats", "measure", "method", "mean", "effect", "low", "high", "verdict")


@dataclass(frozen=True)
class Question:
    """What one study asks.

    Attributes:
        name: of the study file in ``benefits``.
        over: what is compared; see `values_of`.
        about: a sentence or two for the page.
    """

    name: str
    over: str
    about: str


QUESTIONS = (
    Question("label-skew", "all",
             "The share of scans that an expert would not accept differs strongly between eight simulated sites "
             "(Dirichlet 0.3), and sites train five epochs between exchanges."),
    Question("quantity-skew", "all",
             "Eight simulated sites of very unequal size (Dirichlet 0.5), with the same share of each class."),
    Question("scanner-shift", "sites",
             "Seventeen real sites, whose scanners differ; nothing is done about it beforehand. The mean over the "
             "sites that have enough cases of each class."),
    Question("unequal-work", "sites",
             "Four real hospitals; in each round Cleveland does 100 steps, the others 4, 8 and 20."),
    Question("fairness", "worst",
             "Seventeen real sites. What counts is the site with the lowest result."),
    Question("unseen-sites", "unseen",
             "Four real hospitals; each is left out of training in turn and tested."),
    Question("skin-sources", "sites",
             "Dermatoscopic images from four real sources, with unlike cameras and unlike shares of cancer; nothing is "
             "done about it beforehand. The mean over the sources."),
    Question("few-labels-skin-5", "sites",
             "Dermatoscopic images from four real sources; of each twentieth patient of the training part the label is "
             "known, validation has all. The other images are there without one."),
    Question("few-labels-skin-10", "sites",
             "The same, with the labels of each tenth patient."),
    Question("few-labels-skin-25", "sites",
             "The same, with the labels of each fourth patient."),
    Question("no-labels-skin-site", "sites",
             "Dermatoscopic images from three real sources; two know all labels of the training part, and the third "
             "knows none: fedavg leaves it out. The mean over the sources."),
    Question("public-set", "sites",
             "Seventeen real sites, and 265 scans of another study that all of them may see, without a label."),
    Question("several-labels", "sites",
             "Scans of two studies: in one an expert judged their quality, the other says which of them show ghosts. "
             "The mean over both."),
    Question("made-cases", "sites",
             "Four real hospitals whose model learns at the server from made cases alone, or at the hospitals from "
             "their own cases and made ones. The mean over them."),
    Question("narrow-networks", "sites",
             "Seven of seventeen real sites, with more than half of all scans, can train a half or a quarter of the "
             "network's width. fedavg is what all could do; *whole only* leaves the seven out."),
    Question("groups", "even",
             "Four real hospitals. What counts is how evenly the ill are found among women and men: 1 minus the "
             "difference of the two sensitivities."),
    Question("retina-cameras", "sites",
             "Pictures of the retina by three real cameras, in which vessels are segmented; nothing is done about the "
             "differences beforehand. The mean over the cameras."),
    Question("retina-looks", "sites",
             "The same, with methods that work on how images look, or on the frequencies of weights."),
    Question("unseen-camera", "unseen",
             "The same; each camera is left out of training in turn and tested."),
    Question("few-labels-retina", "sites",
             "The same, with the masks of each tenth patient of the training part."),
    Question("boxes-skin", "sites",
             "Skin lesions of three real sources are outlined; one has the masks of its training patients, the others "
             "have boxes: fedavg leaves them out. The mean over the sources."),
    Question("phantom-looks", "sites",
             "Brains of phantoms as four scanners with known settings show them: contrast, bias field, noise and "
             "resolution differ, anatomy does not. Tissues are segmented. The mean over the scanners."),
    Question("phantom-styles", "sites",
             "The same brains, with a generator of looks that sites learn together."),
    Question("few-labels-tissues", "sites",
             "The same brains, with the tissues of each tenth person of the training part."),
    Question("few-take-part", "sites",
             "Four of seventeen real sites take part in a round: with fedavg four at random, in the other rows as they "
             "say. The mean over the sites that have enough cases of each class."),
    Question("corrupt-label-flip", "honest",
             "Three of fifteen equal sites have their labels the wrong way round. The mean over the other sites."),
    Question("corrupt-sign-flip", "honest",
             "Three of fifteen equal sites send their changes with the wrong sign."),
    Question("corrupt-loud-sign-flip", "honest",
             "Three of fifteen equal sites send ten times their changes, with the wrong sign."),
    Question("corrupt-gaussian-noise", "honest",
             "Three of fifteen equal sites send noise."),
    Question("corrupt-alie", "honest",
             "Three of fifteen equal sites send changes that are wrong just a little, but all in the same way (ALIE)."),
    Question("corrupt-wrong-scaling", "honest",
             "Three of fifteen equal sites measure in other units: an honest mistake."),
)  # fmt: skip

INTRODUCTION = """\
# Does a method help where its paper says so?

For each kind of difference between sites, the methods that were made for it against `fedavg`, on real data. This page
is written by `python studies/make_benefits.py`; no number on it is typed by hand. It takes some hours on two cores.
The same numbers are in `benefits.csv`.

How it is done:

- Every study is repeated up to {repeats} times, each time with other simulated sites (where sites are simulated),
  another split of the patients, and another initial model. All methods of a repeat see the same sites, patients and
  initial model. The *effect* is the mean difference to `fedavg` in the same repeat, with its 95 % interval (Student's t
  over the repeats). It speaks of these data sets with other splits and initial models, not of other hospitals.
- *helps* and *hurts* stand where the difference is significant at 5 % after Holm's correction for the methods of a
  table; otherwise there is no clear effect. With {repeats} repeats small effects can't be told from chance.
- Learning rates and the methods' own options are chosen by search on validation patients of each repeat, with the same
  number of trials for every method (fewer only where all values were tried); test patients play no part (`search:` in
  the study files). Studies of corrupt sites have no search: a federation that does not know of them could not search
  with them.
- AUC is the area under the ROC curve; Dice is the overlap of two segmentations. For both 1 is perfect. `single` (each
  site alone) and `mix` (all data in one place) are there for orientation; over all cases together `single` profits from
  knowing each site's share of the classes. A method that is in several tables may help in one and hurt in another.
"""

Only = Annotated[list[str] | None, typer.Option(help="Run this study only; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Folder for the results folders.")]
Repeats = Annotated[int, typer.Option(min=2, help="How often each study is repeated.")]
Write = Annotated[bool, typer.Option(help="Write the page; --no-write only runs, for several commands side by side.")]


def main(
    only: Only = None, out: Out = HERE.parent / "results" / "benefits", repeats: Repeats = 5, write: Write = True
) -> None:
    """Run the studies and write docs/benefits.md with all that are finished."""
    console = Console(stderr=True, highlight=False)
    names = [question.name for question in QUESTIONS]
    unknown = [name for name in only or [] if name not in names]
    if unknown:
        raise typer.BadParameter(f"there is no study {unknown[0]!r}; choose from {', '.join(names)}")
    failed = False
    for name in only or names:
        phantoms_of(STUDIES / f"{name}.yaml", out, console)
        for repeat in range(repeats):
            console.print(f"[bold]{name}[/bold], repeat {repeat + 1} of {repeats}")
            try:
                with RichDisplay(console) as display:
                    folder = out / f"{name}-{repeat}"
                    repeated(name, repeat).run(folder, resume=folder.is_dir(), display=display)
            except PolyclinicError as error:
                failed = True
                console.print(f"{name}: {error}", markup=False)
    if write:
        table = told(out)
        table.to_csv(PAGE.with_suffix(".csv"), index=False, lineterminator="\n")
        PAGE.write_text(page(table, repeats), encoding="utf-8")
        console.print(f"Wrote {PAGE}")
    if failed:
        raise typer.Exit(1)


def repeated(name: str, repeat: int) -> Study:
    """A study with the sites, split and initial model of one repeat."""
    content: dict[str, Any] = yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))
    content["seeds"] = [repeat]
    content["evaluation"]["split_seed"] = repeat
    if "partition" in content["data"]:
        content["data"]["partition"]["seed"] = repeat
    return Study.of(content, STUDIES)


def told(out: Path) -> pd.DataFrame:
    """A row for each study and method: of the results in ``out`` where a study has at least two finished repeats, else
    as the table on disk tells."""
    path = PAGE.with_suffix(".csv")
    before = pd.read_csv(path, dtype={"verdict": str}, keep_default_na=False) if path.is_file() else None
    tables = []
    for question in QUESTIONS:
        finished = finished_in(out, question.name)
        if len(finished) >= 2:
            tables.append(answer(question, finished))
        elif before is not None:
            tables.append(before[before["study"] == question.name])
    return pd.concat(tables, ignore_index=True)


def answer(question: Question, finished: Sequence[Results]) -> pd.DataFrame:
    """A row for each method of one study."""
    found = effects(pd.DataFrame([values_of(question.over, results) for results in finished]))
    shared = (question.name, last_day(finished), len(finished), measure_of(finished[0], question.over))
    rows = [
        (*shared, e.method, round(e.mean, 4), round(e.effect, 4), round(e.low, 4), round(e.high, 4), word)
        for e, word in zip(found, verdicts(found), strict=True)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def page(table: pd.DataFrame, repeats: int) -> str:
    """The page from the table of all studies and methods."""
    sections = [
        section(question, rows) for question in QUESTIONS if len(rows := table[table["study"] == question.name])
    ]
    missing = [question.name for question in QUESTIONS if question.name not in set(table["study"])]
    note = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    introduction = INTRODUCTION.format(repeats=repeats)
    return "\n".join([introduction, "## In short\n", *matrix(table), "", *claims(table), "", *sections]) + note


def claims(table: pd.DataFrame) -> list[str]:
    """What papers say of their methods beside the effects here, as far as both are there."""
    lines = ["## What papers say", "",
             "By their abstracts; data, networks and what they were compared with are others than here, so numbers",
             "can't be compared, only whether there is a gain.", "",
             "| Method | Its paper | Source | Here, against `fedavg` |", "|---|---|---|---|"]  # fmt: skip
    found = table.assign(plain=table["method"].str.partition("(")[0])
    for one in pd.read_csv(CLAIMS).itertuples():
        rows = found[found["plain"] == one.method]
        here = "; ".join(f"{row.study} {row.effect:+.3f} ({row.verdict})" for row in rows.itertuples())
        if here:
            lines.append(f"| {one.method} | {one.claim} | {PUBLISHED[one.method].citation} | {here} |")
    return lines


def section(question: Question, rows: pd.DataFrame) -> str:
    """One question's section in Markdown."""
    first = rows.iloc[0]
    lines = [f"## {question.name}", "",
             f"{question.about} {first['repeats']} repeats, finished {first['finished']}.", "",
             f"| Method | {first['measure']} | Effect (95 % interval) | |", "|---|---|---|---|"]  # fmt: skip
    for row in rows.itertuples():
        change = "" if row.method == BASELINE else f"{row.effect:+.3f} ({row.low:+.3f} to {row.high:+.3f})"
        lines.append(f"| {row.method} | {row.mean:.3f} | {change} | {row.verdict} |")
    return "\n".join([*lines, "", f"Study: `studies/benefits/{question.name}.yaml`.", ""])


def matrix(table: pd.DataFrame) -> list[str]:
    """Method × heterogeneity: effects, in bold where they are clear."""
    questions, methods = table["study"].unique(), [one for one in table["method"].unique() if one != BASELINE]
    cells = {(row.study, row.method): (row.effect, row.verdict) for row in table.itertuples()}
    lines = [f"| Method | {' | '.join(questions)} |", "|---" * (len(questions) + 1) + "|"]
    for method in methods:
        row = []
        for name in questions:
            effect, word = cells.get((name, method), (None, ""))
            text = "" if effect is None else f"{effect:+.3f}"
            row.append(f"**{text} {word}**" if word in ("helps", "hurts") else text)
        lines.append(f"| {method} | {' | '.join(row)} |")
    return lines


if __name__ == "__main__":
    typer.run(main)
