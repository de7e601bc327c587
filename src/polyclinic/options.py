"""Catalogues of named parts whose options are checked against the signature of the part that takes them."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import lru_cache
from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic_core import ErrorDetails

from polyclinic.errors import StudyError, nearest

Part = TypeVar("Part", bound=Callable[..., Any])
Place = tuple[str | int, ...]
#: An option: how much of the past is kept in each step.
Decay = Annotated[float, Field(ge=0, lt=1)]


#: Sentences on plug-ins that could not be loaded: what they would bring may be what a study file names.
ABSENT: list[str] = []


#: Before the name of what a Python program gave as a class or function.
PYTHON = "python:"


class EntryError(StudyError):
    """An entry of a study file that does not fit; ``place`` is the path of keys to it."""

    def __init__(self, code: str, message: str, hint: str = "", *, place: Place = ()) -> None:
        super().__init__(code, message, hint)
        self.place = place


class Catalogue(Generic[Part]):
    """Parts by name. An entry of a study file names one, with or without options: ``mlp`` or ``{mlp: {hidden: [8]}}``.

    Args:
        kind: what the parts are, for messages ("model", "server rule").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._parts: dict[str, Part] = {}
        self._given: dict[str, Part] = {}

    def give(self, name: str, part: Part) -> None:
        """Enter what a program gave: it is found under its name, and listed nowhere."""
        self._given[name] = part

    def add(self, name: str) -> Callable[[Part], Part]:
        """Decorator that enters a class or function under ``name``; its keyword-only arguments are the options.

        Raises:
            ValueError: the name is taken.
        """

        def enter(part: Part) -> Part:
            if name in self._parts:
                raise ValueError(f"there is a {self.kind} {name!r} already")
            self._parts[name] = part
            return part

        return enter

    def remove(self, name: str) -> None:
        """Take a part out again."""
        del self._parts[name]

    def __getitem__(self, name: str) -> Part:
        return self._given[name] if name in self._given else self._parts[name]

    def __contains__(self, name: object) -> bool:
        return name in self._parts or name in self._given

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def name(self, name: object, place: Place) -> str:
        """``name`` if the catalogue has it.

        Raises:
            EntryError: P103 with the nearest valid name.
        """
        if isinstance(name, str) and name.startswith(PYTHON) and name not in self:
            raise EntryError("P104", f"{name} is a {self.kind} that a Python program gave, and is not here.",
                             "Give it with `Study.of` again; for a study between hospitals make a plug-in of it "
                             "(`polyclinic plugin new NAME`).", place=place)  # fmt: skip
        if not isinstance(name, str) or name not in self:
            hint = " ".join([nearest(str(name), list(self)), *ABSENT]).strip()
            raise EntryError("P103", f"{name!r} is no {self.kind}.", hint, place=place)
        return name

    def resolve(self, entry: object, place: Place) -> tuple[str, dict[str, Any]]:
        """Name and complete options (defaults filled in) of an entry of a study file.

        Raises:
            EntryError: P102 for an entry or option that does not fit, P103 for an unknown name.
        """
        name, given = split_entry(entry, place, self.kind)
        self.name(name, place)
        return name, check_options(self[name], given, (*place, name), name)


def split_entry(entry: object, place: Place, kind: str) -> tuple[str, dict[str, Any]]:
    """``"a"`` -> ``("a", {})`` and ``{"a": {...}}`` -> ``("a", {...})``."""
    if isinstance(entry, str):
        return entry, {}
    if isinstance(entry, dict) and len(entry) == 1:
        name, given = next(iter(entry.items()))
        if isinstance(name, str) and (given is None or isinstance(given, dict)):
            return name, dict(given or {})
    raise EntryError(
        "P102", f"got {entry!r}; expected the name of {'an' if kind[0] in 'aeio' else 'a'} {kind}, or "
        "{name: {option: value}}.", place=place,
    )  # fmt: skip


def check_options(
    part: Callable[..., Any], given: dict[str, Any], place: Place, name: str, without: Collection[str] | None = None
) -> dict[str, Any]:
    """``given`` checked against the keyword-only arguments of ``part``, with defaults filled in.

    Args:
        part: a class or function.
        given: what the study file says.
        place: of ``given`` in the study file.
        name: of the part.
        without: for parts of other libraries: all arguments but these are options, and no defaults are filled in.

    Raises:
        EntryError: P102 for a wrong type or value, P103 for an option that the part does not have.
    """
    model = _options_model(part, None if without is None else frozenset(without))
    unknown = [key for key in given if key not in model.model_fields]
    if unknown:
        fields = list(model.model_fields)
        hint = nearest(str(unknown[0]), fields) if fields else f"{name} has no options."
        raise EntryError("P103", f"{name} has no option {unknown[0]!r}.", hint, place=(*place, unknown[0]))
    try:
        checked = model.model_validate(given)
    except ValidationError as error:
        raise first_entry_error(error, given, place) from None
    # As JSON has them, which is how sites are told: a part is given the same at both ends, however it is reached.
    return checked.model_dump(mode="json", exclude_unset=without is not None)


