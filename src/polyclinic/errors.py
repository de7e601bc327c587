"""Errors that a user can mend.

Every error a user can cause has a number, and the number has a page in ``docs/errors.md`` that says what it means and
how to resolve it. The message itself says what was got, what was expected and what to do next. The command line prints
the message alone, without a traceback, and exits with ``exit_status``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Number -> title. The hundreds tell where to look: 1 study file, 2 data, 3 training, 4 sites and engines, 5 results,
#: 6 studies across hospitals, 7 models in use.
TITLES = {
    "P101": "The study file can't be read",
    "P102": "The study file has an entry that does not fit",
    "P103": "Unknown name in the study file",
    "P104": "These parts can't be combined",
    "P105": "An environment variable in the study file is not set",
    "P201": "A data file can't be found or read",
    "P202": "A column is missing",
    "P203": "A value does not fit its column's use",
    "P204": "Too many cases can't be read",
    "P205": "A site has no usable cases",
    "P206": "The data can't be split as asked",
    "P207": "The data can't be harmonised as asked",
    "P208": "The data catalogue does not have this",
    "P211": "Parties have different public sets",
    "P212": "A network from a file was trained for something else",
    "P301": "The loss or the model's state is not a number",
    "P302": "The model does not fit the data",
    "P303": "Out of memory",
    "P304": "A part does not do what it must",
    "P305": "A privacy budget can't be kept",
    "P306": "A privacy budget is spent",
    "P401": "A site failed",
    "P402": "Too few sites answered",
    "P403": "A worker process ended unexpectedly",
    "P404": "A site refuses a secure sum",
    "P405": "A cluster can't be used",
    "P501": "The results folder can't be used",
    "P502": "The disk is full",
    "P503": "An optional package is missing",
    "P504": "A privacy ledger can't be used",
    "P601": "The consortium file can't be used",
    "P602": "A start-up kit can't be used",
    "P603": "The coordinator can't be reached",
    "P604": "A site does not take part in a study",
    "P605": "A site's file can't be used",
    "P606": "A study across hospitals did not end",
    "P607": "An audit log was changed",
    "P608": "A request, an answer or a list of certificates can't be used",
    "P701": "A model's folder can't be used",
    "P702": "Cases do not fit a model",
    "P703": "A model can't be made as asked",
    "P704": "A model can't be exported as asked",
}


class PolyclinicError(Exception):
    """A failure with a number, a message and what to do next.

    Args:
        code: one of ``TITLES``.
        message: what was got and what was expected, in one sentence or two.
        hint: what to do next.
    """

    exit_status = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        if code not in TITLES:
            raise ValueError(f"unknown error number {code!r}")
        self.code = code
        self.message = message
        self.hint = hint
        super().__init__(f"{code} {message}" + (f" {hint}" if hint else ""))

    def __reduce__(self) -> tuple[type[PolyclinicError], tuple[str, str, str]]:
        return type(self), (self.code, self.message, self.hint)


class StudyError(PolyclinicError):
    """The study file asks for something that can't be: exit status 2, nothing was written."""

    exit_status = 2


class DataError(PolyclinicError):
    """The data is not as the study file says: exit status 2."""

    exit_status = 2


class TrainingError(PolyclinicError):
    """Training went wrong at a site (a loss that is not a number, out of memory)."""


class FederationError(PolyclinicError):
    """Something is wrong between the parties of a consortium."""


class PartError(PolyclinicError):
    """A part of a method, mostly one of a plug-in, gives something else than it must."""


class SiteError(PolyclinicError):
    """A site, or the process that runs it, failed; names the site and the cause.

    Where several sites failed, ``causes`` has the number of each failure.
    """

    def __init__(
        self, code: str, message: str, hint: str = "", *, site: str = "", causes: Iterable[str] = ()
    ) -> None:  # fmt: skip
        super().__init__(code, message, hint)
        self.site, self.causes = site, tuple(causes)


class ResultsError(PolyclinicError):
    """Results can't be written or read."""


class ModelError(PolyclinicError):
    """A model can't be made, read or used: exit status 2."""

    exit_status = 2


def error_told(error: PolyclinicError) -> dict[str, str]:
    """An error as JSON values, for another process of this machine."""
    return {"kind": type(error).__name__, "code": error.code, "message": error.message, "hint": error.hint}


def error_from(told: Mapping[str, str]) -> PolyclinicError:
    """The error that ``error_told`` gave."""
    kinds: dict[str, type[PolyclinicError]] = {one.__name__: one for one in PolyclinicError.__subclasses__()}
    return kinds.get(told["kind"], PolyclinicError)(told["code"], told["message"], told["hint"])


def nearest(name: str, valid: list[str]) -> str:
    """The valid name most like ``name``, as a hint ("Did you mean 'fedavg'?"), or the list of valid names."""
    from difflib import get_close_matches
    from unicodedata import normalize

    close = get_close_matches(name, valid, n=1, cutoff=0.6)
    if close and normalize("NFC", close[0]) == normalize("NFC", name):  # as macOS writes ü: u and two dots
        return f"Its letters are encoded in another way than those of {close[0]!r}: copy the name from there."
    if close:
        return f"Did you mean {close[0]!r}?"
    return "Valid: " + ", ".join(valid) + "." if len(valid) <= 40 else ""
