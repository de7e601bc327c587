"""Sites at which no training case has a label: who trains there."""

from __future__ import annotations

from polyclinic.methods import Method
from polyclinic.parts import PROCEDURES, build_part
from polyclinic.parts.site_end import looks_at_labels


def pretrains_only(method: Method) -> bool:
    """Whether a site without labels, if it has a part in a method's trainings, has it in their pretraining alone."""
    parts = [build_part(name, options) for name, options in method.parts]
    others = [part for part in parts if not part.pretraining_rounds]
    return len(others) < len(parts) and not any(part.at_site().learns_alone for part in others)


def why_left_out(method: Method) -> str:
    """Why a site without labels has no part in a method's trainings; empty if it has."""
    if method.scope == "sites":
        return "each site trains a model by itself"
    ends = {name: build_part(name, options).at_site() for name, options in method.parts}
    if not any(end.learns_alone for end in ends.values()):
        return "nothing in it learns without labels"
    if not PROCEDURES[method.procedure[0]](**method.procedure[1]).trains:
        return f"with {method.procedure[0]} sites do not train by themselves"
    needing = [name for name, end in ends.items() if looks_at_labels(end)]
    return f"{', '.join(needing)} {'looks' if len(needing) == 1 else 'look'} at labels of each site" if needing else ""
