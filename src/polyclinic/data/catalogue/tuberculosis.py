"""Montgomery and Shenzhen: chest X-rays with tuberculosis, and the lungs outlined."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from polyclinic.data.catalogue.convert import write_png
from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, walk_files, what_is_there

_SITES = {"MCUCXR": "Montgomery", "CHNCXR": "Shenzhen"}
_IMAGE = re.compile(r"(?:^|/)CXR_png/((MCUCXR|CHNCXR)_\d{4}_([01]))\.png$")
_SIDE = re.compile(r"(?:^|/)(left|right)Mask/((?:MCUCXR|CHNCXR)_\d{4}_[01])\.png$", re.IGNORECASE)
_WHOLE = re.compile(r"(?:^|/)((?:MCUCXR|CHNCXR)_\d{4}_[01])_mask\.png$")
_READING = re.compile(r"(?:^|/)((?:MCUCXR|CHNCXR)_\d{4}_[01])\.txt$")


def _reading(path: Path) -> tuple[str, str]:
    """Age in years and sex from a reading, as far as it tells them."""
    text = path.read_text(encoding="utf-8", errors="replace")
    age = re.search(r"(\d+)\s*(?:Y|yr)", text, re.IGNORECASE)
    sex = re.search(r"\b(female|male|F|M)\b", text, re.IGNORECASE)
    return (str(int(age[1])) if age else "", sex[1][0].upper() if sex else "")


def _lungs(request: Request, sides: dict[str, str], case: str) -> str:
    """Left and right lung in one mask."""
    from PIL import Image

    name = f"masks/{case}.png"
    if not (request.out / name).exists():
        halves = []
        for side in ("left", "right"):
            with Image.open(request.source / sides[side], formats=("PNG",)) as image:
                halves.append(np.asarray(image.convert("L")) > 0)
        write_png(request.out / name, (halves[0] | halves[1]).astype(np.uint8) * 255)
    return f"out:{name}"


def _draft(request: Request) -> Draft:
    images: dict[str, str] = {}
    sides: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    readings: dict[str, str] = {}
    for path in walk_files(request.source, (".png", ".txt")):
        if match := _IMAGE.search(path):
            images[match[1]] = path
        elif match := _SIDE.search(path):
            sides.setdefault(match[2], {})[match[1].lower()] = path
        elif match := _WHOLE.search(path):
            whole[match[1]] = path
        elif match := _READING.search(path):
            readings[match[1]] = path
    if not images:
        raise LayoutError(f"No CXR_png/MCUCXR_0001_0.png or CXR_png/CHNCXR_0001_0.png was found; "
                          f"{what_is_there(request.source)}.")  # fmt: skip
    rows = []
    for number, case in enumerate(sorted(images)):
        mask, reason = whole.get(case, ""), ""
        if not mask and request.label == "lungs" and len(sides.get(case, {})) == 2:
            try:
                mask = _lungs(request, sides[case], case)
            except (OSError, ValueError, SyntaxError):  # what Pillow raises on damaged files; sides of unlike size
                reason = "the masks of the lungs can't be read or differ in size"
            request.progress(number + 1, len(images))
        age, sex = _reading(request.source / readings[case]) if case in readings else ("", "")
        state = "present" if case.endswith("_1") else "absent"
        rows.append([_SITES[case[:6]], case, images[case], mask, state, age, sex, reason])
    columns = ["site", "subject", "image", "mask", "tuberculosis", "age", "sex", "reason"]
    table = pd.DataFrame(rows, columns=columns)
    if request.label != "lungs":
        table = table.drop(columns="mask")
    return Draft(table, "image", images=["image"], mask="mask" if request.label == "lungs" else None,
                 data={"size": [256, 256], "channels": "grey", "augmentation": []})  # fmt: skip


ENTRY = Entry(
    name="montgomery-shenzhen",
    title="Montgomery and Shenzhen chest X-rays (tuberculosis)",
    about="Frontal chest radiographs with and without signs of tuberculosis, from screening in Maryland and from the "
    "clinics of a hospital in China. The lungs are outlined in Montgomery, and in most of Shenzhen by a later work.",
    modality="chest radiography",
    sites="2, in the names of the files: MCUCXR Montgomery County (USA), CHNCXR Shenzhen No. 3 Hospital (China).",
    subjects="Montgomery 138 (58 with tuberculosis), Shenzhen 662 (336); lungs outlined in 138 and 566.",
    access="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets; masks of Shenzhen: "
    "https://www.kaggle.com/datasets/yoctoman/shcxr-lung-mask",
    licence="with citation",
    terms="Open download with citation and acknowledgement of the National Library of Medicine and the two sources.",
    citation="Jaeger S et al. Two public chest X-ray datasets for computer-aided screening of pulmonary diseases. "
    "Quant Imaging Med Surg 2014;4:475-477. Masks of Shenzhen: Stirenko S et al. 2018, arXiv:1803.01199.",
    layout="""\
tuberculosis/                                    one or both
  MontgomerySet/
    CXR_png/MCUCXR_0001_0.png                    the last digit: 1 tuberculosis, 0 none
    ClinicalReadings/MCUCXR_0001_0.txt
    ManualMask/leftMask/MCUCXR_0001_0.png        put together with rightMask, written next to the manifest
    ManualMask/rightMask/MCUCXR_0001_0.png
  ChinaSet_AllFiles/
    CXR_png/CHNCXR_0001_0.png
    ClinicalReadings/CHNCXR_0001_0.txt
    mask/CHNCXR_0001_0_mask.png                  may be missing
""",
    labels={
        "tuberculosis": Label(
            "tuberculosis", "signs of tuberculosis: present against absent", positive=("present",), against=("absent",)
        ),
        "lungs": Label("mask", "both lungs; not zero is lung", task="segmentation"),
    },
    sites_by={"set": "the beginning of the file's name"},
    draft=_draft,
    assumed=("Each image is a subject of its own.", "Age and sex are read from the readings as far as they tell them."),
)
