"""What is done to a site's inputs before training, as a chain of steps.

Each step is fitted on training cases only. A step may need summaries of all sites: then every site *shares* tensors,
the coordinator *merges* those of the sites that train, and every site *applies* the step with what came out. Other
steps are applied by each site alone. The next step sees what the last one made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from polyclinic.data import combat, scaling
from polyclinic.data.bags import Bags
from polyclinic.data.cases import SiteData
from polyclinic.data.scaling import Scaler, Summary, merge, summarise
from polyclinic.data.spec import DataSpec
from polyclinic.data.statistics import LEAST_CASES
from polyclinic.data.volumes.intensity import LANDMARKS
from polyclinic.data.volumes.standardisation import landmarks
from polyclinic.data.volumes.store import Volumes
from polyclinic.errors import DataError
from polyclinic.options import split_entry
from polyclinic.shapes import Shaped

Tensors = dict[str, Tensor]
#: Count, mean and sum of squared deviations of each feature or channel.
SUMMARY: Mapping[str, Shaped] = {name: Shaped("float64", "F") for name in ("count", "mean", "m2")}
#: Name and options of a step, as JSON values.
Named = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Prepared:
    """A site's cases between two steps.

    Attributes:
        data: the cases; steps for tables replace its inputs.
        train: int64 ``[N_train]``, the only cases that a step is fitted on.
        scaler: the scaling that the last step found, if it was one; applied when cases are used.
        standard: landmarks ``[C, L]`` to which the intensities of volumes are brought, or None.
        notes: sentences for the report.
        fitted: of each step that was taken, what it was taken with: see `Step.fit`.
        own: whether one of them was fitted on these cases.
    """

    data: SiteData
    train: Tensor
    scaler: Scaler | None = None
    standard: Tensor | None = None
    notes: tuple[str, ...] = ()
    fitted: tuple[Tensors, ...] = ()
    own: bool = False

    @property
    def values(self) -> Tensor | Volumes:
        """What steps are fitted on and change: the inputs, or the instances of all bags, each counting once."""
        return self.data.values

    @property
    def places(self) -> Tensor:
        """Where the training cases are among `values`."""
        inputs = self.data.inputs
        return inputs.places(self.train) if isinstance(inputs, Bags) else self.train

    @property
    def covariates(self) -> Tensor:
        """The covariates of `values`, float64 ``[N, K]``."""
        found, inputs = self.data.covariates, self.data.inputs
        if found is None:
            return torch.empty(len(self.values), 0, dtype=torch.float64)
        return found.repeat_interleave(inputs.counts, dim=0) if isinstance(inputs, Bags) else found


class Step(ABC):
    """One step of the chain. Its options are JSON values; the same object is made at the sites and the coordinator."""

    def apply(self, prepared: Prepared, merged: Tensors) -> Prepared:
        """The step at one site: fitted on its training cases, then taken by all."""
        own, notes = prepared.own or self.is_own(prepared), (*prepared.notes, *self.notes(prepared))
        return self.take(replace(prepared, own=own, notes=notes), self.fit(prepared, merged))

    @abstractmethod
    def fit(self, prepared: Prepared, merged: Tensors) -> Tensors:
        """All that the step needs to know of this site and of the others, from the training cases here.

        Args:
            prepared: the cases.
            merged: what all sites got, see `SharedStep`; empty for a step that each site takes alone.
        """

    def take(self, prepared: Prepared, fitted: Tensors) -> Prepared:
        """The step with what ``fit`` gave, here or on other cases before."""
        return self.change(replace(prepared, fitted=(*prepared.fitted, fitted)), fitted)

    @abstractmethod
    def change(self, prepared: Prepared, fitted: Tensors) -> Prepared:
        """What the step makes of the cases."""

    def notes(self, prepared: Prepared) -> list[str]:
        """Sentences for the report."""
        return []

    def is_own(self, prepared: Prepared) -> bool:
        """Whether what ``fit`` gives depends on the cases here, so that each site has its own."""
        return False

    def needs_cases(self, prepared: Prepared) -> bool:
        """Whether these cases can't take the step without what ``fit`` gave of others of their site."""
        return self.is_own(prepared)


