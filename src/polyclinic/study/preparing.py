"""Leading the sites through the preparation of their cases: splits, harmonisation, scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from polyclinic.communication.message import Message
from polyclinic.data.preparation import build_steps
from polyclinic.engine import Engine


@dataclass(frozen=True)
class Preparation:
    """What came of it.

    Attributes:
        replies: the sites' answers to ``prepare``: sizes of their parts.
        notes: sentences for the report.
    """

    replies: dict[str, Message]
    notes: list[str]


def prepare(engine: Engine, request: dict[str, Any], without: str | None = None) -> Preparation:
    """Split every site's cases and go along the chain of preparation.

    Args:
        engine: who runs the sites.
        request: fields of the message ``prepare``; ``steps`` names the chain.
        without: a site whose summaries are not used, because it stands for a hospital that joins later. It is prepared
            with what the others found.

    Raises:
        PolyclinicError: a site failed, or a step is impossible with these sites.
    """
    replies = engine.ask("prepare", dict.fromkeys(engine.sites, Message(request)))
    members = [site for site, reply in replies.items() if reply.fields["train"] and site != without]
    notes = [reply.fields["note"] for reply in replies.values() if reply.fields["note"]]
    for step in build_steps(request["steps"]):
        # Without training cases anywhere there is nothing to merge; the caller says so.
        if not step.federated or not members:
            continue
        shared = engine.ask("share", dict.fromkeys(members, Message()))
        merged, warnings = step.merge({site: reply.tensors for site, reply in shared.items()})
        applied = engine.ask("apply", dict.fromkeys(engine.sites, Message({}, merged)))
        notes += warnings + [note for reply in applied.values() for note in reply.fields["notes"]]
    return Preparation(replies, list(dict.fromkeys(notes)))
