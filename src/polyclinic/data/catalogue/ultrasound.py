"""Ultrasound films as bags of frames: lungs (POCUS) and hearts (EchoNet-Dynamic).

Films are not decoded here: the frames must lie beside them as pictures, as ``ffmpeg`` writes them.
"""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np
import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LEAST_PATIENTS,
    OTHERS,
    LayoutError,
    find_table,
    join_small_sites,
    optional_column,
    pick_column,
    read_table,
    reject_repeated,
    told_once,
    walk_files,
    what_is_there,
)

#: Frames of a film that are used at most, equally far apart.
MOST_FRAMES = 16
_FRAMES = (".png", ".jpg", ".jpeg")
_ENDING = r"(?i)\.(avi|mp4|mov|mpeg|gif)$"
_ASSUMED = (
    "Films are not read. Write their frames as pictures into `frames/NAME/`, where NAME is the film's name without its "
    "ending: `mkdir -p frames/NAME && ffmpeg -i NAME.avi frames/NAME/%04d.png`.",
    f"Of each film {MOST_FRAMES} frames at most are used, equally far apart. A row of the manifest is a frame, and a "
    "case of the study is a film (a bag); the numbers that are printed are those of frames.",
)


def _films(there: str, paths: list[str]) -> dict[str, list[str]]:
    """Name of a film -> its frames in order: files in a folder of its name within the folder ``frames``."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        folders = path.split("/")[:-1]
        if len(folders) >= 2 and "frames" in [name.lower() for name in folders[:-1]]:
            found[folders[-1]].append(path)
    if not found:
        raise LayoutError(f"No frames/NAME/0001.png was found; {there}. Films themselves are not read.")
    # 10 comes after 9, whether numbers have zeros in front or not.
    return {name: sorted(frames, key=_number) for name, frames in found.items()}


def _number(path: str) -> tuple[int, str]:
    numbers = re.findall(r"\d+", path.rsplit("/", 1)[-1])
    return (int(numbers[-1]) if numbers else 0, path)


def _chosen(frames: list[str]) -> list[str]:
    if len(frames) <= MOST_FRAMES:
        return frames
    return [frames[at] for at in np.linspace(0, len(frames) - 1, MOST_FRAMES).round().astype(int)]


def _by_frame(films: pd.DataFrame, frames: dict[str, list[str]]) -> pd.DataFrame:
    """A row a frame; a film without frames keeps one row, which can't be used."""
    chosen = pd.Series({at: _chosen(frames.get(name, [])) or [""] for at, name in films["film"].items()}, dtype=object)
    rows = films.assign(image=chosen).explode("image", ignore_index=True)
    rows.loc[(rows["image"] == "") & (rows["reason"] == ""), "reason"] = "frames are missing"
    return rows[[*(name for name in rows.columns if name != "reason"), "reason"]]


# Lungs ----------------------------------------------------------------------------------------------------------------

_LUNGS = {"covid-19": "covid", "covid": "covid", "regular": "healthy", "healthy": "healthy", "normal": "healthy"}


def _finding(texts: pd.Series[str]) -> pd.Series[str]:
    low = texts.str.strip().str.lower()
    pneumonia = low.str.contains("bacterial").map({True: "pneumonia", False: ""})
    viral = low.str.contains("viral").map({True: "viral pneumonia", False: ""})
    return low.map(_LUNGS).fillna(pneumonia.where(pneumonia != "", viral))


def _pocus(request: Request) -> Draft:
    frames = _films(what_is_there(request.source), walk_files(request.source, _FRAMES))
    path = find_table(request.source, "dataset_metadata.csv")
    table = read_table(path, "nd", "n/A")
    film = table[pick_column(table, path, "Filename")].str.replace(_ENDING, "", regex=True)
    source = table[pick_column(table, path, "Source ID")].str.removesuffix(".0")
    patient = optional_column(table, "Patient ID / Name").str.removesuffix(".0")
    patient = patient.where(patient != "", film.map(told_once(film, patient)).fillna(""))
    # Who is not named is a person of the film's own.
    subject = ("patient " + patient).where(patient != "", "film " + film)
    films = pd.DataFrame(
        {
            "subject": subject.where(film != "", ""),
            "film": film,
            "finding": _finding(table[pick_column(table, path, "Label")]),
            "probe": table[pick_column(table, path, "Probe")].str.lower(),
            "reason": "",
        }
    )
    place = optional_column(table, "Current location").str.lower()
    films.loc[place.str.startswith("not used"), "reason"] = "marked as not used"
    films.loc[(optional_column(table, "Type") == "image") & (films["reason"] == ""), "reason"] = "a picture, no film"
    reject_repeated(films, ["film"], ["subject", "finding"], "film")
    notes: list[str] = []
    if request.sites_by == "probe":
        site = films["probe"]
    else:
        usable = films["film"].isin(frames) & (films["reason"] == "")
        known = ("source-" + source).where((source != "") & usable, "")
        site, notes = join_small_sites(known, subject)
    films.insert(0, "site", site)
    rows = _by_frame(films, frames)
    data = {"size": [128, 128], "channels": "grey", "bag": "film", "augmentation": []}
    return Draft(rows, "image", images=["image"], data=data, training={"class_weights": "balanced"}, notes=notes)


