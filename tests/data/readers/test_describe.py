import numpy as np

from polyclinic.data.readers.describe import facts_row, volume_facts
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.volume import Volume


def test_facts_of_a_volume():
    values = np.arange(101, dtype=np.int16).reshape(101, 1, 1)
    facts = volume_facts(Volume(values, np.diag((-1.0, -1, 3, 1)), {"vendor": "GE", "field_strength": 1.5}))
    assert facts.shape == (101, 1, 1)
    assert facts.orientation == "LPS"
    assert facts.quantiles == (1, 50, 99)
    assert (facts.vendor, facts.field_strength) == ("GE", 1.5)
    empty = volume_facts(Volume(np.full((2, 2, 2), np.nan), np.eye(4)))
    assert np.isnan(empty.quantiles).all()


def test_the_images_of_a_site():
    facts = []
    for number in range(3):
        values = np.full((4, 5, 6 + number // 2), 10.0 * number, np.float32)
        facts.append(volume_facts(Volume(values, np.diag((1.0, 1, 1 + number // 2, 1)))))
    assert facts_row(facts) == {
        "shapes": "4×5×6 (2), 4×5×7 (1)",
        "spacing": "1 × 1 × 1 (1–2)",
        "orientations": "RAS (3)",
        "intensity": "10 / 10 / 10",
        "vendors": "unknown (3)",
        "field strengths": "unknown (3)",
    }
    assert set(facts_row([]).values()) == {""}


def test_many_kinds_are_cut():
    facts = [volume_facts(Volume(np.zeros((n, 1, 1)), np.eye(4))) for n in range(1, 8)]
    assert facts_row(facts)["shapes"] == "1×1×1 (1), 2×1×1 (1), 3×1×1 (1), 4×1×1 (1), 3 more"


def test_real_volumes(data_folder):
    volumes = [read_volume(name, data_folder / "nifti-spine") for name in ("t1w.nii.gz", "t2.nii.gz")]
    row = facts_row([volume_facts(volume) for volume in volumes])
    assert row["orientations"] == "PSR (1), RAS (1)"
    assert row["shapes"] == "42×76×77 (1), 60×55×52 (1)"
