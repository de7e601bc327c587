"""What the scalars of a study file are read as.

YAML 1.1 turns ``010`` into 8, ``12:30`` into 750 and ``no`` into false. A study file names columns, sites, codes and
labels, for which this would be another value without a word. So here

- keys, and entries that are names or texts, are what is written;
- entries that are values of a table (``where``, ``positive``, ``classes``) are numbers only in plain decimals (``3``,
  ``-1.5``), true and false only as ``true`` and ``false``, and else what is written;
- everywhere else a number with leading zeros, with colons or in base 8 is refused, and dates are texts.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_STR, _BOOL, _NULL = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "bool", "null"))
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
#: Dates, and a lone =, for which YAML 1.1 has a meaning of its own.
_NEVER = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
#: Every scalar is a text; a value of a table; texts in a list, a value alone (names, or how many).
_TEXT, _VALUE, _NAMES = "text", "value", "names"
_COMBAT = {"covariates": _TEXT, "groups": _TEXT, "reference_site": _TEXT}
#: Entries whose scalars are texts, or values of a table; "*" stands for any key.
_PLACES: dict[str, Any] = {
    "study": _TEXT,
    "data": {
        **dict.fromkeys(
            ("table", "tables", "columns", "missing", "site", "subject", "subject_pattern", "label", "features",
             "exclude", "categorical", "divide_by", "image", "mask", "root", "cache"), _TEXT,
        ),
        **dict.fromkeys(("where", "positive", "classes"), _VALUE),
        "mask_classes": _NAMES,
        "harmonisation": {"combat": _COMBAT},
    },
    "evaluation": {"split": _TEXT, "unseen_sites": _NAMES},
    "attack": {"sites": _NAMES, "*": {"label": _VALUE, "target": _VALUE, "features": _NAMES}},
    "tracking": _TEXT,
    "methods": {"*": {"label": _TEXT}},
}  # fmt: skip
_PLAIN = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
#: So many digits fit into every number.
_DIGITS = 15
_MISREAD = {
    re.compile(r"[-+]?0[0-9][0-9_]*"): "with a 0 in front is a code, or a number in base 8 to YAML",
    re.compile(r"0o[0-7_]+"): "is a number in base 8 to some programs and a text to others",
    re.compile(r"[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?"): "is a time, or a number in base 60 to YAML",
}


class MisreadError(yaml.YAMLError):
    """A scalar that YAML would turn into another value than a person means.

    Attributes:
        line: where it stands, from 1.
        message: what it is.
        hint: what to do.
    """

    def __init__(self, node: yaml.Node, message: str, hint: str = "Put it in quotes if it is a text.") -> None:
        super().__init__(message)
        self.line, self.message, self.hint = node.start_mark.line + 1, message, hint


def as_written(root: yaml.Node) -> yaml.Node:
    """A study file's node with the tags of its scalars changed to what they are read as.

    Args:
        root: what YAML composed, with its own tags.

    Raises:
        MisreadError: at the first scalar that would be misread.
    """
    return _copied(root, _PLACES, {})


def _copied(node: yaml.Node, place: Any, seen: dict[tuple[int, int], yaml.Node]) -> yaml.Node:
    """A copy: through an alias one node may stand at places with different rules."""
    if isinstance(node, yaml.ScalarNode):
        plain = node.style is None
        return yaml.ScalarNode(_tag(node, place) if plain else node.tag, node.value, *_marks(node), style=node.style)
    key = (id(node), id(place))
    if key in seen:
        return seen[key]
    if isinstance(node, yaml.SequenceNode):
        place = _TEXT if place == _NAMES else place
        items = yaml.SequenceNode(node.tag, [], *_marks(node), flow_style=node.flow_style)
        seen[key] = items
        items.value += [_copied(item, place, seen) for item in node.value]
        return items
    if not isinstance(node, yaml.MappingNode):
        return node
    mapping = yaml.MappingNode(node.tag, [], *_marks(node), flow_style=node.flow_style)
    seen[key] = mapping
    for name, value in node.value:
        key_node = _name(name)
        mapping.value.append((key_node, _copied(value, _inside(place, key_node.value), seen)))
    return mapping


def _inside(place: Any, name: str) -> Any:
    """The place of an entry's value."""
    if isinstance(place, dict):
        return place.get(name, place.get("*"))
    return None if place == _NAMES else place


def _name(node: yaml.Node) -> yaml.Node:
    """A key is a text as it is written."""
    if not isinstance(node, yaml.ScalarNode):
        raise MisreadError(node, "a list or a mapping can't be the name of an entry.", "Give a name.")
    if node.style is None and not node.value:
        raise MisreadError(node, "an entry has no name in front of its colon.", 'Give it one; an empty name is "".')
    return yaml.ScalarNode(_STR, node.value, *_marks(node), style=node.style)


def _tag(node: yaml.ScalarNode, place: Any) -> str:
    tag, text = str(node.tag), node.value
    if tag in _NEVER or (place == _TEXT and tag in (*_NUMBERS, _BOOL)):
        return _STR
    if place in (_VALUE, _NAMES):
        if tag in _NUMBERS:
            exact = _PLAIN.fullmatch(text) and sum(map(str.isdigit, text)) <= _DIGITS
            return tag if exact else _STR
        return _STR if tag == _BOOL and text.lower() not in ("true", "false") else tag
    if place == _TEXT or tag == _NULL:
        return tag
    for form, why in _MISREAD.items():
        if form.fullmatch(text):
            raise MisreadError(node, f"{text} {why}.", "Put it in quotes if it is a text; write a number in decimals.")
    return tag


def _marks(node: yaml.Node) -> tuple[yaml.Mark, yaml.Mark]:
    return node.start_mark, node.end_mark
