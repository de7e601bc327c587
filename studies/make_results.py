"""Run the studies of this folder and write docs/results.md from their results.

``python studies/make_results.py`` runs what is missing, goes on with what was interrupted, takes finished results as
they are, and writes the page anew. Every number on the page is read from a results folder.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console

from phantoms import phantoms_of
from polyclinic import PolyclinicError, Results, Study
from polyclinic.notes import Note
from polyclinic.study.display import RichDisplay
from polyclinic.study.kinds import RUN, titled
from polyclinic.study.report.answer import answer, p_text
from polyclinic.study.report.attack import attacked
from polyclinic.study.report.folder import Folder
from polyclinic.tasks.metrics import METRICS, split_metric

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "results.md"
#: In the order of the page.
NAMES = (
    "mri-quality",
    "heart-disease",
    "heart-disease-protocol",
    "corrupt-sites",
    "autism-volumes",
    "sex-volumes",
    "sex-volumes-common-scale",
    "sex-volumes-combat",
    "skin-lesions",
    "retina-vessels",
    "lung-survival",
    "survey-adni",
    "phantom-reconstruction",
)
#: More notes than this are left to the report.
MOST_NOTES = 4

INTRODUCTION = """\
# Results

What the studies in the folder `studies` found on real data, and two (survey-adni, phantom-reconstruction) on phantoms.
This page is written by `python studies/make_results.py` from the results folders, so no number on it is typed by hand.
`make results` brings it up to date; the folder with the data is named by the environment variable `POLYCLINIC_DATA`,
and the head of each study file says where to get them.

How to read the tables:

- *Mean over the scored sites*: the metric at each site that has enough cases of each class, averaged over sites. This
  is what a hospital may expect for itself. *All cases together*: one value for the predictions of all sites.
- Brackets hold the 95 % interval for other patients of the same sites and, with two seeds or more, other trainings.
- *p* belongs to the first metric: a paired test against `single` (each site alone) and against `fedavg`, corrected for
  the number of methods compared in the same kind of run (Holm). Over the sites it is that of the differences within
  sites, by a random-effects meta-analysis, which the answer rests on. A dash means that there is nothing to test; a
  column of dashes is left out.
- `mix` trains on all data in one place, which federated learning avoids; it is there for comparison. A method marked
  *(unseen site)* was trained without the site on which it was tested.

The settings in the study files were chosen by looking at the validation columns of `rounds.csv`, never at test
results. Folds take turns, so a patient who was a validation case in one fold is a test case in another.
"""

Only = Annotated[list[str] | None, typer.Option(help="Run this study only; may be repeated.")]
Out = Annotated[Path, typer.Option(help="Folder with a results folder for each study.")]


def main(only: Only = None, out: Out = HERE.parent / "results") -> None:
    """Run the studies and write docs/results.md with all that are finished."""
    console = Console(stderr=True, highlight=False)
    names = only or list(NAMES)
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        raise typer.BadParameter(f"there is no study {unknown[0]!r}; choose from {', '.join(NAMES)}")
    failed = False
    for name in names:
        console.print(f"[bold]{name}[/bold]")
        try:
            phantoms_of(HERE / f"{name}.yaml", out, console)
            run(HERE / f"{name}.yaml", out / name, console)
        except PolyclinicError as error:
            failed = True
            console.print(f"{name}: {error}", markup=False)
    PAGE.write_text(page(out), encoding="utf-8")
    console.print(f"Wrote {PAGE}")
    if failed:
        raise typer.Exit(1)


def run(study_file: Path, out: Path, console: Console) -> None:
    """Run a study, go on with it, or leave it alone if it is finished.

    Raises:
        PolyclinicError: the study can't be run; P501 if ``out`` holds the results of another version of it.
    """
    with RichDisplay(console) as display:
        Study.read(study_file).run(out, resume=out.is_dir(), display=display)


def page(out: Path) -> str:
    """The page, from all finished studies in ``out``."""
    found = {name: out / name for name in NAMES if _is_finished(out / name)}
    sections = [section(HERE / f"{name}.yaml", Results(folder)) for name, folder in found.items()]
    missing = [name for name in NAMES if name not in found]
    if missing:
        sections.append(f"Not run yet: {', '.join(missing)}.\n")
    return "\n".join([INTRODUCTION, *sections])


def section(study_file: Path, results: Results) -> str:
    """One study's section in Markdown."""
    name, folder = study_file.stem, Folder(results.folder)
    lines = [
        f"## {name}",
        "",
        f"{_question(study_file)}",
        "",
        _sites(results),
        "",
        *_tables(results),
        _text(" ".join(answer(folder))),
        "",
        *_attack(folder),
        *_notes(results.notes),
        f"{_machine(results)} Command: `polyclinic run studies/{name}.yaml --out results/{name}`.",
        "",
    ]
    return "\n".join(lines)


