"""What goes between processes: tensors arrive as they were, stay as they are, and leave nothing behind."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from helpers import Federation, table_sites
from polyclinic.communication.message import Message
from polyclinic.engine import blocks as memory
from polyclinic.engine.base import SitesLost
from polyclinic.engine.blocks import DTYPES, LEAST_BYTES, MOST_FREE, Lender, OncePerCall, most_blocks
from polyclinic.engine.channel import Channel
from polyclinic.engine.processes import ProcessEngine

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(not hasattr(socket, "send_fds"), reason="descriptors can't be handed over here")

LARGE = LEAST_BYTES // 4  # numbers of 32 bits


@contextmanager
def ends(*, files: bool = True) -> Iterator[tuple[Channel, Channel]]:
    """Two ends in this process; frames must be small, since nobody reads while the other writes."""
    (here_in, there_out), (there_in, here_out) = os.pipe(), os.pipe()
    pair = socket.socketpair()
    streams = [
        os.fdopen(fd, mode) for fd, mode in ((here_in, "rb"), (here_out, "wb"), (there_in, "rb"), (there_out, "wb"))
    ]
    try:
        yield (
            Channel(streams[0], streams[1], pair[0] if files else None),
            Channel(streams[2], streams[3], pair[1] if files else None),
        )
    finally:
        for stream in streams:
            stream.close()
        for end in pair:
            end.close()


def through(here: Channel, there: Channel, lender: Lender, message: Message) -> Message:
    here.send(message, lender.lend)
    found = there.receive()
    assert found is not None
    return found[1]


def same(one: Tensor, other: Tensor) -> bool:
    """Equal to the bit, NaN and all."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    rows = [torch.cat([tensor.reshape(-1)] * 2).view(torch.uint8).tolist() for tensor in (one, other)]
    return rows[0] == rows[1]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    dtype = DTYPES[draw(st.sampled_from(sorted(DTYPES)))]
    source = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    values = (300 * torch.randn(shape, generator=source)).to(dtype)
    if dtype.is_floating_point and values.numel():
        values.view(-1)[0] = draw(st.sampled_from([float("nan"), float("inf"), -0.0]))
    turned = draw(st.sampled_from(["as it is", "transposed", "every second", "expanded"]))
    if turned == "transposed" and values.dim() > 1:
        return values.transpose(0, -1)
    if turned == "every second" and values.dim():
        return values[::2]
    if turned == "expanded":
        return values.expand(2, *values.shape)
    return values


@settings(max_examples=60, deadline=None)
@given(st.lists(tensors(), max_size=5), st.sampled_from([1, 16, LEAST_BYTES]))
def test_every_tensor_arrives_as_it_was_in_the_order_in_which_it_was_sent(found: list[Tensor], least: int) -> None:
    message = Message({"a": [1, None, "ü"]}, {f"{9 - number}/x": tensor for number, tensor in enumerate(found)})
    before = [tensor.clone() for tensor in found]
    with pytest.MonkeyPatch.context() as patch, ends() as (here, there):
        patch.setattr(memory, "LEAST_BYTES", least)
        again = through(here, there, Lender(8), message)
    assert again.fields == message.fields
    assert list(again.tensors) == list(message.tensors)
    assert all(same(mine, theirs) for mine, theirs in zip(again.tensors.values(), before, strict=True))


def test_a_message_has_no_complex_numbers() -> None:
    with pytest.raises(ValueError, match=r"no tensors of torch.complex64; got one named 'x'"):
        Message({}, {"x": torch.zeros(LARGE, dtype=torch.complex64)}).to_bytes()


def test_what_was_received_stays_while_other_messages_come_and_go() -> None:
    lender, kept = Lender(50), list[Tensor]()
    with ends() as (here, there):
        for number in range(12):
            state = torch.full((2 * LARGE - number,), float(number))
            received = through(here, there, lender, Message({}, {"state": state, "n": torch.tensor(number)}))
            state.fill_(-1)  # what was sent is a copy
            if number % 3 == 0:
                kept.append(received.tensors["state"][7:])  # a part is enough to keep it
            through(there, here, Lender(1), Message())
        del received
    assert [tensor.unique().tolist() for tensor in kept] == [[0.0], [3.0], [6.0], [9.0]]
    assert lender._count <= 4 + 2


