"""Prostate MRI: the six sites of Liu et al., and PROMISE12 as the challenge gives it out."""

from __future__ import annotations

import re

import pandas as pd

from polyclinic.data.catalogue.entry import Draft, Entry, Label, Request
from polyclinic.data.catalogue.layout import LayoutError, stem, walk_files, what_is_there
from polyclinic.data.catalogue.metaimage import metaimage_to_nifti
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
    licence="research use",
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


# PROMISE12 ------------------------------------------------------------------------------------------------------------

_CASE = re.compile(r"Case\d\d$", re.IGNORECASE)
#: Endings of the names of a MetaImage header and its voxels.
_HEADERS = (".mhd", ".mha")


def _promise(request: Request) -> Draft:
    images: dict[str, str] = {}
    masks: dict[str, str] = {}
    for path in walk_files(request.source, (*_HEADERS, ".nii.gz", ".nii")):
        name = re.sub(r"\.mh[ad]$", "", stem(path), flags=re.IGNORECASE)
        mask = _MASK.match(name)
        if _CASE.match(mask[1] if mask else name):
            # Case00 of the test set is another patient than Case00 of the training set.
            folder = path.rpartition("/")[0]
            (masks if mask else images)[f"{folder}/{(mask[1] if mask else name).lower()}"] = path
    if not images:
        raise LayoutError(f"No Case00.mhd was found; {what_is_there(request.source)}.")
    rows = pd.DataFrame(
        [["", case, path, masks.get(case, ""), ""] for case, path in sorted(images.items())],
        columns=["site", "subject", "image", "mask", "reason"],
    )
    _convert(request, rows)
    data = {"preprocessing": grid((192, 192, 32), spacing=(1, 1, 3))}
    return Draft(rows, "volume", images=["image"], mask="mask", data=data)


def _convert(request: Request, rows: pd.DataFrame) -> None:
    """Write image and mask of the outlined cases as NIfTI, where they are MetaImage files."""
    outlined = rows.index[rows["mask"] != ""]
    for number, at in enumerate(outlined):
        for column in ("image", "mask"):
            path = str(rows.loc[at, column])
            if not path.lower().endswith(_HEADERS):
                continue
            target = f"{column}s/{str(rows.loc[at, 'subject']).strip('/').replace('/', '_')}.nii.gz"
            try:
                metaimage_to_nifti(request.source / path, request.out / target)
                rows.loc[at, column] = f"out:{target}"
            except (OSError, ValueError):
                rows.loc[at, "reason"] = f"{column} file is damaged, or its voxels are missing"
        request.progress(number + 1, len(outlined))


PROMISE12 = Entry(
    name="promise12",
    title="PROMISE12 (prostate MRI)",
    about="T2-weighted MRI of the prostate with the gland outlined, from four hospitals with scanners of different "
    "makers, with and without endorectal coil.",
    modality="T2-weighted MRI",
    sites="4 hospitals (Bergen, Boston, London, Nijmegen), but neither files nor headers say which case is whose: "
    "sites are artificial. The entry `prostate` has cases of three of them by hospital.",
    subjects="50 patients with outlines for training; 30 for testing without.",
    access="https://promise12.grand-challenge.org/, https://zenodo.org/records/8026660",
    licence="CC BY 4.0",
    terms="Research use with citation, after registration with the challenge; on Zenodo CC BY 4.0.",
    citation="Litjens G et al. Evaluation of prostate segmentation algorithms for MRI: the PROMISE12 challenge. Med "
    "Image Anal 2014;18:359-373.",
    layout="""\
promise12/
  training_data/Case00.mhd (with Case00.raw)               any depth; also .mha and NIfTI
  training_data/Case00_segmentation.mhd (with its .raw)
  test_data/Case00.mhd                                     not outlined: not used
""",
    labels={"prostate": Label("mask", "the prostate; not zero is gland", task="segmentation")},
    sites_by={},
    draft=_promise,
    assumed=(
        "Cases are written as NIfTI next to the manifest, as they are placed in space by their headers.",
        "Each case is a subject of its own. Cases for training and for testing have the same names: keep them in "
        "folders of their own, as they are given out.",
    ),
)
