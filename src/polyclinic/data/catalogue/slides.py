"""Whole slides as bags of tiles: TCGA, and Camelyon16 with its two hospitals.

Neither set is published with features of tiles: they are computed from the slides with a network of one's choice. What
is read here is what the usual tools write: a file a slide.
"""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt
import pandas as pd

from polyclinic.data.catalogue.arrays import read_features
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LEAST_PATIENTS,
    OTHERS,
    LayoutError,
    find_table,
    find_tables,
    join_small_sites,
    pick_column,
    read_table,
    reject_repeated,
    told_once,
    walk_files,
    what_is_there,
)
from polyclinic.data.tables.table import read_cells
from polyclinic.seeds import derive_seed

#: Tiles of a slide that are taken at most, drawn at random, and features of a tile.
MOST_TILES, FEATURES = 500, 64
_ENDINGS = (".npy", ".h5", ".hdf5")
_ASSUMED = (
    "Features are not published with the slides: compute them with a tool and a network of your choice, the same for "
    "all. Files are .npy ([tiles, features]) or HDF5 (dataset `features`; `pip install 'polyclinic[hdf5]'`). PyTorch's "
    ".pt files are not read: they can hold code.",
    f"The manifest has a row a tile. Of each slide {MOST_TILES} tiles at most are taken, drawn at random (always the "
    f"same ones), and more than {FEATURES} features are brought to {FEATURES} by a fixed random projection, which "
    "keeps distances about as they are and looks at no data. So small spots of tumour may be lost.",
    "The numbers of cases that are printed are those of tiles; a case of the study is a slide.",
)


def _slide_name(path: str) -> str:
    """``a/tumor_001.tif.npy`` gives ``tumor_001``; a barcode keeps the identifier behind its dot."""
    name = path.rsplit("/", 1)[-1]
    return re.sub(r"\.(npy|h5|hdf5)$", "", re.sub(r"\.(tif|tiff|svs)\.", ".", name, flags=re.IGNORECASE))


def _projection(features: int) -> npt.NDArray[np.float32]:
    """Gaussian random projection ``[F, FEATURES]``, the same at every site (Johnson and Lindenstrauss 1984)."""
    rng = np.random.default_rng(derive_seed("projection of tile features", features))
    return np.asarray(rng.standard_normal((features, FEATURES)) / np.sqrt(FEATURES), dtype=np.float32)


def _tiles(request: Request, slides: pd.DataFrame) -> pd.DataFrame:
    """A row a tile with its features for each usable slide; a row without features for all others.

    ``slides`` has the columns of the manifest, ``slide``, ``file`` and ``reason``.
    """
    parts: list[pd.DataFrame] = []
    width = 0
    usable = slides.index[(slides["reason"] == "") & (slides["file"] != "")]
    for number, at in enumerate(usable):
        row = slides.loc[at]
        try:
            found = read_features(request.source / row["file"])
        except (OSError, ValueError, EOFError):
            slides.loc[at, "reason"] = "features can't be read"
            continue
        width = width or found.shape[1]
        if found.shape[1] != width:
            slides.loc[at, "reason"] = "another number of features than other slides"
            continue
        rng = np.random.default_rng(derive_seed("tiles of a slide", row["slide"]))
        chosen = np.sort(rng.permutation(len(found))[:MOST_TILES])
        taken = found[chosen] @ _projection(width) if width > FEATURES else found[chosen]
        names = [f"f{column:03}" for column in range(taken.shape[1])]
        table = pd.DataFrame(np.round(taken, 4), columns=names)
        for name in slides.columns.drop("file"):
            table.insert(table.shape[1] - len(names), name, row[name])
        parts.append(table)
        request.progress(number + 1, len(usable))
    slides.loc[(slides["reason"] == "") & (slides["file"] == ""), "reason"] = "features file is missing"
    left = slides[slides["reason"] != ""].drop(columns="file")
    return pd.concat([*parts, left], ignore_index=True)


