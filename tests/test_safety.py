"""What a received file or message may do: nothing but be read, or be refused."""

import ast
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as library
from safetensors.torch import save

import polyclinic
from polyclinic.communication.message import _DTYPES, Message
from polyclinic.errors import TITLES, PolyclinicError, ResultsError
from polyclinic.files import write_atomic
from polyclinic.rounds import Checkpoint

SOURCES = sorted(Path(polyclinic.__file__).parent.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"), ("torch", "save"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle"), ("os", "system"),
    ("os", "popen"), ("yaml", "unsafe_load"), ("yaml", "full_load"), ("torch", "package"), ("torch", "jit"),
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: "/".join(path.parts[-2:]))
def test_no_code_can_come_with_data(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & FORBIDDEN_MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in FORBIDDEN_MODULES
            assert not {(node.module, name.name) for name in node.names} & FORBIDDEN_ATTRIBUTES
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in FORBIDDEN_ATTRIBUTES
        if isinstance(node, ast.Call):
            shell = [k for k in node.keywords if k.arg == "shell"]
            assert not shell, "commands are lists of words"


def test_the_check_above_finds_what_it_looks_for(tmp_path):
    for text in (
        "import pickle", "from torch import load", "eval('1')", "torch.load('x')", "run('x', shell=True)",
        "torch.load('x', weights_only=True)", "np.load('x', allow_pickle=False)",
    ):  # fmt: skip
        path = tmp_path / "bad.py"
        path.write_text(text)
        with pytest.raises(AssertionError):
            test_no_code_can_come_with_data(path)


def test_yaml_is_loaded_by_the_safe_loader_only():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in {"load", "compose"}
            ):
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "yaml":
                    assert [ast.unparse(k.value) for k in node.keywords] == ["_Loader"]
    import yaml

    from polyclinic.study.reading import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)


# Messages -------------------------------------------------------------------------------------------------------------

GOOD = Message({"round": 3, "names": ["a", "é"], "x": {"y": None}}, {"state": torch.arange(5.0), "n": torch.arange(3)})
BYTES = GOOD.to_bytes()


def header(**entries):
    """A file with a header of its own making."""
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def of_numbers(shape, places):
    return header(__metadata__={"fields": "{}"}, state={"dtype": "F32", "shape": shape, "data_offsets": places})


def read(data):
    """A message, or ValueError; nothing else may come out."""
    try:
        message = Message.from_bytes(data)
    except ValueError:
        return None
    assert isinstance(message.fields, dict)
    assert all(isinstance(tensor, torch.Tensor) for tensor in message.tensors.values())
    return message


@given(st.integers(0, len(BYTES) - 1))
@settings(max_examples=100)
def test_a_message_cut_short_is_refused(length):
    assert read(BYTES[:length]) is None


@given(st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=500)
def test_a_message_with_changed_bytes_is_refused_or_read(changes):
    data = bytearray(BYTES)
    for position, change in changes:
        data[position] ^= change
    read(bytes(data))


@given(st.binary(max_size=200))
@example(b"")
@example(b"\x00" * 8)
@example(b"\xff" * 8)
@example((2).to_bytes(8, "little") + b"{}")
@example((2).to_bytes(8, "little") + b"[]")
@example((4).to_bytes(8, "little") + b"null")
@settings(max_examples=200)
def test_any_bytes_are_refused_or_read(data):
    assert read(data) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


@given(JSON, JSON)
@settings(max_examples=200)
def test_any_header_is_refused_or_read(metadata, tensor):
    read(header(__metadata__=metadata, state=tensor))
    read(header(__metadata__={"fields": metadata}))
    read(header(__metadata__={"fields": json.dumps(metadata)}))


