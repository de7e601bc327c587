"""The metadata of a crate: RO-Crate 1.1 with the profile Process Run Crate 0.5.

Soiland-Reyes et al. 2022, "Packaging research artefacts with RO-Crate", Data Science 5(2), and Leo et al. 2024,
"Recording provenance of workflow runs with RO-Crate", PLOS ONE 19(9). Files have size and SHA-256; the run is an action
of Polyclinic that made the results from the study file and from data that are not in the crate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from polyclinic.study.crate.contents import ABOUT_MODELS, FORMATS, MODELS, STUDY

Entity = dict[str, Any]
METADATA = "ro-crate-metadata.json"
CONTEXT = ["https://w3id.org/ro/crate/1.1/context", "https://w3id.org/ro/terms/workflow-run/context"]
SPECIFICATION, PROFILE = "https://w3id.org/ro/crate/1.1", "https://w3id.org/ro/wfrun/process/0.5"
TO_FILL = "To be filled in by the authors"
_SOFTWARE, _RUN, _DATA, _LICENCE = "#polyclinic", "#run", "#data", "#licence"
_BLOCK = 2**20


@dataclass(frozen=True)
class About:
    """What the crate says of itself.

    Attributes:
        name: of the study.
        description: in a sentence or two.
        authors: names; none leaves a field for the authors to fill.
        licence: URL of the licence of the whole; None leaves a field to fill.
        sites: how many sites there are.
    """

    name: str
    description: str
    authors: Sequence[str]
    licence: str | None
    sites: int


def metadata(root: Path, files: Mapping[str, str], about: About, record: Mapping[str, Any]) -> Entity:
    """Content of ``ro-crate-metadata.json``.

    Args:
        root: folder of the crate, with all files in it.
        files: path within the crate -> description.
        about: what the crate says of itself.
        record: content of ``provenance.json``.
    """
    made = [_file(root, path, words) for path, words in files.items()]
    models = [one for one in made if one["@id"].startswith(MODELS)]
    top = [one for one in made if one not in models]
    people = _people(about.authors)
    folder = [_folder(models)] if models else []
    results = [_to(one) for one in [*top, *folder] if one["@id"] != quote(STUDY)]
    licence = about.licence or _LICENCE
    ended = str(record.get("finished") or record.get("started") or "")
    crate = {
        "@id": "./", "@type": "Dataset", "name": about.name, "description": about.description,
        "datePublished": ended[:10], "license": {"@id": licence}, "author": _all(people),
        "conformsTo": {"@id": PROFILE}, "hasPart": [_to(one) for one in [*top, *folder]], "mentions": {"@id": _RUN},
    }  # fmt: skip
    run = {
        "@id": _RUN, "@type": "CreateAction", "name": f"Run of the study {about.name!r}",
        "description": f"polyclinic run {record.get('study_file', STUDY)}", "instrument": {"@id": _SOFTWARE},
        "agent": _all(people), "startTime": str(record.get("started", "")), "endTime": ended,
        "actionStatus": "http://schema.org/CompletedActionStatus",
        "object": [{"@id": quote(STUDY)}, {"@id": _DATA}], "result": results,
    }  # fmt: skip
    graph = [
        {"@id": METADATA, "@type": "CreativeWork", "conformsTo": {"@id": SPECIFICATION}, "about": {"@id": "./"}},
        crate, {"@id": PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"}, run,
        *_software(record), _data(about, record), *people, _licence(licence), *top, *folder, *models,
    ]  # fmt: skip
    return {"@context": CONTEXT, "@graph": graph}


def _to(entity: Entity) -> Entity:
    return {"@id": entity["@id"]}


def _all(entities: Sequence[Entity]) -> Entity | list[Entity]:
    """References to some entities; to a single one without a list around it, as the specification has it."""
    return _to(entities[0]) if len(entities) == 1 else [_to(one) for one in entities]


def _file(root: Path, path: str, words: str) -> Entity:
    place = root / path
    return {
        "@id": quote(path), "@type": "File", "name": Path(path).name, "description": words,
        "encodingFormat": FORMATS[place.suffix], "contentSize": str(place.stat().st_size), "sha256": digest(place),
    }  # fmt: skip


def _folder(models: Sequence[Entity]) -> Entity:
    return {
        "@id": MODELS, "@type": "Dataset", "name": "Trained models", "description": ABOUT_MODELS,
        "hasPart": [_to(one) for one in models],
    }  # fmt: skip


def digest(place: Path) -> str:
    """SHA-256 of a file, hex."""
    found = hashlib.sha256()
    with place.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _people(authors: Sequence[str]) -> list[Entity]:
    names = list(dict.fromkeys(authors)) or [TO_FILL]
    return [{"@id": f"#author-{number}", "@type": "Person", "name": name} for number, name in enumerate(names, 1)]


def _licence(licence: str) -> Entity:
    if licence != _LICENCE:
        return {"@id": licence, "@type": "CreativeWork", "name": licence, "description": "Licence of this crate."}
    return {
        "@id": _LICENCE, "@type": "CreativeWork", "name": TO_FILL,
        "description": "No licence was given: until the authors choose one, nobody else may use what is in here.",
    }  # fmt: skip


def _software(record: Mapping[str, Any]) -> list[Entity]:
    """Polyclinic, and the packages that its results depend on."""
    versions = record.get("versions")
    known = {name: str(found) for name, found in versions.items() if found} if isinstance(versions, dict) else {}
    own = known.pop("polyclinic", "unknown")
    others = [_package(name, found) for name, found in known.items()]
    return [
        {
            "@id": _SOFTWARE, "@type": "SoftwareApplication", "name": "Polyclinic", "version": own,
            "description": "Federated learning for medical image analysis.",
            **({"softwareRequirements": _all(others)} if others else {}),
        },
        *others,
    ]  # fmt: skip


def _package(name: str, version: str) -> Entity:
    """Python, or a package of the Python package index; its version there has no mark of the build (``+cpu``)."""
    url = "https://www.python.org/"
    if name != "python":
        url = f"https://pypi.org/project/{quote(name)}/{quote(version.partition('+')[0])}/"
    return {"@id": url, "@type": "SoftwareApplication", "name": name, "version": version, "url": url}


def _data(about: About, record: Mapping[str, Any]) -> Entity:
    """The cases, which stay where they are."""
    sites = f"{about.sites} site{'' if about.sites == 1 else 's'}"
    entity = {
        "@id": _DATA, "@type": "CreativeWork", "name": f"Cases of {sites}",
        "description": "The data that the study was run on. They are no part of this crate.",
    }  # fmt: skip
    if record.get("data_sha256"):
        entity["identifier"] = f"sha256:{record['data_sha256']}"
    return entity