def test_a_block_is_written_again_when_its_tensors_are_gone() -> None:
    lender = Lender(50)
    with ends() as (here, there):
        for _ in range(10):
            received = through(here, there, lender, Message({}, {"state": torch.rand(LARGE)}))
            del received
            through(there, here, Lender(1), Message())  # says that the block is done with
    assert lender._count == 1


def test_who_writes_into_what_he_received_changes_it_for_nobody_else() -> None:
    lender, state = Lender(5), torch.rand(LARGE)
    once = OncePerCall(lender, [state, state])
    with ends() as (here, there), ends() as (other, yonder):
        here.send(Message({}, {"state": state}), once.lend)
        other.send(Message({}, {"state": state}), once.lend)
        (_, first), (_, second) = there.receive() or pytest.fail("no message"), yonder.receive() or pytest.fail("none")
        first.tensors["state"].zero_()
        assert torch.equal(second.tensors["state"], state)
        assert lender._count == 1, "it was written once"


def test_without_a_way_for_descriptors_everything_is_in_the_frame() -> None:
    with ends(files=False) as (here, there):
        lender = Lender(5)
        again = through(here, there, lender, Message({}, {"x": torch.arange(100.0)}))
        assert torch.equal(again.tensors["x"], torch.arange(100.0))
    assert lender._count == 0


def test_a_lender_has_so_many_blocks_and_no_more() -> None:
    lender, large = Lender(2), torch.zeros(LARGE)
    first, second = lender.lend(large), lender.lend(large)
    assert first is not None
    assert second is not None
    assert lender.lend(large) is None
    assert lender.lend(torch.zeros(8)) is None
    del first
    assert lender.lend(torch.zeros(10 * LARGE)) is not None, "one that does not fit makes room"
    assert lender._count == 2
    assert lender.reason == ""


def test_few_blocks_that_nobody_reads_are_kept() -> None:
    lender = Lender(50)
    held = [lender.lend(torch.zeros(LARGE)) for _ in range(10)]
    assert lender._count == 10
    held.clear()
    assert lender.lend(torch.zeros(LARGE)) is not None
    assert lender._count == MOST_FREE + 1


def test_no_room_is_told_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    files = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc").is_dir() else 0
    monkeypatch.setattr(memory, "_reserve", full)
    lender = Lender(5)
    assert lender.lend(torch.zeros(LARGE)) is None
    assert lender.reason == "No space left on device"
    assert not files or len(list(Path("/proc/self/fd").iterdir())) == files


