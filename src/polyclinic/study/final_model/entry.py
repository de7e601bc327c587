"""Whether a study can end with the model that its entry ``final_model`` asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polyclinic.errors import nearest
from polyclinic.methods import Method
from polyclinic.options import EntryError
from polyclinic.parts import Part, build_part
from polyclinic.parts.site_end import overrides
from polyclinic.study.compatibility import models_per_network, predicts_together, sends_site_models, too_few_rounds
from polyclinic.study.entries import FinalModel
from polyclinic.study.method_entries import StudyMethod

PLACE = "final_model"


def unusable(method: Method, *, networks: bool = False) -> str:
    """Why no model of a method could be used elsewhere; empty if one can.

    Args:
        method: of the study.
        networks: whether sites have different networks.
    """
    if networks and method.tests == "ensemble":
        return "has the networks of all sites, which differ (`networks: ...`), and a model's folder has one"
    if networks and models_per_network(method):
        return "makes a model for each network of the sites (`networks: ...`), and a model's folder has one network"
    if method.share == "none" and method.scope != "pool" and method.tests != "ensemble":
        return "trains a model at each site, and no model of all"
    choosing = [name for name, options in method.parts if sends_site_models(build_part(name, options))]
    if choosing:
        return f"predicts each case by what {choosing[0]} makes of the models of all sites, and no model's folder can"
    adapting = [name for name, options in method.parts if overrides(build_part(name, options).at_site(), "adapted")]
    if adapting:
        return f"adapts its network to the cases that are predicted ({adapting[0]}), and no model's folder can"
    if method.personal is not None and predicts_together(method.personal[0]):
        return "predicts each case of a site by a mixture of two networks, and no model's folder can"
    unknown = [name for name, part in changing_images(method).items() if type(part).shown is Part.shown]
    return f"shows its network images that {unknown[0]} has changed, and no model's folder can" if unknown else ""


def changing_images(method: Method) -> dict[str, Part]:
    """The parts of a method that change images before the network, by name, in the order in which they do."""
    built = {name: build_part(name, options) for name, options in method.parts}
    return {name: part for name, part in built.items() if overrides(part.at_site(), "images")}


def check_final_model(
    asked: FinalModel, methods: Sequence[StudyMethod], searched: Callable[[str], bool], *, networks: bool
) -> None:  # fmt: skip
    """Whether a study has the method that makes its model, and what else is asked.

    Args:
        asked: the entry.
        methods: of the study.
        searched: whether values are searched for the method of a label.
        networks: whether sites have different networks.

    Raises:
        EntryError: P103 or P104 with the entry.
    """
    labels = [one.label for one in methods]
    if asked.method not in labels:
        hint = nearest(asked.method, labels)
        message = f"{asked.method!r} is not among the study's methods."
        raise EntryError("P103", message, hint, place=(PLACE, "method"))
    wrong = unusable(methods[labels.index(asked.method)].method, networks=networks)
    if wrong:
        hint = "Choose `mix`." if networks else "Choose another federated method, `mix` or `ensemble`."
        raise EntryError("P104", f"{asked.method} {wrong}.", hint, place=(PLACE, "method"))
    short = "" if asked.rounds is None else too_few_rounds(methods[labels.index(asked.method)].method, asked.rounds)
    if short:
        raise EntryError("P104", short, "Give more rounds, or leave `rounds` out.", place=(PLACE, "rounds"))
    if asked.alone and asked.calibrate:
        message = "A calibration needs predictions of cases that were not trained on, and `alone` tests nothing."
        raise EntryError("P104", message, "Leave one of the two out.", place=(PLACE, "calibrate"))
    if asked.alone and searched(asked.method):
        message = f"Values are searched for {asked.method}, and with `alone` nothing tells which are best."
        hint = "Write the values under `training` and leave `search` out, or leave `alone` out."
        raise EntryError("P104", message, hint, place=(PLACE, "alone"))
