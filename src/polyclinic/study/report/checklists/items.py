"""What a checklist is, and how its items are answered from a results folder.

An answer says what this run did, read from its files. What a file can't know is left to the authors, with what they
should write. That something was not done is an answer, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from polyclinic.study.report.folder import Folder


class NotDone(str):
    """A sentence that says that this run did not do what an item asks."""

    __slots__ = ()


#: A sentence or two about a run; None where its files do not tell.
Find = Callable[[Folder], str | None]


class Status(StrEnum):
    """Who has answered an item."""

    RUN = "from the run"
    BOTH = "from the run; the authors add"
    NOT_DONE = "not done"
    AUTHORS = "for the authors"


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Attributes:
        number: as in the list.
        section: heading under which it stands.
        asks: what it asks for, in words of our own.
        find: gives the answers, put together in this order; none where a run can't tell.
        authors: what the authors write; empty where the run says all.
    """

    number: str
    section: str
    asks: str
    find: tuple[Find, ...] = ()
    authors: str = ""


@dataclass(frozen=True)
class Checklist:
    """A checklist.

    Attributes:
        name: on the command line.
        title: in the report.
        about: what it is for, and how the wording here relates to the original.
        source: citation; empty for a list of our own.
        items: in their order.
    """

    name: str
    title: str
    about: str
    source: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Answer:
    """An item with what this run says to it.

    Attributes:
        item: the item.
        status: who has answered it.
        found: what the run says; empty where it can't tell.
        authors: what the authors are to write; empty where nothing is left.
    """

    item: Item
    status: Status
    found: str
    authors: str


def answered(checklist: Checklist, folder: Folder) -> list[Answer]:
    """All items of a checklist with their answers."""
    return [_answer(item, folder) for item in checklist.items]


def _answer(item: Item, folder: Folder) -> Answer:
    found = [text for find in item.find if (text := find(folder))]
    authors = item.authors
    if not found:
        # A run of an older version may lack the file: then the item is the authors' as a whole.
        return Answer(item, Status.AUTHORS, "", authors or "The results folder does not tell this. Describe it.")
    text = " ".join(dict.fromkeys(found))
    if all(isinstance(one, NotDone) for one in found):
        return Answer(item, Status.NOT_DONE, text, authors)
    return Answer(item, Status.BOTH if authors else Status.RUN, text, authors)


def counted(answers: list[Answer]) -> dict[Status, int]:
    """Number of items of each status, in the order of `Status`."""
    return {status: sum(answer.status == status for answer in answers) for status in Status}
