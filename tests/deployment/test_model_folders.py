"""A model's folder that is damaged, foreign or made to do harm is refused in a sentence; nothing of it is run."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load, save

from deployment.round_trips import table_study, write_tables
from polyclinic.deployment.inputs import open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import TABLE, predict_into
from polyclinic.errors import ModelError, ResultsError
from polyclinic.study.final_model.fit import Wanted, fit_model, sites_folder
from polyclinic.study.final_model.folder import (
    DESCRIPTION,
    PREPARATION,
    VECTORS,
    VOUCHED,
    WEIGHTS,
    number_of,
    read_model,
)
from polyclinic.study.study import Study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    write_tables(folder)
    fit_model(Study.of(table_study(), folder), folder / "model", Wanted(rounds=2))
    return folder


def forged(model: Path, change: Callable[[dict[str, Any]], None] | None = None, **files: bytes) -> None:
    """Change the folder as somebody does who knows what is checked: with hashes and number that fit."""
    for name, content in files.items():
        (model / f"{name.replace('_', '-')}.safetensors").write_bytes(content)
    content = yaml.safe_load((model / DESCRIPTION).read_text(encoding="utf-8"))
    for name in VOUCHED:
        content["files"][name] = hashlib.sha256((model / name).read_bytes()).hexdigest()
    content["number"] = number_of((model / WEIGHTS).read_bytes(), (model / PREPARATION).read_bytes())
    if change is not None:
        change(content)
    (model / DESCRIPTION).write_text(yaml.safe_dump(content), encoding="utf-8")


def flip(model: Path) -> None:
    content = bytearray((model / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (model / WEIGHTS).write_bytes(content)


def cut(model: Path) -> None:
    (model / VECTORS).write_bytes((model / VECTORS).read_bytes()[:-9])


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def tensors(model: Path, name: str = WEIGHTS) -> dict[str, torch.Tensor]:
    return load((model / name).read_bytes())


def entry(place: str, value: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        forged(model, lambda content: content.update({place: value}))

    return change


def other_weights(model: Path) -> None:
    forged(model, weights=save({name: tensor + 0.1 for name, tensor in tensors(model).items()}))


def not_finite(model: Path) -> None:
    forged(model, weights=save({name: tensor * torch.nan for name, tensor in tensors(model).items()}))


def one_shape(model: Path) -> None:
    found = tensors(model)
    name = next(one for one, tensor in found.items() if tensor.ndim > 1)
    forged(model, weights=save({**found, name: found[name].flatten()}))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (flip, "weights.safetensors is damaged or was changed"),
    "an end": (cut, "test-vectors.safetensors is damaged or was changed"),
    "no weights": (lambda model: (model / WEIGHTS).unlink(), r"weights.safetensors can't be read"),
    "a pickle": (lambda model: forged(model, weights=pickle.dumps(_Evil())), "weights.safetensors holds no tensors"),
    "other weights": (other_weights, "does not compute what it did"),
    "nan": (not_finite, "numbers that are not finite"),
    "a shape": (one_shape, "which its network has not"),
    "the number": (entry("number", "0" * 16), "its number is not that of"),
    "a huge network": (entry("network", ["mlp", {"hidden": [10**7, 10**7]}]), "its network has"),
    "no such network": (entry("network", ["os.system", {}]), "its network can't be built"),
    "an option": (entry("network", ["mlp", {"hidden": "x"}]), "its network can't be built"),
    "a format": (entry("format", 2), "has the format 2"),
    "an unknown entry": (entry("run", "rm -rf /"), "has an entry that does not fit .run"),
    "a lying shape": (entry("shape", [7]), "its network has"),
    "a path": (entry("files", {"../../secret": "0", WEIGHTS: "0"}), "is damaged or was changed"),
    "no yaml": (lambda model: (model / DESCRIPTION).write_text("{", encoding="utf-8"), "can't be read"),
    "python in yaml": (
        lambda model: (model / DESCRIPTION).write_text("!!python/object/apply:os.system [touch ran]", encoding="utf-8"),
        "can't be read",
    ),
    "a list": (lambda model: (model / DESCRIPTION).write_text("- 1", encoding="utf-8"), "has no entries"),
    "nothing": (lambda model: (model / DESCRIPTION).unlink(), "model.yaml is missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_folder_that_is_not_as_it_was_made_is_refused(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "model"
    shutil.copytree(made / "model", model)
    change, words = WRONG[kind]
    change(model)
    with pytest.raises(ModelError, match=f"P701 .*{words}"):
        read_model(model)
    assert not Path("ran").exists()


def test_nothing_in_the_folder_is_private(made: Path) -> None:
    for path in (made / "model").iterdir():
        content = path.read_bytes()
        for text in (b"A000", b"A.csv", str(made).encode(), b"patient000"):
            assert text not in content, path.name


def test_parts_of_other_models_and_sites_are_refused(made: Path, tmp_path: Path) -> None:
    fit_model(Study.of(table_study(seed=5), made), tmp_path / "other", Wanted(rounds=2))
    model, parts = read_model(made / "model"), sites_folder(made / "model")
    cases = open_table(model.description, made / "A.csv", "A")
    with pytest.raises(ModelError, match=r"P702 .* belongs to the model"):
        Predictor(model, sites_folder(tmp_path / "other")).at("A", cases, tmp_path)
    with pytest.raises(ModelError, match=r"P702 .* belongs to the site 'B', not to 'A'"):
        Predictor(model, parts / "B" / "model-part.safetensors").at("A", cases, tmp_path)
    (tmp_path / "junk").write_bytes(b"junk")
    with pytest.raises(ResultsError, match=r"P501 .* can't be read as a site's part"):
        Predictor(model, tmp_path / "junk").at("A", cases, tmp_path)


def test_predictions_go_on_where_they_stopped(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(read_model(made / "model"), sites_folder(made / "model"))
    monkeypatch.setattr(Predictor, "chunk_size", lambda self, cases: 7)
    whole = predict_into(tmp_path / "whole", predictor, open_table(predictor.description, made / "A.csv", "A"))

    def stop(done: int, total: int) -> None:
        if done >= 14:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict_into(tmp_path / "out", predictor, open_table(predictor.description, made / "A.csv", "A"), progress=stop)
    assert not (tmp_path / "out" / TABLE).exists()
    with pytest.raises(ResultsError, match=r"P501 .* already holds predictions"):
        predict_into(tmp_path / "out", predictor, open_table(predictor.description, made / "A.csv", "A"))
    with pytest.raises(ResultsError, match=r"P501 .* of other cases"):
        predict_into(
            tmp_path / "out", predictor, open_table(predictor.description, made / "B.csv", "A"), resume=True
        )  # fmt: skip
    lines = (tmp_path / "out" / "predictions.jsonl").read_text(encoding="utf-8")
    (tmp_path / "out" / "predictions.jsonl").write_text(lines + '{"site": "A", "thr', encoding="utf-8")  # a torn line
    counted: list[int] = []
    again = predict_into(
        tmp_path / "out", predictor, open_table(predictor.description, made / "A.csv", "A"), resume=True,
        progress=lambda done, total: counted.append(done),
    )  # fmt: skip
    assert counted[0] == 21
    assert (tmp_path / "out" / TABLE).read_bytes() == (tmp_path / "whole" / TABLE).read_bytes()
    assert again.predictions["score"].tolist() == whole.predictions["score"].tolist()
