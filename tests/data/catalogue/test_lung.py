"""LIDC-IDRI: several readers, missing XML, radiographs, and outlines worked out by hand."""

import nibabel
import numpy as np
import pytest
from pydicom.uid import CTImageStorage

from dicom_files import write_dicom, write_stack
from polyclinic.data.catalogue.lung import Outline, consensus, read_outlines

SHAPE = (40, 36, 10)
SPACING, START = 2.5, -120.0


def square(z, first, last, inclusion="TRUE"):
    """An outline along a square of pixels, all of them listed, as the readers' tool does."""
    side = range(first, last + 1)
    edge = [(x, first) for x in side] + [(last, y) for y in side[1:]] + [(x, last) for x in reversed(side[:-1])]
    edge += [(first, y) for y in reversed(side[1:-1])]
    points = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in edge)
    return f"<roi><imageZposition>{z}</imageZposition><inclusion>{inclusion}</inclusion>{points}</roi>"


def xml(series, readers, root="LidcReadMessage"):
    """``readers``: a list of outlines for each."""
    point = "<roi><imageZposition>-120</imageZposition><edgeMap><xCoord>1</xCoord><yCoord>1</yCoord></edgeMap></roi>"
    sessions = "".join(
        f"<readingSession><unblindedReadNodule><noduleID>1</noduleID>{''.join(rois)}</unblindedReadNodule>"
        f"<unblindedReadNodule><noduleID>small</noduleID>{point}</unblindedReadNodule>"
        "<nonNodule><imageZposition>-120</imageZposition></nonNodule></readingSession>"
        for rois in readers
    )
    header = f"<ResponseHeader><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
    return f'<?xml version="1.0"?><{root} xmlns="http://www.nih.gov">{header}{sessions}</{root}>'


def ct(tree, patient, study, series, vendor, slices=SHAPE[2]):
    affine = np.array([[-1.5, 0, 0, 30], [0, -1.5, 0, 25], [0, 0, SPACING, START], [0, 0, 0, 1.0]])
    values = np.random.default_rng(len(series)).integers(-1000, 400, (*SHAPE[:2], slices)).astype(np.int16)
    folder = tree.folder / f"LIDC-IDRI/{patient}/{study}/{series}"
    write_stack(folder, values, affine, SOPClassUID=CTImageStorage, Modality="CT", Manufacturer=vendor,
                PatientID=patient, SeriesInstanceUID=f"1.2.{series}", StudyInstanceUID=f"1.3.{study[1:]}",
                RescaleSlope=1, RescaleIntercept=0)  # fmt: skip
    return folder


NODULE = [square(START + SPACING * k, 10, 20) for k in (3, 4, 5)]


@pytest.fixture
def lidc(tree):
    vendors = ("GE MEDICAL SYSTEMS", "SIEMENS", "Philips", "TOSHIBA")
    for number in range(8):
        ct(tree, f"LIDC-IDRI-{number + 1:04}", "s1", f"{100 + number}", vendors[number % 4])
        readers = [NODULE, NODULE, [], []]  # half of four
        if number == 4:
            readers = [NODULE, [], [], []]
        if number != 5:
            tree.text(f"tcia-lidc-xml/157/{number}.xml", xml(f"1.2.{100 + number}", readers))
    ct(tree, "LIDC-IDRI-0001", "s2", "200", vendors[0])
    tree.text("tcia-lidc-xml/158/a.xml", xml("1.2.200", [NODULE]))
    outside = [square(START + 100, 10, 20)]
    tree.text("tcia-lidc-xml/158/b.xml", xml("1.2.106", [outside]))  # a second file of the same series
    tree.text("tcia-lidc-xml/158/c.xml", xml("1.2.999", [NODULE], root="IdriReadMessage"))
    tree.text("tcia-lidc-xml/158/d.xml", "<broken")
    tree.text("161-resubmitted-correction-3-9-12.xml", xml("1.2.107", [NODULE]))
    tree.text("tcia-lidc-xml/159/7.xml", xml("1.2.107", [[]]))
    write_dicom(tree.folder / "LIDC-IDRI/LIDC-IDRI-0002/s9/900/000.dcm", np.zeros((20, 20), dtype=np.uint16),
                SOPClassUID="1.2.840.10008.5.1.4.1.1.1.1", Modality="DX", PatientID="LIDC-IDRI-0002")  # fmt: skip
    return tree


def test_lidc(lidc, prepared):
    result = prepared("lidc-idri")
    assert result.sites == {"Canon": 2, "GE": 1, "Philips": 1, "Siemens": 1}
    assert result.reasons == {
        "no CT (a radiograph)": 1, "the readers' XML is missing": 1, "an outline lies on no slice": 1,
        "no nodule that half of the readers outlined": 1, "a later session of the same subject": 1,
    }  # fmt: skip
    assert result.prepared.notes[0].startswith("1 XML files are damaged")
    mask = nibabel.load(result.files("mask")[0])
    voxels = np.asarray(mask.dataobj)
    assert voxels.shape == SHAPE
    assert voxels.sum() == 3 * 9 * 9  # the pixels of the outline are outside
    assert [np.flatnonzero(voxels.any(axis=axes)).tolist() for axes in ((1, 2), (0, 2), (0, 1))] == [
        list(range(11, 20)), list(range(11, 20)), [3, 4, 5],
    ]  # fmt: skip
    assert result.check() == [5, 5, 0]


def test_scans_with_and_without_nodules(lidc, prepared):
    result = prepared("lidc-idri", label="nodule", sessions="all")
    assert result.prepared.classes["GE"] == {"yes": 2, "no": 1}
    assert not (result.out / "masks").exists()


AFFINE = np.diag([-1.0, -1.0, 2.0, 1.0])


def test_votes_and_holes():
    def box(first, last, inside=True):
        return Outline(4.0, inside, ((first, first), (last, first), (last, last), (first, last)))

    ring = [box(4, 7, inside=False), box(0, 11)]  # the hole stands first in the file
    one = consensus([ring], (12, 12, 5), AFFINE)
    assert one[:, :, 2].sum() == 10 * 10 - 2 * 2
    assert one.sum() == one[:, :, 2].sum()
    assert consensus([ring, [], []], (12, 12, 5), AFFINE).sum() == 0  # one of three
    assert consensus([ring, [], [box(0, 11)]], (12, 12, 5), AFFINE)[5, 5, 2] == 0
    assert consensus([ring, [box(0, 11)], []], (12, 12, 5), AFFINE).sum() == 96
    with pytest.raises(ValueError, match="on no slice"):
        consensus([[Outline(13.1, True, ((0, 0), (3, 0), (3, 3)))]], (12, 12, 5), AFFINE)
    tilted = AFFINE.copy()
    tilted[2, 1] = 0.3
    with pytest.raises(ValueError, match="not axial"):
        consensus([ring], (12, 12, 5), tilted)


def test_documents_that_could_grow_are_refused(tree):
    tree.text("a.xml", '<!DOCTYPE a [<!ENTITY b "b">]>' + xml("1", [NODULE]))
    with pytest.raises(ValueError, match="document type"):
        read_outlines(tree.folder / "a.xml")