@pytest.mark.parametrize(
    "data",
    [
        header(__metadata__={"fields": "[1, 2]"}),
        header(__metadata__={"fields": '"text"'}),
        header(__metadata__={"fields": "{"}),
        header(__metadata__={"fields": "[" * 100_000}),
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        header(__metadata__={}),
        header(),
        of_numbers([10**9], [0, 4 * 10**9]),
        of_numbers([2], [0, 4]) + bytes(4),
        header(__metadata__={"fields": "{}"}, state={"dtype": "OBJECT", "shape": [1], "data_offsets": [0, 1]}) + b"\0",
        of_numbers([0, 2**52, 2**52], [0, 0]),
        of_numbers([True], [0, 4]) + bytes(4),
        of_numbers([1], [4, 8]) + bytes(8),
        save({"state": torch.zeros(2)}),
        b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
    ],
    ids=[
        "fields are a list", "fields are a text", "fields are no JSON", "fields too deep", "header too deep",
        "no fields",
        "no metadata", "more than memory", "too short", "unknown type",
        "too many numbers", "true for one", "a hole", "a plain file", "a pickle",
    ],
)  # fmt: skip
def test_messages_that_are_none(data):
    assert read(data) is None


@given(st.lists(st.integers(0, 3), max_size=3), st.sampled_from(list(_DTYPES)), st.integers(0, 2**31))
def test_any_tensor_arrives_as_it_was_and_as_the_library_reads_it(shape, dtype, seed):
    values = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    sent = Message({"seed": seed}, {"é": values, "n": torch.arange(3), "none": torch.empty(0, 2)})
    for found in (Message.from_bytes(sent.to_bytes()), Message.from_pieces(sent.to_pieces())):
        assert found.fields == sent.fields
        for name, tensor in sent.tensors.items():
            assert found.tensors[name].dtype == tensor.dtype == library(sent.to_bytes())[name].dtype
            assert found.tensors[name].shape == tensor.shape
            assert torch.equal(found.tensors[name], tensor)
            assert torch.equal(library(sent.to_bytes())[name], tensor)


def test_pieces_are_not_copied():
    state = torch.arange(6.0)
    header, piece = Message({}, {"state": state}).to_pieces()
    found = Message.from_pieces([header, piece]).tensors["state"]
    assert found.data_ptr() == state.data_ptr()
    sent = bytes(piece)
    assert Message.from_pieces([header, sent]).tensors["state"].numpy().base is not None
    assert torch.equal(Message.from_pieces([header, sent]).tensors["state"], state)


@pytest.mark.parametrize(
    "change",
    [
        lambda pieces: [], lambda pieces: pieces[:1], lambda pieces: pieces[:2], lambda pieces: [*pieces, b""],
        lambda pieces: [pieces[0], pieces[2], pieces[1]], lambda pieces: [b"".join(pieces)],
        lambda pieces: [pieces[0][:-1], *pieces[1:]], lambda pieces: [b"", *pieces],
        lambda pieces: [pieces[0], bytes(pieces[1])[:-1], pieces[2]],
        lambda pieces: [pieces[0], pieces[1], b"\2\1\0"],
    ],
)  # fmt: skip
def test_pieces_of_no_message(change):
    pieces = Message({}, {"n": torch.arange(2), "truth": torch.tensor([True, False, True])}).to_pieces()
    Message.from_pieces(pieces)
    with pytest.raises(ValueError, match="not a message"):
        Message.from_pieces(change(pieces))


def test_a_damaged_checkpoint_is_told(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(BYTES[:40])
    with pytest.raises(PolyclinicError) as caught:
        Checkpoint(tmp_path).read(torch.zeros(0))
    assert caught.value.code == "P501"
    assert "checkpoint.safetensors" in caught.value.message


# Files ----------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "a.txt"
    write_atomic(path, "first ä")
    assert path.read_bytes() == "first ä".encode()
    write_atomic(path, b"second")
    assert path.read_bytes() == b"second"
    assert [found.name for found in path.parent.iterdir()] == ["a.txt"]

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ResultsError, match=r"P501 a\.txt could not be written to .*\(Input/output error\)"):
        write_atomic(path, b"third")
    assert path.read_bytes() == b"second"
    write_atomic(path, b"fourth", durable=False)
    assert path.read_bytes() == b"fourth"


def test_every_error_has_a_number_and_a_title():
    for code in TITLES:
        error = PolyclinicError(code, "What was got.", "What to do.")
        assert str(error) == f"{code} What was got. What to do."
        assert error.exit_status in {1, 2}
    with pytest.raises(ValueError, match="unknown error number 'P999'"):
        PolyclinicError("P999", "")


def test_every_number_in_the_source_is_known():
    import re

    used = {code for path in SOURCES for code in re.findall(r'"(P\d{3})"', path.read_text(encoding="utf-8"))}
    assert used == set(TITLES)
