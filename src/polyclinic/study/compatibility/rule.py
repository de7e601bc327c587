"""What a server rule is put together of."""

from __future__ import annotations

from importlib.util import find_spec
from itertools import pairwise

from polyclinic.methods import Method
from polyclinic.parts import Aggregation, ServerEnd
from polyclinic.study.compatibility.refusing import Local, Refusal, all_parts, built_parts, placed


def absent(method: Method, local: Local) -> Refusal | None:
    """Parts whose package is not installed."""
    for key, name, part in all_parts(method):
        if part.requires is not None and find_spec(part.requires[0]) is None:
            package, extra = part.requires
            return Refusal(f"{name} needs the package {package}, which is not installed.",
                           f"pip install 'polyclinic[{extra}]'", key)  # fmt: skip
    return None


def twice(method: Method, local: Local) -> Refusal | None:
    """Parts that are named twice."""
    names = [name for name, _ in method.parts]
    for key, entries in (("local", method.local), ("server", method.server), ("channel", method.channel)):
        twice = [name for name, _ in entries if names.count(name) > 1]
        if twice:
            return Refusal(f"The part {twice[0]} is there twice.", "Name it once.", key)
    return None


def one_aggregation(method: Method, local: Local) -> Refusal | None:
    """Two parts that both put updates together."""
    found = [name for name, part in built_parts(method) if isinstance(part.at_server(), Aggregation)]
    if len(found) < 2:
        return None
    return Refusal(f"{found[0]} and {found[1]} both put the updates together.",
                   "A server rule has one aggregation; the others of its parts change what goes in or comes out.",
                   "server")  # fmt: skip


def order(method: Method, local: Local) -> Refusal | None:
    """Parts in an order in which one is given what another has changed and not yet changed back."""
    ends = [(name, part, part.at_server()) for key, name, part in placed(method) if key == "server"]
    changing = [(name, part) for name, part, end in ends if type(end).finish is not ServerEnd.finish]
    for (before, first), (name, part) in pairwise(changing):
        if part.undoes and not first.undoes:
            return Refusal(f"{before} comes before {name}, so it would be given updates that {name} has changed and "
                           "not yet changed back.", f"Name {name} before {before}.", "server")  # fmt: skip
    return None


def returned(method: Method, local: Local) -> Refusal | None:
    """Updates that are sent on to sites though the server changes them on their way in and out."""
    returning = [name for name, part in built_parts(method) if part.returns]
    undoing = [name for name, part in built_parts(method) if part.undoes]
    if returning and undoing:
        return Refusal(f"{returning[0]} sends sites what others sent, and with {undoing[0]} that is no model.",
                       f"Leave {undoing[0]} out, or choose another aggregation.", "server")  # fmt: skip
    return None
