"""The entry ``tracking``: who is told of a study, and where that is kept."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

from pydantic import ValidationError

from polyclinic.errors import StudyError, nearest
from polyclinic.options import EntryError, first_entry_error, split_entry
from polyclinic.study.entries import Entry, Part, check_keys


class TensorBoardOptions(Part):
    """TensorBoard's event files."""

    folder: str | None = None
    """Folder to write into, relative to the study file; default: ``tracking/tensorboard`` beside the results."""


class MlflowOptions(Part):
    """A store of MLflow."""

    uri: str | None = None
    """``https://...`` of a server, or ``sqlite:///FILE``; default: ``tracking/mlflow.db`` beside the results."""
    experiment: str | None = None
    """Name of the experiment; default: the title of the study."""


Options = TensorBoardOptions | MlflowOptions
KINDS: dict[str, type[TensorBoardOptions] | type[MlflowOptions]] = {
    "tensorboard": TensorBoardOptions,
    "mlflow": MlflowOptions,
}
#: Packages that each needs.
_NEEDS = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}


def read_trackers(entries: Sequence[Entry]) -> dict[str, Options]:
    """Name -> options of all that are told of a study.

    Raises:
        EntryError: P102 or P103, what is wrong with an entry.
    """
    found = dict[str, Options]()
    for position, entry in enumerate(entries):
        place = ("tracking", position)
        name, given = split_entry(entry, place, "tracker")
        if name not in KINDS:
            raise EntryError("P103", f"{name!r} is no tracker.", nearest(str(name), list(KINDS)), place=place)
        if name in found:
            raise EntryError("P102", f"The tracker {name} is there twice.", "Give it once.", place=place)
        check_keys(KINDS[name], given, (*place, name))
        try:
            found[name] = KINDS[name].model_validate(given)
        except ValidationError as error:
            raise first_entry_error(error, given, (*place, name)) from None
        one = found[name]
        if isinstance(one, MlflowOptions) and one.uri is not None:
            _check_uri(one.uri, (*place, name, "uri"))
    return found


def _check_uri(uri: str, place: tuple[Any, ...]) -> None:
    parts = urlsplit(uri)
    if "://" not in uri or parts.scheme == "file":
        raise EntryError("P102", f"`uri`: got {uri!r}; expected https://SERVER or sqlite:///FILE.",
                         "MLflow no longer writes folders of files. Leave it out for a file beside the results.",
                         place=place)  # fmt: skip
    if parts.scheme in ("http", "https") and "@" in parts.netloc:
        raise EntryError("P102", "`uri` has a password or name in it, and study files are passed on.",
                         "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
                         place=place)  # fmt: skip


def beside_results(options: Options) -> bool:
    """Whether what is tracked is kept beside the results."""
    return (options.folder if isinstance(options, TensorBoardOptions) else options.uri) is None


def check_installed(names: Sequence[str]) -> None:
    """Whether all that is needed to track is installed.

    Raises:
        StudyError: P503 with what is missing.
    """
    for name in names:
        missing = [package for package in _NEEDS[name] if find_spec(package) is None]
        if missing:
            packages = f"package{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
            raise StudyError("P503", f"`tracking: [{name}]` needs the {packages}.",
                             f"Run: pip install 'polyclinic[{name}]', or leave it out.")  # fmt: skip
