"""The public set of a study: which methods work on it, and where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

from polyclinic.data.dataset import Dataset
from polyclinic.data.opening.cohort import Cohort
from polyclinic.methods import Method
from polyclinic.parts import build_part
from polyclinic.study.declaration import Declaration


@dataclass(frozen=True)
class Public:
    """What trainings are given of it.

    Attributes:
        size: how many cases it has, and numbers of the network's output of one.
        prepared: gives it as it is prepared for the fold that the sites are prepared for; None where the coordinator
            has no copy.
    """

    size: tuple[int, int]
    prepared: Callable[[], Dataset | None]


def public_of(cohort: Cohort, outputs: int, prepared: Callable[[], Dataset | None], *, masks: bool) -> Public | None:
    """What trainings are given of the public set; None without one.

    Args:
        cohort: what is known of the sites.
        outputs: of the network, for each place of an image where these are ``masks``.
        prepared: see `Public`.
        masks: whether outputs are images.
    """
    if cohort.public is None:
        return None
    return Public((cohort.public.used, outputs * (prod(cohort.shape[1:]) if masks else 1)), prepared)


def works_on_public(method: Method) -> bool:
    """Whether a part of a method works on the public set, anywhere."""
    return any(build_part(name, options).needs_public for name, options in method.parts)


def public_at_server(declaration: Declaration) -> bool:
    """Whether something is computed on the public set at the server."""
    methods = [one.method.method for method in declaration.study_methods for one in declaration.candidates(method)]
    parts = [build_part(name, options) for method in methods for name, options in method.parts]
    return any(part.at_server().needs_public for part in parts)


def inside(path: str) -> bool:
    """Whether a relative path stays below where it starts; links there, which the folder's owner made, are followed."""
    return not Path(path).is_absolute() and ".." not in Path(path).parts
