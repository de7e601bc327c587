"""Prepared volumes on disk, found again by the content of their files and the way of preparing them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from polyclinic.data.volumes.preprocessing import Prepared
from polyclinic.errors import ResultsError
from polyclinic.files import write_atomic, write_error

#: Counted up when prepared volumes change for the same files and settings.
VERSION = 2
_CHUNK = 1 << 20


class Cache:
    """A folder of prepared cases.

    A case's key is a hash of the bytes of its files and of the settings; a renamed or copied file is therefore found
    again, a changed one is not. Hashing reads whole files, so the hash of a file is remembered by its path, size and
    time of change.

    Args:
        folder: made when first needed.
        settings: JSON values that say how cases are prepared.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._settings = json.dumps({"version": VERSION, **settings}, sort_keys=True)

    def key(self, sources: Sequence[Sequence[Path]], series: Sequence[str]) -> str:
        """The case's key.

        Args:
            sources: files of each image and of the mask.
            series: which image is meant in the files of each, "" where there is no choice.

        Raises:
            OSError: a file can't be read.
        """
        digest = hashlib.sha256(self._settings.encode())
        for files, name in zip(sources, series, strict=True):
            digest.update(f"image {len(files)} {name}\n".encode())
            for file in files:
                digest.update(self._content(file))
        return digest.hexdigest()

    def load(self, key: str) -> dict[str, Any] | None:
        """The record of a prepared case, or None if there is none."""
        try:
            record: dict[str, Any] = json.loads(self._path(key, ".json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        there = self.image(key).is_file() and (not record["masked"] or self.mask(key).is_file())
        return record if there else None

    def store(self, key: str, prepared: Prepared) -> dict[str, Any]:
        """Keep a prepared case; the record is written last, so that a case is whole or not there.

        Raises:
            ResultsError: P502, the disk is full, or P501, the folder can't be written.
        """
        content = hashlib.sha256(np.ascontiguousarray(prepared.image).tobytes()).hexdigest()
        record = {**prepared.about, "masked": prepared.mask is not None, "key": key, "content": content}
        try:
            self._write(self.image(key), prepared.image)
            if prepared.mask is not None:
                self._write(self.mask(key), prepared.mask)
        except OSError as error:
            raise write_error(self.image(key), error) from error
        write_atomic(self._path(key, ".json"), json.dumps(record), durable=False)
        return record

    def note(self, key: str) -> Any:
        """What ``remember`` kept, or None."""
        try:
            return json.loads(self._path(key, ".note.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def remember(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        write_atomic(self._path(key, ".note.json"), json.dumps(value), durable=False)

    def image(self, key: str) -> Path:
        """The file of a case's image ``[C, D, H, W]``."""
        return self._path(key, ".image.npy")

    def mask(self, key: str) -> Path:
        """The file of a case's mask ``[1, D, H, W]``."""
        return self._path(key, ".mask.npy")

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / key[:2] / f"{key}{ending}"

    def _write(self, path: Path, array: np.ndarray[Any, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        ignore = self.folder / ".gitignore"
        if not ignore.exists():  # images of patients must not end up in a repository beside the study file
            ignore.write_text("*\n", encoding="ascii")
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        with part.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        part.replace(path)

    def _content(self, file: Path) -> bytes:
        """SHA-256 of a file's bytes."""
        stat = file.stat()
        what = f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        known = self._path(hashlib.sha256(what.encode()).hexdigest(), ".sha256")
        try:
            return bytes.fromhex(known.read_text(encoding="ascii"))
        except (OSError, ValueError):
            pass
        digest = hashlib.sha256()
        with file.open("rb") as stream:
            while block := stream.read(_CHUNK):
                digest.update(block)
        with contextlib.suppress(ResultsError):  # a folder that can't be written shows when the case is stored
            write_atomic(known, digest.hexdigest(), durable=False)
        return digest.digest()


def source_files(path: Path) -> list[Path]:
    """The files of one image: itself, or all files of its folder in the order of their names; none if there is none."""
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return [path] if path.is_file() else []