@pytest.mark.parametrize("missing", ["memfd_create", "posix_fallocate"])
def test_systems_without_files_in_memory_use_files_without_names(
    missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(os, missing, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with ends() as (here, there):
        state = torch.rand(LARGE)
        lender = Lender(5)
        assert torch.equal(through(here, there, lender, Message({}, {"state": state})).tensors["state"], state)
        assert (lender._count, lender.reason) == (1, "")
    assert not list(tmp_path.iterdir())


def test_blocks_are_as_many_as_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, most in ((1024, 85), (256, 21), (8, 1), (resource.RLIM_INFINITY, 5461)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, allowed=allowed: (allowed, allowed))
        assert most_blocks(3) == most


# Worker processes -----------------------------------------------------------------------------------------------------

#: 71 000 weights: enough for a block of their own.
MODEL = {"mlp": {"hidden": [260, 260]}}
SITES = {"Aachen": 20, "Bonn": 14, "Celle": 17, "Dresden": 9, "Essen": 8}


@contextmanager
def federation(**options: Any) -> Iterator[Federation]:
    data = table_sites(SITES)
    engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
    try:
        yield Federation(data, engine=engine, model=MODEL, **options)
    finally:
        engine.close()


def ask(found: Federation, state: Tensor) -> dict[str, Tensor]:
    """Sites that have been started answer with the state that they are sent."""
    replies = found.engine.ask("model", dict.fromkeys(SITES, Message({}, {"state": state})))
    return {site: reply.tensors["model"] for site, reply in replies.items()}


def started(found: Federation) -> Tensor:
    plan = found.plan()
    found.engine.ask("start", dict.fromkeys(SITES, Message(plan.start.fields(), {"initial": plan.initial})))
    return plan.initial


def left() -> tuple[list[str], list[str]]:
    """What may be left behind: names of shared memory, and blocks that this process has open."""
    gc.collect()
    shared = Path("/dev/shm")  # noqa: S108 - where the system shows shared memory with names
    files = shared.iterdir() if shared.is_dir() else []
    names = sorted(file.name for file in files if file.name.startswith("psm_") or "polyclinic" in file.name)
    return names, opened(os.getpid())


def opened(process: int) -> list[str]:
    if not Path("/proc").is_dir():
        return []
    found = []
    for file in Path(f"/proc/{process}/fd").iterdir():
        try:
            found.append(str(file.readlink()))
        except OSError:
            continue
    return [name for name in found if "memfd:polyclinic" in name]


def test_answers_of_all_rounds_stay_as_they_were() -> None:
    with federation() as found:
        initial = started(found)
        kept = {}
        for number in range(6):
            answers = ask(found, initial + number)
            kept[number] = answers if number % 2 else {site: answers[site] for site in ("Bonn", "Essen")}
        assert isinstance(found.engine, ProcessEngine)
        assert found.engine.notes == []
        assert 1 <= found.engine._lender._count <= 3, "written once for all sites, and then again"
        for number, answers in kept.items():
            for tensor in answers.values():
                assert torch.equal(tensor, initial + number)


def test_memory_does_not_grow_with_rounds() -> None:
    """An answer whose block were never written again would take two files in each of 24 rounds at two sites or more."""
    with federation() as found:
        initial = started(found)
        assert isinstance(found.engine, ProcessEngine)
        counts = []
        for number in range(24):
            ask(found, initial + number)
            counts.append([len(opened(worker.child.number)) for worker in found.engine._workers])
    assert max(map(max, counts)) > 0 or not Path("/proc").is_dir()
    assert max(map(max, counts)) < 40


def test_nothing_is_left_when_a_worker_or_the_engine_ends() -> None:
    before = left()
    with federation() as found:
        initial = started(found)
        ask(found, initial)
        engine = found.engine
        assert isinstance(engine, ProcessEngine)
        victim = engine._workers[0]
        os.kill(victim.child.number, signal.SIGKILL)
        with pytest.raises(SitesLost, match=r"killed by signal 9"):
            list(engine.call("model", dict.fromkeys(SITES, Message({}, {"state": initial}))))
        assert not victim.child.channel._lent, "what was lent to it is free"
        engine.reload()
        assert victim.loaded
        found.prepare(0)
        ask(found, started(found))
    del found, engine, victim, initial
    assert left() == before


SCRIPT = """
import sys, time
sys.path[:0] = {paths!r}
import test_channel as t
with t.federation() as found:
    state = t.started(found)
    print(*(worker.child.number for worker in found.engine._workers), flush=True)
    while True:
        kept = t.ask(found, state)
"""


def test_nothing_is_left_when_the_coordinator_is_killed() -> None:
    before, paths = left(), [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(paths=paths)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert process.stdout is not None
    workers = [int(number) for number in process.stdout.readline().split()]
    assert len(workers) == 2
    process.kill()
    process.wait()
    process.stdout.close()
    for _ in range(600):
        if not any(Path(f"/proc/{worker}").is_dir() for worker in workers):
            break
        time.sleep(0.1)
    else:
        pytest.fail("workers outlive their coordinator")
    assert left() == before


def test_without_shared_memory_models_go_through_pipes_and_a_note_says_so() -> None:
    """No file may be larger than 100 kB, in memory or not, here or in workers."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with federation() as found:
            initial = started(found)
            answers = ask(found, initial)
            notes = found.engine.notes
            assert isinstance(found.engine, ProcessEngine)
            assert [bool(worker.reason) for worker in found.engine._workers] == [True, True]
            assert found.engine._lender._count == 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert all(torch.equal(tensor, initial) for tensor in answers.values())
    assert [note.number for note in notes] == ["N106"]
    assert notes[0].startswith("Shared memory could not be had (File too large), so that")
