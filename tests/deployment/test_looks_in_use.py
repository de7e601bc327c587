"""Models whose network is shown images that a part of their method has changed, such as harmofl and style_generator."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from deployment.round_trips import as_tested
from deployment.test_image_models import picture_study, write_pictures
from polyclinic.deployment.export.bundle import export_bundle
from polyclinic.deployment.export.onnx import export_onnx
from polyclinic.deployment.inputs import open_table
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.errors import ModelError
from polyclinic.parts import SitePart
from polyclinic.study.final_model.entry import changing_images, unusable
from polyclinic.study.final_model.fit import Wanted, fit_model, sites_folder
from polyclinic.study.final_model.folder import DESCRIPTION, PREPARATION, read_model
from polyclinic.study.study import Study

METHODS = [
    {"harmofl": {"window": 0.3, "label": "harmofl"}},
    "style_transfer",
    {"style_generator": {"style_rounds": 5, "label": "style_generator"}},
]
MODELS = (("model", "harmofl"), ("style", "style_transfer"), ("curves", "style_generator"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, and models of fold 0."""
    folder = tmp_path_factory.mktemp("looks")
    write_pictures(folder)
    for model, method in MODELS:
        fit_model(Study.of(picture_study(methods=METHODS), folder), folder / model, Wanted(method=method, fold=0))
    return folder


def predicted(
    folder: Path, site: str, rows: pd.DataFrame, out: Path, *, model: str = "model", own: bool = True
) -> pd.DataFrame:
    predictor = Predictor(read_model(folder / model), sites_folder(folder / model) if own else None)
    rows.to_csv(folder / "new.csv", index=False)
    return predict_into(out, predictor, open_table(predictor.description, folder / "new.csv", site)).predictions


def test_predictions_are_those_of_the_study(made: Path, tmp_path: Path) -> None:
    Study.of(picture_study(methods=METHODS), made).run(tmp_path / "results")
    for site, (model, label) in product("AB", MODELS):
        then = as_tested(tmp_path / "results", label, site)
        rows = pd.DataFrame({"image": then["source"]})
        now = predicted(made, site, rows, tmp_path / f"{model}-{site}", model=model)
        assert now["score"].tolist() == pytest.approx(then["score"].tolist(), abs=1e-6)


def test_without_the_mean_amplitude_predictions_are_others(made: Path) -> None:
    """The mean is that of the sites' cases, and a site that took no part has it, too."""
    model = read_model(made / "model")
    (shown,) = model.shown
    pictures = torch.rand(2, *model.description.shape)
    assert (shown(pictures) - pictures).abs().max() > 1e-3
    assert model.description.shown == [("mean_amplitude", {"window": 0.3})]


def test_a_site_that_took_no_part_is_predicted(made: Path, tmp_path: Path) -> None:
    rows = pd.DataFrame({"image": [f"A/{number % 10}.png" for number in range(20)]})
    assert predicted(made, "Elsewhere", rows, tmp_path / "out", own=False)["score"].notna().all()


def test_exports_are_refused_in_a_sentence(made: Path, tmp_path: Path) -> None:
    for export in (export_onnx, export_bundle):
        with pytest.raises(ModelError, match=r"P704 .*images that mean_amplitude has changed.*polyclinic predict"):
            export(read_model(made / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _of_part(name: str, options: dict[str, Any]) -> Any:
    return lambda page, tensors: page.update(shown=[[name, options]])


def _of_tensors(**changed: torch.Tensor) -> Any:
    return lambda page, tensors: tensors.update({name.replace("_", "/", 1): one for name, one in changed.items()})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_of_part("nobody", {}), "no part 'nobody' here that changes images"),
        (_of_part("proximal", {"mu": 0.1}), "no part 'proximal' here that changes images"),
        (_of_part("mean_amplitude", {"window": 7}), "mean_amplitude can't be built"),
        (_of_part("mean_amplitude", {"window": 0.5}), "what mean_amplitude needs is not of its images"),
        (lambda page, tensors: tensors.pop("shown 0/mean"), "what mean_amplitude needs is not of its images"),
        (lambda page, tensors: tensors.update({"shown 1/mean": torch.ones(1)}), "belongs to no part"),
        (lambda page, tensors: tensors.update({"shown x/mean": torch.ones(1)}), "belongs to no part"),
        (lambda page, tensors: tensors["shown 0/mean"].fill_(torch.nan), "not finite"),
    ],
)
def test_a_folder_that_was_changed_is_refused(made: Path, tmp_path: Path, change: Any, words: str) -> None:
    """Whoever changes it also changes its hashes and its number."""
    import hashlib
    import shutil

    from polyclinic.study.final_model.folder import VECTORS, WEIGHTS, number_of

    folder = shutil.copytree(made / "model", tmp_path / "model")
    page, tensors = yaml.safe_load((folder / DESCRIPTION).read_text()), load_file(folder / PREPARATION)
    change(page, tensors)
    save_file(tensors, folder / PREPARATION)
    content = {name: (folder / name).read_bytes() for name in (WEIGHTS, PREPARATION, VECTORS)}
    page["files"] = {name: hashlib.sha256(one).hexdigest() for name, one in content.items()}
    page["number"] = number_of(content[WEIGHTS], content[PREPARATION])
    (folder / DESCRIPTION).write_text(yaml.safe_dump(page))
    with pytest.raises(ModelError, match=f"P701 .*{words}"):
        read_model(folder)


def test_a_part_that_does_not_say_how_makes_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from polyclinic.client.domain_shift.amplitudes import AmplitudeNormalisation

    method = Study.of(picture_study(methods=METHODS), Path()).declaration.study_methods[0].method
    assert list(changing_images(method)) == ["mean_amplitude"]
    monkeypatch.setattr(AmplitudeNormalisation, "shown", SitePart.shown)
    assert "shows its network images that mean_amplitude has changed" in unusable(method)
