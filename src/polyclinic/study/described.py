"""What methods and parts say of themselves, written down for a report that loads none of them."""

from __future__ import annotations

from collections.abc import Iterable

from polyclinic.client.personal.models import PERSONAL
from polyclinic.methods import OWN, PUBLISHED
from polyclinic.options import first_words, source_of
from polyclinic.parts import PLACES
from polyclinic.study.method_entries import StudyMethod


def described(methods: Iterable[StudyMethod]) -> dict[str, dict[str, list[str]]]:
    """Name -> what it does and where it is from, of ``methods`` that plug-ins bring, and of ``parts`` that a study file
    adds to a method.
    """
    catalogues = {**PLACES, "personal": PERSONAL}
    found: dict[str, dict[str, list[str]]] = {"methods": {}, "parts": {}}
    for one in methods:
        published = PUBLISHED[one.name]
        if one.name not in OWN:
            found["methods"][one.name] = [published.summary, published.citation]
        for place, name in one.method.named_parts:
            if (place, name) not in published.method.named_parts:
                part = catalogues[place][name]
                found["parts"][name] = [first_words(part), source_of(part)]
    return found
