"""The federated loop: ask the sites, put their answers together, look at validation data, go on.

This is the whole of a federated system: what happens at a site, on the way and at the server are parts it is given.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from polyclinic.communication.message import Message
from polyclinic.engine.base import Engine
from polyclinic.errors import PolyclinicError, ResultsError, SiteError
from polyclinic.files import write_atomic, write_error
from polyclinic.server.rules import ServerRule
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
        together: whether the sites make one model, so that one best round is chosen; otherwise each site has its own.
        metric: reported on validation data each round.
        choose_by: ``loss`` or ``metric``: what the best round is chosen by (validation data only).
        higher_is_better: for ``metric``.
        validate: False trains all rounds and takes the last.
        patience: stop after so many rounds without a better one; None never stops early.
        quorum: least number of sites that must answer a round.
        save: whether sites keep state that must be saved with a checkpoint.
    """

    declaration: dict[str, Any]
    initial: Tensor
    selection: Selection
    server: ServerRule
    sites: list[str]
    weights: dict[str, float]
    learning_rates: list[float]
    together: bool = True
    metric: str = "auc"
    choose_by: str = "loss"
    higher_is_better: bool = True
    validate: bool = True
    patience: int | None = None
    quorum: int = 1
    save: bool = False


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
    """

    done: int
    state: Tensor
    best_state: Tensor
    best: dict[str, tuple[float, int]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


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
        SiteError: P402 if fewer sites than the quorum answer a round.
    """
    engine.ask("start", dict.fromkeys(engine.sites, Message(plan.declaration, {"initial": plan.initial})))
    state = plan.selection.take(plan.initial).clone()
    progress, rows = Progress(0, state, state), list[Row]()
    saved = checkpoint.read() if checkpoint else None
    if saved is not None:
        progress, rows = saved
        plan.server.restore(checkpoint.server_memory if checkpoint else {})
        if plan.save and progress.done:
            engine.ask("restore", dict.fromkeys(plan.sites, Message({"round": progress.done})))
    total = len(plan.learning_rates)
    while progress.done < total and len(progress.stopped) < (1 if plan.together else len(plan.sites)):
        new = _round(plan, engine, progress)
        if plan.validate:
            _choose(plan, engine, progress, new)
        else:
            progress.best_state = progress.state
        progress.done += 1
        rows += new
        if checkpoint:
            if plan.save:
                engine.ask("save", dict.fromkeys(plan.sites, Message({"round": progress.done})))
            checkpoint.write(progress, plan.server.memory(), new)
        if report:
            report(progress.done, total)
    if not plan.validate:
        engine.ask("keep", dict.fromkeys(plan.sites, Message()))
    return progress, rows


def _round(plan: Plan, engine: Engine, progress: Progress) -> list[Row]:
    """One round of training; moves ``progress.state`` on and returns a row a site."""
    active = [site for site in plan.sites if site not in progress.stopped]
    fields = {"round": progress.done, "learning_rate": plan.learning_rates[progress.done]}
    request = Message(fields, {"state": progress.state})
    plan.server.start(progress.state, plan.selection.trainable, sum(plan.weights[site] for site in active))
    rows, failures = [], {}
    for site, reply in engine.call("train", dict.fromkeys(active, request)):
        if isinstance(reply, PolyclinicError):
            failures[site] = reply
            continue
        plan.server.add(reply.tensors["state"], plan.weights[site])
        rows.append({
            "round": progress.done, "site": site, "seconds": reply.fields["seconds"], "bytes_up": reply.size,
            "bytes_down": request.size, "examples": reply.fields["examples"], "loss": reply.fields["loss"],
        })  # fmt: skip
    if failures:
        _check_quorum(plan, progress, failures, len(rows))
    progress.state = plan.server.finish()
    return rows


def _check_quorum(plan: Plan, progress: Progress, failures: dict[str, PolyclinicError], answered: int) -> None:
    causes = "; ".join(f"{site}: {error}" for site, error in failures.items())
    if len(failures) == 1 and plan.quorum >= len(plan.sites):
        raise next(iter(failures.values()))
    if answered < plan.quorum or not plan.together:
        raise SiteError(
            "P402",
            f"In round {progress.done + 1} {answered} of {len(plan.sites)} sites answered, {plan.quorum} are needed. "
            f"{causes}",
            "Mend the sites named, or set a lower `training: {quorum: ...}`.",
            causes=[error.code for error in failures.values()],
        )  # fmt: skip
    progress.failures.append(f"Round {progress.done + 1} went on without {', '.join(failures)}. {causes}")


def _choose(plan: Plan, engine: Engine, progress: Progress, rows: list[Row]) -> None:
    """Measure validation data, add it to the round's rows, and remember the round if it is the best so far."""
    active = [row["site"] for row in rows]
    request = Message({"metric": plan.metric}, {"state": progress.state})
    found = {site: reply.fields for site, reply in engine.ask("evaluate", dict.fromkeys(active, request)).items()}
    for row in rows:
        row["validation_loss"] = found[row["site"]]["loss"]
        row[f"validation_{plan.metric}"] = found[row["site"]]["metric"]
    groups = {"federation": active} if plan.together else {site: [site] for site in active}
    better = []
    for group, members in groups.items():
        score = _score(plan, [found[site] for site in members])
        best = progress.best.get(group)
        if best is None or score is None or score < best[0]:
            progress.best[group] = (float("inf") if score is None else score, progress.done)
            better += members
        elif plan.patience is not None and progress.done - best[1] >= plan.patience:
            progress.stopped.append(group)
    if better and plan.together:
        progress.best_state = progress.state
    if better and not plan.selection.everything:
        engine.ask("keep", dict.fromkeys(better, Message()))


def _score(plan: Plan, found: Iterable[dict[str, Any]]) -> float | None:
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
        self.server_memory: dict[str, Tensor] = {}
        self._length = 0

    def write(self, progress: Progress, server_memory: dict[str, Tensor], rows: list[Row]) -> None:
        """Add a round."""
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
        tensors = {"state": progress.state, **{f"server/{n}": t for n, t in server_memory.items()}}
        if progress.best_state is not progress.state:
            tensors["best"] = progress.best_state
        fields = {"done": progress.done, "length": self._length, "best": progress.best, "stopped": progress.stopped,
                  "failures": progress.failures}  # fmt: skip
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
        self.server_memory = {
            name.removeprefix("server/"): tensor for name, tensor in tensors.items() if name.startswith("server/")
        }
        lines = self.rows.read_bytes()[: self._length].decode().splitlines() if self._length else []
        best = {group: (score, done) for group, (score, done) in fields["best"].items()}
        progress = Progress(
            fields["done"], tensors["state"], tensors.get("best", tensors["state"]), best, fields["stopped"],
            fields["failures"],
        )  # fmt: skip
        return progress, [json.loads(line) for line in lines]
