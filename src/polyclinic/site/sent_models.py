"""Models that a site is sent, to predict with."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from polyclinic.errors import SiteError
from polyclinic.parts.checks import kind_of, wrong
from polyclinic.parts.predictor import Network, OfNetwork, Predictor
from polyclinic.parts.site_end import overrides
from polyclinic.site.run import Run
from polyclinic.state import FlatModule

#: A model that is sent whole, see `polyclinic.running.plan.Plan.model_name`.
_WHOLE = re.compile(r"(?:network(?P<network>\d+)_)?model(?P<position>\d*)")
#: ``(named, shape, outputs)`` -> a network of the process.
Networks = Callable[[tuple[str, dict[str, Any]], tuple[int, ...], int], FlatModule]


class SentModels:
    """The models of a message, with what the site knows besides.

    Args:
        run: the training that they are of, with the cases that are predicted.
        tensors: of the message.
        network: gives networks of other names than the training's.
    """

    def __init__(self, run: Run, tensors: Mapping[str, Tensor], network: Networks) -> None:
        self.run, self.tensors, self._network = run, tensors, network

    def networks(self, *, best: bool = True) -> Sequence[Network]:
        """Models to average: those sent whole, or the shared state with the site's own part (of the ``best`` round).

        Raises:
            SiteError: P401, there is neither, or the network of one can't be that of the study.
        """
        models = sorted(name for name in self.tensors if "/" not in name)
        if not models:
            raise SiteError("P401", f"Site {self.run.site} was sent no model to predict with.",
                            "Send a `state` or a `model`.", site=self.run.site)  # fmt: skip
        named = [(match, self.tensors[name]) for name in models if (match := _WHOLE.fullmatch(name))]
        named.sort(key=lambda one: one[0]["position"])  # whatever network each is of
        whole = [self._whole(match["network"], tensor) for match, tensor in named]
        return whole or [self.run.predictor(self.tensors["state"], best=best)]

    def predictors(self, index: Tensor, *, best: bool = True) -> Sequence[Network]:
        """The same, as parts adapt them to the cases ``index`` that are to be predicted, without their labels; but for
        those of the ``best`` round only where the server sent something for it."""
        run, tensors = self.run, self.tensors
        beside = {name: tensor for name, tensor in tensors.items() if "/" in name}
        networks = self.networks(best=best)
        adapting = [end for end in run.ends.values() if overrides(end, "adapted")]
        if not adapting or not len(index) or not (best or beside):
            return networks
        shared = [run.shared_model(tensors["state"], best=best)] if "state" in tensors else networks

        def inputs(chosen: Tensor) -> Tensor:
            return run.dataset.batch(chosen)[0]

        end, found = adapting[0], list[Network]()
        sent = {name.removeprefix(f"{end.name}/"): one for name, one in beside.items()}
        for network, vector in zip(networks, shared, strict=True):
            view = run.view.predicting(vector, sent) if isinstance(vector, Tensor) else run.view
            found.append(end.adapted(network, index, inputs, view))
            if not isinstance(found[-1], Tensor | Predictor):
                raise wrong(end.name, "adapted", kind_of(found[-1]), "a state of the network, or a `Predictor`",
                            run.site)  # fmt: skip
        return found

    def _whole(self, number: str | None, vector: Tensor) -> Network:
        """A model that was sent whole: of the site's own network, unless the number of another is given."""
        declared = self.run.declared
        sent = None if number is None else declared.networks[int(number)]
        if sent is None or sent.model == declared.model:
            return vector
        model = self._network(sent.model, self.run.dataset.training_shape, self.run.task.outputs)
        if model.layout.size != len(vector):
            raise other_size(self.run.site, len(vector), model.layout.size)
        return OfNetwork(model, vector)


def other_size(site: str, sent: int, own: int) -> SiteError:
    """A model of another size than that of the network that the message names."""
    return SiteError(
        "P401", f"Site {site} was sent a model of {sent} numbers; the network that the message names has "
        f"{own}.", "Let all sites and the server run the same version of Polyclinic.", site=site,
    )  # fmt: skip
