"""The data catalogue: published data sets, where to get them, and how to make a manifest of each.

An entry is one object of `polyclinic.data.catalogue.entry.Entry`; to add one, write its module and name it in
``ENTRIES``.
"""

from __future__ import annotations

from polyclinic.data.catalogue import (
    abide,
    adni,
    aibl,
    brats,
    breast,
    camelyon,
    chest,
    cine,
    covid,
    fastmri,
    fundus,
    haemorrhage,
    heart,
    ixi,
    kidney,
    lung,
    medmnist,
    mri_quality,
    oasis,
    prostate,
    retina,
    skin,
    slides,
    tuberculosis,
    ukbiobank,
    ultrasound,
)
from polyclinic.data.catalogue.entry import Choices, Entry, Prepared
from polyclinic.data.catalogue.preparing import prepare
from polyclinic.errors import DataError, nearest

__all__ = ["ENTRIES", "Choices", "Entry", "Prepared", "find_entry", "prepare"]

#: Name -> entry, in the order of the documentation: brains, other volumes, images, tables.
ENTRIES: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        adni.ENTRY, oasis.OASIS_1, oasis.OASIS_2, aibl.ENTRY, abide.ABIDE, ixi.ENTRY, brats.ENTRY,
        haemorrhage.ENTRY,
        prostate.ENTRY, prostate.PROMISE12, kidney.ENTRY, lung.ENTRY, cine.ACDC, cine.MMS,
        fastmri.ENTRY,
        skin.HAM10000, skin.ISIC_2019, retina.ENTRY, fundus.RETINOPATHY, fundus.REFUGE,
        camelyon.ENTRY, slides.CAMELYON16, slides.TCGA,
        chest.ENTRY, covid.COLLECTION, covid.COVIDX, tuberculosis.ENTRY,
        ultrasound.POCUS, ultrasound.ECHONET, medmnist.ENTRY,
        heart.ENTRY, breast.ENTRY, ukbiobank.ENTRY, abide.REGIONAL, mri_quality.ENTRY,
    )
}  # fmt: skip


def find_entry(name: str) -> Entry:
    """The entry of this name; capitals do not matter.

    Raises:
        DataError: P208 with the nearest name.
    """
    entry = ENTRIES.get(name.lower())
    if entry is None:
        hint = nearest(name.lower(), list(ENTRIES)) + " `polyclinic data list` shows all."
        raise DataError("P208", f"The catalogue has no data set {name!r}.", hint)
    return entry