class SharedStep(Step):
    """A step that needs summaries of all sites.

    Where nobody is to see a site's own, they are put together from sums over sites: first `sums`, then, if there is a
    `centre`, also `sums_about` it.

    Attributes:
        shares: tensors that a site sends.
        merges: tensors that all sites get.
        summed, centres, about: those that are added up first, that all sites are told of it, and that are added then.
    """

    shares: ClassVar[Mapping[str, Shaped]]
    merges: ClassVar[Mapping[str, Shaped]]
    summed: ClassVar[Mapping[str, Shaped]]
    centres: ClassVar[Mapping[str, Shaped]] = {}
    about: ClassVar[Mapping[str, Shaped]] = {}

    @abstractmethod
    def share(self, prepared: Prepared) -> Tensors:
        """What the site sends, from its training cases."""

    @abstractmethod
    def merge(self, shared: Mapping[str, Tensors]) -> tuple[Tensors, list[str]]:
        """What all sites get, and sentences for the report, from what the sites that train sent, in site order.

        Raises:
            DataError: the step is impossible with these sites.
        """

    @abstractmethod
    def sums(self, prepared: Prepared) -> Tensors:
        """What the site adds to a sum over the sites that train."""

    def centre(self, total: Tensors) -> Tensors:
        """What all sites are told of the sum; nothing where no other one follows."""
        return {}

    def sums_about(self, prepared: Prepared, centre: Tensors) -> Tensors:
        """What the site then adds to another one; a step that has a `centre` says it."""
        raise NotImplementedError(f"{type(self).__name__} has a centre, and no sums about it")

    @abstractmethod
    def merge_sums(self, total: Tensors, about: Tensors) -> tuple[Tensors, list[str]]:
        """As `merge`, from the sums."""

    def sizes(self, features: int) -> Mapping[str, int]:
        """Lengths of the dimensions of what is summed, where cases have so many features or channels."""
        return {"F": features}


class OwnScaling(Step):
    """Each site standardises its inputs by itself, or fills in missing values only.

    Args:
        standardise: to mean 0 and deviation 1 of the training cases.
        imputation: what a missing feature becomes: ``mean`` or ``median`` of the training cases.
    """

    def __init__(self, *, standardise: bool, imputation: str) -> None:
        self.standardise, self.imputation = standardise, imputation

    def fit(self, prepared: Prepared, merged: Tensors) -> Tensors:
        """See `Step.fit`."""
        inputs, train = prepared.values, prepared.places
        if not self.standardise and inputs.ndim > 2:
            return Scaler.identity(inputs.shape[1]).to_tensors()  # images have nothing to fill in
        summary = summarise(inputs, train)
        scaler = Scaler.from_summary(summary) if self.standardise else Scaler.identity(len(summary.mean))
        if self.imputation == "median" and isinstance(inputs, Tensor) and inputs.ndim == 2:
            return scaler.with_median(inputs, train).to_tensors()
        return scaler.with_mean(summary).to_tensors()

    def change(self, prepared: Prepared, fitted: Tensors) -> Prepared:
        """See `Step.change`."""
        return replace(prepared, scaler=Scaler.from_tensors(fitted))

    def is_own(self, prepared: Prepared) -> bool:
        """See `Step.is_own`."""
        return self.standardise or prepared.values.ndim == 2

    def needs_cases(self, prepared: Prepared) -> bool:
        """See `Step.needs_cases`; without standardising, only what is missing is filled in."""
        inputs = prepared.values
        return self.standardise or (isinstance(inputs, Tensor) and inputs.ndim == 2 and bool(inputs.isnan().any()))