def _files(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for path in walk_files(request.source, _ENDINGS):
        found.setdefault(_slide_name(path), path)
    if not found:
        raise LayoutError(f"No features of slides (.npy, .h5) were found; {what_is_there(request.source)}.")
    return found


def _drafted(request: Request, slides: pd.DataFrame, notes: list[str]) -> Draft:
    usable = int(((slides["reason"] == "") & (slides["file"] != "")).sum())
    rows = _tiles(request, slides)
    notes = [f"{usable} slides have features; a row of the manifest is a tile.", *notes]
    return Draft(rows, "table", features=["f0*"], data={"bag": "slide", "scaling": "federated"}, notes=notes)


# Camelyon16 -----------------------------------------------------------------------------------------------------------

#: Removed by the organisers: a mislabelled slide, and a copy.
_REMOVED = ("normal_086", "test_049")
#: Slides whose number does not tell the hospital: tumor_111 was normal_086 before it was found to show a tumour.
_RENAMED = {"tumor_111": "RUMC"}
_HOSPITALS = {"0": "RUMC", "1": "UMCU", "0.0": "RUMC", "1.0": "UMCU"}


def _told(request: Request) -> tuple[dict[str, str], dict[str, str]]:
    """Slide -> tumour (yes or no) and slide -> hospital, from the tables for the test set."""
    labels: dict[str, str] = {}
    hospitals: dict[str, str] = {}
    for path in find_tables(request.source, "reference.csv"):
        table = read_cells(path, ["slide", "class", "type", "size"])
        names = table["slide"].str.strip().str.lower().str.removesuffix(".tif")
        found = table["class"].str.strip().str.lower().map({"tumor": "yes", "normal": "no"})
        labels |= told_once(names, found.fillna(""))
    for path in find_tables(request.source, "metadata.csv"):
        table = read_table(path)
        if "hospital_corrected" in table.columns:
            names = table[pick_column(table, path, "slide_name")].str.lower().str.removesuffix(".tif")
            hospitals |= told_once(names, table["hospital_corrected"].map(_HOSPITALS).fillna(""))
    return labels, hospitals


def _camelyon16(request: Request) -> Draft:
    files = {name.lower(): path for name, path in _files(request).items()}
    labels, hospitals = _told(request)
    rows = []
    for name, path in sorted(files.items()):
        parts = re.fullmatch(r"(normal|tumor|test)_(\d{3})", name)
        if parts is None:
            continue
        kind, number = parts[1], int(parts[2])
        first = number <= (100 if kind == "normal" else 70)
        site = hospitals.get(name, "") if kind == "test" else _RENAMED.get(name, "RUMC" if first else "UMCU")
        tumour = labels.get(name, "") if kind == "test" else "yes" if kind == "tumor" else "no"
        reason = "removed from the set by its makers" if name in _REMOVED else ""
        rows.append([site, name, name, tumour, "test" if kind == "test" else "train", path, reason])
    if not rows:
        raise LayoutError(
            f"No features of normal_001, tumor_001 or test_001 were found; {what_is_there(request.source)}."
        )
    columns = ["site", "subject", "slide", "tumour", "split", "file", "reason"]
    return _drafted(request, pd.DataFrame(rows, columns=columns), [])


CAMELYON16 = Entry(
    name="camelyon16",
    title="Camelyon16 (lymph nodes, slides as bags of tiles)",
    about="Slides of lymph nodes of women with breast cancer; the question is whether a slide shows a metastasis, "
    "which may be in few of its thousands of tiles.",
    modality="histopathology (features of tiles)",
    sites="2 hospitals in the Netherlands: RUMC (Nijmegen; normal_001 to 100, tumor_001 to 070 and 111) and UMCU "
    "(Utrecht; the others). For the test set FLamby's metadata.csv tells.",
    subjects="399 slides: 270 for training, 129 for testing.",
    access="https://camelyon17.grand-challenge.org/Data/, https://gigadb.org/dataset/100439",
    licence="CC0",
    terms="CC0; open download.",
    citation="Ehteshami Bejnordi B et al. Diagnostic assessment of deep learning algorithms for detection of lymph "
    "node metastases in women with breast cancer. JAMA 2017;318:2199-2210. Litjens G et al. GigaScience 2018;7:giy065.",
    layout="""\
camelyon16/
  features/normal_001.tif.npy          a file a slide, any folder; also tumor_001.h5, test_001.npy
  reference.csv                        of testing/: test_001,Tumor,IDC,Macro (no header); for the test set
  metadata.csv                         of FLamby's fed_camelyon16: hospital_corrected, slide_name; for the test set
""",
    labels={"tumour": Label("tumour", "a metastasis on the slide: yes or no", positive=("yes",), against=("no",))},
    sites_by={"hospital": "the number in the slide's name; metadata.csv for the test set"},
    draft=_camelyon16,
    assumed=(
        *_ASSUMED,
        "Each slide is a patient of its own: the names do not tell which slides are of one woman.",
        "normal_086 and test_049 are left out, as FLamby does: the organisers took them out of the set. They say that "
        "normal_086 shows a tumour and became tumor_111, which is therefore of RUMC here; FLamby, which goes by the "
        "number alone, has it at UMCU. test_114 "
        "shows a metastasis as reference.csv says; FLamby's own table has it as normal.",
        "Slides of the test set without a row in reference.csv have no label, without one in metadata.csv no hospital; "
        "both are rejected.",
    ),
)


# TCGA -----------------------------------------------------------------------------------------------------------------

_BARCODE = r"^(TCGA-([A-Z0-9]{2})-[A-Z0-9]{4})-(\d{2})"


def _institutions(request: Request) -> dict[str, str]:
    """Code of the tissue source site -> institution. One code is NA, so that cells are taken as they are."""
    for path in find_tables(request.source, "tissueSourceSite.tsv", "centers.csv"):
        table = read_cells(path)
        codes, names = (table[pick_column(table, path, name)] for name in ("TSS Code", "Source Site"))
        return dict(zip(codes.str.strip(), names.str.strip(), strict=True))
    return {}


def _tcga(request: Request) -> Draft:
    files = _files(request)
    path = find_table(request.source, "*label*.csv", "*dataset*.csv", "slides.csv")
    table = read_table(path)
    slide = table[pick_column(table, path, "slide_id", "slide")].str.replace(r"(?i)\.svs$", "", regex=True)
    label = table[pick_column(table, path, "label", "diagnosis_label", "class", "project_id")]
    parts = slide.str.extract(_BARCODE)
    # With words before it: NA is a code, and would be read as a missing site.
    site = ("TSS-" + parts[1]).fillna("")
    if request.sites_by == "institution":
        names = _institutions(request)
        if not names:
            raise LayoutError("tissueSourceSite.tsv was not found; `--sites-by code` takes the codes of the barcodes.")
        site = parts[1].map(names).fillna("")
    site, notes = join_small_sites(site, parts[0].fillna(""))
    slides = pd.DataFrame(
        {
            "site": site,
            "subject": parts[0].fillna(""),
            "slide": slide,
            "label": label,
            "sample": parts[2].fillna(""),
            "file": slide.map(files).fillna(""),
            "reason": "",
        }
    )
    slides.loc[slides["subject"] == "", "reason"] = "slide's name is no barcode of TCGA"
    reject_repeated(slides, ["slide"], ["label"], "slide")
    return _drafted(request, slides, notes)


TCGA = Entry(
    name="tcga-slides",
    title="TCGA slides (bags of tiles)",
    about="Slides of tumours of The Cancer Genome Atlas, of which features of tiles were computed, with a label a "
    "slide, such as the subtype. Who sent the tissue stands in every barcode.",
    modality="histopathology (features of tiles)",
    sites="Tissue source sites: the second part of the barcode (TCGA-A7-...), or the institution that it stands for, "
    "from the code table; several codes may be one institution.",
    subjects="About 11,000 patients of 33 cancers; a project has some hundreds.",
    access="https://portal.gdc.cancer.gov; codes: https://gdc.cancer.gov/resources-tcga-users/tcga-code-tables",
    licence="open, NIH policy",
    terms="Slides are open access under the NIH Genomic Data Sharing policy; do not try to identify anyone.",
    citation="The Cancer Genome Atlas Research Network, Weinstein JN et al. The Cancer Genome Atlas Pan-Cancer "
    "analysis project. Nat Genet 2013;45:1113-1120. Name the paper of the project that you use as well.",
    layout="""\
tcga/
  labels.csv                           slide_id, label (any name with `label` or `dataset`; as the program CLAM has it)
  features/TCGA-A7-A6VV-01Z-00-DX1.07AE0E16-A883-4C86-BC74-4E13081175F2.h5       or .npy; any folder
  tissueSourceSite.tsv                 TSS Code, Source Site: for `--sites-by institution`
""",
    labels={"label": Label("label", "the label of the slide")},
    sites_by={"code": "the code in the barcode", "institution": "the institution of the code, by tissueSourceSite.tsv"},
    draft=_tcga,
    assumed=(
        *_ASSUMED,
        f"Sites of fewer than {LEAST_PATIENTS} patients are put together as `{OTHERS}`.",
        "All slides of a patient (the first three parts of the barcode) stay together. The column `sample` has the "
        "type of sample: 01 is a primary tumour, 11 normal tissue.",
    ),
)
