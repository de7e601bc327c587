"""Finding the files of a layout, and saying what was looked for where they are not."""

from __future__ import annotations

import gzip
import hashlib
import os
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from polyclinic.data.tables.cells import parse_cells, read_cells
from polyclinic.errors import DataError, nearest

#: Cell texts that mean a missing value in one or another of the published tables.
MISSING = ("", "NA", "N/A", "n/a", "nan", "NaN", "null", "None", "?", ".")
#: Endings of volumes that a reader takes as one file; ``.img`` goes with its ``.hdr``.
VOLUME_ENDINGS = (".nii.gz", ".nii", ".img", ".mgz", ".mgh")
IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")


#: A hospital, country or source with fewer patients is no site of its own where sites are joined.
LEAST_PATIENTS = 10
OTHERS = "others"


class LayoutError(Exception):
    """The folder is not as the entry's layout says. The message says what was looked for."""


def what_is_there(folder: Path) -> str:
    """The content of a folder in a few words, for a message. Numbers are left out: they may name patients."""
    if folder.is_file():
        return f"it is a file ({''.join(folder.suffixes) or 'without an ending'})"
    names = [path.name + "/" * path.is_dir() for path in folder.iterdir() if not path.name.startswith(".")]
    if not names:
        return "it is empty"
    kinds = Counter(re.sub(r"\d+", "#", name) for name in sorted(names))
    shown = [f"{name} ({number} times)" if number > 1 else name for name, number in list(kinds.items())[:6]]
    return f"it holds {', '.join(shown)}" + (" and more" if len(kinds) > 6 else "")


def find_tables(source: Path, *patterns: str) -> list[Path]:
    """Files in the folder, or one folder below, that fit one of the patterns; the case of letters does not matter."""
    wanted = [re.compile(_as_expression(pattern), re.IGNORECASE) for pattern in patterns]
    if source.is_file():
        return [source] if any(each.fullmatch(source.name) for each in wanted) else []
    found = [path for path in [*source.glob("*"), *source.glob("*/*")] if path.is_file()]
    return sorted(path for path in found if any(each.fullmatch(path.name) for each in wanted))


def find_table(source: Path, *patterns: str) -> Path:
    """The one file that fits a pattern.

    Raises:
        LayoutError: when there is none, or more than one.
    """
    found = find_tables(source, *patterns)
    wanted = " or ".join(patterns)
    if not found:
        raise LayoutError(f"No {wanted} was found there or in a folder below; {what_is_there(source)}.")
    if len(found) > 1:
        names = ", ".join(path.relative_to(source).as_posix() for path in found[:4])
        raise LayoutError(f"There are {len(found)} files {wanted} ({names}); leave one of them.")
    return found[0]


def read_table(path: Path, *missing: str) -> pd.DataFrame:
    """All cells of a CSV, TSV, compressed CSV or Excel table as texts; ``MISSING`` and ``missing`` become empty.

    Raises:
        DataError: P201 when it can't be read, P503 when it is an Excel file and its reader is not installed.
    """
    if path.suffix.lower() in (".xls", ".xlsx"):
        table = _read_excel(path)
    elif path.suffix == ".gz":
        try:
            content = gzip.decompress(path.read_bytes())
        except (OSError, EOFError, zlib.error):
            raise DataError("P201", f"The table {path.name!r} is damaged.", "Download it again.") from None
        table = parse_cells(content, path.name)
    else:
        table = read_cells(path)
    table = pd.DataFrame({name: table[name].str.strip() for name in table.columns if str(name)})
    return table.mask(table.isin([*MISSING, *missing]), "")