class CommonScaling(SharedStep):
    """All sites standardise by one mean and deviation; a missing feature becomes the mean."""

    shares = merges = SUMMARY
    summed: ClassVar = {name: Shaped("float64", "F") for name in ("count", "sum")}
    centres: ClassVar = {"mean": Shaped("float64", "F")}
    about: ClassVar = {name: Shaped("float64", "F") for name in ("deviation", "squares")}

    def share(self, prepared: Prepared) -> Tensors:
        """See `SharedStep.share`."""
        return summarise(prepared.values, prepared.places).to_tensors()

    def merge(self, shared: Mapping[str, Tensors]) -> tuple[Tensors, list[str]]:
        """See `SharedStep.merge`."""
        return merge([Summary.from_tensors(tensors) for tensors in shared.values()]).to_tensors(), []

    def sums(self, prepared: Prepared) -> Tensors:
        """See `SharedStep.sums`."""
        return scaling.sums(summarise(prepared.values, prepared.places))

    def centre(self, total: Tensors) -> Tensors:
        """See `SharedStep.centre`."""
        return {"mean": scaling.common_mean(total)}

    def sums_about(self, prepared: Prepared, centre: Tensors) -> Tensors:
        """See `SharedStep.sums_about`."""
        return scaling.sums_about(summarise(prepared.values, prepared.places), centre["mean"])

    def merge_sums(self, total: Tensors, about: Tensors) -> tuple[Tensors, list[str]]:
        """See `SharedStep.merge_sums`."""
        return scaling.of_sums(total, about).to_tensors(), []

    def fit(self, prepared: Prepared, merged: Tensors) -> Tensors:
        """See `Step.fit`."""
        return Scaler.from_summary(Summary.from_tensors(merged)).to_tensors()

    def change(self, prepared: Prepared, fitted: Tensors) -> Prepared:
        """See `Step.change`."""
        return replace(prepared, scaler=Scaler.from_tensors(fitted))


