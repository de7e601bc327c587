"""An engine that fails where an answer has something of each case, or of each patient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from polyclinic.communication.message import Message
from polyclinic.engine import Engine
from polyclinic.engine.base import Reply
from polyclinic.errors import PolyclinicError

#: Functions whose answers are of single cases.
OF_CASES = {"predict", "overlays"}
#: Lengths that answers have for reasons of their own: bins and thresholds.
FIXED = {15, 19, 642}
#: Fields and tensors that are of single cases.
NAMES = {"subject", "case", "subjects", "cases_of", "probabilities", "labels", "predictions", "scores"}


class RowFound(Exception):  # noqa: N818 - a word says it
    """An answer has a row of a patient."""


class Refusing(Engine):
    """Carries messages, and looks at every answer.

    Args:
        inner: who runs the sites.
        cases: lengths that nothing in an answer may have: numbers of cases or patients in some part of a site.
        serialise: turn every message into bytes and back, as a network would.
    """

    def __init__(self, inner: Engine, cases: set[int] = frozenset(), *, serialise: bool = False) -> None:
        self.inner, self.sites, self.lengths, self.serialise = inner, inner.sites, set(cases), serialise
        self.holds_all = inner.holds_all
        self.asked: list[str] = []

    def call(self, function: str, requests: Mapping[str, Message]) -> Iterator[Reply]:
        """See `Engine.call`."""
        self.asked.append(function)
        if self.serialise:
            requests = {site: Message.from_bytes(one.to_bytes()) for site, one in requests.items()}
        for site, reply in self.inner.call(function, requests):
            if not isinstance(reply, PolyclinicError):
                self._look(function, site, reply)
                if self.serialise:
                    reply = Message.from_bytes(reply.to_bytes())
            yield site, reply

    def _look(self, function: str, site: str, reply: Message) -> None:
        if function in OF_CASES or NAMES & {*reply.fields, *reply.tensors}:
            raise RowFound(f"{function} at {site}")
        if function == "prepare":  # the lengths that would be those of rows
            self.lengths |= {reply.fields[part] for part in ("train", "validation", "test") if reply.fields[part] > 8}
        if function in ("test", "compare", "spread", "threshold", "evaluate"):
            lengths = {len(of) for of in reply.fields.values() if isinstance(of, list)}
            lengths |= {length for tensor in reply.tensors.values() for length in tensor.shape}
            if found := (lengths & self.lengths) - FIXED:
                raise RowFound(f"{function} at {site}: something has {found} entries, as many as cases")

    @property
    def notes(self):
        return self.inner.notes

    def close(self) -> None:
        """See `Engine.close`."""
        self.inner.close()
