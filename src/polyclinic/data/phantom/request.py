"""What a user asks of ``polyclinic phantom``, checked."""

from __future__ import annotations

from dataclasses import dataclass

from polyclinic.data.phantom.phantom import Phantom, scanners_of
from polyclinic.data.phantom.scanner import EFFECTS
from polyclinic.data.phantom.write import FORMS, Wanted
from polyclinic.errors import DataError, nearest

#: People at each site.
SUBJECTS, SURVEY_SUBJECTS = 40, 200
#: Voxel size of the survey's images, which are measured and not kept.
SURVEY_SPACING = 2.0
SURVEY_SITES = ("1.5T", "3T")


@dataclass(frozen=True)
class Request:
    """Which phantoms to make, how many, and in what form."""

    phantom: Phantom
    subjects: int
    wanted: Wanted


def read_request(
    *,
    sites: int,
    subjects: int | None,
    form: str,
    seed: int,
    spacing: float,
    dose: float,
    prevalence: str,
    effects: str,
    maps: bool,
    table_only: bool,
    survey: bool,
) -> Request:
    """Turn the options of the command into a request.

    With ``survey`` there are two sites, one of 1.5 T and one of 3 T scanners, and tables alone are written.

    Raises:
        DataError: P102 or P103 for an option that does not fit.
    """
    if form not in FORMS:
        raise DataError("P103", f"{form!r} is no form of images.", nearest(form, list(FORMS)))
    chosen = {"all": EFFECTS, "none": ()}.get(effects)
    if chosen is None:
        chosen = tuple(name.strip() for name in effects.split(",") if name.strip())
    shares = _numbers(prevalence)
    if survey:
        return survey_request(subjects, seed=seed, dose=dose, prevalence=shares, effects=chosen, maps=maps)
    phantom = Phantom(seed, sites=sites, spacing=spacing, dose=dose, prevalence=shares, effects=chosen)
    return Request(phantom, subjects or SUBJECTS, Wanted(None if table_only else form, maps))


def survey_request(
    subjects: int | None = None,
    *,
    seed: int = 0,
    dose: float = 1.0,
    prevalence: tuple[float, ...] = (0.5,),
    effects: tuple[str, ...] = EFFECTS,
    spacing: float = SURVEY_SPACING,
    maps: bool = False,
) -> Request:
    """The tables of the survey's experiment: a site with a 1.5 T scanner and one with a 3 T scanner, no images."""
    phantom = Phantom(
        seed, sites=SURVEY_SITES, spacing=spacing, dose=dose, prevalence=prevalence, effects=effects,
        scanners=(scanners_of(1.5)[0], scanners_of(3.0)[0]),
    )  # fmt: skip
    return Request(phantom, subjects or SURVEY_SUBJECTS, Wanted(None, maps))


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        hint = "Give one number between 0 and 1, or one for each site: --prevalence 0.5,0.2"
        raise DataError("P102", f"--prevalence {text!r} is not a list of numbers.", hint) from None