def first_entry_error(error: ValidationError, content: object, place: Place = ()) -> EntryError:
    """The first finding of a pydantic error as an entry error in plain words.

    Args:
        error: what pydantic found.
        content: what it was given.
        place: of ``content`` in the study file.
    """
    all_found = [(_place(found["loc"], content), found) for found in error.errors()]
    # An entry that may be one of several types has a finding for each; the deepest tells most.
    first = all_found[0][0]
    where = max((own for own, _ in all_found if own[: len(first)] == first), key=len)
    alternatives = [found for own, found in all_found if own == where]
    found = alternatives[0]
    if found["type"] == "missing" and isinstance(found["loc"][-1], str):
        return EntryError("P102", f"the entry {found['loc'][-1]!r} is missing.", place=(*place, *found["loc"]))
    given = "no value" if found["input"] is None else repr(found["input"])
    got = f"got {given}; " if not isinstance(found["input"], (dict, BaseModel)) else ""
    return EntryError("P102", f"{got}{_expected(alternatives)}.", place=(*place, *where))


#: What pydantic calls a finding -> what was expected, in plain words.
_EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "finite_number": "a finite number",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    "string_type": "a text",
    "literal_error": "{expected}",
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "model_type"), "entries {{name: value}}"),
    "missing": "one more value",
}


def _expected(alternatives: Sequence[ErrorDetails]) -> str:
    """What an entry should be that may be one of several things."""
    in_files = [one for one in alternatives if one["type"] != "is_instance_of"]  # that no study file can give
    said = dict.fromkeys(
        f"expected {_EXPECTED[one['type']].format(**one.get('ctx', {}))}" if one["type"] in _EXPECTED
        else one["msg"].removeprefix("Value error, ").replace("Input should", "expected to").replace("to be ", "")
        for one in in_files
    )  # fmt: skip
    return ", or ".join(said).replace(", or expected", ", or")


def _place(loc: Place, content: object) -> Place:
    """The keys of an entry; pydantic puts names of types among them where an entry may be one of several."""
    where: list[str | int] = []
    for key in loc:
        inside = isinstance(content, dict) and key in content
        if inside or (isinstance(content, list) and isinstance(key, int) and key < len(content)):
            where.append(key)
            content = content[key]  # type: ignore[index]
    return tuple(where)


@lru_cache(maxsize=1000)  # making one takes a hundred times as long as checking options by it
def _options_model(part: Callable[..., Any], without: frozenset[str] | None = None) -> type[BaseModel]:
    fields: dict[str, Any] = {}
    for one in getattr(part, "options_of", [part]):
        fields |= _fields(one, without)
    config = ConfigDict(extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)
    return create_model("Options", __config__=config, **fields)


def _fields(part: Callable[..., Any], without: Collection[str] | None) -> dict[str, Any]:
    """Type and default of each option."""
    target = part.__init__ if inspect.isclass(part) else part
    others = None if without is None else {"Iterable": list, "Callable": Callable}  # PyTorch imports them for mypy only
    hints = typing.get_type_hints(target, localns=others, include_extras=True)
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(target).parameters.values():
        own = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if own if without is None else parameter.name not in {"self", *without}:
            if parameter.name not in hints:
                raise TypeError(f"the option {parameter.name!r} of {target.__qualname__} has no type")
            default = ... if parameter.default is inspect.Parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return fields


def option_names(part: Callable[..., Any]) -> list[str]:
    """Names of the options of a part."""
    return list(_options_model(part).model_fields)


def with_defaults(part: Callable[..., Any], given: dict[str, Any]) -> dict[str, Any]:
    """Options that are right already, with defaults filled in."""
    return _options_model(part).model_validate(given).model_dump(mode="json")


def first_words(part: Callable[..., Any]) -> str:
    """What a part does: the first paragraph of what it says of itself."""
    return " ".join((inspect.getdoc(part) or "").split("\n\n")[0].split())


def source_of(part: Callable[..., Any]) -> str:
    """Where a part is from, to the year: what its documentation says behind ``Source:``; empty if it says nothing."""
    said = " ".join((inspect.getdoc(part) or "").partition("Source:")[2].split())
    to_the_year = re.match(r".*?\b(?:19|20)\d\d\b(?!\.\d)", said)
    return to_the_year[0] if to_the_year else said.partition(". ")[0].removesuffix(".")


def describe_options(part: Callable[..., Any]) -> Sequence[str]:
    """``name = default`` for each option of a part."""
    return [
        f"{name} = {'(required)' if field.is_required() else field.default}"
        for name, field in _options_model(part).model_fields.items()
    ]