class ComBat(SharedStep):
    """Differences between sites are taken out of features; see `polyclinic.data.combat`.

    Args:
        columns: which columns of the inputs; the others (those encoded from categories) stay as they are.
        features: their names.
        covariates: for each covariate, the names of its columns.
        empirical_bayes: whether features of a site borrow strength from each other.
        reference_site: a site that stays as it is, or None.
    """

    shares: ClassVar = {
        **SUMMARY, "covariate_mean": Shaped("float64", "F", "K"), "cross": Shaped("float64", "F", "K"),
        "covariate_m2": Shaped("float64", "F", "K", "K"),
    }  # fmt: skip
    merges: ClassVar = {
        "grand_mean": Shaped("float64", "F"), "variance": Shaped("float64", "F"),
        "coefficients": Shaped("float64", "F", "K"), "has_reference": Shaped("bool"),
    }  # fmt: skip
    summed: ClassVar = {
        **{name: Shaped("float64", "F") for name in ("count", "sites", "sum", "m2")},
        **{name: Shaped("float64", "F", "K") for name in ("covariate_sum", "cross")},
        "covariate_m2": Shaped("float64", "F", "K", "K"),
    }  # fmt: skip
    centres: ClassVar = {"mean": Shaped("float64", "F"), "covariate_mean": Shaped("float64", "F", "K")}
    about: ClassVar = {
        **{name: Shaped("float64", "F") for name in ("deviation", "between")},
        **{name: Shaped("float64", "F", "K") for name in ("covariate_deviation", "covariate_between")},
    }

    def __init__(
        self, *, columns: Sequence[int], features: Sequence[str], covariates: Mapping[str, Sequence[str]],
        empirical_bayes: bool, reference_site: str | None,
    ) -> None:  # fmt: skip
        self.columns, self.features = torch.tensor(columns, dtype=torch.int64), list(features)
        self.covariates = [name for names in covariates.values() for name in names]
        places = iter(range(len(self.covariates)))
        self.groups = [[next(places) for _ in names] for names in covariates.values()]
        self.empirical_bayes, self.reference_site = empirical_bayes, reference_site

    def _training(self, prepared: Prepared) -> tuple[Tensor, Tensor]:
        values = _table(prepared)[:, self.columns]
        return values.index_select(0, prepared.places), prepared.covariates.index_select(0, prepared.places)

    def share(self, prepared: Prepared) -> Tensors:
        """See `SharedStep.share`."""
        return self._moments(prepared).to_tensors()

    def _moments(self, prepared: Prepared) -> combat.Moments:
        values, covariates = self._training(prepared)
        few = len(prepared.train) < LEAST_CASES  # of bags, which may have many instances
        return combat.summarise(values, covariates, len(values) + 1 if few else LEAST_CASES, self.groups)

    def merge(self, shared: Mapping[str, Tensors]) -> tuple[Tensors, list[str]]:
        """See `SharedStep.merge`. Where the reference site is left out, the mean of the others takes its place."""
        sites = {site: combat.Moments.from_tensors(tensors) for site, tensors in shared.items()}
        reference = self.reference_site if self.reference_site in sites else None
        return self._merged(*combat.estimate(sites, self.covariates, reference), reference is not None)

    def sums(self, prepared: Prepared) -> Tensors:
        """See `SharedStep.sums`."""
        return combat.sums(self._moments(prepared))

    def centre(self, total: Tensors) -> Tensors:
        """See `SharedStep.centre`."""
        return combat.common_centre(total)

    def sums_about(self, prepared: Prepared, centre: Tensors) -> Tensors:
        """See `SharedStep.sums_about`."""
        return combat.sums_about(self._moments(prepared), centre)

    def merge_sums(self, total: Tensors, about: Tensors) -> tuple[Tensors, list[str]]:
        """See `SharedStep.merge_sums`. A reference site would be seen by itself: studies with one are refused."""
        found = combat.estimate_of(combat.Total.of_sums(total, about), self.covariates)
        return self._merged(*found, has_reference=False)

    def sizes(self, features: int) -> Mapping[str, int]:
        """See `SharedStep.sizes`."""
        return {"F": len(self.columns), "K": len(self.covariates)}

    def _merged(self, found: combat.Estimate, unusable: Tensor, has_reference: bool) -> tuple[Tensors, list[str]]:
        names = [name for name, left in zip(self.features, unusable.tolist(), strict=True) if left]
        notes = []
        if names:
            are, listed = ("is", "it is") if len(names) == 1 else ("are", "they are")
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            notes.append(
                f"ComBat: {', '.join(names[:5])}{more} {are} not harmonised, because {listed} constant (perhaps once "
                "the covariates are taken into account) or known of too few cases."
            )
        return {**found.to_tensors(), "has_reference": torch.tensor(has_reference)}, notes

    def fit(self, prepared: Prepared, merged: Tensors) -> Tensors:
        """See `Step.fit`."""
        common = combat.Estimate.from_tensors(merged)
        effect = combat.SiteEffect.none(len(self.columns))
        if not (prepared.data.site == self.reference_site and merged["has_reference"]):
            effect = combat.SiteEffect.fit(*self._training(prepared), common, empirical_bayes=self.empirical_bayes)
        return {**common.to_tensors(), "shift": effect.shift, "spread": effect.spread}

    def change(self, prepared: Prepared, fitted: Tensors) -> Prepared:
        """See `Step.change`."""
        data, common = prepared.data, combat.Estimate.from_tensors(fitted)
        effect = combat.SiteEffect(fitted["shift"], fitted["spread"])
        inputs = _table(prepared).clone()
        inputs[:, self.columns] = effect.remove(inputs[:, self.columns], prepared.covariates, common).float()
        bags = data.inputs
        changed = Bags(inputs, bags.starts) if isinstance(bags, Bags) else inputs
        return replace(prepared, data=replace(data, inputs=changed))

    def is_own(self, prepared: Prepared) -> bool:
        """See `Step.is_own`."""
        return True

    def notes(self, prepared: Prepared) -> list[str]:
        """See `Step.notes`."""
        site, covariates = prepared.data.site, prepared.covariates.index_select(0, prepared.places)
        cases = len(prepared.train)
        if not cases:
            return [f"ComBat: site {site} has no training cases, so its own differences are not taken out."]
        if cases < LEAST_CASES:
            return [
                f"ComBat: site {site} has fewer than {LEAST_CASES} training cases. It shares no summary and is "
                "brought to the other sites as far as so few cases allow."
            ]
        if combat.small_groups(covariates, self.groups):
            return [
                f"ComBat: site {site} has fewer than {LEAST_CASES} training cases of a group that a covariate names. "
                "They are harmonised like all others, but they are not part of its summary."
            ]
        return []


