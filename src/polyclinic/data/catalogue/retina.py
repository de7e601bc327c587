"""DRIVE, STARE and CHASE_DB1: vessels of the retina."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from pathlib import Path

import numpy as np
import pandas as pd

from polyclinic.data.catalogue.convert import write_png
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import (
    LayoutError,
    find_tables,
    pick_column,
    read_table,
    walk_files,
    what_is_there,
)

_DRIVE_IMAGE = re.compile(r"^(\d\d)_(training|test)\.tif$", re.IGNORECASE)
_DRIVE_MASK = re.compile(r"^(\d\d)_manual1\.(?:gif|png|tif)$", re.IGNORECASE)
_STARE_IMAGE = re.compile(r"^(im\d{4})\.ppm(?:\.gz)?$", re.IGNORECASE)
_STARE_MASK = re.compile(r"^(im\d{4})\.ah\.ppm(?:\.gz)?$", re.IGNORECASE)
_CHASE_IMAGE = re.compile(r"^(Image_\d\d)([LR])\.jpg$", re.IGNORECASE)
_CHASE_MASK = re.compile(r"^(Image_\d\d)([LR])_1stHO\.png$", re.IGNORECASE)


def _originals(request: Request) -> list[list[str]]:
    """Rows of site, subject, eye, image, mask and reason from the layouts in which the three sets are published."""
    images: dict[tuple[str, str, str], str] = {}
    masks: dict[tuple[str, str, str], str] = {}
    for path in walk_files(request.source, (".tif", ".gif", ".png", ".jpg", ".ppm", ".ppm.gz")):
        name = path.rsplit("/", 1)[-1]
        for site, expression, kept in (
            ("drive", _DRIVE_IMAGE, images), ("drive", _DRIVE_MASK, masks), ("stare", _STARE_IMAGE, images),
            ("stare", _STARE_MASK, masks), ("chasedb1", _CHASE_IMAGE, images), ("chasedb1", _CHASE_MASK, masks),
        ):  # fmt: skip
            found = expression.match(name)
            if found:
                eye = found[2].upper() if site == "chasedb1" else ""
                kept[site, found[1], eye] = path
    rows = []
    stare = [key for key in images if key[0] == "stare" and key in masks]
    reasons: dict[tuple[str, str, str], str] = {}
    for number, key in enumerate(stare):
        try:
            images[key] = _converted(request, images[key], f"images/{key[1]}.png")
            masks[key] = _converted(request, masks[key], f"masks/{key[1]}.png")
        except (OSError, EOFError, ValueError, SyntaxError, zlib.error):  # what damaged gz and PPM files raise
            reasons[key] = "image or mask file is damaged"
        request.progress(number + 1, len(stare))
    for key in sorted(images):
        rows.append([key[0], f"{key[0]} {key[1]}", key[2], images[key], masks.get(key, ""), reasons.get(key, "")])
    return rows


def _converted(request: Request, path: str, name: str) -> str:
    """STARE comes as (compressed) PPM, which the image reader does not take: written as PNG without loss."""
    from PIL import Image

    content = (request.source / path).read_bytes()
    content = gzip.decompress(content) if path.lower().endswith(".gz") else content
    with Image.open(io.BytesIO(content), formats=("PPM",)) as image:
        write_png(request.out / name, np.asarray(image))
    return f"out:{name}"


def _indexed(path: Path) -> list[list[str]]:
    """Rows of a prepared copy with an index of its pairs."""
    table = read_table(path)
    site, case, image, mask = (table[pick_column(table, path, name)] for name in ("site", "id", "image", "mask"))
    child = case.str.extract(r"^(Image_\d+)([LR])$")
    no_reason = [""] * len(table)
    subject = site + " " + child[0].fillna(case)
    return [list(row) for row in zip(site, subject, child[1].fillna(""), image, mask, no_reason, strict=True)]


def _draft(request: Request) -> Draft:
    index = find_tables(request.source, "index.csv")
    if index and index[0].parent != request.source:
        raise LayoutError(f"The index is in {index[0].parent.name}; give that folder.")
    rows = _indexed(index[0]) if index else _originals(request)
    if not rows:
        raise LayoutError(
            "None of 21_training.tif (DRIVE), im0001.ppm.gz (STARE), Image_01L.jpg (CHASE_DB1) and index.csv was "
            f"found; {what_is_there(request.source)}."
        )
    table = pd.DataFrame(rows, columns=["site", "subject", "eye", "image", "mask", "reason"])
    return Draft(table, "image", images=["image"], mask="mask", data={"size": [192, 192]})


ENTRY = Entry(
    name="retina-vessels",
    title="Retinal vessels (DRIVE, STARE, CHASE_DB1)",
    about="Colour photographs of the retina with the vessels drawn by hand, by three groups with three cameras: "
    "screening adults in the Netherlands, slides half of which show disease in the USA, school children in England.",
    modality="colour fundus photography",
    sites="3 data sets, told by the names of the files: drive (Canon CR5, 45 degrees), stare (TopCon TRV-50, 35 "
    "degrees), chasedb1 (Nidek NM-200-D, 30 degrees).",
    subjects="DRIVE 40 images of 40 subjects, STARE 20 of 20 with vessels drawn, CHASE_DB1 28 of 14 children.",
    access="https://drive.grand-challenge.org, https://cecas.clemson.edu/~ahoover/stare, "
    "https://researchdata.kingston.ac.uk/96",
    licence="by source",
    terms="Research use with citation; DRIVE asks users to join its challenge, STARE names no licence, CHASE_DB1 is "
    "CC BY 4.0 as its repository says.",
    citation="Staal J et al. IEEE TMI 2004;23:501-509 (DRIVE). Hoover A et al. IEEE TMI 2000;19:203-210 (STARE). Fraz "
    "MM et al. IEEE TBME 2012;59:2538-2548 (CHASE_DB1).",
    layout="""\
retina/                              any depth; the names of the files tell
  DRIVE/training/images/21_training.tif
  DRIVE/training/1st_manual/21_manual1.gif
  DRIVE/test/images/01_test.tif
  DRIVE/test/1st_manual/01_manual1.gif
  STARE/stare-images/im0001.ppm.gz   compressed or not; written as PNG next to the manifest
  STARE/labels-ah/im0001.ah.ppm.gz
  CHASEDB1/Image_01L.jpg
  CHASEDB1/Image_01L_1stHO.png
or
retina-vessels/
  index.csv                          site, id, image, mask (paths relative to the folder)
""",
    labels={
        "vessels": Label("mask", "vessels as the first observer drew them; not zero is vessel", task="segmentation")
    },
    sites_by={"data set": "the data set, told by the file names or the column `site`"},
    draft=_draft,
    assumed=(
        "The first observer's drawings count (1st_manual, Adam Hoover, 1stHO).",
        "Both eyes of a child in CHASE_DB1 are one subject.",
    ),
)
