"""TensorBoard: a folder of event files for each training."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from polyclinic.files import write_atomic
from polyclinic.study.tracking.about import About
from polyclinic.study.tracking.outcome import Outcome, markdown
from polyclinic.study.tracking.trainings import Part, Training
from polyclinic.study.tracking.values import by_round

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Event file with what is known at the end. TensorBoard reads the files of a run in the order of their names, and those
#: of rounds have a number there.
_RESULTS = "events.out.tfevents.results"
#: File in the folder of a training whose rounds are all there.
_WHOLE = "whole"


class TensorBoard:
    """Writes event files. What is half there when it begins, of a run that was killed, is written anew.

    Args:
        about: the study.
        folder: of all its trainings.
    """

    title = "TensorBoard"

    def __init__(self, about: About, folder: Path) -> None:
        self.about, self.folder = about, folder
        self._writers: dict[str, SummaryWriter] = {}

    def is_over(self, training: Training) -> bool:
        """Whether all rounds of a training are there."""
        return (self.folder / training.name / _WHOLE).is_file()

    def rounds(self, part: Part) -> None:
        """Write new rounds of a training."""
        place = self.folder / part.training.name
        if part.first:
            self._close(part.training.name)
            shutil.rmtree(place, ignore_errors=True)
        writer = self._writers.get(part.training.name) or self._writer(place)
        self._writers[part.training.name] = writer
        for number, values in by_round(part.rows):
            for name, value in values.items():
                writer.add_scalar(name, value, number)
        writer.flush()
        if part.done:
            self._close(part.training.name)
            (place / _WHOLE).touch()

    def results(self, found: Outcome) -> None:
        """Write what is known at the end."""
        for training, values in found.results.items():
            self._write_results(self.folder / training.name, training, values)
        place = self.folder / "study"
        shutil.rmtree(place, ignore_errors=True)
        with self._writer(place) as writer:
            for name, value in found.whole.items():
                writer.add_scalar(name, value, 0)
            for title, table in found.tables.items():
                writer.add_text(title, markdown(table))
            options = "\n".join(f"    {name}: {value}" for name, value in self.about.options.items())
            writer.add_text("options", options)
            writer.add_text("notes", "\n".join(f"- {note.number}: {note}" for note in found.notes) or "none")
            for title, picture in found.pictures:
                writer.add_image(title, picture, dataformats="HWC")

    def _write_results(self, place: Path, training: Training, values: Mapping[str, float]) -> None:
        """Test results, and the table of hyper-parameters in which trainings are compared by them."""
        from torch.utils.tensorboard.summary import hparams

        options = {**self.about.methods.get(training.method, {}), **training.about}
        compared = {name: None for name in values if name.startswith("test_") and name.endswith("/all")}
        with tempfile.TemporaryDirectory(prefix="polyclinic-") as folder:
            with self._writer(Path(folder)) as writer:
                for name, value in values.items():
                    writer.add_scalar(name, value, 0)
                for summary in hparams(options, compared):
                    writer._get_file_writer().add_summary(summary)
            (file,) = Path(folder).iterdir()
            write_atomic(place / _RESULTS, file.read_bytes(), durable=False)

    def _writer(self, place: Path) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(place))

    def _close(self, name: str) -> None:
        if name in self._writers:
            self._writers.pop(name).close()

    def forget(self) -> None:
        """Something failed: files that are open are left."""
        self._writers = {}

    def stop(self) -> None:
        """The study was stopped, and may go on."""
        for name in list(self._writers):
            self._close(name)
