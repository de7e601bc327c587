"""The report's section on what sites and server exchanged, and on who took part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from polyclinic.study.payloads import payloads as sent_in
from polyclinic.study.report.folder import Folder, of_run
from polyclinic.study.report.tables import bytes_text, count_text, ordered


@dataclass(frozen=True)
class Payload:
    """Something sent besides the model.

    Attributes:
        name: of the payload.
        way: ``to the server`` or ``to the site``.
        shape: in words.
        size: bytes with unit.
        reveals: what it could reveal.
        often: how often it was sent, in words.
    """

    name: str
    way: str
    shape: str
    size: str
    reveals: str
    often: str


@dataclass(frozen=True)
class Exchange:
    """What one method exchanged; sizes are of one round and site, texts with units."""

    method: str
    up: str
    down: str
    payloads: list[Payload]


@dataclass(frozen=True)
class Presence:
    """Who took part in the rounds of one method, over all folds and seeds: a text for each site."""

    method: str
    rounds: str
    skipped: str
    sites: list[str]


@dataclass(frozen=True)
class Exchanged:
    """The section: what was exchanged, and, where somebody missed a round, who took part.

    Attributes:
        methods: a line a method.
        sites: columns of ``presence``.
        presence: a line a method in whose rounds a site was missing.
    """

    methods: list[Exchange]
    sites: list[str]
    presence: list[Presence]


def exchanged(folder: Folder) -> Exchanged | None:
    """What the federated methods exchanged; None where there is nothing in the folder to tell it from."""
    table = of_run(folder.rounds)
    if not {"extra_up", "extra_down"} <= set(table.columns):
        return None
    # Sites that train alone send nothing; the pool is no federation.
    table = table[(table["bytes_up"] + table["bytes_down"] > 0) & (table["site"] != "pool")]
    methods = ordered(folder.methods, table["method"].unique())
    if not methods:
        return None
    sites = list(dict.fromkeys([*folder.sites, *table["site"]]))
    lines = [_exchange(folder, method, table[table["method"] == method]) for method in methods]
    presence = [_presence(method, table[table["method"] == method], sites) for method in methods]
    return Exchanged(lines, sites, [one for one in presence if one is not None])


def _exchange(folder: Folder, method: str, rows: pd.DataFrame) -> Exchange:
    sizes, payloads = list[str](), list[Payload]()
    for way, words in (("up", "to the server"), ("down", "to the site")):
        found: dict[str, dict[int, int]] = {}
        shapes: dict[str, dict[str, None]] = {}
        besides = []
        for number, text in enumerate(rows[f"extra_{way}"]):
            payload = list(sent_in(text))
            besides.append(sum(int(one["size"]) for one in payload))
            for one in payload:
                sent = found.setdefault(one["name"], {})
                sent[number] = sent.get(number, 0) + int(one["size"])
                shapes.setdefault(one["name"], {})[_shape(one["shape"], one["times"])] = None
        sizes.append(_range(rows[f"bytes_{way}"].to_numpy(dtype=float) - besides))
        for name, sent in found.items():
            size = _range(np.array(list(sent.values()), dtype=float))
            plain = name.rpartition("/")[2].replace("_", " ")
            shape = " or ".join(shapes[name])
            reveals = folder.reveals.get((method, name), "")
            payloads.append(Payload(plain, words, shape, size, reveals, _often(len(sent), rows)))
    return Exchange(method, sizes[0], sizes[1], payloads)


def _shape(text: str, times: str | None) -> str:
    shape = "one number" if text == "[]" else text.strip("[]").replace(", ", " × ") + " numbers"
    return f"{shape}, {times} times" if times else shape


def _range(sizes: NDArray[np.float64]) -> str:
    """The size, or the smallest and the largest where they differ."""
    ends = [bytes_text(float(size)) for size in (np.min(sizes), np.max(sizes))]
    return " to ".join(dict.fromkeys(ends))


def _often(times: int, rows: pd.DataFrame) -> str:
    if times == len(rows):
        return "in every round"
    if times == int((rows["round"] > 0).sum()):
        return "in every round but the first"
    once = len(rows.groupby(["seed", "fold", "site"]))
    return "once, at the start" if times == once else f"in {100 * times / len(rows):.0f}\u00a0% of the exchanges"


def _presence(method: str, rows: pd.DataFrame, sites: list[str]) -> Presence | None:
    """How often each site took part; None where all did in every round."""
    runs = rows.groupby(["seed", "fold"])["round"]
    rounds = int((runs.max() + 1).sum())
    skipped = rounds - int(runs.nunique().sum())
    there = rows.drop_duplicates(["seed", "fold", "round", "site"])["site"].value_counts()
    counts = [int(there.get(site, 0)) for site in sites]
    if not skipped and all(count == rounds for count in counts):
        return None
    texts = [f"{count_text(count)} ({100 * count / rounds:.0f}\u00a0%)" for count in counts]
    return Presence(method, count_text(rounds), count_text(skipped), texts)
