"""A small working package with parts of each kind, for somebody who writes a plug-in."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.resources import files
from pathlib import Path

from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic

#: File of the template -> where it goes in the package.
_FILES = {
    "pyproject.toml": "pyproject.toml", "README.md": "README.md", "__init__.py": "src/@module@/__init__.py",
    "rule.py": "src/@module@/rule.py", "network.py": "src/@module@/network.py",
    "measures.py": "src/@module@/measures.py", "tests.py": "tests/test_@module@.py",
}  # fmt: skip


def name_problem(name: str) -> str:
    """Why a package can't have a name; empty if it can."""
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        return f"got {name!r}, expected small letters, digits and hyphens, such as polyclinic-more"
    module = module_of(name)
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or module in ("polyclinic", "torch", "tests"):
        return f"{name!r} is taken"
    return ""


def module_of(name: str) -> str:
    """The module of a package."""
    return name.replace("-", "_")


def write_plugin(name: str, out: Path) -> Path:
    """Write the package ``name`` into the folder ``out / name``, and return that.

    Raises:
        ResultsError: P501, there is something already, or the folder can't be written.
    """
    folder = out / name
    if folder.exists():
        raise ResultsError(
            "P501", f"There is a {folder} already.", "Choose another name, or another folder with --out."
        )
    for source, target in _FILES.items():
        text = (files("polyclinic") / "plugin_template" / f"{source}.txt").read_text(encoding="utf-8")
        for mark, value in {"@package@": name, "@module@": module_of(name)}.items():
            text, target = text.replace(mark, value), target.replace(mark, value)
        write_atomic(folder / target, text)
    return folder
