"""Predicting a table or a folder of images into a folder, so that it can be killed at any moment and go on."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.originals import Original
from polyclinic.data.pictures.own_space import PictureSpace
from polyclinic.data.readers.files import resolve
from polyclinic.data.readers.nifti.read import is_nifti
from polyclinic.data.readers.read import find_series, reader_of
from polyclinic.data.readers.volume import UnreadableError, Volume
from polyclinic.data.volumes.own_space import VolumeSpace
from polyclinic.deployment.dicom_seg import SEG, SegWriter
from polyclinic.deployment.inputs import Cases
from polyclinic.deployment.mask_files import with_values, write_nifti, write_picture
from polyclinic.deployment.outside import outside_images, outside_table, units_of
from polyclinic.deployment.prediction import Predicted, Predictor
from polyclinic.deployment.reconstructions import own_pixels, own_voxels
from polyclinic.errors import ModelError, ResultsError
from polyclinic.files import write_atomic
from polyclinic.notes import Note
from polyclinic.seeds import derive_seed
from polyclinic.study.final_model.folder import Model
from polyclinic.study.lock import locked
from polyclinic.study.provenance import machine, now
from polyclinic.study.table_files import write_table

#: Files of the folder.
TABLE, FAILURES, RECORD, MASKS, CACHE = "predictions.csv", "not_predicted.csv", "prediction.json", "masks", ".cache"
RECONSTRUCTIONS = "reconstructions"
#: Rows that are done, a line a chunk.
_DONE = "predictions.jsonl"
Progress = Callable[[int, int], None]


@dataclass
class Done:
    """What was predicted.

    Attributes:
        predictions: content of ``predictions.csv``.
        failures: content of ``not_predicted.csv``.
        notes: what a person should know.
    """

    predictions: pd.DataFrame
    failures: pd.DataFrame
    notes: list[Note]


def predict_into(
    out: Path, predictor: Predictor, cases: Cases, *, reference: Cases | None = None, resume: bool = False,
    progress: Progress = lambda done, total: None, seg: SegWriter | None = None,
) -> Done:  # fmt: skip
    """Predict all cases and write tables, and masks of a segmentation or images of a reconstruction.

    Args:
        out: the folder; it is made.
        predictor: predicts.
        cases: that are predicted.
        reference: other cases of the same site, see `Predictor.at`.
        resume: whether a run that was interrupted goes on.
        progress: called with the number of cases done and of all.
        seg: writes masks of DICOM series as DICOM SEG; None writes NIfTI.

    Raises:
        ModelError: P702, no case can be predicted, or the model can't be used at a site.
        ResultsError: P501, the folder holds something else, or can't be written.
    """
    out = Path(out)
    with locked(out):
        return _Run(out, predictor, cases, reference, progress, seg).run(resume=resume)


class _Run:
    def __init__(
        self, out: Path, predictor: Predictor, cases: Cases, reference: Cases | None, progress: Progress,
        seg: SegWriter | None,
    ) -> None:  # fmt: skip
        self.out, self.predictor, self.cases, self.reference = out, predictor, cases, reference
        self.progress, self.seg = progress, seg
        self._unfit = Counter[str]()
        self.model: Model = predictor.model
        self.total = len(cases.usable)
        self.notes: list[Note] = list(cases.notes)

    def run(self, *, resume: bool) -> Done:
        record = self._record()
        rows, chunks = self._begin(record, resume=resume)
        if not self.total:
            raise ModelError("P702", f"No case can be predicted: {_reasons(self.cases.reasons())}.",
                             "Mend the table.")  # fmt: skip
        for site in self.cases.sites:
            at = self.predictor.at(site, self.cases, self.out / CACHE, self.reference)
            self.notes += at.notes
            self._note_units(site)
            for found in self.predictor.predict(self.cases, at, self.out / CACHE, chunks.get(site, 0)):
                self._one(site, found, rows, chunks)
        return self._finish(rows, record)

    def _one(self, site: str, found: Predicted | None, rows: list[dict[str, Any]], chunks: dict[str, int]) -> None:
        """Write a chunk down."""
        mine = [] if found is None else self._rows(found)
        positions = self.cases.of(site)
        # Cases that could not be read count as done, too.
        through = min(len(positions), chunks.get(site, 0) + self.predictor.chunk_size(self.cases))
        done = set(positions[:through].tolist())
        failed = {place: why for place, why in self.cases.failures.items() if place in done}
        chunks[site] = through
        line = json.dumps({"site": site, "through": through, "rows": mine, "failures": failed})
        with (self.out / _DONE).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        rows += mine
        shutil.rmtree(self.out / CACHE, ignore_errors=True)
        self.progress(sum(chunks.values()), self.total)

    def _rows(self, found: Predicted) -> list[dict[str, Any]]:
        """Rows of the table, with where they belong; masks are written."""
        description = self.model.description
        table = found.columns
        outside = (outside_table if description.is_table else outside_images)(description, found.data)
        if found.images is not None:
            write = self._mask if description.target == "masks" else self._reconstruction
            files = [write(place, one) for place, one in zip(found.positions, found.images, strict=True)]
            table = table.assign(**{name: [one[name] for one in files] for name in files[0]})
        table = table.assign(outside=outside)
        return [{"position": place, **row} for place, row in zip(found.positions, _plain(table), strict=True)]

    def _mask(self, place: int, probabilities: Any) -> dict[str, Any]:
        """Write the mask of a case, in the space of its image; returns its columns."""
        description, original = self.model.description, self._original(place)
        name = _file_name(original.image, place)
        sizes: dict[str, Any]
        space = _own_space(original)
        mask = space.decided(probabilities.numpy(), description.threshold)
        if isinstance(space, PictureSpace):
            path = self.out / MASKS / f"{name}.png"
            write_picture(path, with_values(mask, description.mask_values))
            sizes = {f"pixels[{one}]": int((mask == index).sum()) for index, one in _structures(description.classes)}
        else:
            volume = space.image
            path = self._write_volume(name, mask, volume, _source(original))
            voxel = abs(float(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
            sizes = {f"millilitres[{one}]": round(float((mask == index).sum()) * voxel, 6)
                     for index, one in _structures(description.classes)}  # fmt: skip
        return {"mask": str(path.relative_to(self.out)), **sizes}

    def _original(self, place: int) -> Original:
        """Where the image of a case lies."""
        cases = self.cases
        cell = str(cases.rows.cells[cases.spec.image_columns[0]].iloc[place])
        return Original(cell, None, Path(cases.rows.origin["folder"].iloc[place]), (cases.folder,), cases.spec)

    def _reconstruction(self, place: int, found: Any) -> dict[str, Any]:
        """Write the reconstruction of a case, in the space and the units of its image; returns its column."""
        original = self._original(place)
        space, path = _own_space(original), self.out / RECONSTRUCTIONS / _file_name(original.image, place)
        if isinstance(space, PictureSpace):
            path = path.with_name(f"{path.name}.png")
            write_picture(path, own_pixels(found.numpy(), space))
        else:
            path = path.with_name(f"{path.name}.nii.gz")
            preparation = original.spec.preprocessing
            if preparation is None:
                raise ValueError("volumes are prepared")
            write_nifti(path, own_voxels(found.numpy(), space, preparation), space.image, _source(original))
        return {"reconstruction": str(path.relative_to(self.out))}

    def _write_volume(self, name: str, mask: npt.NDArray[np.uint8], volume: Volume, source: Path) -> Path:
        """Write the mask of a volume as it is asked for; where that can't be, as NIfTI."""
        if self.seg is not None:
            path = self.out / MASKS / f"{name}{SEG}"
            try:
                if is_nifti(source) or reader_of(source):
                    raise UnreadableError("image is no DICOM series")
                self.seg.write(path, mask, find_series(source))
            except UnreadableError as error:
                self._unfit[str(error)] += 1
            else:
                return path
        path = self.out / MASKS / f"{name}.nii.gz"
        write_nifti(path, with_values(mask, self.model.description.mask_values), volume, source)
        return path

    def _note_units(self, site: str) -> None:
        if self.model.description.is_table:
            data, _ = self.cases.read(site, self.cases.of(site), self.out / CACHE)
            if data is not None:
                self.notes += units_of(self.model.description, data)

    # Its folder -------------------------------------------------------------------------------------------------------

    def _record(self) -> dict[str, Any]:
        """What a run that goes on must have in common with the one before."""
        record = {"model": self.model.description.number, "cases": len(self.cases), "cases_sha256": _digest(self.cases),
                  "sites": self.cases.sites}  # fmt: skip
        if self.reference is not None:
            record["reference_sha256"] = _digest(self.reference)
        if self.seg is not None:
            record["dicom_seg"] = {name: meaning.to_json() for name, meaning in self.seg.meanings.items()}
        return record

    def _begin(self, record: dict[str, Any], *, resume: bool) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Rows that are done already, and of each site how many cases."""
        path = self.out / RECORD
        if not path.is_file():
            if any(one.name != ".lock" for one in self.out.iterdir()):
                raise ResultsError("P501", f"The folder {self.out} is not empty and holds no predictions.",
                                   "Choose another folder with --out.")  # fmt: skip
            write_atomic(path, json.dumps({**record, "status": "running", "started": now()}, indent=2) + "\n")
            return [], {}
        before = json.loads(path.read_text(encoding="utf-8"))
        if not resume:
            raise ResultsError("P501", f"The folder {self.out} already holds predictions ({before.get('status')}).",
                               "Go on with --resume, or choose another folder with --out.")  # fmt: skip
        compared = {**dict.fromkeys(before.keys() & {"reference_sha256", "dicom_seg"}), **record}
        changed = [name for name, value in compared.items() if before.get(name) != value]
        if changed:
            raise ResultsError("P501", f"The predictions in {self.out} are of another model or of other cases "
                               f"({', '.join(changed)} differ).", "Choose another folder with --out.")  # fmt: skip
        rows, chunks = list[dict[str, Any]](), dict[str, int]()
        lines = (self.out / _DONE).read_text(encoding="utf-8").splitlines() if (self.out / _DONE).is_file() else []
        whole = []
        for line in lines:
            try:
                one = json.loads(line)
            except ValueError:  # the run was killed while it wrote this
                break
            whole.append(line)
            rows += one["rows"]
            chunks[one["site"]] = one["through"]
            self.cases.failures |= {int(place): why for place, why in one["failures"].items()}
        write_atomic(self.out / _DONE, "".join(f"{line}\n" for line in whole))
        return rows, chunks

    def _finish(self, rows: list[dict[str, Any]], record: dict[str, Any]) -> Done:
        rows.sort(key=lambda row: row["position"])
        table = pd.DataFrame([{name: value for name, value in row.items() if name != "position"} for row in rows])
        origin = self.cases.rows.origin
        failures = pd.DataFrame(
            [{"site": origin["site"].iloc[place], "case": origin["case"].iloc[place], "reason": reason}
             for place, reason in self.cases.rejected().items()],
            columns=["site", "case", "reason"],
        )  # fmt: skip
        if table.empty:
            raise ModelError(
                "P702", f"No case could be predicted: {_reasons(self.cases.reasons())}.", "Mend the files."
            )
        self.notes += self.cases.notes[len(self.notes) :]
        outside = int((table["outside"] != "").sum())
        if outside:
            are = "case is" if outside == 1 else "cases are"
            text = f"{outside} {are} unlike all that the model has seen; the column `outside` of {TABLE} says how."
            self.notes.append(Note("N903", text))
        if self.model.description.target == "images":
            text = f"k-space of {len(table)} images was made of the images themselves, with the model's share of lines"
            self.notes.append(Note("N909", f"{text}: this shows what a faster scan might have given, and is none."))
        if self.seg is not None:
            self.notes += self._not_seg(table["mask"])
        if len(failures):
            text = f"{len(failures)} of {len(self.cases)} cases were not predicted: {_reasons(self.cases.reasons())}."
            self.notes.append(Note("N904", text))
        notes = list(dict.fromkeys(self.notes))
        write_table(self.out / TABLE, table)
        write_table(self.out / FAILURES, failures)
        values = self.model.description.mask_values
        told = {**record, "status": "finished", "finished": now(), "predicted": len(table),
                **({"mask_values": dict(zip(self.model.description.classes, values, strict=True))} if values else {}),
                "notes": [note.to_json() for note in notes], **machine()}  # fmt: skip
        write_atomic(self.out / RECORD, json.dumps(told, indent=2) + "\n")
        (self.out / _DONE).unlink(missing_ok=True)
        shutil.rmtree(self.out / CACHE, ignore_errors=True)
        return Done(table, failures, notes)

    def _not_seg(self, masks: pd.Series[str]) -> list[Note]:
        """A note on masks that are no DICOM SEG, though these were asked for."""
        count = int((~masks.str.endswith(SEG)).sum())
        if not count:
            return []
        why = f": {_reasons(self._unfit)}" if self._unfit else ""
        return [Note("N908", f"{count} of {len(masks)} masks were written as NIfTI, not as DICOM SEG{why}.")]


def _digest(cases: Cases) -> str:
    """Of which cases there are."""
    digest = hashlib.sha256()
    for cells in (cases.rows.cells, cases.rows.origin[["site", "case"]]):
        digest.update(pd.util.hash_pandas_object(cells.astype(str), index=False).to_numpy().tobytes())
    return digest.hexdigest()


def _plain(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON values; numbers keep all their digits."""
    return [
        {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _structures(classes: list[str]) -> list[tuple[int, str]]:
    """Index and name of each structure but the background."""
    return [(index, name) for index, name in enumerate(classes) if index]


def _own_space(original: Original) -> VolumeSpace | PictureSpace:
    """The image as it was read, and the grid on which it was predicted."""
    try:
        return original.space()
    except UnreadableError as error:
        raise ModelError("P702", f"An image changed while it was predicted: {error}.", "Predict it again.") from None


def _source(original: Original) -> Path:
    """The image's file, or what its cell says."""
    return resolve(original.image, original.root, original.allowed) or Path(original.image)


def _file_name(cell: str, place: int) -> str:
    """A file name for what is written of a case, that of no other case."""
    stem = re.sub(r"\.(nii(\.gz)?|hdr|img|png|jpe?g|tiff?|bmp|gif|dcm|dicom|ima)$", "", cell, flags=re.IGNORECASE)
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._")[-80:] or "case"
    return f"{place + 1:05d}-{plain}" if plain == stem else f"{place + 1:05d}-{plain}-{derive_seed(cell) % 16**4:04x}"


def _reasons(counts: Counter[str]) -> str:
    from polyclinic.data.cases import reasons_text

    return reasons_text(counts) or "there are none"
