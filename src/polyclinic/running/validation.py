"""The best round, chosen on validation cases."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from polyclinic.client.work import NOT_FINITE
from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError, TrainingError
from polyclinic.parts import FEDERATION
from polyclinic.running.attendance import gather, leave_out
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Progress, Row
from polyclinic.running.sums import ask_sum
from polyclinic.site.messages import During, Evaluate
from polyclinic.site.sums import EVALUATED


def choose(plan: Plan, engine: Engine, progress: Progress, rows: list[Row], silent: Container[str]) -> None:
    """Measure validation data, add it to the round's rows, and remember the round if it is the best so far."""
    took_part = list(dict.fromkeys(row["site"] for row in rows))
    # Of a common model everybody's opinion counts, so that rounds with different sites can be compared.
    active = [*(site for site in plan.sites if site not in silent), *plan.voters] if plan.together else took_part
    found = validated(plan, engine, progress, active)
    for row in rows:
        if row["site"] not in found:  # it answered in one of its turns and failed in another
            continue
        row["validation_loss"] = found[row["site"]]["loss"]
        row[f"validation_{plan.metric}"] = found[row["site"]]["metric"]
    # A site with a model of its own that could not say how good it is goes on with its last one, as without validation.
    groups = {FEDERATION: active} if plan.together else {site: [site] for site in active}
    better = list[str]()
    for group, members in groups.items():
        score = validation_score(plan, [found[site] for site in members if site in found])
        best = progress.best.get(group)
        if best is None or score is None or score < best[0]:
            progress.best[group] = (float("inf") if score is None else score, progress.done)
            better += members
        elif plan.patience is not None and progress.done - best[1] >= plan.patience:
            progress.stopped.append(group)
    if better and plan.together:
        progress.is_best()
    if better and plan.keeps:
        # What stays at a site goes with the model of the best round, whether or not the site could say how good it is.
        keep(plan, engine, progress, plan.sites if plan.together else better)


def validated(plan: Plan, engine: Engine, progress: Progress, sites: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What sites say of the models that they share, on validation cases; where they say it in sums alone, of each site
    the mean over the cases of all.

    A site whose numbers are not finite has failed if the model that it shares gives finite numbers elsewhere: else one
    bad case would leave all rounds without a score. Where a model gives nobody finite numbers, it is the model that
    broke down: the round has no score, and a note says so.

    Raises:
        PolyclinicError: as `gather`.
    """
    requests, silent = {site: evaluate(plan, progress, site) for site in sites}, set[str]()
    if plan.start.hides:
        return _in_sums(plan, engine, progress, requests)
    replies = gather(engine, "evaluate", requests, plan.quorum, progress.failures, silent)
    found = {site: reply.fields for site, reply in replies.items()}
    broken = {site: error for site, fields in found.items() if (error := _not_finite(site, fields)) is not None}
    if not broken:
        return found
    sound = {progress.homes.get(s, FEDERATION) for s in found if s not in broken and found[s]["loss"] is not None}
    failed = {s: error for s, error in broken.items() if plan.together and progress.homes.get(s, FEDERATION) in sound}
    if failed:
        try:
            leave_out("evaluate", failed, sites, plan.quorum, progress.failures, silent)
        except PolyclinicError:
            if not plan.endures:  # in a simulated attack it is the model that broke down
                raise
        else:
            found = {site: fields for site, fields in found.items() if site not in failed}
            broken = {site: error for site, error in broken.items() if site not in failed}
    if not broken:
        return found
    progress.failures.append(
        f"Validation in round {progress.done + 1} gave values that are not finite numbers at {', '.join(broken)}: "
        "it is the best round only if no other one has a score either."
    )
    return found


def _in_sums(
    plan: Plan, engine: Engine, progress: Progress, requests: Mapping[str, Message]
) -> dict[str, dict[str, Any]]:
    """As `validated`, from sums over sites: it is not known which site has values that are not finite numbers."""
    found = ask_sum(engine, "evaluate", requests, EVALUATED)
    if found.failures:
        leave_out("evaluate", found.failures, requests.keys(), plan.quorum, progress.failures, set())
    cases, sums, known = (found.total[name].tolist() for name in EVALUATED)
    means = [total / count if count else None for total, count in zip(sums, cases, strict=True)]
    if found.broken:
        of = f"at {found.broken} of {len(found.sites)} sites"
        one_model = len({progress.homes.get(site, FEDERATION) for site in found.sites}) == 1
        if not known or plan.endures or not one_model:  # it is the model that broke down
            progress.failures.append(
                f"Validation in round {progress.done + 1} gave values that are not finite numbers {of}: it is the best "
                "round only if no other one has a score either."
            )
            means = [math.nan, math.nan]
        elif plan.quorum is None or len(found.sites) - found.broken < plan.quorum:
            text = f"Validation gave values that are not finite numbers {of}; which, sums do not tell."
            raise TrainingError("P301", text, NOT_FINITE)
        else:
            text = f"When asked to evaluate, values were not finite numbers {of}, which do not count."
            progress.failures.append(text)
    return {site: {"cases": int(cases[0]), "loss": means[0], "metric": means[1]} for site in found.sites}


def _not_finite(site: str, fields: Mapping[str, Any]) -> TrainingError | None:
    """What is wrong with the numbers of a site; None if they are finite, or not there."""
    wrong = [f"{name} {fields[name]}" for name in ("loss", "metric") if not math.isfinite(fields[name] or 0.0)]
    if not wrong:
        return None
    text = f"Validation at site {site} gave values that are not finite numbers ({', '.join(wrong)})."
    return TrainingError("P301", text, NOT_FINITE)


def evaluate(plan: Plan, progress: Progress, site: str) -> Message:
    """Asks a site how good its model is now."""
    asked = Evaluate(metric=plan.metric, counted=progress.counted.get(site, 0))
    return Message(asked.fields(), {"state": progress.state(site), **plan.sent_beside(progress.beside, site)})


def keep(plan: Plan, engine: Engine, progress: Progress, sites: Sequence[str]) -> None:
    """Let sites remember their private part as that of the best round."""
    asked = {site: Message(During(counted=progress.counted.get(site, 0)).fields()) for site in sites}
    kept = gather(engine, "keep", asked, plan.quorum, progress.failures)
    lost = {*progress.lost, *sites} - kept.keys()
    progress.lost = [site for site in plan.sites if site in lost]


def validation_score(plan: Plan, found: Iterable[dict[str, Any]]) -> float | None:
    """What the best round has lowest: the mean over validation cases; None if there is nothing to choose by."""
    sign = -1.0 if plan.choose_by == "metric" and plan.higher_is_better else 1.0
    known = [(f["cases"], f[plan.choose_by]) for f in found if f[plan.choose_by] is not None]
    cases = sum(n for n, _ in known)
    if not cases:
        return None
    score = sign * sum(n * value for n, value in known) / cases
    return float("inf") if math.isnan(score) else score  # else a first round without a number would stay the best
