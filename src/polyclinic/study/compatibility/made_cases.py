"""Methods that make cases: of what, and from what."""

from __future__ import annotations

from polyclinic.client.synthesis.made_cases import MadeCases
from polyclinic.methods import Method
from polyclinic.parts import build_part
from polyclinic.study.compatibility.refusing import Local, Refusal
from polyclinic.tasks import TASKS


def made_cases(method: Method, local: Local) -> Refusal | None:
    """Masks that are not said to leave, or can't; and what means nothing for them."""
    name, options = method.procedure
    making = build_part(name, options)
    if not isinstance(making, MadeCases):
        return None
    if TASKS[local.task].target != "masks":
        if making.masks is None:
            return None
        return Refusal(f"`masks` is for segmentation, and the task is {local.task}.", "Leave it out.", "masks")
    if making.masks is None:
        return Refusal(f"{name} makes images from masks, of which each site gives some of its patients' to the server, "
                       "and it is not said how many.", "Say it, as `masks: 32`, or leave the method out.",
                       "procedure")  # fmt: skip
    if making.balanced:
        return Refusal("`balanced` is about classes of cases, and images are made from masks.", "Leave it out.",
                       "balanced")  # fmt: skip
    if local.partial:
        return Refusal(f"{name} makes images from masks that say of every pixel what it is, and some sites did not "
                       "outline all structures (`structures`).", "Leave the method out, or these sites.",
                       "procedure")  # fmt: skip
    return None
