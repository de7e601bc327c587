"""Federated training as estimators of scikit-learn: tables of several sites on this machine.

``groups`` names the site of each case, ``subjects`` the patient. Everything else is as in a study: the same methods,
networks and training, with all cases in the training part and the model of the last round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data

from polyclinic.data.scaling import Scaler, merge, summarise
from polyclinic.models import build_model
from polyclinic.study.final_model.once import fit_once
from polyclinic.study.study import Study

Floats = NDArray[np.float64]
#: The site of all cases where none is named.
ONE_SITE = "site"
_TRAINING = {"rounds": 50, "optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}}


class _Federated(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor have in common.

    Args:
        method: an entry of ``methods`` of a study file: ``fedavg``, ``{"fedprox": {"mu": 0.1}}``. Personal models, that
            stay at sites, are refused.
        model: an entry ``model``, or a class or function that makes a network.
        training: entries of ``training``; default: 50 rounds of SGD with a learning rate of 0.1.
        scaling: ``federated`` (one mean and deviation of all sites), ``per_site`` or ``none``. Missing values become
            means.
        random_state: seed of the training.
    """

    _task: str

    def __init__(
        self, *, method: Any = "fedavg", model: Any = "logistic", training: Mapping[str, Any] | None = None,
        scaling: str = "federated", random_state: int | None = 0,
    ) -> None:  # fmt: skip
        self.method, self.model, self.training = method, model, training
        self.scaling, self.random_state = scaling, random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _train(self, table: Floats, targets: Sequence[Any], groups: Any, subjects: Any, classes: int) -> None:
        """Train on ``table [N, F]``."""
        sites = _names(groups, len(table), "groups")
        people = _names(subjects, len(table), "subjects") if subjects is not None else None
        columns = [f"x{number}" for number in range(table.shape[1])]
        frame = pd.DataFrame(table, columns=columns)
        frame["target"], frame["part"] = list(targets), "train"
        if people is not None:
            frame["subject"] = people
        frames = {site: frame[sites == site].reset_index(drop=True) for site in dict.fromkeys(sites.tolist())}
        data: dict[str, Any] = {"label": "target", "features": columns, "scaling": self.scaling}
        data |= {"subject": "subject"} if people is not None else {}
        data |= {"classes": list(range(classes))} if classes else {}
        study = Study.of(
            {
                "data": data, "task": self._task, "model": self.model, "methods": [self.method],
                "training": _TRAINING if self.training is None else dict(self.training),
                "evaluation": {"split": "part", "validation": 0.0, "best_round": "last", "bootstrap": 0},
                "seed": _seed(self.random_state),
            },
            data=frames,
        )  # fmt: skip
        method = study.declaration.study_methods[0].method
        if method.personal is not None:
            raise ValueError(f"{self.method!r} keeps personal models at sites; run it as a study.")
        fitted = fit_once(study)
        self.notes_ = [str(note) for note in fitted.notes]
        self.sites_ = np.array(list(frames))
        self._part, self._shape, self._outputs = study.declaration.model_part, fitted.shape, fitted.outputs
        self._own = {} if method.tests == "ensemble" else fitted.homes
        self._models = {name: vector.numpy() for name, vector in fitted.models.items()}
        self._loss, self._scale = fitted.task.loss_name, fitted.task.scale
        self._scalers = self._scalings(frames, columns)

    def _scalings(self, frames: Mapping[str, pd.DataFrame], columns: Sequence[str]) -> dict[str, Scaler]:
        """The scaling of each site, as its training had it; under "" that of other sites, if there is one for all."""
        inputs = {site: _tensor(frame[list(columns)].to_numpy()) for site, frame in frames.items()}
        found = {site: summarise(one, torch.arange(len(one))) for site, one in inputs.items()}
        if self.scaling == "federated":
            return {"": Scaler.from_summary(merge(list(found.values())))}
        if self.scaling == "none":
            common = merge(list(found.values()))
            other = Scaler.identity(len(columns)).with_mean(common)
            own = {site: Scaler.identity(len(columns)).with_mean(one) for site, one in found.items()}
            return {**own, "": other}
        return {site: Scaler.from_summary(one).with_mean(one) for site, one in found.items()}

    def _predicted(self, table: Floats, groups: Any) -> Floats:
        """Probabilities ``[N, C]`` or numbers ``[N, 1]``: by the site's own model, or the mean of all models."""
        sites = _names(groups, len(table), "groups", nobody=None)
        network = build_model(*self._part, self._shape, self._outputs)
        network.module.eval()
        found: Floats | None = None
        for site in dict.fromkeys(sites.tolist()):
            here = sites == site
            inputs = self._scaled(_tensor(table[here]), site)
            names = [self._own[site]] if site in self._own else list(self._models)
            own = []
            for name in names:
                network.load(torch.from_numpy(self._models[name].copy()))
                with torch.no_grad():
                    own.append(self._meaning(network.module(inputs).float()))
            mean: Floats = np.mean(own, axis=0)
            if found is None:
                found = np.zeros((len(table), *mean.shape[1:]))
            found[here] = mean
        return np.zeros((0, max(self._outputs, 1))) if found is None else found

    def _scaled(self, inputs: torch.Tensor, site: object) -> torch.Tensor:
        scaler = self._scalers.get(str(site), self._scalers.get(""))
        if scaler is None:  # a new site has its own scaling, from its own cases
            if len(inputs) < 2:
                raise ValueError(
                    f"With scaling='per_site' the cases of a new site ({site!r}) are scaled by themselves, which needs "
                    "two at least; give its cases together, or use scaling='federated'."
                )
            summary = summarise(inputs, torch.arange(len(inputs)))
            scaler = Scaler.from_summary(summary).with_mean(summary)
        return scaler.apply(inputs)

    def _meaning(self, outputs: torch.Tensor) -> Floats:
        from polyclinic.tasks import build_task

        task = build_task(self._task, len(getattr(self, "classes_", ())), self._loss, self._scale)
        found: Floats = task.probabilities(outputs).double().numpy()
        return found


