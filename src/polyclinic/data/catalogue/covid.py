"""COVID-19 in chest X-rays: the COVID-19 image data collection, and COVIDx, which is put together from several sets."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LEAST_PATIENTS,
    OTHERS,
    LayoutError,
    find_table,
    find_tables,
    join_small_sites,
    optional_column,
    pick_column,
    read_table,
    walk_files,
    what_is_there,
)

_IMAGES = (".png", ".jpg", ".jpeg")
_DATA = {"size": [224, 224], "channels": "grey", "augmentation": []}


def _by_name(source: Path) -> dict[str, str]:
    """Name of a file without its folder -> its path; of several the first counts."""
    found: dict[str, str] = {}
    for path in walk_files(source, _IMAGES):
        found.setdefault(path.rsplit("/", 1)[-1], path)
    return found


# COVID-19 image data collection ---------------------------------------------------------------------------------------


def _collection(request: Request) -> Draft:
    path = find_table(request.source, "metadata.csv")
    table = read_table(path, "Unknown", "unknown")
    finding = table[pick_column(table, path, "finding")]
    known = (finding != "") & (finding.str.lower() != "todo")
    view = table[pick_column(table, path, "view")]
    modality = optional_column(table, "modality")
    files = _by_name(request.source)
    subject = table[pick_column(table, path, "patientid")]
    covid = finding.str.contains("COVID-19", regex=False).map({True: "yes", False: "no"})
    rows = pd.DataFrame(
        {
            "subject": subject,
            "image": table[pick_column(table, path, "filename")].map(files).fillna(""),
            "covid": covid.where(known, ""),
            "finding": finding.where(known, ""),
            "view": view,
            "offset": optional_column(table, "offset"),
            "age": optional_column(table, "age"),
            "sex": optional_column(table, "sex").str[:1].str.upper(),
            "reason": "",
        }
    )
    flat = view.str.upper().str.startswith(("PA", "AP")) & modality.isin(("", "X-ray"))
    rows.loc[~flat, "reason"] = "lateral view, CT or no view given"
    if request.sites_by == "country":
        sites = optional_column(table, "location").str.rsplit(",", n=1).str[-1].str.strip()
    else:
        sites = optional_column(table, "url").str.extract(r"^https?://(?:www\.)?([^/]+)", expand=False).fillna("")
    sites, notes = join_small_sites(sites, subject)
    rows.insert(0, "site", sites)
    return Draft(rows, "image", images=["image"], data=_DATA, training={"class_weights": "balanced"}, notes=notes)


COLLECTION = Entry(
    name="covid-collection",
    title="COVID-19 image data collection (Cohen)",
    about="Chest X-rays of patients with COVID-19 and other pneumonias, gathered from publications and web pages in "
    "2020. Small, and each image comes from where someone thought it worth showing.",
    modality="chest radiography",
    sites="Where the images were published (the host in the column `url`), or the country at the end of the column "
    "`location`, which many rows lack.",
    subjects="About 950 images of 470 patients, CT and lateral views among them.",
    access="https://github.com/ieee8023/covid-chestxray-dataset",
    licence="by image",
    terms="Each image has its own licence (column `license`; many CC BY-NC-SA, some unknown); the table is "
    "CC BY-NC-SA 4.0.",
    citation="Cohen JP et al. COVID-19 image data collection: prospective predictions are the future. MELBA "
    "2020:002, arXiv:2006.11988.",
    layout="""\
covid-chestxray-dataset/
  metadata.csv              patientid, offset, sex, age, finding, view, modality, location, filename, url, ...
  images/                   the files that `filename` names
""",
    labels={
        "covid": Label("covid", "COVID-19: yes or no (another finding, or none)", positive=("yes",), against=("no",)),
    },
    sites_by={"source": "where the image was published", "country": "the end of the column `location`"},
    draft=_collection,
    assumed=(
        "Only frontal X-rays are used (PA, AP, also supine and erect). Findings `todo` and `Unknown` are no label.",
        f"Sites of fewer than {LEAST_PATIENTS} patients are put together as `{OTHERS}`.",
        "Where an image was published tells much of its label. Numbers from this set are no evidence of a use in "
        "clinics.",
    ),
)


# COVIDx ---------------------------------------------------------------------------------------------------------------

#: Spellings in the lists -> the source.
_SOURCES = {"rnsa": "rsna"}


def _read_list(path: Path, split: str) -> pd.DataFrame:
    """Lines of patient, file, label and source, without a header; in some versions a patient's name has a blank."""
    parts = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = line.split()
        if len(words) < 4:
            if words:
                parts.append(["", "", "", "", split])
            continue
        label, source = words[-2:]
        name = next((at for at in range(1, len(words) - 2) if words[at].lower().endswith(_IMAGES)), 1)
        parts.append([" ".join(words[:name]), " ".join(words[name:-2]), label, source.lower(), split])
    return pd.DataFrame(parts, columns=["patient", "file", "label", "source", "split"])


