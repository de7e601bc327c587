"""The best round, chosen on validation cases."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import Any

from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.parts import FEDERATION
from polyclinic.running.attendance import gather
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Progress, Row
from polyclinic.site.messages import During, Evaluate


def choose(plan: Plan, engine: Engine, progress: Progress, rows: list[Row], silent: Container[str]) -> None:
    """Measure validation data, add it to the round's rows, and remember the round if it is the best so far."""
    took_part = list(dict.fromkeys(row["site"] for row in rows))
    # Of a common model everybody's opinion counts, so that rounds with different sites can be compared.
    active = [site for site in plan.sites if site not in silent] if plan.together else took_part
    requests = {site: evaluate(plan, progress, site) for site in active}
    found = {s: r.fields for s, r in gather(engine, "evaluate", requests, plan.quorum, progress.failures).items()}
    for row in rows:
        if row["site"] not in found:  # it answered in one of its turns and failed in another
            continue
        row["validation_loss"] = found[row["site"]]["loss"]
        row[f"validation_{plan.metric}"] = found[row["site"]]["metric"]
    groups = {FEDERATION: list(found)} if plan.together else {site: [site] for site in found}
    better = list[str]()
    for group, members in groups.items():
        score = validation_score(plan, [found[site] for site in members])
        best = progress.best.get(group)
        if best is None or score is None or score < best[0]:
            progress.best[group] = (float("inf") if score is None else score, progress.done)
            better += members
        elif plan.patience is not None and progress.done - best[1] >= plan.patience:
            progress.stopped.append(group)
    if better and plan.together:
        progress.is_best()
    if better and plan.keeps:
        keep(plan, engine, progress, better)


def evaluate(plan: Plan, progress: Progress, site: str) -> Message:
    """Asks a site how good its model is now."""
    asked = Evaluate(metric=plan.metric, counted=progress.counted.get(site, 0))
    return Message(asked.fields(), {"state": progress.state(site)})


def keep(plan: Plan, engine: Engine, progress: Progress, sites: Iterable[str]) -> None:
    """Let sites remember their private part as that of the best round."""
    asked = {site: Message(During(counted=progress.counted.get(site, 0)).fields()) for site in sites}
    gather(engine, "keep", asked, plan.quorum, progress.failures)


def validation_score(plan: Plan, found: Iterable[dict[str, Any]]) -> float | None:
    """What the best round has lowest: the mean over validation cases; None if there is nothing to choose by."""
    sign = -1.0 if plan.choose_by == "metric" and plan.higher_is_better else 1.0
    known = [(f["cases"], f[plan.choose_by]) for f in found if f[plan.choose_by] is not None]
    cases = sum(n for n, _ in known)
    if not cases:
        return None
    score = sign * sum(n * value for n, value in known) / cases
    return float("inf") if math.isnan(score) else score  # else a first round without a number would stay the best