def _read_excel(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_excel(path, dtype=str, na_filter=False)
    except ImportError:
        package = "xlrd" if path.suffix.lower() == ".xls" else "openpyxl"
        raise DataError(
            "P503",
            f"{path.name} is an Excel file, and the package {package} that reads it is not installed.",
            f"Run: pip install {package}, or save the table as CSV next to it and take the Excel file away.",
        ) from None
    except (OSError, ValueError):
        raise DataError("P201", f"The table {path.name!r} is no Excel file that can be read.") from None
    return table.astype(str)


def pick_column(table: pd.DataFrame, path: Path, *names: str) -> str:
    """The first of ``names`` that the table has as a column; the case of letters does not matter.

    Raises:
        LayoutError: when it has none of them.
    """
    there = {str(column).lower(): str(column) for column in table.columns}
    for name in names:
        if name.lower() in there:
            return there[name.lower()]
    wanted = " or ".join(repr(name) for name in names)
    hint = nearest(names[0], list(there.values()))
    raise LayoutError(f"The table {path.name} has no column {wanted}. {hint}".strip())


def optional_column(table: pd.DataFrame, *names: str) -> pd.Series[str]:
    """The cells of the first of ``names`` that the table has, or empty cells."""
    there = {str(column).lower(): column for column in table.columns}
    for name in names:
        if name.lower() in there:
            return table[there[name.lower()]]
    return pd.Series("", index=table.index, dtype=str)


def walk_files(source: Path, endings: Sequence[str]) -> list[str]:
    """Paths relative to ``source``, with slashes, of all files below it with one of the endings; sorted."""
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        base = Path(folder).relative_to(source)
        found += [
            (base / name).as_posix()
            for name in names
            if name.lower().endswith(tuple(endings)) and not name.startswith(".")
        ]
    return sorted(found)


def stem(path: str) -> str:
    """The name of a file without folders and endings: ``a/b.c_t1.nii.gz`` gives ``b.c_t1``."""
    name = path.rsplit("/", 1)[-1]
    for ending in (*VOLUME_ENDINGS, *IMAGE_ENDINGS, ".hdr"):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


def join_small_sites(sites: pd.Series[str], subjects: pd.Series[str]) -> tuple[pd.Series[str], list[str]]:
    """Sites of fewer than ``LEAST_PATIENTS`` become one, ``OTHERS``; empty ones stay empty.

    Returns:
        the sites, and a note with their number if there were any.
    """
    patients = subjects.groupby(sites).nunique()
    small = [name for name in patients.index[patients < LEAST_PATIENTS] if name]
    note = f"{len(small)} sites with fewer than {LEAST_PATIENTS} patients are put together as {OTHERS}."
    return sites.where(~sites.isin(small), OTHERS), [note] if small else []


def find_copies(source: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path of each file with the same bytes as an earlier one -> path of that one.

    Only files of the same length are read.
    """
    lengths: dict[int, list[str]] = defaultdict(list)
    for path in paths:
        lengths[(source / path).stat().st_size].append(path)
    copies: dict[str, str] = {}
    first: dict[bytes, str] = {}
    for names in lengths.values():
        for name in names if len(names) > 1 else ():
            digest = hashlib.sha256((source / name).read_bytes()).digest()
            if first.setdefault(digest, name) != name:
                copies[name] = first[digest]
    return copies


def by_stem(paths: Iterable[str]) -> dict[str, str]:
    """Stem -> path; of several files with one stem the first counts."""
    found: dict[str, str] = {}
    for path in paths:
        found.setdefault(stem(path), path)
    return found


def told_once(names: Iterable[str], values: Iterable[str]) -> dict[str, str]:
    """Name -> what is told of it; names without a value, or with several different ones, are left out."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, value in zip(names, values, strict=True):
        if value:
            found[name].add(value)
    return {name: next(iter(told)) for name, told in found.items() if len(told) == 1}


def reject_repeated(rows: pd.DataFrame, key: Sequence[str], told: Sequence[str], what: str) -> None:
    """Of rows with one key the first counts, and none of those that say different things.

    Args:
        rows: with a column ``reason``, which is written. Rows that have a reason are left alone, as are those with an
            empty cell in the key.
        key: columns that together name the case.
        told: columns that say something of it, or nothing where they are empty.
        what: the case in a word, such as ``image``.
    """
    usable = rows[(rows["reason"] == "") & (rows[[*key]] != "").all(axis=1)]
    again = usable[usable.duplicated([*key], keep=False)]
    if again.empty:
        return
    said = again[[*told]].mask(again[[*told]] == "")
    differ = said.groupby([again[name] for name in key]).transform("nunique").gt(1).any(axis=1)
    rows.loc[again.index[again.duplicated([*key])], "reason"] = f"a second row of the same {what}"
    rows.loc[differ.index[differ], "reason"] = f"rows of one {what} contradict each other"


def _as_expression(pattern: str) -> str:
    return ".*".join(re.escape(part) for part in pattern.split("*"))
