"""Which parts of a method make no sense together; said when the study file is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from polyclinic.client.personal import PERSONAL
from polyclinic.client.rules import LOCAL_RULES
from polyclinic.methods import Method
from polyclinic.server import SERVER_RULES
from polyclinic.server.rules import Change, is_aggregation
from polyclinic.tasks import TASKS


@dataclass(frozen=True)
class Refusal:
    """Why a method can't be run as composed.

    Attributes:
        message: what does not go together.
        hint: what to do instead.
        key: the entry of the method that it is about.
    """

    message: str
    hint: str
    key: str

    def place(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Where in the method's entry: nowhere if the method brought the part itself."""
        return (self.key,) if self.key in given else ()


@dataclass(frozen=True)
class Local:
    """What matters of the local training.

    Attributes:
        task: the study's.
        optimizer: name of the local optimiser.
        keeps_optimizer: whether its state stays between rounds.
        mixed_precision: whether the study asks for it.
        chosen: whether sites are chosen anew each round.
    """

    task: str
    optimizer: str
    keeps_optimizer: bool
    mixed_precision: bool
    chosen: bool


def refusal(method: Method, local: Local) -> Refusal | None:
    """Why the parts of ``method`` make no sense together; None if they do."""
    return next(filter(None, (check(method, local) for check in _CHECKS)), None)


def _twice(method: Method, local: Local) -> Refusal | None:
    for key, what, parts in (("local", "local rule", method.local), ("server", "server part", method.server)):
        names = [name for name, _ in parts]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            return Refusal(f"The {what} {twice[0]} is there twice.", "Name it once.", key)
    return None


def _one_aggregation(method: Method, local: Local) -> Refusal | None:
    found = [name for name, _ in method.server if is_aggregation(name)]
    if len(found) < 2:
        return None
    return Refusal(f"{found[0]} and {found[1]} both put the updates together.",
                   "A server rule has one aggregation; the others of its parts change what goes in or comes out.",
                   "server")  # fmt: skip


def _order(method: Method, local: Local) -> Refusal | None:
    changes = [(name, part) for name, _ in method.server if issubclass(part := SERVER_RULES[name], Change)]
    changing = [name for name, part in changes if part.result is not Change.result]
    for before, name in pairwise(changing):
        if SERVER_RULES[name].undoes and not SERVER_RULES[before].undoes:
            return Refusal(f"{before} comes before {name}, so it would be given updates that {name} has changed and "
                           "not yet changed back.", f"Name {name} before {before}.", "server")  # fmt: skip
    return None


def _returned(method: Method, local: Local) -> Refusal | None:
    returning = [name for name, _ in method.server if SERVER_RULES[name].sends]
    undoing = [name for name, _ in method.server if SERVER_RULES[name].undoes]
    if returning and undoing:
        return Refusal(f"{returning[0]} sends sites what others sent, and with {undoing[0]} that is no model.",
                       f"Leave {undoing[0]} out, or choose another aggregation.", "server")  # fmt: skip
    return None


def _gradient_at_start(method: Method, local: Local) -> Refusal | None:
    idle = [name for name, _ in method.local if LOCAL_RULES[name].zero_at_start]
    if method.work == "gradient" and idle:
        what = "the proximal term" if idle[0] == "proximal" else f"what {idle[0]} adds"
        return Refusal(f"fedsgd takes its one gradient at the global state, where {what} is zero.",
                       "Use a method that trains locally, such as fedavg.", "local")  # fmt: skip
    if method.work == "gradient" and method.personal is not None:
        return Refusal(f"fedsgd does not train locally, so {method.personal[0]} has nothing to train.",
                       "Use fedavg.", "personal")  # fmt: skip
    return None