POCUS = Entry(
    name="pocus",
    title="POCUS (lung ultrasound, films as bags of frames)",
    about="Short films of ultrasound of the lungs of patients with COVID-19 or bacterial pneumonia and of healthy "
    "people, gathered from web pages, publications and hospitals in 2020.",
    modality="ultrasound of the lungs (frames of films)",
    sites="Where a film was published (column `Source ID`), or the probe (convex or linear).",
    subjects="About 200 films.",
    access="https://github.com/jannisborn/covid19_ultrasound",
    licence="by film",
    terms="Each film has its own licence (column `License`; most CC BY-NC 4.0, some may not be passed on).",
    citation="Born J et al. Accelerating detection of lung pathologies with explainable ultrasound image analysis. "
    "Appl Sci 2021;11:672.",
    layout="""\
covid19_ultrasound/data/
  dataset_metadata.csv                   Filename, Label, Probe, Type, Source ID, Patient ID / Name, Current location
  pocus_videos/convex/Cov-Atlas-Day+1.gif
  frames/Cov-Atlas-Day+1/0001.png        written by you, see below
""",
    labels={
        "covid": Label("finding", "COVID-19 against a healthy lung", positive=("covid",), against=("healthy",)),
        "finding": Label("finding", "covid, healthy, pneumonia (bacterial) or viral pneumonia"),
    },
    sites_by={"source": "the column `Source ID`", "probe": "the column `Probe`"},
    draft=_pocus,
    assumed=(
        *_ASSUMED,
        f"Sources with fewer than {LEAST_PATIENTS} patients are put together as `{OTHERS}`.",
        "Films with the same `Patient ID / Name` are of one patient; where it is empty, a film is a patient of its "
        "own.",
    ),
)


# Hearts ---------------------------------------------------------------------------------------------------------------


def _echonet(request: Request) -> Draft:
    frames = _films(what_is_there(request.source), walk_files(request.source, _FRAMES))
    path = find_table(request.source, "FileList.csv")
    table = read_table(path)
    film = table[pick_column(table, path, "FileName")].str.replace(r"(?i)\.avi$", "", regex=True)
    fraction = table[pick_column(table, path, "EF")]
    low = pd.to_numeric(fraction, errors="coerce").lt(50).map({True: "yes", False: "no"})
    films = pd.DataFrame(
        {
            "site": "Stanford",
            "subject": film,
            "film": film,
            "ejection_fraction": fraction,
            "reduced": low.where(pd.to_numeric(fraction, errors="coerce").notna(), ""),
            "split": optional_column(table, "Split").str.lower().replace("val", "validation"),
            "reason": "",
        }
    )
    reject_repeated(films, ["film"], ["ejection_fraction"], "film")
    data = {"size": [112, 112], "channels": "grey", "bag": "film", "augmentation": []}
    return Draft(_by_frame(films, frames), "image", images=["image"], data=data)


ECHONET = Entry(
    name="echonet-dynamic",
    title="EchoNet-Dynamic (ultrasound of the heart, films as bags of frames)",
    about="Films of the heart in four chambers' view, each with the share of blood that the left ventricle throws out "
    "(ejection fraction), as a clinic measured it.",
    modality="echocardiography (frames of films)",
    sites="1: Stanford University Hospital.",
    subjects="10,030 films, one a patient.",
    access="https://echonet.github.io/dynamic/",
    licence="agreement",
    terms="Stanford University School of Medicine EchoNet-Dynamic Dataset Research Use Agreement: non-commercial, no "
    "passing on.",
    citation="Ouyang D et al. Video-based AI for beat-to-beat assessment of cardiac function. Nature 2020;580:252-256.",
    layout="""\
EchoNet-Dynamic/
  FileList.csv                           FileName, EF, ESV, EDV, FrameHeight, FrameWidth, FPS, NumberOfFrames, Split
  Videos/0X1A0A263B22CCD966.avi
  frames/0X1A0A263B22CCD966/0001.png     written by you, see below
""",
    labels={
        "ejection-fraction": Label("ejection_fraction", "ejection fraction in per cent", task="regression"),
        "reduced": Label("reduced", "ejection fraction below 50 %: yes or no", positive=("yes",), against=("no",)),
    },
    sites_by={"institution": "one site: Stanford"},
    draft=_echonet,
    assumed=(
        *_ASSUMED,
        "There is one site only: take `--sites-by quantity`, or dirichlet with the label reduced.",
        "The column `split` has the official parts; the starter study makes folds instead.",
        "A film is a patient, as the paper says.",
    ),
)
