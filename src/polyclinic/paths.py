"""Patterns of module paths: which tensors of a network they name.

A path is that of PyTorch, ``features.0.weight``. A pattern that names a module names all that is in it, too. ``*``
stands for any characters (dots among them), ``?`` for one, ``[0-2]`` for one of some: as in file names, and no more.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from itertools import accumulate

#: How long a pattern may be, and how many a choice may have.
LONGEST, MOST = 200, 100


def checked(pattern: str) -> str:
    """The pattern, if it is one: nothing of it can run, or take long.

    Raises:
        ValueError: it is none.
    """
    if len(pattern) > LONGEST or not re.fullmatch(r"[\w.*?\[\]!-]+", pattern):
        raise ValueError(
            f"expected the path of a module, such as 'encoder' or 'blocks.[0-2].*', with up to {LONGEST} letters, "
            "digits or . _ - * ? [ ] !"
        )
    return pattern


def names(pattern: str, path: str) -> bool:
    """Whether a pattern names a tensor of this path, or a module in which it is."""
    return any(fnmatchcase(one, pattern) for one in containing(path))


def containing(path: str) -> Iterable[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``."""
    return accumulate(path.split("."), "{}.{}".format)
