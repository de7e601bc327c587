"""COVID-19 in chest X-rays: tables and lists as they are published, with their oddities."""

import numpy as np
import pytest

from polyclinic.errors import DataError

HEADER = "patientid,offset,sex,age,finding,RT_PCR_positive,view,modality,date,location,folder,filename,doi,url,license"


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (24, 24), dtype=np.uint8)


@pytest.fixture
def collection(tree):
    """Two sources with twelve patients each, and two of one patient."""
    rows = []
    for number in range(24):
        host = "https://www.eurorad.org/case" if number % 2 else "https://radiopaedia.org/cases"
        country = "Italy" if number % 2 else "Hannover, Germany"
        finding = "Pneumonia/Viral/COVID-19" if number % 4 < 2 else "No Finding"
        rows.append(
            f'{number},0,M,50,{finding},Y,PA,X-ray,2020,"Clinic, {country}",images,{number}.png,,{host}/{number},'
        )
    rows += [
        "0,4,M,50,Pneumonia/Viral/COVID-19,Y,AP Supine,X-ray,2020,,images,later.png,,https://radiopaedia.org/cases/0,",
        "40,0,F,,Pneumonia/Viral/SARS,,PA,X-ray,2004,,images,sars.jpg,,https://pubs.rsna.org/doi/10.1148,CC BY",
        "41,0,F,,COVID-19,,PA,,2020,China,images,old.png,,https://www.nejm.org/doi/full/10,",
        "1,0,M,50,Pneumonia/Viral/COVID-19,Y,L,X-ray,2020,Italy,images,side.png,,https://www.eurorad.org/case/1,",
        "2,0,M,50,Pneumonia/Viral/COVID-19,Y,Axial,CT,2020,Italy,volumes,2.nii.gz,,https://www.eurorad.org/case/2,",
        "3,0,M,50,todo,Y,PA,X-ray,2020,Italy,images,todo.png,,https://www.eurorad.org/case/3,",
        "4,0,M,50,Unknown,Y,PA,X-ray,2020,Italy,images,unknown.png,,https://www.eurorad.org/case/4,",
        "5,0,M,50,COVID-19,Y,PA,X-ray,2020,Italy,images,nowhere.png,,https://www.eurorad.org/case/5,",
    ]
    tree.table("metadata.csv", HEADER, *rows)
    for name in (*(f"{number}.png" for number in range(24)), "later.png", "sars.jpg", "old.png", "todo.png",
                 "unknown.png", "side.png"):  # fmt: skip
        tree.image(f"images/{name}", picture(len(name)))
    return tree


def test_the_collection(collection, prepared):
    result = prepared("covid-collection")
    assert result.sites == {"eurorad.org": 12, "radiopaedia.org": 13, "others": 2}
    assert result.reasons == {"lateral view, CT or no view given": 2, "covid is missing": 2, "image is missing": 1}
    assert result.prepared.subjects["radiopaedia.org"] == 12
    assert dict(result.prepared.classes["others"]) == {"yes": 1, "no": 1}
    assert any(note.startswith("2 sites with fewer than 10 patients") for note in result.prepared.notes)
    assert result.check() == [27, 27, 0]


def test_the_collection_by_country(collection, prepared):
    result = prepared("covid-collection", sites_by="country")
    assert result.sites == {"Germany": 12, "Italy": 12, "others": 1}
    assert result.reasons["site is unknown"] == 2


@pytest.fixture
def covidx(tree):
    lines = []
    for number in range(40):
        source = ("ricord", "rsna", "rnsa", "bimcv")[number % 4]
        label = "positive" if number % 3 else "negative"
        lines.append(f"{number // 8} {number}.png {label} {source}")
        tree.image(f"train/{number}.png", picture(number))
    lines += [
        "COVID 1 COVID(1).png positive sirm", "COVID 2 COVID(2).png positive sirm",
        "COVID_1 COVID(3).png positive sirm", "0 0.png negative ricord", "7 gone.png negative actmed", "broken", "",
    ]  # fmt: skip
    for name in ("COVID(1).png", "COVID(2).png", "COVID(3).png"):
        tree.image(f"train/{name}", picture(1))
    tree.text("train.txt", "\n".join(lines) + "\n")
    tree.text("test.txt", "3 test.jpg negative rsna\n")
    tree.image("test/test.jpg", picture(3))
    return tree


def test_covidx(covidx, prepared):
    result = prepared("covidx")
    assert result.sites == {"bimcv": 10, "ricord": 10, "rsna": 21, "sirm": 3}
    assert result.reasons == {
        "a second row of the same image": 1,
        "image file is missing": 1,
        "line of the list is not patient, file, label and source": 1,
    }
    # 0 to 4 of each source are other people; COVID 1 and COVID_1 are one; one patient is in both lists.
    assert result.prepared.subjects == {"bimcv": 5, "ricord": 5, "rsna": 5, "sirm": 2}
    subjects = result.manifest.set_index("split")["subject"]
    assert subjects["test"] in set(subjects["train"])
    assert "split" not in result.study["evaluation"]
    assert result.check() == [44, 44, 0]


def test_covidx_with_three_classes_and_two_versions(tree, prepared):
    classes = ("normal", "pneumonia", "COVID-19")
    tree.text("train_COVIDx8A.txt", "".join(f"{n} {n}.png {classes[n % 3]} cohen\n" for n in range(30)))
    tree.touch(*(f"train/{number}.png" for number in range(30)))
    result = prepared("covidx", label="class")
    assert result.prepared.classes["cohen"] == {"normal": 10, "pneumonia": 10, "COVID-19": 10}
    assert prepared("covidx", out="two").prepared.classes["cohen"] == {"no": 20, "yes": 10}
    tree.text("train_COVIDx8B.txt", "0 0.png negative cohen\n")
    with pytest.raises(DataError, match="There are 2 lists of train"):
        prepared("covidx", out="other")
