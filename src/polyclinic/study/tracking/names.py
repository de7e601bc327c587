"""Names of runs and metrics that every tracker takes.

MLflow's names have letters, digits and ``_-. :/`` only, and a slash makes groups, in TensorBoard as well. A site may be
called anything. Names that fit stay as they are; others are changed and get an ending by which they stay different.
"""

from __future__ import annotations

import re

from polyclinic.seeds import derive_seed

_ALIEN = re.compile(r"[^\w.\- ]")
_OF_ONE = re.compile(r"(\w+)\[(.*)\]")
_MOST = 80


def label(text: str) -> str:
    """A site or a method as part of a name: what does not fit becomes ``_``, and then six digits tell it from others.

    >>> label("Berlin Mitte"), label("Aix/Marseille")
    ('Berlin Mitte', 'Aix_Marseille-1d231a')
    """
    plain = _ALIEN.sub("_", text).strip()
    if plain == text and plain.strip(".") and len(plain) <= _MOST:
        return plain
    return f"{plain[: _MOST - 7].rstrip()}-{derive_seed(text) % 16**6:06x}"


def metric_name(name: str) -> str:
    """A metric or a column as part of a name: ``dice[left caudate]`` is ``dice.left caudate``."""
    found = _OF_ONE.fullmatch(name)
    return f"{found[1]}.{label(found[2])}" if found else label(name)
