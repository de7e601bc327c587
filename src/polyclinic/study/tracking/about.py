"""What a study is, for those who are told of it; nothing of where its data are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from polyclinic.files import write_atomic
from polyclinic.study.declaration import Declaration
from polyclinic.study.tracking.values import flat

#: Entries of ``data`` that are paths, or may name patients; of ``tables`` the sites stay.
_LEFT_OUT = ("table", "root", "cache", "where")
#: File with a name for the study that no other has, beside what is tracked.
_IDENTITY = "id"


@dataclass(frozen=True)
class About:
    """What a study is.

    Attributes:
        title: of the study, and what is done with it.
        identity: a name that no other has; the same when it goes on.
        folder: where trackers keep what is not sent elsewhere.
        options: entry of the study file -> value.
        methods: method -> its entries.
    """

    title: str
    identity: str
    folder: Path
    options: Mapping[str, str | float]
    methods: Mapping[str, Mapping[str, str | float]] = field(default_factory=dict)

    @classmethod
    def of(cls, declaration: Declaration, folder: Path, *, what: str = "", anew: bool = False) -> About:
        """That of a study; its identity is written into ``folder`` where it has none, or is to be another one."""
        path = folder / _IDENTITY
        if anew or not path.is_file():
            write_atomic(path, uuid4().hex)
        content = without_paths(declaration.filled())
        methods = {
            method.label: flat({"training": method.training.model_dump(mode="json"), "parts": method.entry})
            for method in declaration.study_methods
        }
        options = flat({name: value for name, value in content.items() if name not in ("methods", "study")})
        return cls(f"{declaration.study}{what}", path.read_text(encoding="utf-8"), folder, options, methods)


def without_paths(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a study file without where its cases and its network are."""
    found = dict(content)
    data = {name: value for name, value in dict(found.get("data") or {}).items() if name not in _LEFT_OUT}
    if isinstance(data.get("tables"), Mapping):
        data["tables"] = dict.fromkeys(data["tables"], "PATH")
    found["data"] = data
    model = found.get("model")
    if isinstance(model, Mapping) and "bundle" in model:
        found["model"] = {"bundle": {**model["bundle"], "path": "PATH"}}
    return found
