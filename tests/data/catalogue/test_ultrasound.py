"""Films as bags of frames: frames in order, films without frames, and films of one patient."""

import numpy as np
import pytest

from polyclinic.data.catalogue.ultrasound import MOST_FRAMES
from polyclinic.errors import DataError

HEADER = "Current location,Filename,Label,Type,Probe,Source ID,Gender,Age,Patient ID / Name"


def film(tree, name, frames, seed):
    for number in range(1, frames + 1):
        pixels = np.random.default_rng([seed, number]).integers(0, 255, (24, 24), dtype=np.uint8)
        tree.image(f"frames/{name}/{number}.png", pixels)


@pytest.fixture
def pocus(tree):
    """24 films of two sources and three of a third; two films are of one patient."""
    rows = []
    for number in range(27):
        name = f"Cov-{number}" if number % 2 else f"Reg-{number}"
        label = "COVID-19" if number % 2 else "regular"
        patient = {1: "35", 3: "35"}.get(number, "")
        where = "data/pocus_videos/Convex"
        rows.append(
            f"{where},{name},{label},video,{('convex', 'linear')[number % 3 == 0]},{1 + number // 12},nd,,{patient}"
        )
        film(tree, name, 3, number)
    rows += [
        "not used - same as Cov-1.gif,Cov-1-copy,COVID-19,video,convex,1,,,",
        "data/pocus_images,Cov-image,COVID-19,image,convex,1,,,",
        "butterfly,Cov-Butterfly-Lung 2.mp4,COVID-19,video,convex,1,,,",
        "data/pocus_videos/Convex,Pneu-1,Bacterial pneumonia,video,convex,1,,,",
        "data/pocus_videos/Convex,Cov-1,COVID-19,video,convex,1,,,",
    ]
    for number, name in enumerate(("Cov-1-copy", "Cov-image", "Pneu-1")):
        film(tree, name, 2, 100 + number)
    tree.table("dataset_metadata.csv", HEADER, *rows)
    return tree


def test_pocus(pocus, prepared):
    result = prepared("pocus")
    films = result.manifest.drop_duplicates("film")
    assert films["site"].value_counts().to_dict() == {"source-1": 12, "source-2": 12, "others": 3}
    assert result.prepared.subjects == {"source-1": 11, "source-2": 12, "others": 3}
    assert result.reasons == {
        "marked as not used": 2, "a picture, no film": 2, "frames are missing": 1, "a second row of the same film": 3,
        "finding is neither covid nor healthy": 2,
    }  # fmt: skip
    assert result.study["model"] == {"gated_attention": {"encoder": {"cnn": {"channels": [16, 32, 64]}}}}
    assert result.check()[:2] == [27, 27]
    probes = prepared("pocus", out="probes", sites_by="probe", label="finding")
    assert set(probes.sites) == {"convex", "linear"}
    assert "pneumonia" in set(probes.manifest["finding"])


def test_pocus_without_frames(tree, prepared):
    tree.table("dataset_metadata.csv", HEADER, "x,Cov-1,COVID-19,video,convex,1,,,")
    tree.touch("pocus_videos/convex/Cov-1.gif")
    with pytest.raises(DataError, match=r"No frames/NAME/0001\.png was found.*Films themselves are not read"):
        prepared("pocus")


def test_echonet(tree, prepared):
    rows = []
    for number in range(12):
        name = f"0X{number:016X}"
        rows.append(f"{name},{35 + 3 * number}.5,40,90,112,112,50,200,{('TRAIN', 'VAL', 'TEST')[number % 3]}")
        film(tree, name, 40 if number == 0 else 3, number)
    rows += [
        "0XFFFFFFFFFFFFFFFF,60,40,90,112,112,50,200,TRAIN",
        "0X0000000000000001.avi,38.5,40,90,112,112,50,200,TRAIN",
    ]
    tree.table("FileList.csv", "FileName,EF,ESV,EDV,FrameHeight,FrameWidth,FPS,NumberOfFrames,Split", *rows)
    result = prepared("echonet-dynamic", sites_by="quantity", sites=2, alpha=20.0)
    assert result.reasons == {"frames are missing": 1, "a second row of the same film": 3}
    first = result.manifest[result.manifest["film"] == "0X0000000000000000"]
    numbers = [int(path.rsplit("/", 1)[-1].removesuffix(".png")) for path in first["image"]]
    assert numbers == sorted(numbers)
    assert (len(numbers), numbers[0], numbers[-1]) == (MOST_FRAMES, 1, 40)
    assert set(result.manifest["split"]) == {"train", "validation", "test"}
    assert result.study["task"] == "regression"
    assert result.check()[:2] == [12, 12]
    reduced = prepared("echonet-dynamic", out="reduced", label="reduced")
    films = reduced.manifest.drop_duplicates("film")
    assert films["reduced"].value_counts().to_dict() == {"yes": 5, "no": 7}