class FederatedClassifier(ClassifierMixin, _Federated):  # type: ignore[misc]
    """A federated classifier of tables; see `_Federated` for its arguments.

    Attributes:
        classes_: labels, sorted.
        sites_: names of the sites that it was trained at.
        n_features_in_, feature_names_in_: of the inputs.
        notes_: what a person should know of the data.
    """

    _task = "classification"

    def fit(self, X: Any, y: ArrayLike, groups: Any = None, subjects: Any = None) -> Self:  # noqa: N803
        """Train on the cases ``X [N, F]`` with the labels ``y [N]``.

        Args:
            X: numbers, NaN where missing.
            y: labels.
            groups: site of each case ``[N]``; without it all are at one site.
            subjects: patient of each case ``[N]``; without it each case is a patient.

        Raises:
            ValueError: the arguments do not fit each other.
            PolyclinicError: as in a study.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan")  # noqa: N806
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class only, {self.classes_[0]!r}; a classifier needs two at least.")
        self._train(X, codes.tolist(), groups, subjects, len(self.classes_))
        return self

    def predict_proba(self, X: Any, groups: Any = None) -> Floats:  # noqa: N803
        """Probabilities ``[N, C]`` in the order of ``classes_``.

        Args:
            X: cases ``[N, F]``.
            groups: site of each case ``[N]``. A site that was trained has its own model, where the method makes such.
                Others, and all without ``groups``, get the mean of the predictions of all models.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)  # noqa: N806
        return self._predicted(X, groups)

    def predict(self, X: Any, groups: Any = None) -> NDArray[Any]:  # noqa: N803
        """The most probable label of each case ``[N]``; see ``predict_proba``."""
        places = self.predict_proba(X, groups).argmax(axis=1)  # says whether it was trained
        found: NDArray[Any] = self.classes_[places]
        return found


class FederatedRegressor(RegressorMixin, _Federated):  # type: ignore[misc]
    """A federated regressor of tables; see `_Federated` for its arguments, and `FederatedClassifier`."""

    _task = "regression"

    def fit(self, X: Any, y: ArrayLike, groups: Any = None, subjects: Any = None) -> Self:  # noqa: N803
        """Train on the cases ``X [N, F]`` with the numbers ``y [N]``; see `FederatedClassifier.fit`."""
        X, y = validate_data(  # noqa: N806
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=True, ensure_min_samples=2
        )
        self._train(X, np.asarray(y, dtype=np.float64).tolist(), groups, subjects, 0)
        return self

    def predict(self, X: Any, groups: Any = None) -> Floats:  # noqa: N803
        """The predicted numbers ``[N]``; see `FederatedClassifier.predict_proba`."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)  # noqa: N806
        return self._predicted(X, groups)[:, 0]


def _tensor(table: Floats) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(table)).float()


def _names(given: Any, cases: int, what: str, nobody: str | None = ONE_SITE) -> NDArray[np.object_]:
    """A name for each case ``[N]``."""
    if given is None:
        return np.full(cases, nobody, dtype=object)
    found = column_or_1d(np.asarray(given, dtype=object))
    check_consistent_length(found, np.empty(cases))
    missing = sum(bool(pd.isna(one)) or not str(one).strip() for one in found)
    if missing:
        raise ValueError(f"{missing} of {cases} `{what}` are missing; name one for each case.")
    return np.array([str(one) for one in found], dtype=object)


def _seed(random_state: Any) -> int:
    if random_state is None:
        return 0
    if isinstance(random_state, int | np.integer) and 0 <= random_state < math.inf:
        return int(random_state)
    raise ValueError(f"random_state: got {random_state!r}, expected a whole number or None (which is 0).")
