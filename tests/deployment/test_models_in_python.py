"""The public face of models: frames in, frames out; and what is refused."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from torch import nn

import polyclinic
from deployment.round_trips import table_study, write_tables
from polyclinic.errors import ModelError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> polyclinic.Model:
    folder = tmp_path_factory.mktemp("model")
    write_tables(folder)
    return polyclinic.Model.fit(polyclinic.Study.of(table_study(), folder), folder / "model", rounds=2)


def table(model: polyclinic.Model, site: str) -> pd.DataFrame:
    return pd.read_csv(model.folder.parent / f"{site}.csv")


def test_a_frame_is_predicted_as_its_file(model: polyclinic.Model, tmp_path: Path) -> None:
    frame = table(model, "A")
    by_frame = model.predict(frame, "A")
    by_file = model.predict(model.folder.parent / "A.csv", "A", out=tmp_path / "out")
    pd.testing.assert_frame_equal(by_frame, by_file)
    written = pd.read_csv(tmp_path / "out" / "predictions.csv", float_precision="round_trip")
    assert written["score"].tolist() == by_file["score"].tolist()
    shuffled = frame.sample(frac=1.0, random_state=1)
    again = model.predict(shuffled, "A").set_index("subject")["score"]
    assert again.loc[by_frame["subject"]].tolist() == pytest.approx(by_frame["score"].tolist(), rel=1e-6)


def test_labels_and_other_columns_play_no_part(model: polyclinic.Model) -> None:
    frame = table(model, "B")
    bare = frame[["patient", "age", "volume", "group"]].iloc[:, ::-1]
    assert model.predict(bare, "B")["score"].tolist() == model.predict(frame, "B")["score"].tolist()


def test_a_new_site_is_scaled_by_itself_or_by_its_reference(model: polyclinic.Model) -> None:
    frame = table(model, "C")
    alone = model.predict_all(frame, "Celle")
    assert [note.number for note in alone.notes] == ["N902"]
    moved = frame.assign(age=frame["age"] + 300.0)  # a clock that is wrong by a constant is scaled away
    assert model.predict(moved, "Celle")["score"].tolist() == pytest.approx(
        alone.predictions["score"].tolist(), abs=1e-4
    )
    assert set(model.predict(moved, "Celle")["outside"].str.contains("age")) == {True}
    few = frame.head(3)
    with pytest.raises(ModelError, match=r"P702 .* it has 3; 20 are needed"):
        model.predict(few, "Celle")
    by_others = model.predict(few, "Celle", reference=frame)
    assert by_others["score"].tolist() == alone.predictions["score"].head(3).tolist()
    with pytest.raises(ModelError, match="P702 Site A took part"):
        model.predict(few, "A", reference=frame)


def test_codes_that_no_site_had_are_named(model: polyclinic.Model) -> None:
    frame = table(model, "A")
    frame.loc[2, "group"], frame.loc[5, "age"] = "w", None
    done = model.predict_all(frame, "A")
    assert done.failures["reason"].tolist() == ["group is 'w', which no site that trained had"]
    assert len(done.predictions) == len(frame) - 1
    assert [note.number for note in done.notes] == ["N904"]


def test_missing_columns_and_other_units_are_told(model: polyclinic.Model) -> None:
    frame = table(model, "A")
    with pytest.raises(ModelError, match=r"P702 The table 'A' has no 'volume', which the model needs"):
        model.predict(frame.drop(columns="volume"), "A")
    litres = frame.assign(volume=frame["volume"] * 1000)
    numbers = [note.number for note in model.predict_all(litres, "Kiel").notes]
    assert "N902" in numbers
    assert any(number.startswith("N23") for number in numbers)


@pytest.mark.parametrize("times", [1000.0, 0.001])
def test_the_unit_of_the_model_is_the_right_one(model: polyclinic.Model, times: float) -> None:
    frame = table(model, "A")
    done = model.predict_all(frame.assign(volume=frame["volume"] * times), "A")
    said = [str(note) for note in done.notes if note.number == "N235"]
    assert said == [
        "Values differ from those that the model has seen as if the unit did (mm for cm, g for kg): volume (about "
        f"{times:g} times at A). Bring them to the unit of the model."
    ]
    assert "N235" not in {note.number for note in model.predict_all(frame, "A").notes}


def test_a_column_that_is_used_is_no_suggestion(model: polyclinic.Model) -> None:
    frame = table(model, "A").rename(columns={"volume": "Volume_2"}).assign(volumes=1.0)
    with pytest.raises(ModelError) as caught:
        model.predict(frame, "A")
    assert caught.value.hint == "Did you mean 'volumes'?"
    with pytest.raises(ModelError) as caught:
        model.predict(table(model, "A").rename(columns={"volume": "ages"}).drop(columns="age").assign(age=1.0), "A")
    assert "'age'" not in caught.value.hint


def test_a_network_of_a_program_is_no_model(tmp_path: Path) -> None:
    write_tables(tmp_path)
    study = polyclinic.Study.of(
        {**table_study(), "model": lambda shape, outputs: nn.Linear(shape[0], outputs)}, tmp_path
    )
    with pytest.raises(ModelError, match="P703 A network or loss of a Python program"):
        polyclinic.Model.fit(study, tmp_path / "model", rounds=1)
