"""A teacher that was trained elsewhere, such as on public data: each site learns from it while it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from polyclinic.client.features import frozen_outputs
from polyclinic.errors import SiteError, StudyError
from polyclinic.models.bundle import load_weights
from polyclinic.parts import LOCAL_PARTS, Batch, Memory, Part, ServerEnd, SiteEnd, SiteView, all_answers
from polyclinic.parts.distilling import divergence
from polyclinic.shapes import Shaped
from polyclinic.state import FlatModule

#: Where folders have their weights: a MONAI bundle, and what ``polyclinic fit`` writes.
_IN_FOLDERS = (Path("models") / "model.safetensors", Path("weights.safetensors"))


@LOCAL_PARTS.add("teacher")
class Teacher(Part):
    """Adds λ T² · KL(σ(f_teacher(x) / T) ‖ σ(f(x) / T)) on each batch of a site's own cases to its loss.

    The teacher is a network of the study's kind whose weights the study names; it stays as it is, and runs as in
    evaluation. The server sends it to every site once, when training starts. Of numbers to be predicted the mean
    squared difference takes the place of the divergence: then the teacher must predict them in deviations from the
    mean of the study's training cases.

    Source: Hinton, Vinyals, Dean, arXiv 1503.02531, for the term. That each site of a federation distils from a teacher
    that was trained on public data is told by Guan et al. (2024) of Kumar et al., IEEE Transactions on Industrial
    Informatics 2021 (MediSecFed), whose text was not at hand: nothing else is taken from there.

    Args:
        weights: safetensors file with the teacher's weights, or the folder of a MONAI bundle, or one that ``polyclinic
            fit`` wrote, that has them, relative to the study file. Their names and shapes are those of the study's
            network. Classes, features and how inputs are scaled must be the study's, too: only what ``polyclinic fit``
            wrote tells them.
        weight: λ; 0 sends nothing and changes nothing.
        temperature: T.
    """

    tasks = ("classification", "segmentation", "regression")
    reveals: ClassVar = {"weights": "the teacher's weights: nothing of the sites"}
    shapes: ClassVar = {"weights": Shaped("float32", "P")}
    same_network = True

    def __init__(self, *, weights: str, weight: NonNegativeFloat = 1.0, temperature: PositiveFloat = 1.0) -> None:
        self.weights, self.weight, self.temperature = weights, weight, temperature

    def at_site(self) -> SiteEnd:
        """Learns."""
        return _Pupil(self) if self.weight else SiteEnd()

    def at_server(self) -> ServerEnd:
        """Sends the teacher."""
        return _Sender(self) if self.weight else ServerEnd()

    @property
    def files(self) -> Sequence[str]:
        """See `Part.files`."""
        return [self.weights]

    def check_files(self, network: FlatModule, folder: Path) -> None:
        """See `Part.check_files`."""
        if self.weight:
            _read(network, folder, self.weights)


class _Sender(ServerEnd):
    def __init__(self, part: Teacher) -> None:
        self.part = part

    def meet(self, announced: Mapping[str, Memory], everyone: Mapping[str, float]) -> None:
        """Send it; also where a training goes on, since sites keep it in memory alone."""
        place = self.workplace
        if place.folder is None:
            raise StudyError("P102", f"{self.name} reads a file, and the study has no folder.", "Read it from a file.")
        vector = _read(place.network, place.folder, self.part.weights)
        all_answers(self.ask("teach", {site: {"weights": vector} for site in everyone}))


class _Pupil(SiteEnd):
    def __init__(self, part: Teacher) -> None:
        self.part = part
        self._teacher: Tensor | None = None

    def answer(self, verb: str, asked: Memory, view: SiteView) -> Memory:
        """Take it in."""
        if verb != "teach" or "weights" not in asked:
            return super().answer(verb, asked, view)
        self._teacher = asked["weights"].clone()
        return {}

    def begin(self, view: SiteView, received: Memory) -> Memory:
        """Without a teacher nothing is trained."""
        if self._teacher is None:
            raise SiteError("P401", f"Site {view.name} was sent no teacher.",
                            "Let all sites and the server run the same version of Polyclinic.",
                            site=view.name)  # fmt: skip
        self._task = view.task
        self._teacher = self._teacher.to(view.model.vector.device)
        return {}

    def loss(self, batch: Batch, given: Memory) -> Tensor | None:
        """The term."""
        if self._teacher is None:
            return None
        wanted = frozen_outputs(batch.model, self._teacher, batch.inputs).flatten(1)
        return self.part.weight * divergence(self._task, batch.outputs, wanted, self.part.temperature)


def _read(network: FlatModule, folder: Path, weights: str) -> Tensor:
    """The teacher's state ``[P]``; the network is as before.

    Raises:
        StudyError: P102, there is no such file, or its tensors are not the network's.
    """
    given = folder / weights
    path = next((one for one in (given, *(given / own for own in _IN_FOLDERS)) if one.is_file()), None)
    if path is None:
        raise StudyError("P102", f"There is no file with the teacher's weights: {weights}.",
                         "Give the path of a safetensors file or of a model's folder, relative to the study "
                         "file.")  # fmt: skip
    put_back = network.remember()
    try:
        load_weights(network.module, path)
        return network.vector.to("cpu", copy=True)
    except StudyError as error:
        hint = "The teacher must be a network of the study's own kind."
        raise StudyError("P102", f"The teacher's weights: {error.message}", hint) from None
    finally:
        put_back()
