"""The folder of an export: it is there whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyclinic.errors import ModelError
from polyclinic.files import write_error
from polyclinic.study.final_model.description import Description

#: What is asked where nobody gave a licence.
LICENCE_QUESTION = (
    "To be filled in by who passes it on: under which licence may others use, change and share this model?"
)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` if nothing is raised and goes away otherwise.

    Raises:
        ModelError: P704, ``out`` holds something already.
        ResultsError: P501 or P502, it can't be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ModelError("P704", f"{out} already holds something.", "Choose another folder with --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise write_error(out, error) from error
    try:
        yield draft
        draft.chmod(0o755)  # temporary folders are for their owner alone
        draft.replace(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def check_whole(description: Description) -> None:
    """Stop where the model is not one function of a case.

    Raises:
        ModelError: P704.
    """
    if description.target == "images":
        raise ModelError(
            "P704", "A network that reconstructs images puts measured lines of k-space back, by Fourier transforms of "
            "complex numbers, which no exported file does.", "Use the model with `polyclinic predict`.",
        )  # fmt: skip
    if not description.whole:
        raise ModelError(
            "P704", "Part of this model's network stays at each site, so its folder has no whole network to export.",
            "Predict with `polyclinic predict`, which takes a site's part, or export a model of a method that shares "
            "the whole network, such as fedavg.",
        )  # fmt: skip
    if description.shown:
        raise ModelError(
            "P704", f"This model's network is shown images that {description.shown[0][0]} has changed, which no "
            "exported file does.",
            "Predict with `polyclinic predict`, which does it, or export a model of a method without this part.",
        )  # fmt: skip
    if description.data.bags is not None:
        raise ModelError(
            "P704", "A case of this model is a bag of any number of instances, and an exported file takes one input a "
            "case.", "Use the model with `polyclinic predict`.",
        )  # fmt: skip
    if description.homes:
        sites = ", ".join(list(description.homes)[:3]) + (", ..." if len(description.homes) > 3 else "")
        raise ModelError(
            "P704", f"This model has a network for each site ({sites}), and an exported file can't tell whose case it "
            "is given.",
            "Predict with `polyclinic predict`, which knows, or export a model of a method with one network (fedavg) "
            "or with the mean of all (ensemble).",
        )  # fmt: skip
