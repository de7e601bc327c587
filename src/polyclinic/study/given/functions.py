"""Networks and losses that a Python program gives as classes or functions, in the place of names.

They are entered into the catalogues under ``python:NAME:HASH``. The hash is of the source text of the class or function
and of the plain values that it closes over or has as defaults; what it calls is not in it. Where there is no source, or
values are not plain, nothing tells whether it is the same one: then each gets a name of its own, and a study that was
interrupted can't go on with it.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import textwrap
import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from polyclinic.models.catalogue import MODELS, Built
from polyclinic.options import PYTHON, EntryError
from polyclinic.tasks import TASKS


def enter_network(factory: Callable[..., Any]) -> str:
    """Enter what makes a network, and return its name.

    Args:
        factory: a class of ``nn.Module`` or a function. It is given ``shape`` (of an input, without the batch) and
            ``outputs``, where it has arguments of these names or needs two, and gives a module, or a module and the
            list of those of its modules that are the head.

    Raises:
        EntryError: P102, it is a module already, or takes other arguments.
    """
    if isinstance(factory, nn.Module):
        raise EntryError("P102", "got a network that is there already; each training starts from a new one.",
                         "Give its class, or a function that makes it.", place=("model",))  # fmt: skip
    wanted = _arguments(factory)
    name = _name(factory)

    def build(shape: tuple[int, ...], outputs: int) -> Built:
        values = {"shape": shape, "outputs": outputs}
        by_name = {key: values[key] for key in wanted if key in values}
        found = factory(**by_name) if by_name or not wanted else factory(shape, outputs)
        module, head = found if isinstance(found, tuple) else (found, [])
        if not isinstance(module, nn.Module):
            raise ValueError(f"got a {type(module).__name__}, expected an nn.Module, or (nn.Module, [its head])")
        return module, list(head)

    build.__doc__ = inspect.getdoc(factory) if inspect.isfunction(factory) else f"{factory!r}."
    MODELS.give(name, build)
    return name


def enter_loss(function: Callable[..., Tensor], task: str) -> str:
    """Enter a loss of a task, and return its name; see the functions of the task for what it is given.

    Raises:
        EntryError: P102, it is a class, or no such task.
    """
    if inspect.isclass(function):
        raise EntryError("P102", f"got the class {function.__name__}, expected a function, or a module such as "
                         '`nn.CrossEntropyLoss(reduction="none")`.', place=("training", "loss"))  # fmt: skip
    if task not in TASKS:
        return str(function)  # told where the task is checked
    name = _name(function)

    def loss(outputs: Tensor, *targets: Any) -> Tensor:
        return function(outputs, *targets)

    loss.__module__ = getattr(function, "__module__", "") or "__main__"  # not one of this package: it is tried
    loss.__name__ = getattr(function, "__name__", type(function).__name__)
    if getattr(function, "compares_cases", False):
        loss.compares_cases = True  # type: ignore[attr-defined]
    TASKS[task].losses.give(name, loss)
    return name


def _arguments(factory: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a factory is given, or of the two that it must have."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):
        return []
    named = [one.name for one in parameters if one.name in ("shape", "outputs")]
    needed = [one.name for one in parameters
              if one.default is one.empty and one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]  # fmt: skip
    needed += [one.name for one in parameters if one.default is one.empty and one.kind is one.KEYWORD_ONLY]
    if set(needed) <= set(named):
        return named
    if len(needed) == 2 and not named:
        return needed
    raise EntryError(
        "P102", f"got a network that needs {', '.join(needed)}; expected arguments `shape` (of an input) and "
        "`outputs`, or none.", "Give a function that makes it: `lambda shape, outputs: Network(...)`.",
        place=("model",),
    )  # fmt: skip


def _name(given: Callable[..., Any]) -> str:
    """``python:NAME:HASH``."""
    whole = given.func if isinstance(given, functools.partial) else given
    title = getattr(whole, "__name__", type(whole).__name__).replace("<lambda>", "lambda")
    return f"{PYTHON}{title}:{fingerprint(given) or 'new-' + uuid.uuid4().hex[:12]}"


def fingerprint(given: object) -> str:
    """Hash of what a class, function, partial function or module is; empty where nothing tells."""
    try:
        text = json.dumps(_described(given), sort_keys=True)
    except (TypeError, ValueError, OSError):  # no source, or a value that is not plain
        return ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _described(given: Any) -> Any:
    if isinstance(given, functools.partial):
        return ["partial", _described(given.func), _plain(list(given.args)), _plain(given.keywords)]
    if isinstance(given, nn.Module):
        values = {name: value for name, value in vars(given).items() if not name.startswith("_") and name != "training"}
        tensors = {name: hashlib.sha256(tensor.detach().cpu().numpy().tobytes()).hexdigest()
                   for name, tensor in given.state_dict().items()}  # fmt: skip
        parts = [_described(child) for child in given.children()]
        return ["module", _described(type(given)), _plain(values), tensors, parts]
    if inspect.isclass(given) and given.__module__.partition(".")[0] == "torch":
        return ["torch", torch.__version__, given.__qualname__]
    source = textwrap.dedent(inspect.getsource(given))
    if inspect.isclass(given):
        return ["class", given.__qualname__, source]
    if not inspect.isfunction(given):
        raise TypeError("neither a function nor a class")
    cells = [cell.cell_contents for cell in given.__closure__ or ()]
    return ["function", given.__qualname__, source, _closed(cells), _plain([given.__defaults__, given.__kwdefaults__])]


def _closed(values: list[Any]) -> list[Any]:
    """Values that a function closes over; other functions and classes by what they are."""
    return [_described(value) if callable(value) else _plain(value) for value in values]


def _plain(value: Any) -> Any:
    """A value that JSON has.

    Raises:
        TypeError: it is another one.
    """
    return json.loads(json.dumps(value))
