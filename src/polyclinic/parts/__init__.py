"""Parts with two ends: what a method is made of, and what a plug-in adds.

A part is named in a study file, under ``local``, ``channel`` or ``server``. It has an end at every site and an end at the
server; most parts need only one of them. Neither the loop of rounds nor a site knows any part: they call the hooks.
"""

from polyclinic.parts.catalogue import CHANNEL_PARTS, LOCAL_PARTS, SERVER_PARTS, Part, ServerPart, SitePart
from polyclinic.parts.building import PLACES, build_part, part_class
from polyclinic.parts.grouping import FEDERATION, TOPOLOGIES, Grouping, Groups, Turn
from polyclinic.parts.procedure import PROCEDURES, Answered, Procedure, Stage
from polyclinic.parts.server_end import Aggregation, Ask, Now, ServerEnd, Step, Update
from polyclinic.parts.site_end import Batch, Ended, Memory, SiteEnd, SiteView

__all__ = [
    "FEDERATION",
    "PLACES",
    "PROCEDURES",
    "TOPOLOGIES",
    "Answered",
    "Grouping",
    "Groups",
    "Procedure",
    "Stage",
    "Turn",
    "build_part",
    "part_class",
    "CHANNEL_PARTS",
    "LOCAL_PARTS",
    "SERVER_PARTS",
    "Aggregation",
    "Ask",
    "Batch",
    "Ended",
    "Memory",
    "Now",
    "Part",
    "ServerEnd",
    "ServerPart",
    "SiteEnd",
    "SitePart",
    "SiteView",
    "Step",
    "Update",
]
