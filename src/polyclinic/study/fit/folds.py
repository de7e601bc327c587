"""Whether every split leaves what methods need: cases, sites, and patients."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from polyclinic.audit.poisoning import Attack
from polyclinic.client.work import check_batches
from polyclinic.errors import StudyError
from polyclinic.parts import Hiding, ServerEnd, build_part
from polyclinic.secure.sums import check_enough
from polyclinic.state import FlatModule
from polyclinic.study.compatibility import models_per_network
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold
from polyclinic.study.method_entries import StudyMethod, build_participation
from polyclinic.study.planning import built


def check_folds(
    declaration: Declaration, folds: Mapping[int, Fold], attack: Attack | None, network: FlatModule
) -> None:
    """Check all splits before the first training: better said now than in the middle of a study.

    Args:
        declaration: of the study.
        folds: number -> what is known of the sites after the split.
        attack: what is done to some sites.
        network: of the study.

    Raises:
        StudyError: P102 or P104, see below.
        SiteError: P402, see below.
        TrainingError: P302, see below.
    """
    check_left_cases(attack, folds)
    check_enough_sites(declaration, folds)
    _check_single_cases(declaration, folds, network)
    check_delta(declaration, folds)


def _check_single_cases(declaration: Declaration, folds: Mapping[int, Fold], network: FlatModule) -> None:
    """Batch normalisation needs two cases in each batch that a site trains on.

    Raises:
        TrainingError: P302 with the site that has one.
    """
    for method in declaration.configurations:
        parts = [*built(method.method).values(), build_part(*method.method.procedure)]
        if method.method.scope == "pool" or any(part.at_site().spares_model for part in parts):
            continue
        for fold in folds.values():
            for site in fold.trains(method.method):
                if fold.train[site] and site not in declaration.own_networks:
                    check_batches(site, [fold.train[site]], network.module)


def check_left_cases(attack: Attack | None, folds: Mapping[int, Fold]) -> None:
    """A corrupt site must have cases to train on.

    Raises:
        StudyError: P104 with the site that has none.
    """
    if attack is None or attack.changes_updates:
        return
    for fold in folds.values():
        left = fold.corrupted(attack).train
        empty = [site for site in fold.training_sites if not left[site]]
        if empty:
            raise StudyError(
                "P104", f"`attack: {{{attack.name}: ...}}` leaves {empty[0]} without training cases.",
                "Choose another site or class.",
            )  # fmt: skip
        bare = [site for site in fold.sites_without_labels if site in attack.names]
        if bare and attack.corruption().of_labels:
            raise StudyError(
                "P104", f"`attack: {{{attack.name}: ...}}` changes labels, and {bare[0]} has none to train on.",
                "Choose another site or attack.",
            )  # fmt: skip


def check_enough_sites(declaration: Declaration, folds: Mapping[int, Fold]) -> None:
    """Rules that must outvote some sites need enough of them: better said now than in the middle of a study.

    Raises:
        StudyError: P104 with the method and the sites that it needs.
        SiteError: P402, there are too few for sums that hide what a site has.
    """

    def there(method: StudyMethod) -> int:
        return min(len(fold.trains(method.method)) for fold in folds.values())

    for method in declaration.configurations:
        if declaration.hides_of(method.method):
            check_enough(there(method) - 1 if declaration.is_unseen(method) else there(method))
    for method in declaration.configurations:
        if method.method.scope != "federation":
            continue
        trained = there(method)
        sites = trained - 1 if declaration.is_unseen(method) else trained
        sites = min(sites, *(part.most or sites for part in build_participation(method.training)), sites)
        same = _with_the_same_network(method, declaration, folds)
        ends = {name: part.at_server() for name, part in built(method.method).items()}
        hiding = next((end for end in ends.values() if isinstance(end, Hiding)), None)
        if hiding is not None:
            _check_sums(method, ends, hiding.sums(sites), sites)
        for name, end in ends.items():
            if end.least > same:
                raise StudyError(
                    "P104", f"{method.label} needs the answers of {end.least} sites with the same network "
                    f"({name}), and of one there {'is' if same == 1 else 'are'} {same} (`networks: ...`).",
                    "Give its rule smaller numbers, or leave it out.",
                )  # fmt: skip
            if end.least > sites:
                hint = "Give its rule smaller numbers, or choose `median`, `geometric_median` or `dos`."
                if isinstance(end, Hiding):
                    hint = (
                        "A sum of few tells of single sites (of two, each knows the other's update): let more take part"
                    )
                    hint += f", or allow it: `{name}: {{least: {sites}}}`." if sites > 1 else "."
                raise StudyError(
                    "P104", f"{method.label} needs the answers of {end.least} sites in each round, and {sites} "
                    "take part" + (" where one is left out." if sites < trained else "."), hint,
                )  # fmt: skip


def _with_the_same_network(method: StudyMethod, declaration: Declaration, folds: Mapping[int, Fold]) -> float:
    """How many sites there are at least of a network, where those with the same one share a model."""
    if not (declaration.own_networks and models_per_network(method.method)):
        return math.inf
    named = [[str(declaration.own_networks.get(s)) for s in fold.trains(method.method)] for fold in folds.values()]
    least = min(count for names in named for count in Counter(names).values())
    return least - 1 if declaration.is_unseen(method) and least > 1 else least


def _check_sums(method: StudyMethod, ends: Mapping[str, ServerEnd], sums: int, sites: int) -> None:
    """Rules that compare updates see sums of groups where single ones are hidden: of one sum there is nothing to
    compare, and the rule would be the mean under another name."""
    for name, end in ends.items():
        needed = 0 if isinstance(end, Hiding) else max(end.least, 2 if end.needs_each else 0)
        if needed > sums:
            raise StudyError(
                "P104", f"{method.label} needs {needed} updates to compare ({name}), and `group_size` makes {sums} "
                f"group{'s' * (sums > 1)} of {sites} sites, with a sum of each.",
                "Give a smaller `group_size` (it is never below `least`), or the rule smaller numbers.",
            )  # fmt: skip


def check_delta(declaration: Declaration, folds: Mapping[int, Fold]) -> None:
    """With a δ of 1/n or more, a guarantee allows that one of n patients is told of in full.

    Raises:
        StudyError: P102 with the number of patients or sites.
    """
    units = {part.private for method in declaration.configurations for part in built(method.method).values()}
    delta, found = declaration.privacy.delta, list[tuple[int, str]]()
    for fold in folds.values():
        for site in fold.training_sites if "a patient" in units else ():
            found.append((fold.counted[site].patients[0], f"training patients of site {site}"))
        if "a site" in units:
            trained = max(len(fold.trains(method.method)) for method in declaration.configurations)
            found.append((trained, "sites"))
    most, who = max(found, default=(0, ""))
    if delta * most >= 1:
        raise StudyError(
            "P102", f"`privacy: {{delta: {delta:g}}}` is not below 1/{most}, one by the number of {who}: all of one of "
            "them could be told.", "Give a lower one: 1e-5, or what is far below.",
        )  # fmt: skip
