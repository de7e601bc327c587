"""What a hyper-parameter search tries: the configurations of each method, known before anything is run.

All methods get the same number of configurations, and those that share parameters get the same values of them in the
same order, so that no method has the better luck. The study's own values come first: a search can't choose worse than
no search, on the data that it chooses by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import torch
from torch import nn

from polyclinic.client.optimizers import build_optimizer
from polyclinic.composition import METHODS
from polyclinic.errors import nearest
from polyclinic.options import EntryError, Place
from polyclinic.seeds import generator
from polyclinic.study.compatibility import too_few_rounds
from polyclinic.study.entries import Evaluation, Search, Training
from polyclinic.study.method_entries import COMPOSED, Candidate, MethodReader, StudyMethod, optimizer_of

#: So many draws for each trial wanted, before a search makes do with fewer (an interval that is hardly one).
PATIENCE = 1000
PLACE: Place = ("search",)


def check_rounds(search: Search, candidates: Iterable[Candidate]) -> None:
    """Whether trials have rounds after a pretraining.

    Raises:
        EntryError: P104 with what they lack.
    """
    short = (too_few_rounds(one.method.method, search.rounds) for one in candidates if search.rounds is not None)
    why = next(filter(None, short), "")
    if why:
        raise EntryError("P104", f"In a trial {why}", "Give trials more rounds.", place=(*PLACE, "rounds"))


@dataclass(frozen=True)
class Choices:
    """A list of values."""

    values: tuple[Any, ...]

    @property
    def size(self) -> float:
        """How many there are."""
        return len(self.values)

    @property
    def tried(self) -> Sequence[Any]:
        """Values that must all be right."""
        return self.values

    def draw(self, source: torch.Generator) -> Any:
        """One of them."""
        return self.values[int(torch.randint(len(self.values), (), generator=source))]


@dataclass(frozen=True)
class Interval:
    """Numbers between two ends, all as likely, or (``log``) all orders of magnitude as likely; to four digits."""

    low: float
    high: float
    log: bool

    @property
    def size(self) -> float:
        """More than can be tried."""
        return math.inf

    @property
    def tried(self) -> Sequence[Any]:
        """Values that must both be right."""
        return self.low, self.high

    def draw(self, source: torch.Generator) -> Any:
        """A number."""
        share = float(torch.rand((), generator=source, dtype=torch.float64))
        value = self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share
        return min(max(float(f"{value:.4g}"), self.low), self.high)


Space = dict[str, Choices | Interval]


def find_candidates(
    search: Search, methods: Sequence[StudyMethod], reader: MethodReader, evaluation: Evaluation, seed: int
) -> dict[str, list[Candidate]]:
    """Label of each method -> the configurations that are tried, the study's own first.

    Args:
        search: what is asked for.
        methods: of the study.
        reader: makes methods of entries with other values.
        evaluation: of the study, whose validation part the search chooses on.
        seed: decides which values are drawn.

    Raises:
        EntryError: something in ``search`` does not fit; every value is tried here once.
    """
    _check(search, evaluation)
    shared = {name: _range(values, (*PLACE, "parameters", name)) for name, values in _shared(search.parameters).items()}
    found = {}
    for key in search.methods:
        aliases = {alias for method in methods for alias in (method.label, method.name)}
        if key not in aliases:
            hint = nearest(key, sorted(aliases))
            raise EntryError("P103", f"{key!r} is not among the study's methods.", hint, place=(*PLACE, "methods", key))
    for method in methods:
        own: Space = {}
        places = {name: (*PLACE, "parameters", name) for name in shared}
        for key in dict.fromkeys((method.name, method.label)):  # what is said of the label counts
            for name, values in search.methods.get(key, {}).items():
                places[name] = (*PLACE, "methods", key, name)
                own[name] = _range(values, places[name])
        _check_nesting(places)
        for name, values in {**shared, **own}.items():
            for value in values.tried:
                _with_values(reader, method, {name: value}, places[name])
        found[method.label] = _candidates(search, method, reader, seed, shared, own)
    return found


def _check(search: Search, evaluation: Evaluation) -> None:
    def refuse(code: str, key: str, message: str, hint: str = "") -> None:
        raise EntryError(code, message, hint, place=(*PLACE, key))

    if not any([search.parameters, *search.methods.values()]):
        refuse("P102", "parameters", "there is nothing to search: neither `parameters` nor `methods` names a value.",
               "For example `parameters: {training.optimizer.sgd.lr: [0.01, 0.1]}`.")  # fmt: skip
    if search.seeds is not None and not search.seeds:
        refuse("P102", "seeds", "`seeds` is empty; give at least one, or leave it out.")
    if search.nested and search.folds is not None:
        refuse("P104", "folds", "each fold has a search of its own, so `folds` means nothing.",
               "Leave it out, or use `nested: false`: one search for all folds, on so many of them.")  # fmt: skip
    if (search.folds or 1) > (evaluation.number_of_folds or 1):
        refuse("P102", "folds", f"got {search.folds}; the study has {evaluation.number_of_folds or 1}.")
    if not evaluation.split and not evaluation.validation:
        raise EntryError("P104", "a search chooses on validation patients, and `validation` is 0.",
                         "Use `evaluation: {validation: 0.2}`.", place=PLACE)  # fmt: skip


def _shared(parameters: dict[str, Any]) -> dict[str, Any]:
    """``parameters``, if all are entries of ``training``."""
    for name in parameters:
        first, _, rest = name.partition(".")
        if first != "training" or not rest:
            entry = first if first in Training.model_fields else None
            hint = f"Write training.{name}." if entry else "Options of one method stand under `search: {methods: ...}`."
            raise EntryError("P103", f"{name!r} is no entry of `training`, which all methods have.", hint,
                             place=(*PLACE, "parameters", name))  # fmt: skip
    return parameters


def _check_nesting(places: dict[str, Place]) -> None:
    """No parameter may be part of another: ``training.optimizer`` and ``training.optimizer.sgd.lr``."""
    for name, place in places.items():
        for other in places:
            if name.startswith(f"{other}."):
                message = f"{name} is part of {other}, which is searched, too."
                raise EntryError("P104", message, "Leave one of them out.", place=place)


def _range(given: object, place: Place) -> Choices | Interval:
    """The values of a parameter as the study file has them."""
    if isinstance(given, list) and given:
        twice = [value for position, value in enumerate(given) if value in given[:position]]
        if twice:
            raise EntryError("P102", f"the value {twice[0]!r} is there twice.", place=place)
        return Choices(tuple(given))
    if isinstance(given, dict) and len(given) == 1:
        kind, ends = next(iter(given.items()))
        if kind in ("log", "uniform") and isinstance(ends, list) and len(ends) == 2 and all(map(_is_number, ends)):
            low, high = map(float, ends)
            if low >= high or (kind == "log" and low <= 0):
                above = " above 0" if kind == "log" else ""
                raise EntryError(
                    "P102", f"got {ends}; expected two numbers{above}, the smaller one first.", place=place
                )
            return Interval(low, high, kind == "log")
    raise EntryError(
        "P102", f"got {given!r}; expected a list of values, {{uniform: [low, high]}} or {{log: [low, high]}}.",
        place=place,
    )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _candidates(
    search: Search, method: StudyMethod, reader: MethodReader, seed: int, shared: Space, own: Space
) -> list[Candidate]:
    space = {**shared, **own}
    if not space:
        return [Candidate(method, {})]
    first = Candidate(method, {name: _value(method, name) for name in space})
    if math.prod(values.size for values in space.values()) <= search.trials:
        grid = product(*(values.values for values in space.values() if isinstance(values, Choices)))
        found = _distinct(first, (dict(zip(space, values, strict=True)) for values in grid))
        if 1 + len(found) <= search.trials:
            return [first, *(_candidate(reader, method, values) for values in found)]
    draws = ({**common, **special} for common, special in zip(_common(shared, seed), _draws(own, seed), strict=False))
    found = _distinct(first, islice(draws, PATIENCE * search.trials), search.trials - 1)
    return [first, *(_candidate(reader, method, values) for values in found)]


def _distinct(first: Candidate, drawn: Iterable[dict[str, Any]], most: float = math.inf) -> list[dict[str, Any]]:
    """The first ``most`` of the values drawn, without those that were there before."""
    found: list[dict[str, Any]] = []
    for values in drawn:
        if len(found) >= most:
            break
        if values != first.values and values not in found:
            found.append(values)
    return found


def _draws(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """Values of all parameters, without end. Each parameter has a source of its own, so that others change nothing."""
    sources = {name: generator(seed, "search", name) for name in space}
    while True:
        yield {name: values.draw(sources[name]) for name, values in space.items()}


def _common(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """The draws of shared parameters: none comes again before all were there."""
    size = math.prod(values.size for values in space.values())
    seen: list[dict[str, Any]] = []
    for values in _draws(space, seed):
        if values in seen:
            continue
        yield values
        seen = [*seen, values] if len(seen) + 1 < size < math.inf else []


def _candidate(reader: MethodReader, method: StudyMethod, values: dict[str, Any]) -> Candidate:
    return Candidate(_with_values(reader, method, values, PLACE), values)


# One parameter of a method --------------------------------------------------------------------------------------------


def _with_values(reader: MethodReader, method: StudyMethod, values: dict[str, Any], place: Place) -> StudyMethod:
    """The method with other values, under the same label.

    Raises:
        EntryError: the method has no such parameter, or not with this value.
    """
    filled, options = next(iter(method.entry.values())), _stated(method)
    said = ", ".join(f"{name} = {value!r}" for name, value in values.items())
    try:
        for name, value in values.items():
            first, *rest = name.split(".")
            if first == "training" and rest:
                changes = options.get("training", {})
                before = changes.get(rest[0], getattr(method.training, rest[0], None))
                options["training"] = {**changes, rest[0]: _put(before, rest[1:], value, rest[0])}
            elif first in ("label", "training"):
                raise EntryError("P104", f"`{first}` can't be searched as a whole.", "Name one of its entries.")
            else:
                options[first] = _put(filled.get(first), rest, value, first)
        return reader.with_options(method, options)
    except EntryError as error:
        raise EntryError(error.code, f"{method.label} with {said}: {error.message}", error.hint, place=place) from None


def _stated(method: StudyMethod) -> dict[str, Any]:
    """The options of a method, without the parts that follow from its own ones: these follow from other values, too."""
    options = dict(next(iter(method.entry.values())))
    own = {name: value for name, value in options.items() if name not in (*COMPOSED, "label", "training")}
    plain = METHODS[method.name](**own)
    following = [
        part
        for part in COMPOSED
        if part not in ("local", "channel") and _same(getattr(plain, part), getattr(method.method, part))
    ]
    return {name: value for name, value in options.items() if name not in following}


def _same(one: object, other: object) -> bool:
    """Whether two parts are the same; a list of them may be a tuple."""
    return (list(one) if isinstance(one, tuple) else one) == (list(other) if isinstance(other, tuple) else other)


def _put(content: object, names: Sequence[str], value: object, within: str) -> object:
    """``content`` with ``value`` at the end of a path; a part by its name alone, ``sgd``, counts as ``{sgd: {}}``.

    In a list of parts, such as ``local``, a name stands for the part of that name.
    """
    if not names:
        return value
    name, *rest = names
    if isinstance(content, list):
        place = next((i for i, part in enumerate(content) if name in _named(part, within)), None)
        if place is None:
            there = [key for part in content for key in _named(part, within)]
            raise EntryError("P104", f"its `{within}` has {', '.join(there) or 'no parts'}, not {name}.")
        return [*content[:place], _put(content[place], names, value, within), *content[place + 1 :]]
    inside = _named(content, within)
    if within in ("optimizer", "schedule", "personal", "server") and name not in inside:
        hint = f"Name the one it has, or choose among whole entries: `{within}: [{{...}}, {{...}}]`."
        raise EntryError("P104", f"its `{within}` is {', '.join(inside) or 'none'}, not {name}.", hint)
    return {**inside, name: _put(inside.get(name), rest, value, name)}


def _named(content: object, within: str) -> dict[str, Any]:
    if isinstance(content, str):
        return {content: {}}
    if content is None or isinstance(content, dict):
        return dict(content or {})
    raise EntryError("P104", f"`{within}` is {content!r}, which has no parts.")


def _value(method: StudyMethod, name: str) -> Any:
    """The value that the study file, or else the catalogue, gives a parameter; None where neither does."""
    first, *rest = name.split(".")
    options = next(iter(method.entry.values()))
    content: Any = method.training.model_dump() if first == "training" else options
    names = rest if first == "training" else [first, *rest]
    for key in names:
        parts = content if isinstance(content, list) else [content]
        inside = next((found for found in (_named(part, key) for part in parts) if key in found), {})
        content = inside.get(key)
    if content is None and names[0] == "optimizer":
        optimizer = build_optimizer(optimizer_of(method.training), nn.Parameter(torch.zeros(1)))
        content = optimizer.defaults.get(names[-1])
    if content is None and name == "training.local_epochs" and method.training.local_steps is None:
        content = 1
    return content