def _linear_steps(method: Method, local: Local) -> Refusal | None:
    wanting = [(name, "local") for name, _ in method.local if LOCAL_RULES[name].needs_sgd]
    wanting += [(name, "server") for name, options in method.server if "path" in SERVER_RULES[name](**options).facts]
    if not wanting or method.work == "gradient":
        return None
    name, key = wanting[0]
    if local.optimizer != "sgd":
        return Refusal(
            f"{name} reads the mean gradient off the way a site went, which works for sgd (also with momentum), "
            f"not for {local.optimizer}.", "Use `optimizer: {sgd: {lr: ...}}`.", key,
        )  # fmt: skip
    if local.keeps_optimizer:
        return Refusal(f"{name} supposes that local momentum starts anew each round.",
                       "Use `optimizer_state: reset`.", key)  # fmt: skip
    return None


def _partners(method: Method, local: Local) -> Refusal | None:
    rules, server = dict(method.local), dict(method.server)
    for name, options in rules.items():
        partner = LOCAL_RULES[name].partner
        if partner and server.get(partner) != options:
            return Refusal(f"The local rule {name} needs the server part {partner} with the same options.",
                           f"Add {partner} with {_plain(options)} to `server`, or use the method {partner}.",
                           "server")  # fmt: skip
    partners = {LOCAL_RULES[name].partner: name for name in LOCAL_RULES if LOCAL_RULES[name].partner}
    for name, options in server.items():
        if name in partners and partners[name] not in rules:
            return Refusal(f"The server part {name} needs the local rule {partners[name]} with the same options.",
                           f"Add {partners[name]} with {_plain(options)} to `local`, or use the method {name}.",
                           "server")  # fmt: skip
    return None


def _task(method: Method, local: Local) -> Refusal | None:
    for name, _ in method.local:
        tasks = LOCAL_RULES[name].tasks
        if tasks and local.task not in tasks:
            return Refusal(f"{name} is for {' and '.join(tasks)}, and the task is {local.task}.",
                           "Leave it out.", "local")  # fmt: skip
    if not TASKS[local.task].has_accuracy:
        for name, options in method.server:
            if "end_accuracy" in SERVER_RULES[name](**options).facts:
                return Refusal(f"{name} asks for the accuracy of each site's model, and {local.task} has none.",
                               "Choose another variant of it.", "server")  # fmt: skip
    return None


def _one_by_one(method: Method, local: Local) -> Refusal | None:
    if method.topology == "star":
        return None
    if method.topology == "incremental" and local.chosen:
        return Refusal("In the topology incremental each site has one turn, and `participation` chooses sites anew "
                       "each round.", "Leave out `participation`, or use `topology: cyclic`.", "topology")  # fmt: skip
    exchanging = [name for name, options in method.local if LOCAL_RULES[name](**options).counterpart() is not None]
    if exchanging:
        return Refusal(f"{exchanging[0]} needs a server between the sites; in the topology {method.topology} the model "
                       "goes from site to site.", "Use `topology: star`.", "topology")  # fmt: skip
    others = [name for name, _ in method.server if name != "mean"]
    if others:
        return Refusal(f"{others[0]} puts several answers together; in the topology {method.topology} there is only "
                       "one at a time.", "Use `topology: star`.", "topology")  # fmt: skip
    return None


def _personal(method: Method, local: Local) -> Refusal | None:
    if method.personal is None:
        return None
    name, part = method.personal[0], PERSONAL[method.personal[0]]
    if part.shares and method.share not in part.shares:
        return Refusal(f"{name} works with a private part, and the method shares {method.share}.",
                       f"Use `share: {part.shares[0]}`.", "share")  # fmt: skip
    if local.keeps_optimizer and not part.keeps_optimizer:
        return Refusal(f"The optimisers of {name} start anew each round.", "Use `optimizer_state: reset`.", "personal")
    if local.mixed_precision and not part.mixed_precision:
        return Refusal(f"{name} has no mixed precision.", "Use `engine: {precision: float32}`.", "personal")
    return None


def _plain(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in options.items()) or "its defaults"


_CHECKS: tuple[Callable[[Method, Local], Refusal | None], ...] = (
    _twice, _one_aggregation, _order, _returned, _gradient_at_start, _linear_steps, _partners, _task, _one_by_one,
    _personal,
)  # fmt: skip
