"""What MR series show: descriptions as they are met, with the sequence's numbers where they are known.

The answers are those of a reading of the sequence by what it is in radiology, not by the code. ``MR`` is the answer
where the description leaves it open.
"""

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from polyclinic.data.readers.dicom.contrast import SequenceFacts, contrast_of
from polyclinic.data.readers.dicom.header import read_header
from polyclinic.data.readers.read import read_volume
from polyclinic.data.readers.scan import scan_folder

SE, TSE, GR = {"sequence": frozenset(("SE",))}, {"sequence": frozenset(("SE",)), "echo_train": 15}, frozenset(("GR",))
IR, EPI, EPSE = frozenset(("SE", "IR")), frozenset(("EP", "GR")), frozenset(("EP", "SE"))


def times(repetition, echo, inversion=None, sequence=frozenset(("SE",)), **more):
    return {"repetition": repetition, "echo": echo, "inversion": inversion, "sequence": sequence, **more}


#: description, other facts, answer
USUAL = [
    # T1
    ("t1_mprage_sag_p2_iso", times(2300, 2.98, 900, GR | {"IR"}), "T1w"),
    ("MPRAGE", {}, "T1w"),
    ("SAG 3D BRAVO", times(8.2, 3.2, 450, frozenset(("GR",))), "T1w"),
    ("AX T1 FLAIR", times(2200, 9, 860, IR), "T1w"),
    ("Ax T1 FLAIR PROPELLER", {}, "T1w"),
    ("SAG T1 FLAIR", times(1900, 24, None), "T1w"),
    ("t1_tse_tra", times(550, 11), "T1w"),
    ("T1W_SE", times(596, 15), "T1w"),
    ("T1W_3D_TFE", times(7.6, 3.5, None, GR), "T1w"),
    ("AxT1FS", {}, "T1w"),
    ("t1_vibe_dixon_tra_W", {}, "T1w"),
    ("LAVA Flex", {}, "T1w"),
    ("e-THRIVE", {}, "T1w"),
    ("eTHRIVE", {}, "T1w"),
    ("t1_mp2rage_sag_p3_iso_UNI_Images", {}, "T1w"),
    ("t1_mp2rage_sag_p3_iso_INV1", {}, "MR"),
    ("t1_mp2rage_sag_p3_iso_T1_Images", {}, "MR"),
    ("Cor T1 BLADE nativ", {}, "T1w"),
    ("T1 PRE", {"protocol": "BRAIN W/WO CONTRAST"}, "T1w"),
    ("AX T1 PRE", {"agent": "GADAVIST"}, "T1w"),
    ("t1_se_tra_ohne_KM", {"agent": "Gadovist"}, "T1w"),
    ("T1 sans injection", {}, "T1w"),
    ("AX T1 W/O CONTRAST", {}, "T1w"),
    ("AX T1", {"protocol": "BRAIN WITH AND WITHOUT CONTRAST"}, "T1w"),
    ("AX T1 BRAIN W/WO CONTRAST", {}, "T1w"),
    ("T1 POST FOSSA", {}, "T1w"),
    ("T1 TSE post op", {}, "T1w"),
    ("MPRAGE postop", {}, "T1w"),
    ("AX T1 POST-SURGERY", {}, "T1w"),
    ("AX T1 POST RT", {}, "T1w"),
    ("t1_post_treatment", {}, "T1w"),
    ("AX T1 PRE OP", {"agent": "Gadovist"}, "T1ce"),
    ("AX T1 POST OP +C", {}, "T1ce"),
    ("AX T1 POST OBLIQUE", {}, "T1ce"),
    ("Apparent Diffusion Coefficient (mm2/s)", {}, "ADC"),
    ("Exponential Apparent Diffusion Coefficient", {}, "MR"),
    ("DTI Fractional Anisotropy", {}, "MR"),
    ("Axial", times(500, 12), "T1w"),
    # T1 after an agent
    ("t1_se_tra_post_gad", times(600, 14), "T1ce"),
    ("AX T1 +C", {}, "T1ce"),
    ("AX T1 C+", {}, "T1ce"),
    ("T1 FS POST", {}, "T1ce"),
    ("t1_mprage_sag_KM", {}, "T1ce"),
    ("t1_tse_cor_nach_KM", {}, "T1ce"),
    ("t1 fl2d tra mit Kontrastmittel", {}, "T1ce"),
    ("T1 GADO", {}, "T1ce"),
    ("AX T1 après injection", {}, "T1ce"),
    ("AX T1 SE", times(500, 12, None, agent="Gadovist 7.5 ml"), "T1ce"),
    ("AX T1 SE", times(500, 12, None, agent="NONE"), "T1w"),
    ("AX T1 FLAIR +C", times(2200, 9, 860, IR), "T1ce"),
    ("T1c", {}, "T1ce"),
    ("LAVA +C 60s", {}, "T1ce"),
    # T2
    ("t2_tse_tra_512", times(4000, 100, **TSE), "T2w"),
    ("AX T2 FRFSE FS", times(5000, 85, **TSE), "T2w"),
    ("T2 TSE FS", {}, "T2w"),
    ("t2_space_sag_p2_iso", times(3200, 408, **TSE), "T2w"),
    ("Axial PROPELLER", times(4500, 110, **TSE), "T2w"),
    ("t2_haste_cor", times(1400, 91, **TSE), "T2w"),
    ("t2_ciss3d_iso", {}, "T2w"),
    ("FIESTA-C IAC", {}, "T2w"),
    ("SAG FIESTA", times(5, 2, None, GR), "MR"),
    ("T2 sagittal", {"agent": "Dotarem"}, "T2w"),
    # Proton density
    ("PD FS SAG", times(3000, 30, **TSE), "PDw"),
    ("pd_tse_fs_cor", {}, "PDw"),
    ("DP FS sagittal", {}, "PDw"),
    ("PD/T2 DUAL ECHO", times(3000, 15, **TSE), "PDw"),
    ("PD/T2 DUAL ECHO", times(3000, 95, **TSE), "T2w"),
    ("PD/T2 DUAL ECHO", {}, "MR"),
    # Inversion
    ("AX T2 FLAIR", times(9000, 120, 2250, IR), "FLAIR"),
    ("AX T2 FLAIR", times(9000, 120), "FLAIR"),
    ("t2_tirm_tra_dark-fluid", times(9000, 81, 2500, IR), "FLAIR"),
    ("t2_spc_ir_sag_dark-fluid", {}, "FLAIR"),
    ("FLAIR_3D_VISTA", {}, "FLAIR"),
    ("FLAIR +C", {}, "FLAIR"),
    ("t2_tirm_cor", times(4000, 40, 160, IR), "STIR"),
    ("t2_tirm_cor", {}, "MR"),
    ("STIR", {}, "STIR"),
    ("COR STIR EPILEPSY", {}, "STIR"),
    ("STIR_TSE sag", times(3500, 60, 165, IR), "STIR"),
    ("EPILEPSY PROTOCOL", {}, "MR"),
    # Diffusion
    ("DWI b1000", {}, "DWI"),
    ("AX DWI", times(6000, 80, None, EPSE, b_value=1000.0), "DWI"),
    ("ep2d_diff_3scan_trace_p2", times(6600, 89, None, EPSE, name="*ep_b1000t"), "DWI"),
    ("ep2d_diff_3scan_trace_p2_ADC", {"image_type": ("DERIVED", "PRIMARY", "DIFFUSION", "ADC")}, "ADC"),
    ("Apparent Diffusion Coefficient (mm2/s)", {"image_type": ("DERIVED", "SECONDARY", "ADC", "ADC")}, "ADC"),
    ("dADC_map", {}, "ADC"),
    ("eADC", {}, "MR"),
    ("DTI_64dir", {}, "DWI"),
    ("resolve_4scan_trace_tra", {}, "DWI"),
    ("ep2d_diff_mddw_20_FA", {"image_type": ("DERIVED", "PRIMARY", "DIFFUSION", "FA")}, "MR"),
    # Susceptibility
    ("SWI_Images", {}, "SWI"),
    ("mIP_Images(SW)", {}, "SWI"),
    ("SWI mIP", {}, "SWI"),
    ("Pha_Images", {"image_type": ("ORIGINAL", "PRIMARY", "P", "ND")}, "MR"),
    ("3D SWAN", {}, "SWI"),
    ("AX GRE HEMO", {}, "T2star"),
    ("t2_fl2d_tra_hemo", times(620, 20, None, GR), "T2star"),
    ("AX T2*", {}, "T2star"),
    ("T2W_FFE", times(700, 23, None, GR), "T2star"),
    ("AX GRE", times(600, 15, None, GR), "T2star"),
    # Vessels
    ("TOF_3D_multi-slab", times(21, 3.4, None, GR), "angio"),
    ("MRA TOF MIP", {}, "angio"),
    ("CE-MRA carotids", {"agent": "Gadovist"}, "angio"),
    ("2D Phase Contrast venous", {}, "angio"),
    ("ToF 3D", {}, "angio"),
    ("3D", times(22, 4, None, GR, angio=True), "angio"),
    # Function and perfusion
    ("ep2d_bold_moco_p2", times(2000, 30, None, EPI), "bold"),
    ("BOLD rest", {}, "bold"),
    ("rest_run1", times(2000, 30, None, EPI), "bold"),
    ("rest", times(600, 12), "T1w"),
    ("fMRI Fingertapping", {}, "bold"),
    ("EPI PE=AP", times(2435, 50, None, EPI), "MR"),
    ("ep2d_perf_p2", times(1500, 30, None, EPI, agent="Gadovist"), "perfusion"),
    ("relCBF", {}, "MR"),
    ("pcasl_3d_tra", {}, "asl"),
    ("3D ASL (non contrast)", {}, "asl"),
    # No tissue
    ("localizer", {}, "localizer"),
    ("AAHead_Scout", {}, "localizer"),
    ("Survey", {}, "localizer"),
    ("3-Plane Loc", {}, "localizer"),
    ("Repérage", {}, "localizer"),
    ("ASSET Calibration", {}, "MR"),
    ("AX T2 FRFSE ASSET", {}, "T2w"),
    ("B1 map", {}, "MR"),
    ("tfl_b1map", {}, "MR"),
    ("gre_field_mapping", times(400, 4.92, None, GR), "MR"),
    ("Field Map", {}, "MR"),
    ("T1 SUB", {}, "MR"),
    ("T2 mapping", {}, "MR"),
    ("svs_se_30", {}, "MR"),
    # Nothing known, or words and numbers apart
    ("", {}, "MR"),
    ("Series 4", {}, "MR"),
    ("SAG T1", times(4000, 105, **TSE), "MR"),
    ("T2 SAG", times(500, 10), "MR"),
    ("MoCoSeries", {"protocol": "ep2d_bold_rest"}, "bold"),
    ("Series 5", {"protocol": "ep2d_diff_tra"}, "DWI"),
    ("Series 5", {"protocol": "t1 post contrast"}, "T1w"),
    ("Processed Images", {"protocol": "t1_mprage"}, "T1w"),
    ("MR Brain", {"stated": "FLUID_ATTENUATED"}, "FLAIR"),
    ("MR Brain", {"stated": "T1", "agent": "Dotarem"}, "T1ce"),
    ("MR Brain", {"stated": "UNKNOWN"}, "MR"),
]


