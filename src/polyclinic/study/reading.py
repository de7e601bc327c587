"""Reading study files: YAML with places, so that an error can say where.

Values of a table, names of columns and of sites are read as they are written: ``010`` is a code, ``no`` is a word. An
entry that YAML 1.1 would turn into something else anywhere else is refused (see `polyclinic.study.scalars`).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import yaml

from polyclinic.errors import StudyError
from polyclinic.options import EntryError, Place
from polyclinic.study.scalars import MisreadError, as_written
from polyclinic.study.writing import study_text


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads ``1e-3`` as a number, refuses a key given twice, and changes no code or name."""

    def get_single_node(self) -> yaml.Node | None:
        """The whole file, with a tag for each scalar that says what it is read as."""
        node = super().get_single_node()
        return node if node is None else as_written(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                mark = node.value[position][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """Content and text of a study file.

    Raises:
        StudyError: P101 if there is no such file or it is not a YAML mapping; P102 if YAML would misread a value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StudyError("P101", f"There is no file {path}.", "Give the path of a study file (YAML).") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise StudyError("P101", f"{path} can't be read: {reason}.", "Give the path of a study file (YAML).") from None
    try:
        content = yaml.load(text, Loader=_Loader)  # noqa: S506 - a safe loader
    except MisreadError as error:
        where = f"{path.name}, line {error.line}"
        raise StudyError("P102", f"{where}: {error.message}", error.hint) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        hint = "Check indentation, colons, and quotes around texts with special characters."
        raise StudyError("P101", f"{path.name}{where}: not valid YAML: {problem}.", hint) from None
    if not isinstance(content, dict):
        raise StudyError("P101", f"{path.name}: got {type(content).__name__}, expected entries such as `data:`.",
                         "See docs/study-file.md for an example.")  # fmt: skip
    return content, text


def without_entry(text: str, entry: str) -> str:
    """The text of a study file without one of its entries; all else stays as it is written."""
    content, root = yaml.load(text, Loader=_Loader), yaml.compose(text, Loader=_Loader)  # noqa: S506 - a safe loader
    if not isinstance(content, dict) or entry not in content or not isinstance(root, yaml.MappingNode):
        return text
    keys = [key for key, _ in root.value]
    place = [key.value for key in keys].index(entry)
    wanted = {key: value for key, value in content.items() if key != entry}
    if place + 1 < len(keys):
        cut = text[: keys[place].start_mark.index] + text[keys[place + 1].start_mark.index :]
    else:
        cut = text[: keys[place].start_mark.index]
    try:
        if yaml.load(cut, Loader=_Loader) == wanted:  # noqa: S506 - a safe loader
            return cut
    except yaml.YAMLError:  # something else needs what was there
        pass
    return study_text(wanted)


def expand_variables(value: Any, place: Place = (), *, named: bool = False) -> Any:
    """``value`` with ``${NAME}`` replaced by environment variables in every text.

    Args:
        value: of an entry.
        place: of the entry.
        named: whether the name itself takes the place of ``${NAME}``: what it stands for, each site says for itself.

    Raises:
        EntryError: P105 if a variable is not set.
    """
    if isinstance(value, dict):
        return {key: expand_variables(inner, (*place, key), named=named) for key, inner in value.items()}
    if isinstance(value, list):
        return [expand_variables(inner, (*place, i), named=named) for i, inner in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        if named:
            return match[1]
        if match[1] not in os.environ:
            hint = f"Set it, for example: export {match[1]}=/folder/with/the/data"
            raise EntryError("P105", f"The environment variable {match[1]} is not set.", hint, place=place)
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", replace, value)


def located(error: EntryError, name: str, text: str) -> StudyError:
    """``error`` with the file, line and entry in front."""
    keys = "".join(f"[{key + 1}]" if isinstance(key, int) else f".{key}" for key in error.place).lstrip(".")
    line = _line(text, error.place)
    where = name + (f", line {line}" if line else "") + (f", {keys}" if keys else "")
    return StudyError(error.code, f"{where}: {error.message}", error.hint)


def _line(text: str, place: Place) -> int | None:
    """Line of the deepest node on the way to ``place`` that is in the file."""
    node = yaml.compose(text, Loader=_Loader) if text else None
    line = None
    for key in place:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(key)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            found = (node.value[key], node.value[key])
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
