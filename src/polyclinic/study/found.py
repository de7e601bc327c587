"""What the trainings of a study found: the table of results, and where the evidence comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from polyclinic.engine import Engine
from polyclinic.notes import Note
from polyclinic.study.columns import CONFUSION, FINDING, SCORE_COUNTS, THRESHOLDS
from polyclinic.study.declaration import Declaration
from polyclinic.study.sites_source import Sites
from polyclinic.study.statistics.source import Rows, Source
from polyclinic.study.tested import Key, Tested, all_together, rows_tested, sites_tested
from polyclinic.tasks import Task, build_task
from polyclinic.tasks.base import Totals
from polyclinic.tasks.classification_totals import representative_scores

Frame = pd.DataFrame


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        results: ``results.csv``.
        source: gives evidence.
        tables: name of a file -> its table: the predictions, or what stands for them.
        notes: gives what is to be told, after the source was asked for all that it is asked.
    """

    results: Frame
    source: Source
    tables: Mapping[str, Frame]
    notes: Callable[[], list[Note]]


def found_in_rows(predictions: Frame, declaration: Declaration, classes: Sequence[str]) -> Found:
    """Of predictions that lie in one place.

    Args:
        predictions: of all jobs.
        declaration: the study.
        classes: names of the classes.
    """
    task = build_task(declaration.task, len(classes), grid=declaration.grid, heads=declaration.heads)
    results = rows_tested(predictions, task, task.result_metrics(declaration.metrics, classes))
    source = Rows(
        predictions, declaration.task, len(classes), declaration.metrics, bootstrap=declaration.evaluation.bootstrap
    )
    return Found(_with_space(results, declaration), source, {"predictions.csv": predictions}, list)


def found_at_sites(tested: Tested, engine: Engine, declaration: Declaration, classes: Sequence[str]) -> Found:
    """Of sites that keep their predictions.

    Args:
        tested: what they said in all jobs.
        engine: who runs them.
        declaration: the study.
        classes: names of the classes.
    """
    task = build_task(declaration.task, len(classes), grid=declaration.grid, heads=declaration.heads)
    evaluation = declaration.evaluation
    names = task.result_metrics(declaration.metrics, classes)
    grouped = [one.column for one in evaluation.grouped_by], declaration.metrics
    source = Sites(
        engine, tested, declaration.task, len(classes), names, grouped=grouped,
        bootstrap=evaluation.bootstrap, floor=evaluation.disclosure_floor, quorum=declaration.training.quorum,
        heads=declaration.heads,
    )  # fmt: skip
    together = all_together(tested, task)

    def notes() -> list[Note]:
        return [
            *_withheld(tested, source, evaluation.disclosure_floor),
            *_approximate(together, task, names),
            *_few(source, evaluation.disclosure_floor),
            *(Note("N807", text) for text in source.notes),
        ]

    return Found(
        _with_space(sites_tested(tested, task, names), declaration), source, dict(_tables(tested, together)), notes
    )


def _with_space(results: Frame, declaration: Declaration) -> Frame:
    """Results of masks say in which space these were measured."""
    return results.assign(space=declaration.evaluation.space) if declaration.target == "masks" else results


def _withheld(tested: Tested, source: Sites, floor: int) -> Iterator[Note]:
    """What sites with few patients did not say."""
    few = [one for one in tested.sites if not one.values]
    if few:
        sites = ", ".join(dict.fromkeys(one.site for one in few))
        yield Note(
            "N806", f"{len(few)} of {len(tested.sites)} tests of a model at a site were of fewer than {floor} patients "
            f"({sites}): the sites said only how many there were. Their values are empty, and the rows over all sites "
            "are without these cases.",
        )  # fmt: skip
    if source.few:
        yield Note(
            "N806", f"{', '.join(source.few)} had test cases of fewer than {floor} patients in all folds together, and "
            "said nothing of the comparisons of methods.",
        )  # fmt: skip


def _approximate(together: Mapping[Key, Mapping[str, Totals]], task: Task, names: Sequence[str]) -> Iterator[Note]:
    """How near the metrics over all sites are that follow from totals only nearly, and which do not follow at all."""
    margins: dict[str, float] = {}
    for totals in (of for found in together.values() for of in found.values()):
        for name, margin in task.margins(totals, names).items():
            margins[name] = max(margins.get(name, 0.0), margin)
    if margins:
        each = " and ".join(f"{name} by {margin:.2g}" for name, margin in margins.items())
        yield Note(
            "N805", "Over all sites together some metrics follow from the sites' counts of scores between thresholds, "
            f"so that they can be off, at most {each}. At each site by itself they are exact.",
        )  # fmt: skip
    if not task.totalled:
        yield Note(
            "N805", f"Over all sites together there are no metrics: those of {task.name} do not follow from sums that "
            "sites could send instead of predictions. Means over the sites, and comparisons within them, are complete.",
        )  # fmt: skip


def _few(source: Sites, floor: int) -> Iterator[Note]:
    """What sites did not say of groups of patients."""
    if source.withheld:
        each = "; ".join(f"{column}: {', '.join(sites)}" for column, sites in source.withheld.items())
        yield Note(
            "N808", f"Some sites said nothing of groups of fewer than {floor} patients, or of more from which these "
            f"would follow. Results by groups are without them ({each}).",
        )  # fmt: skip
    if source.mixed:
        each = "; ".join(f"{column}: {', '.join(sites)}" for column, sites in source.mixed.items())
        yield Note(
            "N808", f"Fewer than {floor} patients were of no known group at some sites, and count with the rest that "
            f"groups are compared with ({each}).",
        )  # fmt: skip


def _tables(tested: Tested, together: Mapping[Key, Mapping[str, Totals]]) -> Iterator[tuple[str, Frame]]:
    """What stands for predictions: thresholds, and what the report draws from, of all sites together, with a row for
    each count."""
    if tested.thresholds:
        rows = [(*key, *others) for key, *others in tested.thresholds]
        table = pd.DataFrame(rows, columns=[*THRESHOLDS, FINDING])
        yield "thresholds.csv", table if table[FINDING].any() else table[THRESHOLDS]
    scores, confusion = list[Frame](), list[Frame]()
    for key, found in together.items():
        for trained_on, totals in found.items():
            about: dict[str, Any] = {**key._asdict(), "trained_on": trained_on}
            if len(totals.get("grid", ())) == 1:
                grid = totals["grid"][0]
                label, place = np.nonzero(grid)
                counts = {"label": label, "score": representative_scores()[place], "cases": grid[label, place]}
                scores.append(pd.DataFrame(about | counts))
            elif "confusion" in totals:
                true, called = np.indices(totals["confusion"].shape).reshape(2, -1)
                counts = {"label": true, "called": called, "cases": totals["confusion"].ravel()}
                confusion.append(pd.DataFrame(about | counts))
    if scores:
        yield "score_counts.csv", pd.concat(scores, ignore_index=True)[SCORE_COUNTS]
    if confusion:
        yield "confusion.csv", pd.concat(confusion, ignore_index=True)[CONFUSION]
