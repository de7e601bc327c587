"""Polyclinic: federated learning for medical image analysis.

>>> import polyclinic
>>> study = polyclinic.Study.read("study.yaml")  # doctest: +SKIP
>>> results = study.run(out="results")  # doctest: +SKIP
>>> print(results.table())  # doctest: +SKIP
>>> model = polyclinic.Model.fit(study, "model", "fedavg", results="results")  # doctest: +SKIP
>>> print(model.predict("new.csv", site="Celle"))  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polyclinic.deployment.loaded import Model
    from polyclinic.errors import PolyclinicError
    from polyclinic.study.results import Results
    from polyclinic.study.study import Study

__version__ = "0.1.0"
__all__ = ["Model", "PolyclinicError", "Results", "Study", "__version__"]

_HOME = {
    "Model": "polyclinic.deployment.loaded",
    "Study": "polyclinic.study.study",
    "Results": "polyclinic.study.results",
    "PolyclinicError": "polyclinic.errors",
}


def __getattr__(name: str) -> Any:
    """Public names are imported when they are first used, so that the command line answers at once."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)
