"""Checklists for reporting a study, answered from its results folder as far as that goes."""

from polyclinic.study.report.checklists.claim import CLAIM
from polyclinic.study.report.checklists.federated import FEDERATED
from polyclinic.study.report.checklists.items import Answer, Checklist, answered
from polyclinic.study.report.checklists.tripod_ai import TRIPOD_AI

#: Name on the command line -> checklist.
CHECKLISTS = {one.name: one for one in (FEDERATED, TRIPOD_AI, CLAIM)}

__all__ = ["CHECKLISTS", "Answer", "Checklist", "answered"]
