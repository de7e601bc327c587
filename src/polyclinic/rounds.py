"""The federated loop: ask the sites, put their answers together, look at validation data, go on.

This is the whole of a federated system: what happens at a site, on the way and at the server are parts it is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from polyclinic.client.rules import Counterpart
from polyclinic.communication.exchange import Extras
from polyclinic.communication.message import Message
from polyclinic.communication.topology import Star, Topology
from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError, ResultsError, SiteError
from polyclinic.files import write_atomic, write_error
from polyclinic.server.rules import Answer, ServerRound, ServerRule, Update
from polyclinic.server.selection import Candidates, Participation
from polyclinic.state import Selection

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        declaration: what every site is told at the start (model, local work, rules, what is shared, seeds).
        initial: first model state ``[P]``.
        selection: the shared coordinates.
        server: the server rule.
        sites: who trains, in site order.
        weights: weight of each site's update.
        learning_rates: local learning rate of each round; its length is the number of rounds.
        cycled: other options of the local optimiser in each round, where the schedule cycles them; or empty.
        together: whether the sites make one model, so that one best round is chosen; otherwise each site has its own.
        metric: reported on validation data each round.
        choose_by: ``loss`` or ``metric``: what the best round is chosen by (validation data only).
        higher_is_better: for ``metric``.
        validate: False trains all rounds and takes the last.
        patience: stop after so many rounds without a better one; None never stops early.
        quorum: least number of sites that must answer a round; None for all that are asked.
        save: whether sites keep state that must be saved with a checkpoint.
        keeps: whether sites keep a part of their model, or a model, of the best round.
        counterparts: local rule -> its end at the coordinator.
        reveals: what is exchanged besides the state -> what it could reveal.
        participation: who takes part in a round, applied one after another.
        topology: in which order sites are asked.
        corrupt: changes the answers of corrupt sites before the coordinator sees them (a simulated attack): from the
            rounds done before, the state that sites were sent, and the answers of an exchange.
        endures: whether a model that breaks down, with values that are not numbers, ends training instead of being a
            failure (a simulated attack, whose result that is).
    """

    declaration: dict[str, Any]
    initial: Tensor
    selection: Selection
    server: ServerRule
    sites: list[str]
    weights: dict[str, float]
    learning_rates: list[float]
    cycled: Sequence[dict[str, Any]] = ()
    together: bool = True
    metric: str = "auc"
    choose_by: str = "loss"
    higher_is_better: bool = True
    validate: bool = True
    patience: int | None = None
    quorum: int | None = 1
    save: bool = False
    keeps: bool = False
    counterparts: Mapping[str, Counterpart] = field(default_factory=dict)
    reveals: Mapping[str, str] = field(default_factory=dict)
    participation: Sequence[Participation] = ()
    topology: Topology = field(default_factory=Star)
    corrupt: Callable[[int, Tensor, Sequence[Answer]], Sequence[Answer]] | None = None
    endures: bool = False


class _BrokenDown(Exception):  # noqa: N818 - it is no error
    """A simulated attack has driven the model to values that are not numbers."""


@dataclass
class Progress:
    """Where a run is; everything a checkpoint holds besides the rows.

    Attributes:
        done: rounds done.
        state: shared state ``[Q]``.
        best_state: shared state of the best round ``[Q]``.
        best: group ("federation" or a site) -> (score to be lowered, round).
        stopped: groups that have lost patience.
        failures: sentences about rounds in which a site was left out.
        losses: training loss that each site reported last, in a round that counts.
    """

    done: int
    state: Tensor
    best_state: Tensor
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    losses: dict[str, float] = field(default_factory=dict)