class Landmarks(SharedStep):
    """Histograms of volumes are brought to one standard: the mean landmarks of all sites' training cases.

    Source: Nyul, Udupa, Zhang, IEEE TMI 19 (2000) 143-150; see `polyclinic.data.volumes.intensity.Nyul`.
    """

    shares: ClassVar = {"count": Shaped("float64"), "sum": Shaped("float64", "F", "L")}
    merges: ClassVar = {"standard": Shaped("float64", "F", "L")}
    summed = shares

    def share(self, prepared: Prepared) -> Tensors:
        """See `SharedStep.share`."""
        found = landmarks(prepared.values)[prepared.train]
        return {"count": torch.tensor(float(len(found)), dtype=torch.float64), "sum": found.sum(0)}

    def merge(self, shared: Mapping[str, Tensors]) -> tuple[Tensors, list[str]]:
        """See `SharedStep.merge`."""
        count = sum((tensors["count"] for tensors in shared.values()), torch.zeros((), dtype=torch.float64))
        total = torch.stack([tensors["sum"] for tensors in shared.values()]).sum(0)
        return self.merge_sums({"count": count, "sum": total}, {})

    def sums(self, prepared: Prepared) -> Tensors:
        """See `SharedStep.sums`."""
        return self.share(prepared)

    def merge_sums(self, total: Tensors, about: Tensors) -> tuple[Tensors, list[str]]:
        """See `SharedStep.merge_sums`."""
        return {"standard": total["sum"] / total["count"]}, []

    def sizes(self, features: int) -> Mapping[str, int]:
        """See `SharedStep.sizes`."""
        return {"F": features, "L": len(LANDMARKS)}

    def fit(self, prepared: Prepared, merged: Tensors) -> Tensors:
        """See `Step.fit`."""
        return {"standard": merged["standard"]}

    def change(self, prepared: Prepared, fitted: Tensors) -> Prepared:
        """See `Step.change`."""
        return replace(prepared, standard=fitted["standard"])


def _table(prepared: Prepared) -> Tensor:
    values = prepared.values
    if isinstance(values, Tensor) and values.ndim == 2:
        return values
    raise ValueError("the cases are images")


STEPS: dict[str, type[Step]] = {
    "combat": ComBat,
    "own_scaling": OwnScaling,
    "common_scaling": CommonScaling,
    "landmarks": Landmarks,
}


def build_steps(named: Sequence[Named]) -> list[Step]:
    """The steps that a message names."""
    return [STEPS[name](**options) for name, options in named]


def needs_all_sites(spec: DataSpec) -> bool:
    """Whether a step of the chain that a study file asks for needs summaries of all sites."""
    return spec.scaling == "federated" or spec.harmonisation.combat is not None or _has_landmarks(spec)


def _has_landmarks(spec: DataSpec) -> bool:
    return spec.preprocessing is not None and split_entry(spec.preprocessing.intensity, (), "")[0] == "nyul"


def name_steps(spec: DataSpec, features: Sequence[str], covariates: Mapping[str, Sequence[str]]) -> list[Named]:
    """The chain that a study file asks for.

    Args:
        spec: its ``data:`` part.
        features: names of the columns of the inputs.
        covariates: for each covariate, the names of its columns.

    Raises:
        DataError: P207, there is no feature to harmonise.
    """
    steps: list[Named] = []
    if spec.harmonisation.combat is not None:
        combat_options = spec.harmonisation.combat
        encoded = tuple(f"{name}=" for name in spec.categorical)
        columns = [place for place, name in enumerate(features) if not name.startswith(encoded)]
        if not columns:
            raise DataError(
                "P207", "All features are made from categories, and ComBat is for numbers.", "Take out `harmonisation`."
            )
        combat_step: dict[str, Any] = {
            "columns": columns,
            "features": [features[place] for place in columns],
            "covariates": {name: list(own) for name, own in covariates.items()},
            "empirical_bayes": combat_options.empirical_bayes,
            "reference_site": combat_options.reference_site,
        }
        steps.append(("combat", combat_step))
    if _has_landmarks(spec):
        steps.append(("landmarks", {}))
    if spec.scaling == "federated":
        steps.append(("common_scaling", {}))
    else:
        steps.append(("own_scaling", {"standardise": spec.scaling == "per_site", "imputation": spec.imputation}))
    return steps