@pytest.mark.parametrize(
    ("description", "facts", "expected"), USUAL, ids=[f"{i} {row[0]}" for i, row in enumerate(USUAL)]
)
def test_usual_series(description, facts, expected):
    assert contrast_of(SequenceFacts(description=description, **facts)) == expected


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        (
            {"SeriesDescription": "AX T1 FLAIR", "InversionTime": "860", "EchoTime": "9", "RepetitionTime": "2200"},
            "T1w",
        ),
        ({"SeriesDescription": "Axial", "RepetitionTime": "500", "EchoTime": "12"}, "T1w"),
        ({"SeriesDescription": "Axial", "RepetitionTime": "500", "EchoTime": "12", "ContrastBolusAgent": "GD"}, "T1ce"),
        ({"SeriesDescription": "Axial", "AcquisitionContrast": "DIFFUSION"}, "DWI"),
        ({"SeriesDescription": "a", "AngioFlag": "Y"}, "angio"),
        ({"SeriesDescription": "a", "SequenceName": "*ep_b1000#1", "ScanningSequence": ["EP", "SE"]}, "DWI"),
        ({"SeriesDescription": "T1 PRE", "ProtocolName": "BRAIN W/WO CONTRAST"}, "T1w"),
        ({"SeriesDescription": "a", "ProtocolName": "MRA HEAD", "Manufacturer": "GE MEDICAL SYSTEMS"}, "MR"),
        ({"SeriesDescription": "a", "ProtocolName": "T2 TSE", "Manufacturer": "Philips"}, "T2w"),
        ({"SeriesDescription": None}, "MR"),
        ({"Modality": "CT", "SeriesDescription": "T1 vertebra"}, "CT"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"], "SeriesDescription": "t1_fl3d"}, "MR"),
    ],
)
def test_headers(dicom, tmp_path, elements, expected):
    spin = {"ScanningSequence": "SE", "ProtocolName": ""}
    path = dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16), **spin | elements)
    assert read_header(path).contrast == expected