def run_rounds(
    plan: Plan,
    engine: Engine,
    *,
    checkpoint: Checkpoint | None = None,
    report: Callable[[int, int], None] | None = None,
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
        SiteError: P402 if fewer sites than the quorum answer a round, or no round took place.
    """
    said = engine.ask("start", dict.fromkeys(engine.sites, Message(plan.declaration, {"initial": plan.initial})))
    for site in plan.sites:
        for name, counterpart in plan.counterparts.items():
            counterpart.announced(site, plan.weights[site], _named(said[site].tensors, name))
    announced = {site: said[site].tensors for site in plan.sites}
    state = plan.selection.take(plan.initial).clone()
    progress, rows = Progress(0, state, state), list[Row]()
    saved = checkpoint.read() if checkpoint else None
    if saved is not None:
        progress, rows = saved
        _restore(plan, checkpoint.memory if checkpoint else {})
        if plan.save and progress.done:
            engine.ask("restore", dict.fromkeys(plan.sites, Message({"round": progress.done})))
    total, broke_down = len(plan.learning_rates), False
    while progress.done < total and len(progress.stopped) < (1 if plan.together else len(plan.sites)):
        silent: dict[str, PolyclinicError] = {}
        try:
            new = _round(plan, engine, progress, silent, announced)
        except _BrokenDown as broken:
            progress.failures.append(f"Training broke down in round {progress.done + 1} and ended there. {broken}")
            broke_down = True
            break
        if plan.validate and new:  # after a round that was skipped there is nothing new to look at
            _choose(plan, engine, progress, new, silent)
        elif not plan.validate:
            progress.best_state = progress.state
        progress.done += 1
        rows += new
        if checkpoint:
            if plan.save:
                engine.ask("save", dict.fromkeys(plan.sites, Message({"round": progress.done})))
            checkpoint.write(progress, _memory(plan), new)
        if report:
            report(progress.done, total)
    if not rows and not broke_down and not progress.stopped:
        raise SiteError(
            "P402", f"None of {total} rounds changed the model: in each too few sites were there or in time.",
            "Give `training: {participation: ...}` that more sites meet, or a lower `training: {quorum: ...}`.",
        )  # fmt: skip
    if not plan.validate:
        engine.ask("keep", dict.fromkeys(plan.sites, Message()))
    return progress, rows


def _named(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """Those of ``tensors`` that are called ``name/...``, without that."""
    return {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.startswith(f"{name}/")}


def _memory(plan: Plan) -> dict[str, Tensor]:
    """What server rule and counterparts keep between rounds."""
    found = {f"server/{name}": tensor for name, tensor in plan.server.memory().items()}
    for rule, counterpart in plan.counterparts.items():
        found |= {f"rule/{rule}/{name}": tensor for name, tensor in counterpart.memory().items()}
    return found


def _restore(plan: Plan, memory: dict[str, Tensor]) -> None:
    plan.server.restore(_named(memory, "server"))
    for rule, counterpart in plan.counterparts.items():
        counterpart.restore(_named(memory, f"rule/{rule}"))


Announced = Mapping[str, Mapping[str, Tensor]]


def _round(
    plan: Plan, engine: Engine, progress: Progress, silent: dict[str, PolyclinicError], announced: Announced
) -> list[Row]:  # fmt: skip
    """One round of training; moves ``progress.state`` on and returns a row for each site that took part.

    Sites that could not answer are added to ``silent``, with the cause. What sites ``announced`` at the start is told
    in the first row of each.
    """
    active = [site for site in plan.sites if site not in progress.stopped]
    needed = min(plan.quorum or 1, len(active))
    known = Candidates(progress.done, plan.declaration.get("seed", 0), plan.weights, progress.losses)
    for part in plan.participation:
        active = part.choose(active, known)
    if len(active) < needed:
        progress.failures.append(
            f"Round {progress.done + 1} was skipped with {len(active)} of {len(plan.sites)} sites there "
            f"({needed} needed)."
        )
        return []
    rows, before, losses = list[Row](), progress.state, dict(progress.losses)
    groups = plan.topology.groups(progress.done, len(plan.learning_rates), active)
    for group in groups:
        earlier = [row["site"] for row in rows]
        rows += _exchange(plan, engine, progress, group, earlier, silent, announced, alone=len(groups) > 1)
    answered = len({row["site"] for row in rows})
    if len(groups) > 1 and answered < min(needed, len({site for group in groups for site in group})):
        text = f"In round {progress.done + 1}, {answered} of {len(active)} sites answered ({needed} needed)."
        progress.state, progress.losses = before, losses
        if silent and _broke_down(plan, silent.values()):
            raise _BrokenDown(f"{text} {_causes(silent)}")
        if silent:
            raise SiteError("P402", text, "Mend the sites that failed, or set a lower `training: {quorum: ...}`.")
        progress.failures.append(f"{text} It changed nothing.")
        return []
    return rows


def _exchange(
    plan: Plan, engine: Engine, progress: Progress, group: list[str], before: list[str],
    silent: dict[str, PolyclinicError], announced: Announced, *, alone: bool,
) -> list[Row]:  # fmt: skip
    """Send the model to some sites and make the next one of their answers; ``alone`` if there are other exchanges."""
    fields: dict[str, Any] = {"round": progress.done, "learning_rate": plan.learning_rates[progress.done]}
    if plan.cycled and plan.cycled[progress.done]:
        fields["optimizer"] = plan.cycled[progress.done]
    common = {f"{name}/{key}": t for name, part in plan.counterparts.items() for key, t in part.send().items()}
    requests = {}
    for site in group:
        turn = {"turn": before.count(site)} if site in before else {}
        tensors = {"state": progress.state, **common, **plan.server.send(site)}
        requests[site] = Message({**fields, **turn}, tensors)
    total = sum(plan.weights[site] for site in group)
    plan.server.begin(ServerRound(progress.done, progress.state, plan.selection.trainable, total, plan.weights))
    for counterpart in plan.counterparts.values():
        counterpart.begin()
    extras = Extras(plan.reveals)
    rows: list[Row] = []
    answers: list[Answer] = []
    failures: dict[str, PolyclinicError] = {}
    late: set[str] = set()
    for site, reply in engine.call("train", requests):
        if isinstance(reply, PolyclinicError):
            failures[site] = silent[site] = reply
            continue
        lateness = _too_late(plan, site, reply)
        if lateness is not None:
            failures[site] = lateness
            late.add(site)
            continue
        update = Update(site, reply.tensors["state"], plan.weights[site], reply.fields.get("facts", {}))
        sent = {name: tensor for name, tensor in reply.tensors.items() if name != "state"}
        answer = Answer(update, sent, before.count(site))
        if plan.corrupt is None:
            _take(plan, answer)
        else:
            answers.append(answer)
        once = {} if site in progress.losses else announced[site]
        rows.append(_row(progress.done, site, requests[site], reply, extras, once))
    if plan.corrupt is not None:
        for answer in plan.corrupt(progress.done, progress.state, answers):
            _take(plan, answer)
    if failures and not _is_quorum(plan, progress, failures, late, len(rows), len(group), alone=alone):
        return []
    state = _finish(plan, progress)
    if state is None:
        return []
    progress.state = state
    for counterpart in plan.counterparts.values():
        counterpart.finish()
    for row in rows:
        progress.losses[row["site"]] = row["loss"]
        row["share"] = plan.server.shares.get(row["site"], 0.0)
    return rows


def _take(plan: Plan, answer: Answer) -> None:
    """Give an answer to the server rule and to the counterparts."""
    update = answer.update
    plan.server.add(update)
    for name, counterpart in plan.counterparts.items():
        counterpart.add(update.site, update.weight / sum(plan.weights.values()), _named(answer.extras, name))


def _finish(plan: Plan, progress: Progress) -> Tensor | None:
    """What the server rule makes of the answers ``[Q]``; None if these were too few for it, which happens where not all
    sites take part in each round."""
    try:
        return plan.server.finish()
    except PolyclinicError as error:
        if plan.participation and error.code == "P402":
            progress.failures.append(f"Round {progress.done + 1} changed nothing. {error}")
            return None
        if plan.endures and error.code == "P301":  # a site's loss, for example, which the rule goes by
            raise _BrokenDown(str(error)) from None
        raise


def _row(
    number: int, site: str, request: Message, reply: Message, extras: Extras, once: Mapping[str, Tensor]
) -> Row:  # fmt: skip
    facts = reply.fields.get("facts", {})
    sent = Message({}, {**once, **reply.tensors})
    return {
        "round": number, "site": site, "seconds": reply.fields["seconds"],
        "bytes_up": sent.size + extras.bytes_of(facts), "bytes_down": request.size,
        "examples": reply.fields["examples"], "steps": reply.fields["steps"], "loss": reply.fields["loss"],
        "extra_up": extras.describe(sent.tensors, facts), "extra_down": extras.describe(request.tensors, {}),
    }  # fmt: skip


def _too_late(plan: Plan, site: str, reply: Message) -> SiteError | None:
    """Why an answer does not count any more; the site is not told, and keeps what it has learned."""
    speed = plan.declaration.get("work", {}).get("own", {}).get(site, {}).get("step_seconds")
    seconds = reply.fields["seconds"] if speed is None else speed * reply.fields["steps"]
    if all(part.in_time(site, seconds) for part in plan.participation):
        return None
    return SiteError("P402", f"its answer took {seconds:.3g} s, longer than the deadline allows.", site=site)


def _is_quorum(
    plan: Plan, progress: Progress, failures: Mapping[str, PolyclinicError], late: set[str], answered: int, asked: int,
    *, alone: bool,
) -> bool:  # fmt: skip
    """Whether enough sites answered; too few because some were ``late``, which the study file allows, is noted, because
    of failures it is an error.

    Where sites are asked ``alone``, the model passes one by, and they are counted at the end of the round.
    """
    failed = {site: error for site, error in failures.items() if site not in late}
    causes = _causes(failures, late)
    needed = min(plan.quorum or asked, asked)
    if alone and (not failed or plan.quorum is not None):
        progress.failures.append(f"Round {progress.done + 1} went on without {', '.join(failures)}. {causes}")
        return answered > 0
    if not failed:
        enough = answered >= max(1, min(plan.quorum or 1, asked))
        consequence = f"went on without {', '.join(failures)}" if enough else "changed nothing, with too few answers"
        progress.failures.append(f"Round {progress.done + 1} {consequence}. {causes}")
        return enough
    if _broke_down(plan, failed.values()):
        if plan.together and answered < needed:
            raise _BrokenDown(causes)
        if not plan.together:  # the others have their own models and go on
            progress.stopped += failed
            progress.failures.append(f"{', '.join(failed)} broke down in round {progress.done + 1}. {causes}")
            return answered > 0
    if len(failures) == 1 and needed >= asked:
        raise next(iter(failed.values()))
    if answered < needed or not plan.together:
        raise SiteError(
            "P402",
            f"In round {progress.done + 1}, {answered} of {asked} sites answered ({needed} needed). "
            f"{causes}",
            "Mend the sites named, or set a lower `training: {quorum: ...}`.",
            causes=[error.code for error in failures.values()],
        )  # fmt: skip
    progress.failures.append(f"Round {progress.done + 1} went on without {', '.join(failures)}. {causes}")
    return True


def _causes(failures: Mapping[str, PolyclinicError], late: Container[str] = ()) -> str:
    """What a note says of failures; a ``late`` answer is none, so it has no number."""
    causes = {site: error.message if site in late else str(error) for site, error in failures.items()}
    return "; ".join(f"{site}: {cause.removesuffix('.')}" for site, cause in causes.items()) + "."


def _broke_down(plan: Plan, failures: Iterable[PolyclinicError]) -> bool:
    """Whether sites failed because a simulated attack has driven the model to values that are not numbers."""
    return plan.endures and all(error.code == "P301" for error in failures)


def _choose(plan: Plan, engine: Engine, progress: Progress, rows: list[Row], silent: Container[str]) -> None:
    """Measure validation data, add it to the round's rows, and remember the round if it is the best so far."""
    took_part = list(dict.fromkeys(row["site"] for row in rows))
    # Of a common model everybody's opinion counts, so that rounds with different sites can be compared.
    active = [site for site in plan.sites if site not in silent] if plan.together else took_part
    request = Message({"metric": plan.metric}, {"state": progress.state})
    found = {site: reply.fields for site, reply in engine.ask("evaluate", dict.fromkeys(active, request)).items()}
    for row in rows:
        if row["site"] not in found:  # it answered in one of its turns and failed in another
            continue
        row["validation_loss"] = found[row["site"]]["loss"]
        row[f"validation_{plan.metric}"] = found[row["site"]]["metric"]
    groups = {"federation": active} if plan.together else {site: [site] for site in active}
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
        progress.best_state = progress.state
    if better and plan.keeps:
        engine.ask("keep", dict.fromkeys(better, Message()))


def validation_score(plan: Plan, found: Iterable[dict[str, Any]]) -> float | None:
    """What the best round has lowest: the mean over validation cases; None if there is nothing to choose by."""
    sign = -1.0 if plan.choose_by == "metric" and plan.higher_is_better else 1.0
    known = [(f["cases"], f[plan.choose_by]) for f in found if f[plan.choose_by] is not None]
    cases = sum(n for n, _ in known)
    if not cases:
        return None
    score = sign * sum(n * value for n, value in known) / cases
    return float("inf") if math.isnan(score) else score  # else a first round without a number would stay the best


class Checkpoint:
    """A run's progress on disk, replaced in one step after every round.

    The rows of finished rounds are appended to a file of their own; the checkpoint says how much of it counts.

    Args:
        folder: where the two files are.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.rows = folder / "checkpoint.safetensors", folder / "rounds.jsonl"
        self.memory: dict[str, Tensor] = {}
        self._length = 0

    def write(self, progress: Progress, memory: dict[str, Tensor], rows: list[Row]) -> None:
        """Add a round; ``memory`` is what the coordinator's parts keep."""
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        self.rows.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self.rows.open("r+b" if self.rows.exists() else "wb") as file:
                file.seek(self._length)
                file.truncate()
                file.write(text)
        except OSError as error:
            raise write_error(self.rows, error) from error
        self._length += len(text)
        tensors = {"state": progress.state, **{f"memory/{name}": tensor for name, tensor in memory.items()}}
        if progress.best_state is not progress.state:
            tensors["best"] = progress.best_state
        fields = {"done": progress.done, "length": self._length, "best": progress.best, "stopped": progress.stopped,
                  "failures": progress.failures, "losses": progress.losses}  # fmt: skip
        write_atomic(self.path, Message(fields, tensors).to_bytes(), durable=False)

    def read(self) -> tuple[Progress, list[Row]] | None:
        """The progress saved, with all its rows, or None if there is none."""
        if not self.path.is_file():
            return None
        try:
            message = Message.from_bytes(self.path.read_bytes())
        except ValueError as error:
            raise ResultsError(
                "P501", f"{self.path} is damaged ({error}).",
                f"Delete the folder {self.path.parent.name}, so that this training starts anew, and use --resume.",
            ) from None  # fmt: skip
        fields, tensors = message.fields, message.tensors
        self._length = fields["length"]
        self.memory = _named(tensors, "memory")
        lines = self.rows.read_bytes()[: self._length].decode().splitlines() if self._length else []
        best = {group: (score, done) for group, (score, done) in fields["best"].items()}
        progress = Progress(
            fields["done"], tensors["state"], tensors.get("best", tensors["state"]), best, fields["stopped"],
            fields["failures"], fields["losses"],
        )  # fmt: skip
        return progress, [json.loads(line) for line in lines]
