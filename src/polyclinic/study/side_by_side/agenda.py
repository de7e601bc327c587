"""Which trainings a study has, and which of them comes next where several are run at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence

from polyclinic.audit.poisoning import Attack
from polyclinic.study.declaration import Declaration
from polyclinic.study.job import Fold, Job
from polyclinic.study.method_entries import StudyMethod
from polyclinic.study.search import Searching
from polyclinic.study.shared_budget import sharing


def trainings(
    declaration: Declaration, search: Searching, attack: Attack | None, folds: Mapping[int, Fold]
) -> list[Job]:  # fmt: skip
    """All trainings; the trials of a search come before what is tested with the values that it chooses.

    Args:
        declaration: the study.
        search: its searches, which are planned here.
        attack: what is done to which sites.
        folds: what is known of the sites in each fold.
    """
    shared: dict[tuple[str, ...], list[StudyMethod]] = {}
    for method in declaration.study_methods:
        key = tuple(one.method.course for one in declaration.candidates(method))
        shared.setdefault(key, []).append(method)
    groups = [tuple(methods) for methods in shared.values()]
    unseen = [m for m in declaration.study_methods if declaration.is_unseen(m)]
    jobs = search.once(groups) if declaration.fold_numbers else []
    for number, fold in [(number, folds[number]) for number in declaration.fold_numbers]:
        jobs += search.within(groups, number)
        for seed in declaration.all_seeds:
            jobs += [Job(methods, seed, number) for methods in groups]
            jobs += [
                Job(methods, seed, number, attacked=True)
                for methods in groups
                if attack is not None and attack.applies_to(methods[0].method.scope)
            ]
        if len(fold.training_sites) < 2:
            continue
        for site in fold.tested_sites:  # site after site, since each is left out of the preparation, too
            jobs += search.within([(method,) for method in unseen], number, site)
            jobs += [Job((method,), s, number, without=site) for s in declaration.all_seeds for method in unseen]
    if declaration.final_model is not None:
        (method,) = [one for one in declaration.study_methods if one.label == declaration.final_model.method]
        jobs.append(Job((method,), declaration.all_seeds[0], declaration.final_fold, final=True))
    return sharing(declaration, jobs, folds)


class Agenda:
    """Hands out trainings to several workers, each in a thread of its own.

    A training is handed out when those that it needs are done. A worker gets one for which its sites are prepared, if
    there is one; else one for which nobody's are.

    Args:
        needs: of each training, the numbers of those before it whose results it needs.
        stands: of each, what its sites have to be prepared for.
        done: those that were done before.

    Attributes:
        stands: as given.
    """

    def __init__(self, needs: Sequence[Collection[int]], stands: Sequence[Hashable], done: Collection[int]) -> None:
        self.stands = stands
        self._needs, self._done = needs, set(done)
        self._left = [number for number in range(len(needs)) if number not in self._done]
        self._working = Counter[Hashable]()
        self._stopped = False
        self._changed = threading.Condition()

    def take(self, stand: Hashable = None) -> int | None:
        """The number of the next training for a worker whose sites are prepared for ``stand``. It waits until there is
        one; None where nothing is left.
        """
        with self._changed:
            while self._left and not self._stopped:
                ready = [number for number in self._left if self._done.issuperset(self._needs[number])]
                if ready:
                    found = min(ready, key=lambda number: self._places(number, stand))
                    self._left.remove(found)
                    self._working[self.stands[found]] += 1
                    return found
                self._changed.wait()
            return None

    def finish(self, number: int) -> None:
        """A training is done."""
        with self._changed:
            self._done.add(number)
            self._working[self.stands[number]] -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """Nothing more is handed out."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _places(self, number: int, stand: Hashable) -> tuple[bool, int, int]:
        own = self.stands[number]
        return own != stand, self._working[own], number
