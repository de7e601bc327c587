"""The report's section on what sites and server exchanged, and on who took part."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from polyclinic.study.columns import MODEL, PAYLOADS
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
    """What one method exchanged; sizes are of one round and site, texts with units.

    ``shared`` says which modules of the model, where a method names some.
    """

    method: str
    shared: str
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
    if PAYLOADS not in table.columns:  # an older version did not tell
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
    times = rows[PAYLOADS].value_counts()
    known = folder.payloads[folder.payloads[PAYLOADS].isin(times.index)]
    for way, words in (("up", "to the server"), ("down", "to the site")):
        sent = known[known["way"] == way]
        besides = sent.groupby(PAYLOADS)["bytes"].sum()
        sizes.append(_range(rows[f"bytes_{way}"] - rows[PAYLOADS].map(besides).fillna(0)))
        for name, found in sent.groupby("payload", sort=False):
            plain = str(name).rpartition("/")[2].replace("_", " ")
            shapes = [_shape(shape, often) for shape, often in zip(found["shape"], found["times"], strict=True)]
            shape = " or ".join(dict.fromkeys(shapes))
            size = _range(found.groupby(PAYLOADS)["bytes"].sum())
            often = _often(int(times[found[PAYLOADS].unique()].sum()), rows)
            payloads.append(Payload(plain, words, shape, size, folder.reveals.get((method, str(name)), ""), often))
    return Exchange(method, folder.reveals.get((method, MODEL), ""), sizes[0], sizes[1], payloads)


def _shape(text: str, times: int) -> str:
    shape = "one number" if text == "[]" else text.strip("[]").replace(", ", " × ") + " numbers"
    return f"{shape}, {times} times" if times > 1 else shape


def _range(sizes: pd.Series[float]) -> str:
    """The size, or the smallest and the largest where they differ."""
    ends = [bytes_text(float(size)) for size in (sizes.min(), sizes.max())]
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
