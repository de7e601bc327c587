"""Study files as they are written, so that they read as the same study."""

from __future__ import annotations

from typing import Any

import yaml

#: Line breaks of other systems, which YAML folds into blanks unless they are written as escapes.
_BREAKS = ("\x85", "\u2028", "\u2029")


class _Dumper(yaml.SafeDumper):
    """Safe YAML that keeps every letter of a text."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    quoted = any(one in text for one in _BREAKS)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


_Dumper.add_representer(str, _text)


def study_text(content: dict[str, Any]) -> str:
    """The text of a study file."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return text
