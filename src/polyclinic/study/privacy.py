"""What a study's trainings guarantee to patients, as rows of ``privacy.csv``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from polyclinic.communication.message import Message
from polyclinic.parts import Part
from polyclinic.privacy import Event, merged, spent
from polyclinic.privacy.draws import RepeatableDraws, SystemDraws
from polyclinic.running.plan import Plan
from polyclinic.site.messages import Spending
from polyclinic.study.columns import NOISY_PARTS, PRIVACY, TRUST

#: Training -> what it has cost.
Spent = Mapping[str, tuple[Event, ...]]
#: Whose row tells what all sites together are guaranteed.
FEDERATION = "federation"
#: Columns that only the rows of single trainings have.
_EVENTS, _TRAINING = "events", "training"


def protecting(parts: Mapping[str, Part]) -> dict[str, str]:
    """Parts whose noise protects someone -> whom."""
    return {name: part.private for name, part in parts.items() if part.private}


def privacy_rows(
    plan: Plan, replies: Mapping[str, Message], rounds: int, delta: float, *, real: bool
) -> list[dict[str, Any]]:
    """A row for each site whose patients noise protects, and one for the noise of the server. Nobody keeps a ledger of
    the latter, so of all trainings together it says nothing.

    Args:
        plan: what was run.
        replies: site -> what it said it has spent.
        rounds: done.
        delta: δ.
        real: whether sites are hospitals.
    """
    found, parts = list[dict[str, Any]](), plan.parts()
    if any(whom == "a patient" for whom in protecting(parts).values()):
        for site, reply in replies.items():
            said = reply.fields
            own, life = ([Spending.model_validate(one).event for one in said[k]] for k in ("training", "lifetime"))
            row = _row("a patient", said["patients"], own, life, delta, source=said["source"])
            found.append({"site": site, **_named(parts, "a patient"), _TRAINING: plan.start.run, **row})
    central = [event.times(event.count * rounds) for event in plan.central]
    if central:
        source = (SystemDraws if real else RepeatableDraws).source
        row = _row("a site", len(plan.sites), central, None, delta, source=source)
        found.append({"site": FEDERATION, **_named(parts, "a site"), _TRAINING: plan.start.run, **row})
    return found


def _named(parts: Mapping[str, Part], whom: str) -> dict[str, str]:
    names = [name for name, protected in protecting(parts).items() if protected == whom]
    return {NOISY_PARTS: " + ".join(names), TRUST: "; ".join(dict.fromkeys(parts[name].trust for name in names))}


def _row(
    unit: str, units: int, events: Iterable[Event], lifetime: Iterable[Event] | None, delta: float, *,
    source: str,
) -> dict[str, Any]:  # fmt: skip
    cost = spent(events, delta)
    together = merged(events)
    return {
        "unit": unit,
        "units": units,
        "steps": sum(event.count for event in together),
        "mechanism": "; ".join(_words(event) for event in together),
        "delta": delta,
        "epsilon": cost.epsilon,
        "accountant": cost.accountant,
        "lifetime_epsilon": math.nan if lifetime is None else spent(lifetime, delta).epsilon,
        "source": source,
        _EVENTS: json.dumps([event.to_json() for event in together]),
    }


def of_the_study(
    rows: pd.DataFrame, spending: Mapping[str, Spent], order: Sequence[str], without_noise: Mapping[str, int],
    of_server: Iterable[Event] = (),
) -> pd.DataFrame:  # fmt: skip
    """The rows of all trainings, in their order, for ``privacy.csv``.

    The noise of the server is added up. So is that of simulated sites, in the order of the trainings, which may have
    run side by side: a training's own answer has what happened to be done by then.

    Args:
        rows: of all trainings.
        spending: site -> training -> what it has cost there; only of simulated sites.
        order: names of all trainings.
        without_noise: site, or the federation -> trainings of the study that are in no ε.
        of_server: what noise of the server has cost in trainings that have no rows.
    """
    found, together = rows.copy(), [*of_server]
    lifetimes = {site: _accumulated(costs, order) for site, costs in spending.items()}
    for place, row in found.iterrows():
        if row["site"] == FEDERATION:
            together += [Event.from_json(event) for event in json.loads(row[_EVENTS])]
            found.loc[place, "lifetime_epsilon"] = spent(together, row["delta"]).epsilon
        elif row["site"] in lifetimes:
            events = lifetimes[row["site"]][row[_TRAINING]]
            found.loc[place, "lifetime_epsilon"] = spent(events, row["delta"]).epsilon
    found["without_noise"] = found["site"].map(without_noise)
    return found[[*PRIVACY, *(name for name in ("without",) if name in found)]]


def _accumulated(costs: Spent, order: Sequence[str]) -> dict[str, tuple[Event, ...]]:
    """Training -> what it and all before it have cost."""
    found, total = dict[str, tuple[Event, ...]](), tuple[Event, ...]()
    for name in order:
        found[name] = total = merged([*total, *costs.get(name, ())])
    return found


def _words(event: Event) -> str:
    names = {"gaussian": "Gaussian, noise", "laplace": "Laplace, scale", "pure": "ε of a step", "bare": "no noise",
             "concentrated": "discrete Gaussian, noise"}  # fmt: skip
    said = f"{names[event.mechanism]} {event.parameter:g}" if event.parameter else names[event.mechanism]
    sampled = f", rate {event.rate:.4g}" if event.rate < 1 else ""
    return f"{said}{sampled} × {event.count}"
