"""How many trainings go side by side, as a person asks for it."""

from __future__ import annotations

from importlib.util import find_spec

from polyclinic.errors import StudyError
from polyclinic.study.entries import EngineOptions

#: Why there are not both.
BOTH = (
    "With `mode: processes` the sites of one training are shared out among the cores, so that trainings can't go side "
    "by side as well."
)


def wanted_jobs(options: EngineOptions, asked: int | str | None) -> int | None:
    """How many jobs are to be run side by side; None leaves it to the planner.

    Args:
        options: what the study file says.
        asked: what goes before that: a number, perhaps as text, or ``auto``; None for nothing.

    Raises:
        StudyError: P102, it is neither; P104, sites are to be shared out among processes, too.
    """
    wanted = options.jobs if asked is None else asked
    if wanted == "auto":
        return None
    number = int(wanted) if isinstance(wanted, str) and wanted.isascii() and wanted.isdigit() else wanted
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise StudyError("P102", f"`jobs`: got {wanted!r}; expected a whole number from 1 on, or 'auto'.",
                         "It says how many trainings go side by side, such as --jobs 2.")  # fmt: skip
    if number > 1 and options.mode == "processes":
        raise StudyError("P104", BOTH, "Use `mode: auto`, or one training at a time (`jobs: 1`).")
    return number


def check_ray(options: EngineOptions) -> None:
    """Whether the entry `ray` fits the others.

    Raises:
        StudyError: P104, it does not; P503, Ray is missing.
    """
    asked = options.ray
    if asked is None:
        return
    if options.mode == "processes":
        raise StudyError("P104", f"On a cluster trainings go side by side. {BOTH}", "Use `mode: auto`.")
    if asked.gpus and not options.device.startswith(("auto", "cuda")):
        raise StudyError("P104", f"`ray: {{gpus: {asked.gpus:g}}}` and `device: {options.device}` exclude each other.",
                         "Leave one of the two out.")  # fmt: skip
    if asked.gpus and ":" in options.device:
        raise StudyError("P104", f"On a cluster Ray chooses the GPU, and not `device: {options.device}`.",
                         "Use `device: cuda`.")  # fmt: skip
    if not asked.gpus and options.device.startswith("cuda"):
        raise StudyError("P104", f"`device: {options.device}` needs a GPU, and `ray` gives trainings none.",
                         "Say how much of one each takes, such as `ray: {gpus: 1}`.")  # fmt: skip
    if find_spec("ray") is None:
        raise StudyError("P503", "Trainings on a cluster need the package ray.", "pip install 'polyclinic[cluster]'")
