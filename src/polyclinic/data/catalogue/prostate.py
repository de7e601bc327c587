"""The six-site prostate MRI of Liu et al."""

from __future__ import annotations

import re

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, stem, walk_files, what_is_there
from polyclinic.data.catalogue.studies import grid

SITES = ("BIDMC", "BMC", "HK", "I2CVB", "RUNMC", "UCL")
_MASK = re.compile(r"(.+)_seg(?:mentation)?$", re.IGNORECASE)


def _draft(request: Request) -> Draft:
    images: dict[tuple[str, str], str] = {}
    masks: dict[tuple[str, str], str] = {}
    for path in walk_files(request.source, (".nii.gz", ".nii")):
        site = next((part.upper() for part in reversed(path.split("/")[:-1]) if part.upper() in SITES), "")
        mask = _MASK.match(stem(path))
        if mask:
            masks[site, mask[1].lower()] = path
        else:
            images[site, stem(path).lower()] = path
    images = {key: path for key, path in images.items() if key[0]}
    if not images:
        raise LayoutError(f"No folder {', '.join(SITES)} with Case*.nii.gz was found; {what_is_there(request.source)}.")
    rows = pd.DataFrame(
        [
            [site, f"{site} {case}", path, masks.get((site, case), ""), ""]
            for (site, case), path in sorted(images.items())
        ],
        columns=["site", "subject", "image", "mask", "reason"],
    )
    data = {"preprocessing": grid((192, 192, 32), spacing=(1, 1, 3))}
    return Draft(rows, "volume", images=["image"], mask="mask", data=data)


ENTRY = Entry(
    name="prostate",
    title="Prostate MRI from six sites (SAML)",
    about="T2-weighted MRI of the prostate with the gland outlined, put together from NCI-ISBI 2013, I2CVB and "
    "PROMISE12; the standard set for domain shift in prostate segmentation.",
    modality="T2-weighted MRI",
    sites="6 sites, one folder each: RUNMC, BMC (NCI-ISBI 2013), I2CVB, UCL, BIDMC, HK (PROMISE12).",
    subjects="116 subjects: RUNMC 30, BMC 30, I2CVB 19, UCL 13, BIDMC 12, HK 12.",
    access="https://liuquande.github.io/SAML/",
    terms="Research use; the terms of NCI-ISBI 2013, I2CVB and PROMISE12 hold for their parts.",
    citation="Liu Q, Dou Q, Heng PA. Shape-aware meta-learning for generalizing prostate MRI segmentation to unseen "
    "domains. MICCAI 2020. Liu Q et al. MS-Net. IEEE TMI 2020;39:2713-2724.",
    layout="""\
prostate/
  BIDMC/Case00.nii.gz
  BIDMC/Case00_segmentation.nii.gz      also _Segmentation or _seg
  BMC/...  HK/...  I2CVB/...  RUNMC/...  UCL/...
""",
    labels={"prostate": Label("mask", "the prostate; not zero is gland", task="segmentation")},
    sites_by={"folder": "the folder BIDMC, BMC, HK, I2CVB, RUNMC or UCL"},
    draft=_draft,
    assumed=("Each case is a subject of its own.",),
)
