"""Small trees of the documented layouts, and one command that prepares them."""

from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from polyclinic import Study
from polyclinic.data.catalogue import Choices, find_entry, prepare
from polyclinic.study.declaration import Declaration


class Tree:
    """A folder that tests fill with files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def touch(self, *names: str) -> None:
        """Empty files: preparing looks at names and tables only."""
        for name in names:
            self._path(name).touch()

    def text(self, name: str, content: str) -> None:
        self._path(name).write_text(content, encoding="utf-8")

    def table(self, name: str, header: str, *rows: str) -> None:
        self.text(name, "\n".join([header, *rows]) + "\n")

    def image(self, name: str, pixels: np.ndarray, **options: object) -> None:
        Image.fromarray(pixels).save(self._path(name), **options)

    def volume(self, name: str, shape: tuple[int, int, int] = (4, 5, 6)) -> None:
        nibabel.save(nibabel.Nifti1Image(np.ones(shape, dtype=np.int16), np.eye(4)), self._path(name))

    def analyze(self, name: str, value: int) -> None:
        """A big-endian Analyze pair with one frame, as OASIS has it."""
        header = nibabel.AnalyzeHeader(endianness=">")
        header.set_data_dtype(np.int16)
        nibabel.save(nibabel.AnalyzeImage(np.full((4, 5, 6, 1), value, dtype=np.int16), None, header), self._path(name))

    def _path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


class Result:
    """What ``prepare`` wrote, read again."""

    def __init__(self, prepared, out: Path) -> None:
        self.prepared, self.out = prepared, out
        self.manifest = pd.read_csv(out / "manifest.csv", dtype=str, na_filter=False)
        self.study = yaml.safe_load((out / "study.yaml").read_text(encoding="utf-8"))

    @property
    def sites(self) -> dict[str, int]:
        return dict(Counter(self.manifest["site"]))

    @property
    def reasons(self) -> dict[str, int]:
        return dict(sum((counts.rejected for counts in self.prepared.counts.values()), Counter()))

    def check(self) -> list[int]:
        """Found, used and rejected over all sites, as the study's own reader has it.

        Volumes are brought to a grid four times as coarse as the study's, which saves nearly all of the time.
        """
        data = self.study["data"]
        coarse = data.get("preprocessing")
        if coarse is not None:
            sides = [max(side // 4, 1) for side in coarse["size"]]
            data = data | {
                "preprocessing": coarse | {"size": sides, "spacing": [4 * step for step in coarse["spacing"]]}
            }
            data |= {"patch": [max(side // 4, 1) for side in data["patch"]]} if "patch" in data else {}
        path = self.out / "coarse.yaml"
        path.write_text(yaml.safe_dump(self.study | {"data": data}), encoding="utf-8")
        Declaration.check(self.study)
        sites, _ = Study.read(path).check()
        return sites[["found", "used", "rejected"]].sum().tolist()

    def files(self, column: str) -> list[Path]:
        """The images of a column, found as a study's reader would."""
        root = self.out / self.study["data"].get("root", ".")
        return [(root / cell).resolve() for cell in self.manifest[column] if cell]


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path / "source")


@pytest.fixture
def prepared(tmp_path, tree):
    """Prepare an entry from the tree (or from another folder) with the choices given."""

    def run(name: str, source: Path | None = None, out: str = "out", **choices: object) -> Result:
        folder = tmp_path / out
        done = prepare(find_entry(name), source or tree.folder, folder, Choices(**choices))
        for counts in done.counts.values():
            assert counts.found == counts.used + sum(counts.rejected.values())
        result = Result(done, folder)
        assert len(result.manifest) == done.used
        if "preprocessing" not in result.study["data"] and result.study["task"] != "regression":
            Declaration.check(result.study)
        assert result.manifest["subject"].str.fullmatch(r"sub-[0-9a-f]{12}").all()
        return result

    return run