def test_accents_in_either_encoding(dicom, tmp_path):
    for number, charset in enumerate(("ISO_IR 100", "ISO_IR 192")):
        elements = {"SpecificCharacterSet": charset, "SeriesDescription": "T1 après injection"}
        path = dicom(tmp_path / f"{number}.dcm", np.zeros((2, 2), np.uint16), **elements)
        assert read_header(path).contrast == "T1ce"


def test_no_word_of_a_description_is_kept(dicom, tmp_path):
    texts = {"SeriesDescription": "T1 Quixote", "ContrastBolusAgent": "Quixote", "ProtocolName": "Quixote"}
    path = dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint16), **texts)
    assert "Quixote" not in repr(read_header(path))


def test_phase_frames_and_ge_s_parts_of_complex_images_are_no_t1w(tmp_path, enhanced, dicom):
    frames = np.random.default_rng(4).integers(0, 500, (6, 5, 4)).astype(np.uint16)
    path = enhanced(tmp_path / "both.dcm", frames, [([0, 0, 3 * (z % 3)], 1) for z in range(6)])
    data = pydicom.dcmread(path)
    for number, group in enumerate(data.PerFrameFunctionalGroupsSequence):
        kind = Dataset()
        kind.FrameType = ["ORIGINAL", "PRIMARY", "M" if number < 3 else "P", "NONE"]
        group.MRImageFrameTypeSequence = [kind]
    data.save_as(path)
    for part in (0, 1, 2, 3):
        data = pydicom.dcmread(
            dicom(tmp_path / "ge" / f"{part}.dcm", frames[0] + part, Manufacturer="GE MEDICAL SYSTEMS")
        )
        data.SeriesInstanceUID = "1.9"
        block = data.private_block(0x0043, "GEMS_PARM_01", create=True)
        block.add_new(0x2F, "SS", part)
        data.save_as(tmp_path / "ge" / f"{part}.dcm")
    found = scan_folder(tmp_path, site="s", salt="salt").images
    values = {
        image.where: (image.column, int(read_volume(image.where, tmp_path).values[0, 0, 0].item())) for image in found
    }
    first, phase = int(frames[0, 0, 0]), int(frames[3, 0, 0])
    assert sorted(values.values()) == sorted(
        [("T1w", first), ("MR", phase), ("T1w", first), ("MR", first + 1), ("MR", first + 2), ("MR", first + 3)]
    )
