"""What a Python program gives a study instead of files and names: frames, data sets, networks and losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from polyclinic.data.pictures.items import Items, is_dataset, read_items
from polyclinic.data.tables.frames import Frame, keep_frame
from polyclinic.options import EntryError
from polyclinic.study.given.functions import enter_loss, enter_network

#: Columns that a data set of items is given, see `polyclinic.data.pictures.items`.
_TARGET, _SUBJECT = "target", "subject"


def take_in(content: Mapping[str, Any], data: Mapping[str, Any] | None) -> tuple[dict[str, Any], tuple[Frame, ...]]:
    """The entries of a study file in which names stand for what was given; and what must be kept for them.

    Args:
        content: entries of a study file, in which ``data: table``, ``data: tables``, ``model``, those of
            ``networks`` and ``loss`` may be given as objects.
        data: for each site its frame or data set, instead of ``data: tables``.

    Raises:
        EntryError: P102, something given does not fit.
        DataError: P201 or P203, a frame or data set is not as it should be.
    """
    found = dict(content)
    kept: tuple[Frame, ...] = ()
    if data is not None or isinstance(content.get("data"), Mapping):
        found["data"], kept = _data(dict(content.get("data") or {}), data, str(content.get("task", "classification")))
    if callable(content.get("model")):
        found["model"] = enter_network(content["model"])
    if isinstance(content.get("networks"), Mapping):
        own = content["networks"]
        found["networks"] = {site: enter_network(one) if callable(one) else one for site, one in own.items()}
    task = str(content.get("task", "classification"))
    if isinstance(content.get("training"), Mapping):
        found["training"] = _training(content["training"], task)
    if isinstance(content.get("methods"), list):
        found["methods"] = [_method(entry, task) for entry in content["methods"]]
    return found, kept


def _data(
    entries: dict[str, Any], data: Mapping[str, Any] | None, task: str
) -> tuple[dict[str, Any], tuple[Frame, ...]]:
    if data is not None:
        if not isinstance(data, Mapping):
            raise EntryError("P102", f"got a {type(data).__name__}; expected a frame or data set for each site.",
                             "`data={\"A\": frame, \"B\": frame}`", place=("data",))  # fmt: skip
        if "table" in entries or "tables" in entries:
            raise EntryError("P102", "frames are given, and `table` or `tables` as well; give one.", place=("data",))
        entries["tables"] = dict(data)
    kept: list[Frame] = []
    items: list[Items] = []
    if isinstance(entries.get("table"), pd.DataFrame):
        kept.append(keep_frame(entries["table"], "table"))
        entries["table"] = kept[-1].entry
    if isinstance(entries.get("tables"), Mapping):
        tables = dict(entries["tables"])
        for site, given in tables.items():
            if isinstance(given, pd.DataFrame):
                kept.append(keep_frame(given, str(site)))
            elif is_dataset(given):
                items.append(read_items(given, str(site)))
                kept.append(items[-1].frame)
            elif not isinstance(given, str):
                raise EntryError("P102", f"got a {type(given).__name__}; expected a frame, a data set or a path.",
                                 place=("data", "tables", str(site)))  # fmt: skip
            else:
                continue
            tables[site] = kept[-1].entry
        entries["tables"] = tables
    if items:
        entries = _of_items(entries, items, task)
    return entries, tuple(kept)


def _of_items(entries: dict[str, Any], items: list[Items], task: str) -> dict[str, Any]:
    """Entries that follow from items of data sets, where the study does not say them."""
    kinds = {one.channels for one in items}
    if "" in kinds and len(kinds) > 1:
        raise EntryError("P102", "some data sets have features and others pictures.", place=("data", "tables"))
    found: dict[str, Any] = {}
    if any(one.masks for one in items):
        found["mask"] = "mask"
    else:
        found["label"] = _TARGET
    if all(_SUBJECT in one.frame.cells for one in items):
        found["subject"] = _SUBJECT
    if kinds == {""}:
        found["features"] = items[0].features
    else:
        sizes = set[tuple[int, int]]().union(*(one.sizes for one in items))
        found |= {"image": "image", "channels": "grey" if kinds == {"grey"} else "rgb"}
        if "size" not in entries:
            if len(sizes) > 1:
                raise EntryError("P102", f"pictures have {len(sizes)} sizes; say to which they are brought.",
                                 "`size: [height, width]`", place=("data", "size"))  # fmt: skip
            found["size"] = list(sizes.pop())
    return {**found, **entries}


def _training(entries: Mapping[str, Any], task: str) -> dict[str, Any]:
    given = dict(entries)
    if callable(given.get("loss")):
        given["loss"] = enter_loss(given["loss"], task)
    return given


def _method(entry: Any, task: str) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    return {
        name: {**options, "training": _training(options["training"], task)}
        if isinstance(options, Mapping) and isinstance(options.get("training"), Mapping)
        else options
        for name, options in entry.items()
    }
