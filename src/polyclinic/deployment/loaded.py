"""The public face of a model in use, from Python: make it, load it, predict frames with it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from polyclinic.data.tables.frames import Frame, keep_frame
from polyclinic.deployment.inputs import Cases, open_images, open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import Done, predict_into
from polyclinic.engine.planner import choose_device
from polyclinic.study.checked import CheckedStudy
from polyclinic.study.final_model.description import Description
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import read_model, sites_folder

#: A table in memory, a file with one, or a folder with images.
Given = pd.DataFrame | str | Path


class Model:
    """A model that ``polyclinic fit`` made, ready to predict.

    Args:
        folder: the model's folder.
        parts: what sites kept of it: a folder, or one site's file; default: the folder beside it, if it is there.
        device: where the network runs: ``auto``, ``cpu`` or ``cuda``.

    Attributes:
        description: what the model is, see `polyclinic.study.final_model.description.Description`.

    Raises:
        ModelError: P701, the folder has no model, or one that can't be used.
    """

    def __init__(self, folder: str | Path, parts: str | Path | None = None, *, device: str = "auto") -> None:
        self.folder = Path(folder)
        beside = sites_folder(self.folder)
        own = Path(parts) if parts is not None else beside if beside.is_dir() else None
        self._predictor = Predictor(read_model(self.folder, device=choose_device(device)), own)
        self.description: Description = self._predictor.description

    @classmethod
    def fit(
        cls, study: CheckedStudy, out: str | Path, method: str | None = None, *, results: str | Path | None = None,
        rounds: int | None = None, seed: int | None = None, site_models: bool = False, calibrate: bool = False,
        resume: bool = False,
    ) -> Model:  # fmt: skip
        """Train a method of a study once on all cases, write the model, and load it; see ``polyclinic fit``.

        Args:
            study: as `polyclinic.Study.read` or `polyclinic.Study.of` give it.
            out: folder of the model.
            method: label of the method; needed if the study has several.
            results: folder of the study's results, which tell rounds, values of a search, and the threshold.
            rounds: of training, instead.
            seed: of the training; default: the study's first.
            site_models: whether the model has the whole networks of all sites.
            calibrate: whether probabilities are recalibrated by the results' test predictions.
            resume: whether a training that was interrupted goes on.

        Raises:
            PolyclinicError: in plain words.
        """
        given = None if results is None else Path(results)
        wanted = Wanted(method, given, rounds, None, seed, site_models, calibrate)
        fit_model(study, Path(out), wanted, resume=resume)
        return cls(out)

    def predict(
        self, cases: Given, site: str | None = None, *, reference: Given | None = None, out: str | Path | None = None
    ) -> pd.DataFrame:  # fmt: skip
        """Predictions, as ``predictions.csv`` has them; see ``polyclinic predict``.

        Args:
            cases: a frame or a file with a row a case, or a folder with images.
            site: whose cases they are; default: as the table tells.
            reference: further cases of the same site, by which those of a new site are scaled.
            out: folder for the tables, and for masks; None keeps nothing.

        Raises:
            ModelError: P702, the cases do not fit the model.
            DataError: what is wrong with the table.
        """
        return self.predict_all(cases, site, reference=reference, out=out).predictions

    def predict_all(
        self, cases: Given, site: str | None = None, *, reference: Given | None = None, out: str | Path | None = None
    ) -> Done:  # fmt: skip
        """Predictions, cases that were not predicted with the reasons, and notes; see ``predict``."""
        opened, frame = self._opened(cases, site)
        others, other_frame = (None, None) if reference is None else self._opened(reference, site)
        with TemporaryDirectory(prefix="polyclinic-") as temporary:
            done = predict_into(
                Path(temporary) / "out" if out is None else Path(out), self._predictor, opened, reference=others
            )
        del frame, other_frame  # found by their names until here
        return done

    def _opened(self, given: Given, site: str | None) -> tuple[Cases, Frame | None]:
        if isinstance(given, pd.DataFrame):
            frame = keep_frame(given, site or "cases")
            return open_table(self.description, frame, site), frame
        path = Path(given)
        return (open_images if path.is_dir() else open_table)(self.description, path, site), None
