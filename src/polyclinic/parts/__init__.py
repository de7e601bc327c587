"""Parts with two ends: what a method is made of, and what a plug-in adds.

A part is named in a study file, under ``local``, ``channel`` or ``server``. It has an end at every site and an end at
the server; most parts need only one of them. Neither the loop of rounds nor a site knows any part: they call the hooks.
"""

from polyclinic.parts.building import (
    PLACES,
    build_chain,
    build_part,
    build_parts,
    part_class,
    pretraining_of,
    tell_parts,
    variant_of,
)
from polyclinic.parts.catalogue import CHANNEL_PARTS, LOCAL_PARTS, SERVER_PARTS, Part, ServerPart, SitePart
from polyclinic.parts.grouping import FEDERATION, TOPOLOGIES, Grouping, Groups, Turn
from polyclinic.parts.predictor import Network, Predictor
from polyclinic.parts.procedure import PROCEDURES, Answered, Made, Procedure, Stage
from polyclinic.parts.server_end import (
    Aggregation,
    Ask,
    Hiding,
    Now,
    ServerEnd,
    Step,
    Sum,
    Update,
    Workplace,
    all_answers,
)
from polyclinic.parts.site_end import Batch, Ended, Memory, SiteEnd, SiteView

__all__ = [
    "CHANNEL_PARTS",
    "FEDERATION",
    "LOCAL_PARTS",
    "PLACES",
    "PROCEDURES",
    "SERVER_PARTS",
    "TOPOLOGIES",
    "Aggregation",
    "Answered",
    "Ask",
    "Batch",
    "Ended",
    "Grouping",
    "Groups",
    "Hiding",
    "Made",
    "Memory",
    "Network",
    "Now",
    "Part",
    "Predictor",
    "Procedure",
    "ServerEnd",
    "ServerPart",
    "SiteEnd",
    "SitePart",
    "SiteView",
    "Stage",
    "Step",
    "Sum",
    "Turn",
    "Update",
    "Workplace",
    "all_answers",
    "build_chain",
    "build_part",
    "build_parts",
    "part_class",
    "pretraining_of",
    "tell_parts",
    "variant_of",
]
