"""Models as MONAI bundles: MONAI runs them by itself, and a study that starts from one has the same network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage

from deployment.test_image_models import picture_study, write_pictures
from polyclinic.data.readers.read import read_volume
from polyclinic.data.scaling import Scaler
from polyclinic.data.spec import Patch, Preprocessing
from polyclinic.data.volumes.grid import oriented, resample
from polyclinic.data.volumes.intensity import INTENSITIES, foreground_of
from polyclinic.data.volumes.preprocessing import grid_of, prepare_case
from polyclinic.deployment.export.bundle import check_plain, export_bundle
from polyclinic.deployment.export.bundle_config import inference, script
from polyclinic.deployment.export.front import Front
from polyclinic.deployment.inputs import open_images
from polyclinic.deployment.prediction import Predictor
from polyclinic.deployment.run import predict_into
from polyclinic.errors import ModelError
from polyclinic.models import MODELS, build_model
from polyclinic.models.monai_networks import BuiltOf, built_of
from polyclinic.options import split_entry
from polyclinic.study.final_model.fit import Wanted, fit_model
from polyclinic.study.final_model.folder import Model, read_model
from polyclinic.study.study import Study

FLIPPED = np.array([[0, 0, 1.0, -20], [-1.0, 0, 0, 30], [0, -1.0, 0, 10], [0, 0, 0, 1.0]])


def write_volume(path: Path, shape: tuple[int, ...], seed: int, affine: np.ndarray = FLIPPED) -> np.ndarray:
    """A bright ball in noise; returns where it is."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    inside = ((places - np.array(shape) / 2 - rng.integers(-2, 3, size=3)) ** 2).sum(axis=-1) < 20
    values = np.where(inside, 100, 20) + 5 * rng.normal(size=shape)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.float32), affine), path)
    return inside