def _listed(source: Path, rows: pd.DataFrame) -> pd.Series[str]:
    """Path of each file of a list: in a folder of the list's name if there is one, since names may come again."""
    found: dict[tuple[str, str], str] = {}
    for path in walk_files(source, _IMAGES):
        *folders, name = path.split("/")
        for folder in (*map(str.lower, folders), ""):
            found.setdefault((folder, name), path)
    paths = [
        found.get((split, name)) or found.get(("", name), "")
        for split, name in zip(rows["split"], rows["file"], strict=True)
    ]
    return pd.Series(paths, index=rows.index, dtype=str)


def _covidx(request: Request) -> Draft:
    lists = {
        split: find_tables(request.source, f"{split}.txt", f"{split}_COVIDx*.txt") for split in ("train", "val", "test")
    }
    if not lists["train"]:
        raise LayoutError(f"No train.txt or train_COVIDx*.txt was found; {what_is_there(request.source)}.")
    for split, paths in lists.items():
        if len(paths) > 1:
            raise LayoutError(f"There are {len(paths)} lists of {split} ({paths[0].name}, {paths[1].name}); leave one.")
    table = pd.concat([_read_list(paths[0], split) for split, paths in lists.items() if paths], ignore_index=True)
    source = table["source"].replace(_SOURCES)
    # COVID_1 and COVID 1 are one patient: versions of the lists spell them differently.
    subject = source + " " + table["patient"].str.replace("_", " ", regex=False)
    named = (table["patient"] != "") & (source != "")
    rows = pd.DataFrame(
        {
            "site": source,
            "subject": subject.where(named, ""),
            "image": _listed(request.source, table),
            "covid": table["label"].map({"positive": "yes", "COVID-19": "yes", "negative": "no", "normal": "no",
                                         "pneumonia": "no"}).fillna(""),
            "class": table["label"],
            "split": table["split"].replace("val", "validation"),
            "reason": "",
        }
    )  # fmt: skip
    rows.loc[~named, "reason"] = "line of the list is not patient, file, label and source"
    rows.loc[named & (rows["image"] == ""), "reason"] = "image file is missing"
    return Draft(rows, "image", images=["image"], data=_DATA, training={"class_weights": "balanced"})


COVIDX = Entry(
    name="covidx",
    title="COVIDx CXR (COVID-19 in chest X-rays)",
    about="Chest X-rays with and without COVID-19, put together from up to nine public sets. Nearly all images with "
    "COVID-19 come from other sources than those without.",
    modality="chest radiography",
    sites="Up to nine sources, the last word of each line of the lists: cohen, fig1, actmed, sirm, rsna, ricord, "
    "bimcv, stonybrook and others.",
    subjects="COVIDx9: 30,882 images of about 17,000 patients; lists of other versions work as well.",
    access="https://www.kaggle.com/datasets/andyczhao/covidx-cxr2, https://github.com/lindawangg/COVID-Net (the lists)",
    licence="by source",
    terms="Those of the sources, which differ; research use only.",
    citation="Wang L, Lin ZQ, Wong A. COVID-Net: a tailored deep convolutional neural network design for detection of "
    "COVID-19 cases from chest X-ray images. Sci Rep 2020;10:19549.",
    layout="""\
covidx/
  train.txt (or train_COVIDx9B.txt)       lines of patient, file, label and source; no header
  test.txt (or test_COVIDx9B.txt)         may be missing, as may val.txt
  train/, test/, val/                     the images; any folder
""",
    labels={
        "covid": Label("covid", "COVID-19: yes or no", positive=("yes",), against=("no",)),
        "class": Label("class", "the label of the list: positive and negative, or COVID-19, pneumonia and normal"),
    },
    sites_by={"source": "the last word of the line"},
    draft=_covidx,
    assumed=(
        "The starter study does not keep the official split, whose test part has two sources only: it splits patients "
        "within each source. The column `split` has it: `evaluation: {split: split}`.",
        "Many sources have one class only, so a model can tell the label by the source. Sites with one class are not "
        "scored by themselves.",
        "Images of `rsna` have a patient each, as the lists have it; in the set that they come from (ChestX-ray14) "
        "some are of the same person, and the lists do not tell which.",
        "`rnsa`, as some lines of version 9 have it, is rsna.",
    ),
)
