"""Sites at the other end of connections: late, silent, gone, back again, and with answers that belong to nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from polyclinic.communication.message import Message
from polyclinic.errors import SiteError
from polyclinic.federation.remote.calls import Alive, Answered, AnsweredOnce, Asked, Pieces, digest
from polyclinic.federation.remote.engine import MOST_REPEATS, Patience, RemoteEngine, Unreachable

QUICK = Patience(deadline=1.0, silence=0.15, absence=0.1, look=0.02, pause=0.001)


class There:
    """A site that answers; tests replace what is to go wrong."""

    def __init__(self, session: str = "now") -> None:
        self.done: list[str] = []
        self.once = AnsweredOnce(session, self._answer)

    def _answer(self, function: str, message: Pieces) -> Pieces:
        self.done.append(function)
        return Message({"answer": len(self.done)}).to_pieces()

    def answer(self, envelope: str, message: Pieces, seconds: float) -> tuple[Any, Any]:
        return self.once(envelope, message)

    def alive(self, seconds: float) -> Alive:
        return self.once.now()


def ask(engine: RemoteEngine, function: str = "train") -> Any:
    ((_, reply),) = engine.call(function, {"Aachen": Message()})
    return reply


def test_a_call_whose_answer_was_lost_is_done_once() -> None:
    site, calls = There(), list[str]()

    def answer(envelope: str, message: Pieces, seconds: float) -> tuple[Any, Any]:
        calls.append(envelope)
        found = site.once(envelope, message)
        if len(calls) < 4:
            raise Unreachable
        return found

    site.answer = answer  # type: ignore[method-assign]
    engine = RemoteEngine({"Aachen": site}, "now", QUICK)
    assert ask(engine).fields == {"answer": 1}
    assert (len(calls), site.done, engine.lost) == (4, ["train"], [])


def test_a_site_that_works_for_long_is_waited_for_as_long_as_it_is_alive() -> None:
    site = There()
    site._answer = lambda function, message: (time.sleep(0.4), Message({"answer": 1}).to_pieces())[1]  # type: ignore
    site.once = AnsweredOnce("now", site._answer)
    seen = list[Alive]()
    site.alive = lambda seconds: seen.append(site.once.now()) or seen[-1]  # type: ignore
    engine = RemoteEngine({"Aachen": site}, "now", QUICK)
    assert ask(engine, "open").fields == {"answer": 1}
    assert {one.function for one in seen} == {"open"}
    assert seen[-1].seconds > seen[0].seconds


def never(envelope: str, message: Pieces, seconds: float) -> tuple[Any, Any]:
    threading.Event().wait(1.5)
    raise TimeoutError


def gone(*_: Any) -> Any:
    raise Unreachable


def silent(*_: Any) -> Any:
    raise TimeoutError


@pytest.mark.parametrize(
    ("answer", "alive", "words"),
    [
        (never, lambda seconds: Alive(function="train", seconds=1.0), "did not answer within 1 s when asked to train"),
        (never, silent, "did not answer within 0.15 s when asked to train"),
        (never, gone, "can't be reached when asked to train"),
        (gone, gone, "can't be reached when asked to train"),
    ],
    ids=["late", "silent", "killed at work", "absent"],
)  # fmt: skip
def test_a_site_that_does_not_answer_is_named(
    answer: Callable[..., Any], alive: Callable[..., Any], words: str
) -> None:
    site = There()
    site.answer, site.alive = answer, alive  # type: ignore[method-assign]
    engine = RemoteEngine({"Aachen": site}, "now", QUICK)
    reply = ask(engine)
    assert isinstance(reply, SiteError)
    assert (reply.code, reply.site) == ("P402", "Aachen")
    assert words in reply.message
    assert engine.lost == ["Aachen"]


def test_a_site_that_was_lost_is_looked_for_and_goes_on() -> None:
    site = There()
    site.answer, site.alive = gone, gone  # type: ignore[method-assign]
    engine = RemoteEngine({"Aachen": site}, "now", QUICK)
    ask(engine)
    begun = time.monotonic()
    assert "has not been there since" in ask(engine).message
    assert time.monotonic() - begun < QUICK.absence, "it is not waited for a second time"
    del site.answer, site.alive
    assert ask(engine).fields == {"answer": 1}
    assert engine.lost == []


def test_others_are_not_held_up() -> None:
    absent, there = There(), There()
    absent.answer, absent.alive = gone, gone  # type: ignore[method-assign]
    engine = RemoteEngine({"Bonn": absent, "Aachen": there}, "now", QUICK)
    found = dict(engine.call("train", {"Bonn": Message(), "Aachen": Message()}))
    assert list(found) == ["Aachen", "Bonn"]
    assert isinstance(found["Aachen"], Message)
    assert isinstance(found["Bonn"], SiteError)


@pytest.mark.parametrize(
    "found", [(None, None), ("", b""), ("{}", b"x"), (b"x", "x"), (3, []), ("", [b"x"]), ("", [3])]
)
def test_what_is_no_answer_is_asked_for_again_and_then_the_sites_failure(found: Any) -> None:
    site, asked = There(), list[int]()
    site.answer = lambda *_: (asked.append(1), found)[1]  # type: ignore
    reply = ask(RemoteEngine({"Aachen": site}, "now", QUICK))
    assert isinstance(reply, SiteError)
    assert (reply.code, len(asked)) == ("P401", MOST_REPEATS + 1)


def test_an_answer_to_another_call_does_not_count() -> None:
    site, first = There(), list[Any]()

    def answer(envelope: str, message: Pieces, seconds: float) -> tuple[Any, Any]:
        found = site.once(envelope, message)
        first.append(found)
        return first[0]

    site.answer = answer  # type: ignore[method-assign]
    engine = RemoteEngine({"Aachen": site}, "now", QUICK)
    assert ask(engine).fields == {"answer": 1}
    assert isinstance(ask(engine), SiteError)


def test_calls_of_another_run_and_old_ones_are_refused() -> None:
    site = There()
    engine = RemoteEngine({"Aachen": site}, "before", QUICK)
    assert isinstance(ask(engine), SiteError)
    assert not site.done
    message = Message().to_pieces()

    def asked(number: int, function: str = "train") -> Answered:
        envelope = Asked(session="now", number=number, function=function, sha256=digest(message))
        return Answered.model_validate_json(site.once(envelope.model_dump_json(), message)[0])

    assert [asked(2).state, asked(2).state, asked(1).state, asked(2, "keep").state] == [
        "answered", "answered", "refused", "refused",
    ]  # fmt: skip
    assert site.done == ["train"]
    with pytest.raises(ValueError, match="JSON"):
        site.once("no envelope", message)
    envelope = Asked(session="now", number=3, function="train", sha256=digest(message)).model_dump_json()
    for other in (None, b"".join(message), ["text"], [1]):
        with pytest.raises(ValueError, match="for the pieces of a message"):
            site.once(envelope, other)
    assert site.done == ["train"]


def test_a_message_that_was_damaged_is_not_read() -> None:
    site = There()
    asked = Asked(session="now", number=1, function="train", sha256=digest([b"what was sent"]))
    answered = Answered.model_validate_json(site.once(asked.model_dump_json(), [b"what came"])[0])
    assert answered.state == "damaged"
    assert not site.done


def test_sites_get_the_names_that_they_have_in_studies() -> None:
    told = list[tuple[str, str]]()
    engine = RemoteEngine({"site-1": There(), "site-2": There()}, "now", QUICK, lambda *what: told.append(what[:2]))
    assert [site for site, _ in engine.call("hello", dict.fromkeys(engine.sites, Message()))] == ["site-1", "site-2"]
    engine.rename({"site-1": "Zwickau", "site-2": "Aachen"})
    assert engine.sites == ["Aachen", "Zwickau"]
    assert ask(engine).fields == {"answer": 2}, "numbers go on"
    assert sorted(told) == [("Aachen", "train"), ("site-1", "hello"), ("site-2", "hello")]


def test_answers_to_what_was_posted_come_as_they_are_there() -> None:
    slow, quick = There(), There()
    slow.answer = lambda *given: (time.sleep(0.1), slow.once(*given[:2]))[1]  # type: ignore
    engine = RemoteEngine({"Aachen": slow, "Bonn": quick}, "now", QUICK)
    engine.post("Aachen", "train", Message())
    engine.post("Bonn", "train", Message())
    assert [site for site, _ in engine.replies()] == ["Bonn", "Aachen"]
    assert list(engine.replies()) == []
    engine.close()
