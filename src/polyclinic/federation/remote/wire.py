"""What goes between the two ends: messages as bytes, and failures in their place."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polyclinic.communication.message import Message
from polyclinic.errors import (
    TITLES,
    DataError,
    FederationError,
    PartError,
    PolyclinicError,
    ResultsError,
    SiteError,
    StudyError,
    TrainingError,
)
from polyclinic.federation.remote.calls import Pieces, is_message, size

#: Larger messages are refused before they are read; FLARE carries 4 GiB at most, with what it adds.
MOST_BYTES = 4 * 2**30 - 2**20
_FAILURE = "failure"
_KINDS: dict[str, type[PolyclinicError]] = {
    kind.__name__: kind for kind in (DataError, FederationError, PartError, ResultsError, StudyError, TrainingError)
}


class Failure(BaseModel):
    """Why there is no answer: an error without a traceback, a path or a value.

    Attributes:
        kind: class of the error.
        code, message, hint: see `polyclinic.errors.PolyclinicError`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(max_length=40)
    code: str = Field(max_length=4)
    message: str = Field(max_length=4000)
    hint: str = Field(max_length=2000)

    @classmethod
    def of(cls, error: PolyclinicError) -> Failure:
        """Of an error, which may be long."""
        return cls(kind=type(error).__name__, code=error.code, message=error.message[:4000], hint=error.hint[:2000])

    def error(self, site: str) -> PolyclinicError:
        """The error again; one that can't be is the site's failure."""
        if self.code not in TITLES:
            return misfit(site)
        kind = _KINDS.get(self.kind)
        if kind is None:
            return SiteError(self.code, self.message, self.hint, site=site)
        return kind(self.code, self.message, self.hint)


def failure_to_pieces(error: PolyclinicError) -> Pieces:
    """An error in the place of an answer."""
    return Message({_FAILURE: Failure.of(error).model_dump()}).to_pieces()


def answer_from_pieces(site: str, found: object) -> Message | PolyclinicError:
    """What a site answered; what is no message is its failure."""
    if not is_message(found) or size(found) > MOST_BYTES:
        return misfit(site)
    try:
        message = Message.from_pieces(found)
        if _FAILURE in message.fields:
            return Failure.model_validate(message.fields[_FAILURE]).error(site)
    except (ValueError, ValidationError):
        return misfit(site)
    return message


def misfit(site: str) -> SiteError:
    """A site's answer that is none."""
    return SiteError(
        "P401", f"The answer of site {site} is no message.",
        "Let all sites and the coordinator run the same version of Polyclinic.", site=site,
    )  # fmt: skip