def _is_finished(folder: Path) -> bool:
    try:
        record = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(record.get("status") == "finished") and (folder / "results.csv").is_file()


def _question(study_file: Path) -> str:
    """The first paragraph of the comment at the head of a study file."""
    words: list[str] = []
    for line in study_file.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("#").strip()
        if not line.startswith("#") or not text:
            break
        words.append(text)
    return " ".join(words)


def _sites(results: Results) -> str:
    sites = results.sites
    total = sites[["found", "used", "rejected"]].sum()
    listed = ", ".join(f"{row.site} {row.used}" for row in sites.itertuples())
    scored = int((sites["scored"].astype(str) == "True").sum())
    return (
        f"Sites: {len(sites)} ({scored} scored by themselves). Cases: {total['found']} found, {total['used']} used, "
        f"{total['rejected']} rejected ({listed})."
    )


def _tables(results: Results) -> Iterator[str]:
    """A table for the mean over sites and one for all cases together."""
    summary = results.summary
    scored = int((results.sites["scored"].astype(str) == "True").sum())
    for over, title in (("sites", f"Mean over the {scored} scored sites"), ("all", "All cases together")):
        rows = summary[summary["over"] == over]
        metrics = [metric for metric in dict.fromkeys(rows["metric"]) if not split_metric(metric)[1]]
        yield f"{title}:"
        yield ""
        tested = {name: f"p_{name}_adjusted" for name in ("single", "fedavg")}
        tested = {name: column for name, column in tested.items() if rows[column].notna().any()}
        yield _row(["method", *(_heading(metric) for metric in metrics), *(f"p vs {name}" for name in tested)])
        yield _row(["---", *["---:"] * (len(metrics) + len(tested))])
        for method, run in dict.fromkeys(zip(rows["method"], rows[RUN], strict=True)):
            mine = rows[(rows["method"] == method) & (rows[RUN] == run)].set_index("metric")
            tests = [_p(mine.loc[metrics[0], column]) for column in tested.values()]
            yield _row([titled(method, run), *(_value(mine.loc[metric]) for metric in metrics), *tests])
        yield ""


def _attack(folder: Folder) -> Iterator[str]:
    """What the corrupt sites did, where a study has some: in words, and whom the server counted as good as nothing."""
    found = attacked(folder)
    if found is None:
        return
    who = (
        f"the site {found.corrupt[0]} was" if len(found.corrupt) == 1 else f"the sites {', '.join(found.corrupt)} were"
    )
    yield f"*(attacked)*: {who} corrupt. {_text(found.answer)}"
    yield ""
    yield _row(["method", f"{_heading(folder.primary.name)} lost at the honest sites", "whom the server counts little"])
    yield _row(["---", "---:", "---"])
    for row in found.rows:
        interval = f" ({row.interval})" if row.interval else ""
        named = f"{row.verdict}: {', '.join(row.named)}" if row.named else row.verdict
        yield _row([row.method, row.lost + interval, named])
    yield ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _heading(metric: str) -> str:
    known = METRICS[metric]
    better = "" if known.higher_is_better else ", lower is better"
    return f"{metric} ({known.unit}{better})" if known.unit else f"{metric}{better}"


def _value(row: pd.Series[Any]) -> str:
    interval = "" if pd.isna(row["low"]) else f" ({_number(row['low'])} to {_number(row['high'])})"
    return _number(row["mean"]) + interval


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _p(value: float) -> str:
    return "–" if pd.isna(value) else p_text(value).removeprefix("= ")


def _text(marked: str) -> str:
    """The report's sentences as Markdown."""
    return html.unescape(marked.replace("<strong>", "**").replace("</strong>", "**"))


def _notes(notes: list[Note]) -> Iterator[str]:
    if not notes:
        return
    yield "Notes of the run:"
    yield ""
    yield from (f"- {note}" for note in notes[:MOST_NOTES])
    if len(notes) > MOST_NOTES:
        yield f"- {len(notes) - MOST_NOTES} more in the report."
    yield ""


def _machine(results: Results) -> str:
    record, rounds = results.provenance, results.rounds
    plan, machine, versions = record["plan"], record["machine"], record["versions"]
    threads = plan["worker_threads"] if plan["mode"] == "processes" else plan["threads"]
    workers = f" in {plan['workers']} processes" if plan["mode"] == "processes" else ""
    if plan.get("jobs", 1) > 1:
        workers = f", {plan['jobs']} trainings side by side"
    listed = ", ".join(f"{name} {versions[name]}" for name in ("polyclinic", "python", "torch", "monai", "numpy"))
    return (
        f"Run on {machine['processor']} ({machine['instructions']}), {machine['cores']} cores, engine {plan['mode']}"
        f"{workers} with {threads} thread{'s' * (threads != 1)}; {rounds['seconds'].sum() / 60:.1f} minutes of local "
        f"training in all; finished {record['finished'][:10]}. Versions: {listed}."
    )


if __name__ == "__main__":
    typer.run(main)
