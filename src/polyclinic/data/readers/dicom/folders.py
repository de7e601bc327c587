"""Images in folders of DICOM files, whatever the folders' nesting and names."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from polyclinic.data.pseudonyms import pseudonym
from polyclinic.data.readers.dicom.contrast import frames_contrast
from polyclinic.data.readers.dicom.elements import NO_DICOM
from polyclinic.data.readers.dicom.groups import Group, group_planes
from polyclinic.data.readers.dicom.header import Header, read_header
from polyclinic.data.readers.dicom.patients import Place, place_of, settle_patients
from polyclinic.data.readers.dicom.pixels import missing_decoder
from polyclinic.data.readers.dicom.series import Series, build_series
from polyclinic.data.readers.found import Findings, FoundImage, Tick, relative
from polyclinic.data.readers.read import series_name
from polyclinic.data.readers.volume import UnreadableError
from polyclinic.notes import Note

_SCREENS = ("US", "SC", "OT", "XC", "ES", "GM")
"""Modalities whose pictures often show the patient's name, unless the header denies it."""
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_NAMED_DICOM = (".dcm", ".ima", ".dicom")


def scan_dicom(files: Sequence[Path], folder: Path, site: str, salt: str, tick: Tick, *, home: str = "") -> Findings:
    """The images of DICOM files, read from their headers alone.

    Args:
        files: files that may be DICOM; those that are not are counted as others.
        folder: the folder to which cells of the manifest are relative.
        site: name of the site.
        salt: for pseudonyms.
        tick: called after each file.
        home: what tells patients of this site from those of others with the same numbers; "" where there is one site.
    """
    findings, headers, unusable = Findings("DICOM"), [], {}
    for path in files:
        try:
            headers.append(read_header(path, salt=salt, root=folder, home=home))
        except UnreadableError as error:
            reason = str(error)
            if reason == NO_DICOM and path.suffix.lower() not in _NAMED_DICOM:
                findings.others[path.suffix.lower() or "no ending"] += 1
            else:
                findings.images.append(FoundImage(site, "", "", "", "", reason=reason))
                if not reason.startswith("DICOM object"):
                    unusable[path] = reason
        tick()
    groups = group_planes(headers)
    places = _Places(groups, unusable, folder, salt)
    patients, notes = settle_patients(headers, salt, home)
    findings.notes += [Note(note.number, f"Site {site}: {note}", note.cases) if site else note for note in notes]
    visits = _visits(headers, patients, salt)
    findings.images += [_image(group, places, patients, visits, site, salt, home) for group in groups]
    return findings


def _image(
    group: Group,
    places: _Places,
    patients: dict[Place, str],
    visits: dict[tuple[str, str], str],
    site: str,
    salt: str,
    home: str,
) -> FoundImage:
    header = group.header
    reason, series = group.reason or places.damage(group), None
    if header.contrast == "localizer":
        reason = reason or "image is a localizer"
    if not reason:
        try:
            series = build_series(group)
            reason = missing_decoder(header)
        except UnreadableError as error:
            reason = str(error)
    subject = patients.get(place_of(header), "")
    visit = visits.get((subject, header.study), "")
    if not subject and not reason:
        # Without a PatientID a study is a patient of its own: rather two names for one person than one for two.
        own = header.study or header.series or str(header.path)
        subject = pseudonym(f"{home}/{own}" if home else own, salt, "sub")
    screen = header.modality in _SCREENS or header.sop_class.startswith(_SECONDARY_CAPTURE)
    head = header.modality == "MR" and header.head and not header.face_removed and _is_volume(series)
    files = {plane.header for plane in group.planes} or {header}
    return FoundImage(
        site=site,
        subject=subject,
        session=visit,
        column=_column(group),
        where="" if reason else places.cell(group),
        reason=reason,
        about=header.about,
        files=len(files),
        head=head,
        burned_in=header.burned_in is True or (header.burned_in is None and screen),
        named=any(file.named_in_path for file in files),
        notes=series.all_notes if series else (),
        series=series if head else None,
    )


def _column(group: Group) -> str:
    contrast = group.header.contrast
    if group.header.modality != "MR" or not group.planes:
        return contrast
    return frames_contrast(contrast, group.planes[0].facts.meanings)


def _is_volume(series: Series | None) -> bool:
    return series is not None and series.shape[2] >= 16


def _visits(headers: Sequence[Header], patients: dict[Place, str], salt: str) -> dict[tuple[str, str], str]:
    """(patient, study) -> pseudonym of the visit, for patients with several studies."""
    studies: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        studies[patients.get(place_of(header), "")].add(header.study)
    return {
        (subject, study): pseudonym(study, salt, "ses")
        for subject, found in studies.items()
        for study in found
        if subject and len(found) > 1
    }


class _Places:
    """Finds the shortest cell that means one image: its file, a folder that holds nothing else, or FOLDER#SERIES."""

    def __init__(self, groups: Sequence[Group], unusable: dict[Path, str], folder: Path, salt: str) -> None:
        self.folder, self.salt = folder, salt
        self.files_of = {
            group.key: {plane.header.path for plane in group.planes} or {group.header.path} for group in groups
        }
        self.damaged = {path.parent: reason for path, reason in sorted(unusable.items(), reverse=True)}
        self.stacks = Counter(
            parent for files in self.files_of.values() if len(files) > 1 for parent in {path.parent for path in files}
        )
        self.groups_of_file = Counter(path for files in self.files_of.values() for path in files)
        self.images_below: Counter[Path] = Counter()
        for files in [*self.files_of.values(), *({path} for path in unusable)]:
            for place in {parent for path in files for parent in path.parents}:
                self.images_below[place] += 1

    def damage(self, group: Group) -> str:
        """Why a file beside the only stack of a folder can't be read: it may be one of its slices; "" for none."""
        files = self.files_of[group.key]
        parents = {path.parent for path in files} if len(files) > 1 else set()
        return min(
            (self.damaged[parent] for parent in parents & {*self.damaged} if self.stacks[parent] == 1), default=""
        )

    def cell(self, group: Group) -> str:
        """The manifest's cell for an image."""
        files = self.files_of[group.key]
        if len(files) == 1 and self.groups_of_file[next(iter(files))] == 1:
            return relative(next(iter(files)), self.folder)
        place = _common_folder(files)
        if self.images_below[place] == 1:
            return relative(place, self.folder)
        name = series_name(group.key, self.salt)
        return f"{relative(place, self.folder)}#{name}"


def _common_folder(files: set[Path]) -> Path:
    first, *others = (path.parents for path in files)
    return next(parent for parent in first if all(parent in parents for parents in others))
