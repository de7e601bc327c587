"""The federated loop: ask the sites, put their answers together, look at validation data, go on.

This is the whole of a federated system: what happens at a site, on the way and at the server are parts it is given, and
it names none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError, SiteError
from polyclinic.parts import FEDERATION, Groups, Turn
from polyclinic.parts.checks import stages_of
from polyclinic.running.attendance import Attendance, BrokenDown, BudgetSpent
from polyclinic.running.federation import Federation
from polyclinic.running.plan import Plan
from polyclinic.running.progress import Checkpoint, Progress, Row
from polyclinic.running.stage import ModelStage
from polyclinic.running.validation import choose, keep
from polyclinic.server.chain import Unopened

Report = Callable[[int, int], None]


def run_rounds(
    plan: Plan, engine: Engine, *, checkpoint: Checkpoint | None = None, report: Report | None = None
) -> tuple[Progress, list[Row]]:
    """Run all rounds.

    Args:
        plan: what to run.
        engine: who runs the sites.
        checkpoint: where progress is kept; a run that was interrupted goes on from there.
        report: called with rounds done and rounds in all.

    Returns:
        The progress at the end, and a row for each round and site.

    Raises:
        SiteError: P402 if fewer sites than the quorum answer a round, or no round took place; P306 if none keeps the
            budget of privacy.
    """
    federation = Federation(plan, engine)
    rows, broke_down = federation.resume(checkpoint) if checkpoint else [], False
    progress = federation.progress
    while progress.done < plan.rounds and len(progress.stopped) < (1 if plan.together else len(plan.sites)):
        attendance = Attendance(plan, progress)
        try:
            if progress.done >= plan.affordable:
                raise BudgetSpent("With the server's noise a further round would cost the sites more than that.")
            new = _round(federation, attendance)
            progress.beside = federation.beside()
        except BrokenDown as broken:
            attendance.note(f"Training broke down in round {progress.done + 1} and ended there. {broken}")
            broke_down = True
            break
        except BudgetSpent as spent:
            if not _trained(plan, rows):
                text = f"No round of the training keeps its budget of privacy. {spent}"
                raise SiteError("P306", text, "Allow a greater ε, more noise, or fewer steps in a round.") from None
            attendance.note(f"Training ended after {progress.done} of {plan.rounds} rounds. {spent}")
            break
        if progress.done >= plan.preceding:
            if plan.validate and new:  # after a round that was skipped there is nothing new to look at
                choose(plan, engine, progress, new, attendance.silent)
            elif not plan.validate:
                progress.is_best()
        progress.done += 1
        rows += new
        if checkpoint:
            federation.save(checkpoint, new)
        if report:
            report(progress.done, plan.rounds)
    if not _trained(plan, rows) and not broke_down and not progress.stopped:
        raise SiteError(
            "P402", f"None of {plan.rounds - plan.preceding} rounds changed the model: in each too few sites were "
            "there or in time, or none was asked to train.",
            "Give `training: {participation: ...}` that more sites meet, or a lower `training: {quorum: ...}`.",
        )  # fmt: skip
    if not plan.validate and plan.keeps:
        keep(plan, engine, progress, plan.sites)
    progress.needed = federation.needed()
    return progress, rows


def _trained(plan: Plan, rows: list[Row]) -> bool:
    """Whether there was a round that counted after those that give nothing to choose."""
    return any(row["round"] >= plan.preceding for row in rows)


def _round(federation: Federation, attendance: Attendance) -> list[Row]:
    """One round of training; moves the models on and returns a row for each answer that counts."""
    sites, plan, progress = attendance.chosen(), federation.plan, federation.progress
    if not sites:
        return []
    name, grouping = plan.grouping
    federation.conversation.begin()
    ask = federation.conversation.asking(name)
    turn = Turn(progress.done, plan.rounds, sites, progress.models, ask, plan.start.seed)
    stages = [plan.by_network(groups) for groups in stages_of(name, grouping.stages(turn), sites)]
    before, rows = federation.now() if len(stages) > 1 else None, list[Row]()
    for groups in stages:
        rows += _stage(federation, attendance, groups, [row["site"] for row in rows], alone=len(stages) > 1)
    if before is not None and not attendance.counts_in_all([row["site"] for row in rows], stages):
        federation.go_back(before)
        return []
    return rows


def _stage(
    federation: Federation, attendance: Attendance, groups: Groups, turns: list[str], *, alone: bool
) -> list[Row]:  # fmt: skip
    """One stage; ``turns`` are the sites that answered in this round before."""
    progress = federation.progress
    federation.conversation.open.clear()
    try:
        stage = ModelStage(federation, groups, turns)
    except PolyclinicError as error:  # too few sites for a part, before any was asked to train
        if not attendance.excuses(error, FEDERATION):
            raise
        return []
    rows, asked = list[Row](), 0
    for answered in stage.answers():
        asked += 1
        if attendance.counts(answered) and not isinstance(answered.packed, PolyclinicError):
            once = None if answered.site in progress.losses else federation.announced[answered.site]
            try:
                rows.append(stage.take(answered, answered.packed, once))
            except Unopened as error:
                attendance.counts(replace(answered, packed=error))
    if not attendance.suffices(len(rows), asked, alone=alone):
        return []
    return stage.finish(rows, attendance.excuses)
