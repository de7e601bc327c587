"""What a study that a site agreed to may ask of it: the trainings that its file declares, and no others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from polyclinic.client.work import Work
from polyclinic.data.masks.entries import unannotated
from polyclinic.data.opening.agreement import Agreement, fixed_classes
from polyclinic.data.opening.census import Census, code_columns
from polyclinic.data.preparation import name_steps
from polyclinic.data.tables.codes import scalar_text
from polyclinic.methods import SHARES
from polyclinic.parts import build_part
from polyclinic.site.messages import Agree, Open, Prepare, Retain, Start, Train
from polyclinic.study.compatibility import trains_apart
from polyclinic.study.declaration import Declaration
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.planning import work_of


class Agreed:
    """A study as a site agreed to it.

    Args:
        declaration: the study.
        site: the site's name in it.

    Attributes:
        census: what the site said of its rows, once it did.
        agreement: what all sites agreed on, once the site was told: once in a run of the study.
    """

    def __init__(self, declaration: Declaration, site: str) -> None:
        self.declaration, self.site = declaration, site
        self.census = Census(found=0, usable=0, labelled=0)
        self.agreement: Agreement | None = None
        methods = [one.method for method in declaration.study_methods for one in declaration.candidates(method)]
        final = declaration.final_model
        self.rounds = max(*(method.training.rounds for method in methods), 0 if final is None else final.rounds or 0)
        self._trainings = {_text(training) for method in methods for training in self._declared(method)}

    def refusal(self, asked: object) -> str:
        """What is wrong with a message, in words; empty if the study has it, or it says nothing that could be wrong."""
        match asked:
            case Open():
                return "" if asked == self._opening else "a message asks for other data than the study"
            case Agree():
                if asked.usual and self.declaration.privacy.summaries is not None:
                    return "a message asks for usual values of features, which the study hides"
                if wrong := self._disagrees(asked.agreement):
                    return f"a message agrees on other {wrong} than the study and the site have"
                if self.agreement not in (None, asked.agreement):
                    return "a message agrees on something else than one before"
                self.agreement = asked.agreement
            case Prepare():
                if not self._splits(asked):
                    return "a message splits the cases in another way than the study"
                return "" if self._prepares(asked) else "a message prepares the cases in another way than the study"
            case Start():
                return "" if self._starts(asked) else "a message starts another training than the study has"
            case Train():
                return "" if asked.round < self.rounds else f"a message asks for more rounds than {self.rounds}"
            case Retain():
                return "" if self.declaration.final_model is not None else "a message makes a model, and the study none"
        return ""

    @property
    def _opening(self) -> Open:
        wanted, evaluation = self.declaration, self.declaration.evaluation
        return Open(
            data=wanted.data, target=wanted.target, split=evaluation.split, plan=wanted.wants_plan,
            subgroups=evaluation.subgroups, until=wanted.until,
        )  # fmt: skip

    def _disagrees(self, asked: Agreement) -> str:
        """What sites can't have agreed on; empty for nothing.

        Columns that the study does not use, such as that of the patients, would be told of as features are.
        """
        spec, census, target = self.declaration.data, self.census, self.declaration.target
        combat = spec.harmonisation.combat
        covariates = set(combat.covariates) if combat is not None else set()
        coded = {*code_columns(spec, asked.features), *covariates}
        listed = {name: [scalar_text(value) for value in spec.categories[name]] for name in spec.categories}
        fixed = fixed_classes(spec, target)
        found = {
            "features": set(asked.features) <= {*census.features, *census.counters},
            "values": asked.values.keys() <= coded
            and asked.spellings.keys() <= coded
            and all(asked.values[name] == values for name, values in listed.items() if name in asked.values),
            "covariates": set(asked.numeric) <= covariates,
            "classes": (fixed is None or asked.classes == fixed) and (asked.labels is None) == (fixed is not None),
            "subgroups": asked.subgroups.keys() == {one.column for one in self.declaration.evaluation.grouped_by},
            "volumes": self.declaration.wants_plan
            or (asked.preprocessing, asked.patch) == (spec.preprocessing, spec.planned_patch),
        }
        return next((what for what, right in found.items() if not right), "")

    def _prepares(self, asked: Prepare) -> bool:
        if self.agreement is None:
            return False
        spec = self.agreement.prepared(self.declaration.data)
        features, covariates = self.agreement.features_encoded(spec), self.agreement.covariates_encoded(spec)
        steps = name_steps(spec, features, covariates)
        found = (asked.steps, asked.augmentation, asked.classes, asked.patch, asked.hides, asked.most)
        hides, most = self.declaration.privacy.summaries is not None, spec.bags.most if spec.bags else None
        return _text(found) == _text(
            (steps, spec.augmentation, len(self.agreement.classes), spec.planned_patch, hides, most)
        )

    def _splits(self, asked: Prepare) -> bool:
        """With splits of other kinds groups of patients could be told from each other, down to single ones."""
        declaration, wanted = self.declaration, self.declaration.evaluation
        final = asked.fold == declaration.final_fold and declaration.final_model is not None
        validation = declaration.final_validation if final else wanted.validation
        found = (
            asked.folds, asked.holdout, asked.validation, asked.split_seed, asked.small_sites, asked.final,
            asked.labels, asked.voters, asked.partial,
        )  # fmt: skip
        declared = (
            declaration.folds, wanted.holdout, validation, wanted.split_seed, wanted.small_sites, final,
            declaration.data.labels, wanted.voters,
            unannotated(declaration.data) if declaration.data.structures else {},
        )  # fmt: skip
        return found == declared and (final or asked.fold in declaration.fold_numbers)

    def _starts(self, asked: Start) -> bool:
        begun = self._training(
            (asked.share, asked.modules, asked.without), asked.parts, asked.personal, (asked.loss, asked.loss_options),
            (asked.model, [one.model for one in asked.networks], asked.own), asked.work, hides=asked.hides,
        )  # fmt: skip
        declared = asked.task == self.declaration.task and asked.seed in self._seeds and asked.rounds <= self.rounds
        declared = declared and asked.metrics.space == self.declaration.evaluation.space
        declared = declared and asked.heads == self.declaration.heads
        return declared and self._guarantees(asked) and _text(begun) in self._trainings

    def _guarantees(self, asked: Start) -> bool:
        """Whether noise is to guarantee what the study says. How many trainings are to come need not be known here:
        whatever the site is told, its ledger keeps them within ε."""
        if not any(build_part(name, options).private for name, options in asked.parts):
            return asked.privacy is None
        own, told = self.declaration.privacy, asked.privacy
        return told is not None and (told.epsilon, told.delta, told.over) == (own.epsilon, own.delta, own.over)

    @property
    def _seeds(self) -> set[int]:
        search = self.declaration.search_seeds if self.declaration.search else []
        return {*self.declaration.all_seeds, *search}

    def _declared(self, method: StudyMethod) -> Iterator[dict[str, Any]]:
        composed, training, shared = method.method, method.training, method.method.shared
        model, own = self.declaration.model_part, self.declaration.own_networks.get(self.site)
        networks: tuple[Any, ...] = (own or model, self.declaration.all_networks, None)
        if trains_apart(composed) or not self.declaration.own_networks:
            networks = (model, [], own)
        for mixed in (False, True):
            share = (sorted(SHARES[shared.roles]), shared.modules, shared.without)
            yield self._training(
                share, composed.parts, composed.personal, self.declaration.loss_of(training),
                networks, work_of(composed, training, [self.site], mixed=mixed),
                hides=self.declaration.hides_of(composed),
            )  # fmt: skip

    def _training(
        self, share: Any, parts: Any, personal: Any, loss: Any, networks: Any, work: Work, *, hides: bool
    ) -> dict[str, Any]:  # fmt: skip
        """What must be as declared; weights of classes come from the cases of all sites."""
        own = work.own.get(self.site)
        work = replace(work, class_weights=None, own={} if own is None else {self.site: own})
        if self.declaration.wants_plan:  # the coordinator plans these from what all sites say of their images
            work, networks = replace(work, batch_size=1), None
        return {
            "share": share, "parts": parts, "personal": personal, "loss": loss, "networks": networks, "work": work,
            "hides": hides,
        }  # fmt: skip


def _text(what: Any) -> str:
    """A text that is the same for what is the same as JSON."""
    return json.dumps(what, default=_plain, sort_keys=True)


def _plain(value: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(type(value)).dump_python(value, mode="json")