def volume_study(**changes: Any) -> dict[str, Any]:
    data = {"tables": {"A": "A.csv", "B": "B.csv"}, "image": "image", "mask": "mask",
            "preprocessing": {"size": [16] * 3, "spacing": 1.0}}  # fmt: skip
    return {
        "task": "segmentation", "data": data, "model": {"unet": {"channels": [4, 8], "norm": "instance"}},
        "training": {"rounds": 8, "batch_size": 2, "optimizer": {"adam": {"lr": 0.03}}},
        "evaluation": {"folds": 2, "bootstrap": 0}, "engine": {"threads": 1}, "methods": ["fedavg"], **changes,
    }  # fmt: skip


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that finds balls in volumes, and its bundle."""
    folder = tmp_path_factory.mktemp("volumes")
    for place, site in enumerate("AB"):
        (folder / site).mkdir()
        rows = []
        for number in range(4):
            image, mask = f"{site}/{number}.nii.gz", f"{site}/{number}-mask.nii.gz"
            inside = write_volume(folder / image, (20, 17, 15), 10 * place + number)
            nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8), FLIPPED), folder / mask)
            rows.append({"image": image, "mask": mask})
        pd.DataFrame(rows).to_csv(folder / f"{site}.csv", index=False)
    fit_model(Study.of(volume_study(), folder), folder / "model", Wanted(rounds=8))
    model = read_model(folder / "model", check=False)
    export_bundle(model, folder / "bundle", authors=["Ada Lovelace"], licence="CC-BY-4.0")
    return folder


@pytest.fixture
def model(volumes: Path) -> Model:
    return read_model(volumes / "model", check=False)


def run_bundle(folder: Path, data: Path, out: Path) -> None:
    command = ["-m", "monai.bundle", "run", "inference", "--config_file", "configs/inference.json"]
    options = ["--dataset_dir", str(data), "--output_dir", str(out)]
    done = subprocess.run(
        [sys.executable, *command, *options], cwd=folder, capture_output=True, text=True, timeout=300,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_monai_finds_what_predict_finds(volumes: Path, model: Model, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    turned = np.array([[-0.6, 0.2, 0, 3], [0.2, 0.6, 0, 5], [0, 0, 1.3, 0], [0, 0, 0, 1]])
    for number, (shape, affine) in enumerate([((20, 17, 15), FLIPPED), ((9, 16, 33), FLIPPED), ((24, 30, 14), turned)]):
        write_volume(data / f"{number}.nii.gz", shape, 50 + number, affine)
    run_bundle(volumes / "bundle", data, tmp_path / "out")
    done = predict_into(tmp_path / "pred", Predictor(model), open_images(model.description, data, None))
    for number, name in enumerate(done.predictions["mask"]):
        ours, theirs = nibabel.load(tmp_path / "pred" / name), nibabel.load(tmp_path / "out" / f"{number}_mask.nii.gz")
        assert np.allclose(ours.affine, theirs.affine)
        assert np.asarray(ours.dataobj).sum() > 0
        differ = np.argwhere(np.asarray(ours.dataobj) != np.asarray(theirs.dataobj))
        if number < 2:
            assert len(differ) == 0
            continue
        # Of an image that was resampled, only beyond the middle of the outermost voxels of the box.
        grid, frame = grid_of(read_volume("2.nii.gz", data), Preprocessing(size=(16, 16, 16), spacing=1.0))
        to_grid = np.linalg.inv(grid.affine) @ frame.affine
        places = differ @ to_grid[:3, :3].T + to_grid[:3, 3]
        assert ((places < 0) | (places > 15)).any(axis=1).all()


def test_boxes_several_heads_and_numbers_of_masks(volumes: Path, tmp_path: Path) -> None:
    """Volumes predicted in windows, by nnU-Net's network, whose masks have numbers of more than eight bits."""
    for file in volumes.glob("*/*.nii.gz"):
        image = nibabel.load(file)
        values = np.asarray(image.dataobj)
        masks = 300 * values.astype(np.int16) if "mask" in file.name else values
        (tmp_path / file.parent.name).mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(masks, image.affine), tmp_path / file.parent.name / file.name)
    for site in "AB":
        shutil.copy(volumes / f"{site}.csv", tmp_path)
    study = volume_study(model={"dynunet": {"filters": [4, 8, 16], "deep_supervision": True, "residual": True}})
    study["data"] |= {"patch": [8, 8, 8], "mask_classes": {"ball": 300}}
    fit_model(Study.of(study, tmp_path), tmp_path / "model", Wanted(rounds=2))
    model, data = read_model(tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    write_volume(data / "0.nii.gz", (20, 17, 15), 50)
    export_bundle(model, tmp_path / "bundle")
    run_bundle(tmp_path / "bundle", data, tmp_path / "out")
    done = predict_into(tmp_path / "pred", Predictor(model), open_images(model.description, data, None))
    ours = np.asarray(nibabel.load(tmp_path / "pred" / done.predictions["mask"][0]).dataobj)
    theirs = np.asarray(nibabel.load(tmp_path / "out" / "0_mask.nii.gz").dataobj)
    assert set(np.unique(ours)) == {0, 300}
    assert (ours == theirs).all()
    assert "300 ball" in (tmp_path / "bundle" / "docs" / "README.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize("patch", [None, {"size": [64, 32, 32]}])
def test_swin_unetr_is_trained_used_and_exported(tmp_path: Path, patch: dict[str, Any] | None) -> None:
    """Whole volumes, and windows of larger ones."""
    for site in "AB":
        (tmp_path / site).mkdir()
        for number in range(2):
            inside = write_volume(tmp_path / site / f"{number}.nii.gz", (40, 30, 30), number)
            mask = nibabel.Nifti1Image(inside.astype(np.uint8), FLIPPED)
            nibabel.save(mask, tmp_path / site / f"{number}-mask.nii.gz")
        rows = [f"{site}/{number}.nii.gz,{site}/{number}-mask.nii.gz" for number in range(2)]
        (tmp_path / f"{site}.csv").write_text("\n".join(["image,mask", *rows]) + "\n")
    study = volume_study(model={"swinunetr": {"features": 12}})
    study["data"] |= {"preprocessing": {"size": [64, 32, 40 if patch else 32], "spacing": 1.0}}
    study["data"] |= {"patch": patch} if patch else {}
    study["training"] |= {"batch_size": 1}
    fit_model(Study.of(study, tmp_path), tmp_path / "model", Wanted(rounds=1))
    model, data = read_model(tmp_path / "model"), tmp_path / "data"
    data.mkdir()
    write_volume(data / "0.nii.gz", (40, 30, 30), 50)
    export_bundle(model, tmp_path / "bundle")
    run_bundle(tmp_path / "bundle", data, tmp_path / "out")
    done = predict_into(tmp_path / "pred", Predictor(model), open_images(model.description, data, None))
    ours, theirs = (nibabel.load(path) for path in (tmp_path / "pred" / done.predictions["mask"][0],
                                                    tmp_path / "out" / "0_mask.nii.gz"))  # fmt: skip
    assert (np.asarray(ours.dataobj) == np.asarray(theirs.dataobj)).all()


def test_its_metadata_fit_its_network(volumes: Path) -> None:
    from monai.bundle import verify_net_in_out

    configs = volumes / "bundle" / "configs"
    verify_net_in_out(
        net_id="network_def", meta_file=str(configs / "metadata.json"), config_file=str(configs / "inference.json"),
        device="cpu",
    )  # fmt: skip
    about = json.loads((configs / "metadata.json").read_text())
    for name in ("version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task", "authors",
                 "description", "required_packages_version", "copyright", "intended_use"):  # fmt: skip
        assert about[name], name
    assert (about["authors"], about["copyright"]) == ("Ada Lovelace", "CC-BY-4.0")
    assert about["network_data_format"]["outputs"]["pred"]["channel_def"] == {"0": "foreground"}
    page = (volumes / "bundle" / "docs" / "README.md").read_text()
    assert all(sentence in page for sentence in about["differences"])
    assert "not a medical device" in page or "no medical device" in page
    found = (one for one in (volumes / "bundle").rglob("*") if one.is_file() and one.suffix != ".pyc")
    files = sorted(str(one.relative_to(volumes / "bundle")) for one in found)
    assert files == ["LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md",
                     "models/model.safetensors", "scripts/__init__.py", "scripts/preparation.py"]  # fmt: skip


def test_a_study_that_starts_from_the_bundle_has_the_same_network_and_weights(
    volumes: Path, model: Model, tmp_path: Path
) -> None:  # fmt: skip
    study = volume_study(model={"bundle": {"path": "bundle"}})
    study["training"] = {"rounds": 1, "batch_size": 2, "optimizer": {"sgd": {"lr": 1e-12}}}
    fit_model(Study.of(study, volumes), tmp_path / "again", Wanted(rounds=1))
    again = read_model(tmp_path / "again", check=False)
    name, options = again.description.network
    assert (name, options["network"]) == ("monai", "UNet")
    assert [(e.name, e.shape) for e in again.network.layout.entries] == [
        (e.name, e.shape) for e in model.network.layout.entries
    ]
    assert again.vectors[0].tolist() == pytest.approx(model.vectors[0].tolist(), abs=1e-8)


def preprocessed(
    description: Any, folder: Path, image: Path | list[Path], monkeypatch: pytest.MonkeyPatch
) -> np.ndarray:
    """What the preprocessing of a bundle makes of an image ``[C, X, Y, Z]``."""
    from monai.bundle import ConfigParser

    front = Front(Scaler.identity(1))
    config = inference(description, front, BuiltOf("UNet", {}), "none")
    (folder / "scripts").mkdir(parents=True)
    (folder / "scripts" / "__init__.py").touch()
    (folder / "scripts" / "preparation.py").write_text(script(description))
    monkeypatch.syspath_prepend(str(folder))
    for name in ("scripts", "scripts.preparation"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    parser = ConfigParser({name: config[name] for name in ("intensity", "preprocessing") if name in config})
    files = [str(one) for one in image] if isinstance(image, list) else str(image)
    try:
        return np.asarray(parser.get_parsed_content("preprocessing")({"image": files})["image"])
    finally:
        for name in ("scripts", "scripts.preparation"):
            sys.modules.pop(name, None)


def as_in_the_study(image: Path, preparation: Preprocessing) -> np.ndarray:
    """The same by the steps of a study, before they are rounded to 16 bits ``[X, Y, Z]``."""
    volume = read_volume(image.name, image.parent)
    grid, frame = grid_of(volume, preparation)
    values = resample(oriented(frame, preparation.orientation), grid, order=1)
    name, options = split_entry(preparation.intensity, (), "")
    normalise = INTENSITIES[name](**options)
    kind = getattr(normalise, "foreground", "all")
    found: np.ndarray = normalise(values, foreground_of(values, kind))
    return found


@pytest.mark.parametrize(
    ("size", "intensity"),
    [
        ((16, 16, 16), "zscore"),
        ((13, 16, 17), "zscore"),
        ((21, 11, 16), {"zscore": {"foreground": "all"}}),
        ((16, 18, 15), {"zscore": {"foreground": "nonzero"}}),
        ((22, 20, 12), {"percentile": {"lower": 2.0, "upper": 98.0}}),
        ((19, 17, 15), {"percentile": {"foreground": "otsu"}}),
        ((20, 14, 18), {"window": {"lower": 0.0, "upper": 90.0}}),
        ((15, 19, 14), "none"),
    ],
)
def test_images_of_the_right_voxels_are_prepared_as_in_the_study(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int], intensity: Any
) -> None:  # fmt: skip
    write_volume(tmp_path / "image.nii.gz", (17, 15, 20), 7)
    preparation = Preprocessing(size=size, orientation="LPS", spacing=1.0, intensity=intensity)
    described = model.description.model_copy(
        update={"data": model.description.data.model_copy(update={"preprocessing": preparation})}
    )
    found = preprocessed(described, tmp_path / "bundle", tmp_path / "image.nii.gz", monkeypatch)
    wanted = as_in_the_study(tmp_path / "image.nii.gz", preparation)
    assert found.shape == (1, *size)
    assert np.abs(found[0] - wanted).max() <= 1e-5 * max(1.0, float(np.abs(wanted).max()))
    kept = prepare_case([read_volume("image.nii.gz", tmp_path)], None, preparation, lambda values: values).image
    assert np.abs(found - kept.astype(np.float32)).max() <= 2**-11 * np.abs(kept).max()


@pytest.mark.parametrize("size", [(20, 20, 20), (37, 28, 41)])
@pytest.mark.parametrize("turned", [0.0, 0.3])
def test_resampled_images_are_those_of_the_study(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int, int], turned: float
) -> None:
    cosine, sine = np.cos(turned), np.sin(turned)
    turn = np.array([[cosine, -sine, 0, 3], [sine, cosine, 0, -7], [0, 0, 1, 2], [0, 0, 0, 1]])
    rng = np.random.default_rng(1)
    values = ndimage.gaussian_filter(rng.normal(size=(48, 48, 30)), 3.0) * 100 + 20
    nibabel.save(
        nibabel.Nifti1Image(values.astype(np.float32), turn @ np.diag([-0.8, 0.9, 1.3, 1.0])), tmp_path / "image.nii.gz"
    )
    preparation = Preprocessing(size=size, spacing=(1.5, 0.9, 1.1), intensity={"zscore": {"foreground": "all"}})
    described = model.description.model_copy(
        update={"data": model.description.data.model_copy(update={"preprocessing": preparation})}
    )
    found = preprocessed(described, tmp_path / "bundle", tmp_path / "image.nii.gz", monkeypatch)[0]
    assert np.abs(found - as_in_the_study(tmp_path / "image.nii.gz", preparation)).max() < 1e-5


def test_windows_and_numbers_are_those_of_the_study(model: Model) -> None:
    """A network of boxes covers the volume by windows; a number gets its unit back; several classes sum to 1."""
    from monai.bundle import ConfigParser

    def config(other: Model) -> dict[str, Any]:
        return inference(other.description, Front(Scaler.identity(1)), BuiltOf("UNet", {}), "none")

    boxes = changed(model, {"patch": Patch(size=(8, 8, 16), overlap=0.4)}, batch_size=3)
    windows = {"_target_": "SlidingWindowInferer", "roi_size": [8, 8, 16], "sw_batch_size": 3, "overlap": 0.4}
    assert config(boxes)["inferer"] == {**windows, "mode": "gaussian"}
    number = changed(model, task="regression", loss="squared_error", classes=[], scale=(50.0, 4.0))
    after = ConfigParser({"after": config(number)["postprocessing"]}).get_parsed_content("after")
    assert after({"pred": torch.tensor([2.0])})["pred"].tolist() == [58.0]
    classes = changed(model, task="classification", loss="cross_entropy", classes=["a", "b"], outputs=2)
    after = ConfigParser({"after": config(classes)["postprocessing"]}).get_parsed_content("after")
    assert after({"pred": torch.tensor([0.0, 0.0])})["pred"].tolist() == [0.5, 0.5]
    several = changed(model, classes=["background", "a", "b"], outputs=3)
    steps = config(several)["postprocessing"]["transforms"]
    assert steps[0] == {"_target_": "Activationsd", "keys": "pred", "softmax": True}
    assert steps[2] == {"_target_": "AsDiscreted", "keys": "pred", "argmax": True}


def changed(model: Model, data: dict[str, Any] | None = None, **changes: Any) -> Model:
    described = model.description
    if data is not None:
        changes["data"] = described.data.model_copy(update=data)
    return replace(model, description=described.model_copy(update=changes))


def prepared(**options: Any) -> dict[str, Any]:
    return {"preprocessing": Preprocessing(size=(16, 16, 16), **options)}


def without_origin(model: Model) -> Model:
    del model.network.module.built_of
    return model


REFUSED: dict[str, tuple[Callable[[Model], Model], str]] = {
    "another network": (without_origin, "The network unet is not one of MONAI's"),
    "several networks": (lambda model: replace(model, vectors=model.vectors * 2), "this model is the mean of 2"),
    "a part at each site": (lambda model: changed(model, whole=False), "no whole network to export"),
    "own scaling": (
        lambda model: changed(model, steps=[("own_scaling", {"standardise": True, "imputation": "mean"})]),
        "Each site scales its cases in a way of its own",
    ),
    "foreground": (lambda model: changed(model, prepared(centre="foreground")), "puts the foreground into the middle"),
    "nyul": (lambda model: changed(model, prepared(intensity="nyul")), "brings histograms to a standard"),
    "pictures": (lambda model: changed(model, {"preprocessing": None}), "the mask of a picture"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_monai_can_not_do_is_refused(model: Model, tmp_path: Path, kind: str) -> None:
    change, sentence = REFUSED[kind]
    with pytest.raises(ModelError, match="P704") as caught:
        export_bundle(change(model), tmp_path / "out")
    assert sentence in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_other_weights_than_those_of_the_network_are_not_left(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyclinic.deployment.export import bundle

    state = bundle._state
    monkeypatch.setattr(bundle, "_state", lambda model: {name: one * 2 for name, one in state(model).items()})
    with pytest.raises(ModelError, match=r"P704 .*UNet of this bundle does not compute what the model does"):
        export_bundle(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value",
    ["$__import__('os').system('x')", " $x", "@network", "%train.json#x", {"_target_": "os.system"}, [{"a": ["$x"]}]],
)
def test_nothing_that_a_model_says_is_run_by_monai(model: Model, tmp_path: Path, value: Any) -> None:
    """A model's folder may come from anybody; what is data in it must not be code in a bundle."""
    with pytest.raises(ModelError, match=r"P704 .* which MONAI takes for more than a plain value"):
        check_plain({"norm": ["BATCH", {"momentum": value}]}, "network")
    if isinstance(value, str):
        for change in ({"study": value}, {"classes": ["background", value]}):
            with pytest.raises(ModelError, match="P704"):
                export_bundle(changed(model, **change), tmp_path / "out")
        with pytest.raises(ModelError, match="P704"):
            export_bundle(changed(model, {"image": [value, "other"]}), tmp_path / "out")
        module = model.network.module
        module.built_of = BuiltOf("UNet", {**built_of(module).arguments, "act": value})  # type: ignore[union-attr]
        with pytest.raises(ModelError, match="P704"):
            export_bundle(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_classes_of_pictures(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    network = {"in_shape": [1, 16, 16], "classes": 2, "channels": [4, 8], "strides": [2, 2]}
    study = picture_study(model={"monai": {"network": "Classifier", "arguments": network}})
    study["data"]["scaling"] = "federated"
    fit_model(Study.of(study, tmp_path), tmp_path / "model", Wanted(rounds=2))
    model = read_model(tmp_path / "model")
    export_bundle(model, tmp_path / "bundle")
    (tmp_path / "data").mkdir()
    for number in range(4):
        (tmp_path / "A" / f"{number}.png").rename(tmp_path / "data" / f"{number}.png")
    run_bundle(tmp_path / "bundle", tmp_path / "data", tmp_path / "out")
    rows = pd.read_csv(tmp_path / "out" / "predictions.csv", header=None).set_index(0)
    done = predict_into(tmp_path / "pred", Predictor(model), open_images(model.description, tmp_path / "data", None))
    found = [rows.loc[str(tmp_path / "data" / name), 2] for name in done.predictions["case"]]
    assert found == pytest.approx(done.predictions["score"].tolist(), abs=1e-5)


NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    **{f"resnet{depth}": ("resnet", {"depth": depth}, (1, 64, 64)) for depth in (10, 18, 34, 50)},
    "densenet121": ("densenet121", {}, (1, 32, 32)),
    "efficientnet": ("efficientnet", {}, (3, 32, 32)),
    "unet": ("unet", {"channels": [4, 8, 8, 8]}, (1, 16, 16, 3)),
    "segresnet": ("segresnet", {}, (2, 16, 16)),
    "attention_unet": ("attention_unet", {"channels": [4, 8]}, (1, 16, 16, 16)),
    "dynunet": ("dynunet", {"filters": [4, 8, 8], "deep_supervision": True}, (1, 16, 16, 16)),
    "swinunetr": ("swinunetr", {"features": 12}, (1, 64, 64)),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_networks_know_what_they_are_built_of(kind: str) -> None:
    name, options, shape = NETWORKS[kind]
    _, options = MODELS.resolve({name: options}, ("model",))
    with torch.device("meta"):
        one, _ = MODELS[name](shape, 2, **options)
        found = built_of(one)
        assert found is not None
        again = {"network": found.network, "arguments": json.loads(json.dumps(found.arguments))}
        other, _ = MODELS["monai"](shape, 2, **again)
    described = [{name: tensor.shape for name, tensor in module.state_dict().items()} for module in (one, other)]
    assert described[0] == described[1]
    assert str(one) == str(other)
    assert built_of(other).network == found.network  # type: ignore[union-attr]


def test_own_networks_are_none_of_monai() -> None:
    assert built_of(build_model("mlp", {"hidden": [3]}, (4,), 2).module) is None


def test_tilted_images_stop_the_bundle(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tilted = np.diag([1.0, 1.0, 1.0, 1.0])
    tilted[1, 2] = 0.3
    write_volume(tmp_path / "image.nii.gz", (17, 15, 20), 7, tilted)
    with pytest.raises(RuntimeError) as caught:
        preprocessed(model.description, tmp_path / "bundle", tmp_path / "image.nii.gz", monkeypatch)
    assert "not at right angles" in str(caught.value.__cause__)


def test_channels_are_files_of_a_folder(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several images of a case become its channels, each with its own smallest value and normalisation."""
    for number, name in enumerate(("flair", "t1")):
        write_volume(tmp_path / f"{name}.nii.gz", (17, 15, 20), number)
    preparation = Preprocessing(size=(20, 12, 22))
    data = model.description.data.model_copy(update={"image": ["flair", "t1"], "preprocessing": preparation})
    described = model.description.model_copy(update={"data": data})
    config = inference(described, Front(Scaler.identity(2)), BuiltOf("UNet", {}), "none")
    assert config["channels"] == ["flair", "t1"]
    images = [tmp_path / "flair.nii.gz", tmp_path / "t1.nii.gz"]
    found = preprocessed(described, tmp_path / "bundle", images, monkeypatch)
    wanted = np.stack([as_in_the_study(one, preparation) for one in images])
    assert np.abs(found - wanted).max() < 1e-5
