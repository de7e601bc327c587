"""Prepared volumes on disk, found again by the content of their files and the way of preparing them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from polyclinic.data.readers.nifti.read import pair_of
from polyclinic.data.volumes.preprocessing import Prepared
from polyclinic.files import draft_of, write_atomic, write_error
from polyclinic.ignored import IGNORED

#: Counted up when prepared volumes change for the same files and settings.
VERSION = 6
#: How the names of masks begin that stand for no mask.
BLANK = "blank"
_CHUNK = 1 << 20
_CHOOSE = "with `data: {cache: FOLDER}`"


class Cache:
    """A folder of prepared cases.

    A case's key is a hash of the bytes of its files and of the settings; a renamed or copied file is therefore found
    again, a changed one is not, whatever its size and time say. So each file is read each time, once for all images in
    it, with a hash (XXH3) that is faster than disks are.

    Args:
        folder: made when first needed.
        settings: JSON values that say how cases are prepared.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._settings = json.dumps({"version": VERSION, **settings}, sort_keys=True)
        self._contents: dict[Path, bytes] = {}

    def key(self, sources: Sequence[Sequence[Path]], series: Sequence[str], beside: object = None) -> str:
        """The case's key.

        Args:
            sources: files of each image and of the mask.
            series: which image is meant in the files of each, "" where there is no choice.
            beside: JSON values from other files that are kept with the case.

        Raises:
            OSError: a file can't be read.
        """
        digest = hashlib.sha256(self._settings.encode())
        digest.update(json.dumps(beside, sort_keys=True).encode() if beside else b"")
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
            raise write_error(self.folder, error, _CHOOSE) from error
        write_atomic(self._path(key, ".json"), json.dumps(record), durable=False, choose=_CHOOSE)
        return record

    def note(self, key: str) -> Any:
        """What ``remember`` kept, or None."""
        try:
            return json.loads(self._path(key, ".note.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def remember(self, key: str, value: Any) -> None:
        """Keep a JSON value."""
        write_atomic(self._path(key, ".note.json"), json.dumps(value), durable=False, choose=_CHOOSE)

    def image(self, key: str) -> Path:
        """The file of a case's image ``[C, D, H, W]``."""
        return self._path(key, ".image.npy")

    def mask(self, key: str) -> Path:
        """The file of a case's mask ``[1, D, H, W]``."""
        return self._path(key, ".mask.npy")

    def blank(self, shape: Sequence[int], value: int = IGNORED) -> Path:
        """The file of a mask ``[1, D, H, W]`` of this shape that has one value, for cases without a mask.

        Raises:
            ResultsError: P502, the disk is full, or P501, the folder can't be written.
        """
        of_value = "" if value == IGNORED else f".{value}"
        path = self.folder / f"{BLANK}.{'x'.join(map(str, shape))}{of_value}.mask.npy"
        if not path.is_file():
            try:
                self._write(path, np.full(tuple(shape), value, dtype=np.uint8))
            except OSError as error:
                raise write_error(self.folder, error, _CHOOSE) from error
        return path

    def _path(self, key: str, ending: str) -> Path:
        return self.folder / key[:2] / f"{key}{ending}"

    def _write(self, path: Path, array: np.ndarray[Any, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        ignore = self.folder / ".gitignore"
        if not ignore.exists():  # images of patients must not end up in a repository beside the study file
            ignore.write_text("*\n", encoding="ascii")
        draft = draft_of(path)
        with draft.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        draft.replace(path)

    def _content(self, file: Path) -> bytes:
        """Hash of a file's bytes."""
        known = self._contents.get(file)
        if known is None:
            digest = xxhash.xxh3_128()
            with file.open("rb") as stream:
                while block := stream.read(_CHUNK):
                    digest.update(block)
            known = self._contents[file] = digest.digest()
        return known


def source_files(path: Path) -> list[Path]:
    """The files of one image: itself (two if they are a pair of `.hdr` and `.img`), or all files of its folder in the
    order of their names; none if there is none.
    """
    if path.is_dir():
        return sorted(file for file in path.rglob("*") if file.is_file())
    return list(pair_of(path)) if path.is_file() else []
