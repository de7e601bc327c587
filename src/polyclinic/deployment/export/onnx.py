"""A model as an ONNX file, with a page of JSON that says what goes in and what comes out."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polyclinic.deployment.export.about import model_page
from polyclinic.deployment.export.folder import check_whole, whole_folder
from polyclinic.deployment.export.front import Front, raw_samples
from polyclinic.deployment.export.served import served
from polyclinic.errors import ModelError, TrainingError
from polyclinic.files import write_atomic
from polyclinic.study.final_model.folder import Model

FILE, PAGE = "model.onnx", "model.json"
INPUT, OUTPUT = "inputs", "predictions"
#: Outputs of the file may differ by so much from those of the model, relative to max(1, |output|).
NEAR = 1e-5
#: What one ONNX file can hold, in bytes, with room for what is no weight.
_MOST_BYTES = 2**31 - 2**24
_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export_onnx(model: Model, out: Path, *, licence: str | None = None) -> float:
    """Write a model as ``model.onnx`` with ``model.json``, once the file was run and gave what the model gives.

    Args:
        model: on the processor.
        out: folder; it is made.
        licence: of the model, as a text or URL.

    Returns:
        How far predictions were apart at most, relative to max(1, |prediction|).

    Raises:
        ModelError: P704, the model is not one function of a case, the network can't be written as ONNX, or the file
            does not compute what the model does.
        TrainingError: P503, a package is missing.
    """
    check_packages()
    check_whole(model.description)
    _check_size(model)
    front = Front.of(model)
    samples = raw_samples(front, model.samples["inputs"])
    with whole_folder(out) as draft:
        opset = _write(model, front, samples, draft / FILE)
        apart = _check(model, front, samples, draft / FILE)
        page = model_page(model, front, INPUT, OUTPUT, licence=licence)
        page["file"] = {"name": FILE, "opset": opset, "checked_cases": len(samples), "largest_difference": apart}
        write_atomic(draft / PAGE, json.dumps(page, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return apart


def check_packages() -> None:
    """Stop where a package that writes or runs ONNX is missing.

    Raises:
        TrainingError: P503.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise TrainingError("P503", f"An export to ONNX needs {' and '.join(missing)}, not installed here.",
                            "Install it: pip install 'polyclinic[onnx]'")  # fmt: skip


def _check_size(model: Model) -> None:
    size = 4 * len(model.vectors) * model.network.layout.size
    if size > _MOST_BYTES:
        raise ModelError("P704", f"The weights of this model have {size / 2**30:.1f} GiB, and one ONNX file holds 2.",
                         "Use the model with `polyclinic predict`, or export it as a MONAI bundle.")  # fmt: skip


def _write(model: Model, front: Front, samples: Tensor, path: Path) -> int:
    """Write the file; returns the version of its operators."""
    whole, name = served(model, front), model.description.network[0]
    example = torch.cat([samples, samples])[:2]  # with one case the exporter would take the batch as always one
    try:
        with _quiet():
            program: Any = torch.onnx.export(
                whole, (example,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False,
            )  # fmt: skip
            _forget_origin(program.model, model.description.number)
            program.save(path, external_data=False)
    except Exception as error:  # the exporter raises many types
        raise ModelError(
            "P704", f"The network {name} can't be written as ONNX: {_reason(error)}.",
            "Use the model with `polyclinic predict`; a network of MONAI can be exported as a MONAI bundle.",
        ) from error  # fmt: skip
    return int(program.model.opset_imports[""])


def _forget_origin(program: Any, number: str) -> None:
    """Take out where in which file a node was made: paths of this machine; and say which model it is."""
    for node in program.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
    for value in (*program.graph.inputs, *program.graph.outputs, *program.graph.initializers.values()):
        value.metadata_props.clear()
    program.metadata_props["polyclinic_model"] = number


def _reason(error: BaseException) -> str:
    """What went wrong first, in a line: the exporter's own errors tell of its steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((one for one in str(error).splitlines() if one.strip()), type(error).__name__)
    return line.strip().rstrip(".")[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells of its own parts and, where it fails, of its graphs."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        unread = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(unread), contextlib.redirect_stderr(unread):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _check(model: Model, front: Front, samples: Tensor, path: Path) -> float:
    """Run the file on the test vectors, all at once and one by one.

    Raises:
        ModelError: P704, it does not give what the model gives.
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        batches = [samples.numpy(), *(one[None].numpy() for one in samples)]
        together, *single = [session.run([OUTPUT], {INPUT: batch})[0] for batch in batches]
    except Exception as error:  # onnxruntime's own types are not public
        raise ModelError("P704", f"The exported file can't be run: {_reason(error)}.",
                         "Use the model with `polyclinic predict`.") from error  # fmt: skip
    expected = expected_predictions(model, front, samples)
    apart = max(difference(together, expected), difference(np.concatenate(single), expected))
    if not apart <= NEAR:
        raise ModelError("P704", f"The exported file does not compute what the model does: predictions of the test "
                         f"vectors differ by {apart:.3g}.", "Nothing was written. Use the model with `polyclinic "
                         "predict`, and tell the maintainers of Polyclinic.")  # fmt: skip
    return apart


def expected_predictions(model: Model, front: Front, samples: Tensor) -> npt.NDArray[np.float64]:
    """What the model itself predicts of these inputs, by the way that `polyclinic predict` takes."""
    values = samples.float() / 255.0 if front.pixels else samples
    if front.scaler is not None:
        values = front.scaler.apply(values)
    task, total = model.description.built_task, torch.zeros(())
    model.network.module.eval()
    with torch.no_grad():
        for vector in model.vectors:
            model.network.load(vector)
            total = total + task.probabilities(torch.cat([model.network.module(one[None]) for one in values])).double()
    return np.asarray((total / len(model.vectors)).numpy(), dtype=np.float64)


def difference(found: npt.NDArray[np.float32], expected: npt.NDArray[np.float64]) -> float:
    """How far numbers are apart at most, relative to max(1, |expected|); infinite where one of them is none."""
    if found.shape != expected.shape:
        return float("inf")
    apart = float((np.abs(found - expected) / np.maximum(1.0, np.abs(expected))).max())
    return apart if np.isfinite(apart) else float("inf")
