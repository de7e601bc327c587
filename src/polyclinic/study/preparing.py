"""Leading the sites through the preparation of their cases: splits, harmonisation, scaling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
from torch import Tensor

from polyclinic.communication.message import Message
from polyclinic.data.preparation import SharedStep, build_steps
from polyclinic.data.scaling import Summary, merge
from polyclinic.data.statistics import Sketch, agreed_edges
from polyclinic.engine import CheckedEngine, Engine
from polyclinic.errors import DataError
from polyclinic.notes import Note
from polyclinic.running.sums import ask_sum, lengths
from polyclinic.shapes import Shaped
from polyclinic.site.messages import Prepare
from polyclinic.site.schema import Known
from polyclinic.study.columns import DESCRIBED, STAGES


@dataclass(frozen=True)
class Preparation:
    """What came of it.

    Attributes:
        replies: the sites' answers to ``prepare``: sizes of their parts.
        notes: for the report.
        merged: of each step of the chain what all sites were told, nothing for one that each site takes alone.
    """

    replies: dict[str, Message]
    notes: list[Note]
    merged: list[dict[str, Tensor]]


def prepare(engine: Engine, request: Prepare, without: str | None = None, features: int = 0) -> Preparation:
    """Split every site's cases and go along the chain of preparation.

    Args:
        engine: who runs the sites.
        request: fields of the message ``prepare``; its ``steps`` name the chain.
        without: a site whose summaries are not used, because it stands for a hospital that joins later. It is prepared
            with what the others found.
        features: how many features or channels a case has, where summaries are told in sums alone.

    Raises:
        PolyclinicError: a site failed, or a step is impossible with these sites.
    """
    sites = engine.sites
    replies = CheckedEngine(engine, Known()).ask("prepare", dict.fromkeys(sites, Message(request.fields())))
    members = [site for site, reply in replies.items() if reply.fields["train"] and site != without]
    notes = [Note("N801", reply.fields["note"]) for reply in replies.values() if reply.fields["note"]]
    found = list[dict[str, Tensor]]()
    for step in build_steps(request.steps):
        found.append({})
        # Without training cases anywhere there is nothing to merge; the caller says so.
        if not isinstance(step, SharedStep) or not members:
            continue
        checked = CheckedEngine(engine, Known(step=step, hides=request.hides))
        if request.hides:
            found[-1], said = _merged_in_sums(checked, step, members, features)
        else:
            shared = checked.ask("share", dict.fromkeys(members, Message()))
            found[-1], said = step.merge({site: reply.tensors for site, reply in shared.items()})
        applied = checked.ask("apply", dict.fromkeys(sites, Message({}, found[-1])))
        said += [sentence for reply in applied.values() for sentence in reply.fields["notes"]]
        notes += [Note("N802", sentence) for sentence in said]
    return Preparation(replies, list(dict.fromkeys(notes)), found)


def _merged_in_sums(
    engine: Engine, step: SharedStep, sites: Sequence[str], features: int
) -> tuple[dict[str, Tensor], list[str]]:
    """What comes out of a step whose summaries are told in sums over sites alone; all sites must be in them."""

    def added(told: Message, shapes: Mapping[str, Shaped]) -> dict[str, Tensor]:
        asked = dict.fromkeys(sites, told)
        found = ask_sum(engine, "share", asked, lengths(shapes, step.sizes(features)), whole=True)
        if found.broken:
            text = f"{found.broken} of {len(sites)} sites have values that are not finite numbers, or larger than 1e90."
            raise DataError("P207", text, "Look for such values in the tables of all sites (`polyclinic check`).")
        return found.total

    total = added(Message(), step.summed)
    centre = step.centre(total)
    return step.merge_sums(total, added(Message({}, centre), step.about) if centre else {})


def describe(engine: Engine, features: dict[int, str]) -> pd.DataFrame:
    """The features at each site before and after harmonisation, from two exchanges with sites prepared for all folds.

    First the sites send counts, means and deviations. The grid that follows from them is sent back, and each site
    answers with its sketch, from which the quartiles are read. Nothing is said of fewer than `LEAST_CASES` cases.

    Args:
        engine: who runs the sites.
        features: place and name of the harmonised columns.

    Returns:
        a row a site, feature and stage (before, after): count, mean, deviation and quartiles; the last are missing
        where a site said nothing.
    """
    engine = CheckedEngine(engine, Known())
    replies = engine.ask("describe", dict.fromkeys(engine.sites, Message()))
    summaries = {
        (site, stage): Summary.from_tensors(_of(reply, stage)) for site, reply in replies.items() for stage in STAGES
    }
    grids = {stage: agreed_edges(merge([summaries[site, stage] for site in replies])) for stage in STAGES}
    replies = engine.ask("describe", dict.fromkeys(engine.sites, Message({}, grids)))
    rows: list[tuple[object, ...]] = []
    for site, reply in replies.items():
        for stage in STAGES:
            summary = summaries[site, stage]
            deviation = (summary.m2 / summary.count.clamp(min=1.0)).sqrt()
            quartiles = Sketch.from_tensors(_of(reply, stage), grids[stage]).quantiles([0.25, 0.5, 0.75])
            for place, name in features.items():
                if summary.count[place]:
                    numbers = [summary.mean[place], deviation[place], *quartiles[place]]
                    rows.append((site, name, stage, int(summary.count[place]), *map(float, numbers)))
    return pd.DataFrame(rows, columns=DESCRIBED)


def _of(reply: Message, stage: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(f"{stage}/"): tensor for name, tensor in reply.tensors.items() if name.startswith(f"{stage}/")
    }
