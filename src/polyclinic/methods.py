"""The catalogue of methods: each published method is one composition of parts.

A method is local rules + what is shared + a personal model + a server rule + a topology. Any method of a study file can
be given other parts (``{fedprox: {mu: 0.1, share: no_norm, server: [trimmed_mean, {fedadam: {lr: 0.01}}]}}``), so
combinations need no names of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from polyclinic.options import Catalogue, Decay
from polyclinic.roles import Role

if TYPE_CHECKING:
    from polyclinic.state import Layout, Selection

#: Name -> the roles that are shared; the rest stays at the site.
SHARES: dict[str, frozenset[Role]] = {
    "all": frozenset(Role),
    "no_norm": frozenset(Role) - {Role.NORM_WEIGHT, Role.NORM_STATISTIC},
    "no_norm_statistics": frozenset(Role) - {Role.NORM_STATISTIC},
    "body": frozenset(Role) - {Role.HEAD},
    "head": frozenset({Role.HEAD}),
    "none": frozenset(),
}
Share = Literal["all", "no_norm", "no_norm_statistics", "body", "head", "none"]

Fraction = Annotated[float, Field(ge=0, le=1)]

#: Part -> options: how a rule is written in a study file and sent to a site.
PartEntry = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """A composition of parts.

    Attributes:
        scope: who trains: ``federation`` (sites with a server), ``sites`` (each alone) or ``pool`` (all data together).
        work: ``train`` (local optimiser steps) or ``gradient`` (one full-batch gradient a round).
        local: local rules, applied in this order.
        share: what of the model is shared; key of ``SHARES``.
        personal: the way to a personal model, or None.
        server: the parts of the server rule.
        topology: in which order sites are asked; key of ``TOPOLOGIES``.
        tests: whose predictions are reported: ``own`` (the model for the site's own cases), ``cross`` (each site's
            model on every other site), ``ensemble`` (mean of all sites' predicted probabilities).
        keep_optimizer: whether a site's optimiser keeps its state between rounds; methods without a server do, so that
            rounds are plain training.
    """

    scope: Literal["federation", "sites", "pool"] = "federation"
    work: Literal["train", "gradient"] = "train"
    local: Sequence[PartEntry] = ()
    share: Share = "all"
    personal: PartEntry | None = None
    server: Sequence[PartEntry] = (("mean", {}),)
    topology: str = "star"
    tests: Literal["own", "cross", "ensemble"] = "own"
    keep_optimizer: bool = False

    def selection(self, layout: Layout) -> Selection:
        """The coordinates of the model's state that are shared."""
        return layout.select(SHARES[self.share])


@dataclass(frozen=True)
class About:
    """What the catalogue says of a method: its place in the survey (Guan et al. 2024), one line, and its citation."""

    place: str
    summary: str
    citation: str


METHODS: Catalogue[Callable[..., Method]] = Catalogue("method")
ABOUT: dict[str, About] = {}

_Recipe = Callable[..., Method]


def method(name: str, place: str, summary: str, citation: str) -> Callable[[_Recipe], _Recipe]:
    """Enter a recipe, whose keyword-only arguments are the method's own options, into the catalogue."""
    ABOUT[name] = About(place, summary, citation)
    return METHODS.add(name)


_FRAME = "comparison"
_SURVEY = "Guan et al., Pattern Recognition 151 (2024)"
_MCMAHAN = "McMahan et al., AISTATS 2017"
_REDDI = "Reddi et al., ICLR 2021"


@method("single", _FRAME, "Each site trains alone and is tested on its own held-out part.", _SURVEY)
def single() -> Method:
    """A federation that shares nothing."""
    return Method(scope="sites", share="none", keep_optimizer=True)


@method("cross", _FRAME, "The model of each site is tested on every other site.", _SURVEY)
def cross() -> Method:
    """The models of `single`, tested elsewhere."""
    return Method(scope="sites", share="none", keep_optimizer=True, tests="cross")


@method("ensemble", _FRAME, "Mean of the probabilities that the models of all sites predict.", _SURVEY)
def ensemble() -> Method:
    """The models of `single`, voting."""
    return Method(scope="sites", share="none", keep_optimizer=True, tests="ensemble")


@method("mix", _FRAME, "All training parts pooled in one place: the reference that gives up privacy.", _SURVEY)
def mix() -> Method:
    """One site that has everybody's training cases."""
    return Method(scope="pool", keep_optimizer=True)


@method(
    "fedsgd", "communication: optimisation", "One full-batch gradient a site and round.", "McMahan et al., AISTATS 2017"
)
def fedsgd() -> Method:
    """Each site sends w − η ∇F_k; their mean is w − η Σ p_k ∇F_k."""
    return Method(work="gradient")


@method(
    "fedavg", "server end: aggregation", "Local training, then the mean of the models.", "McMahan et al., AISTATS 2017"
)
def fedavg() -> Method:
    """The plain composition."""
    return Method()


@method("fedprox", "client end: domain shift", "Local models are held near the global one.", "Li et al., MLSys 2020")
def fedprox(*, mu: NonNegativeFloat = 0.01) -> Method:
    """FedAvg with a proximal term."""
    return Method(local=[("proximal", {"mu": mu})])


@method("fedbn", "client end: domain shift", "Normalisation layers stay at the site.", "Li et al., ICLR 2021")
def fedbn() -> Method:
    """Neither weights nor statistics of normalisation layers are shared."""
    return Method(share="no_norm")


@method("silobn", "client end: domain shift", "Normalisation statistics stay at the site; scale and shift are shared.",
        "Andreux et al., DART 2020")  # fmt: skip
def silobn() -> Method:
    """Statistics of normalisation layers are not shared."""
    return Method(share="no_norm_statistics")


@method("fedper", "client end: personalisation", "Each site has a head of its own on a shared body.",
        "Arivazhagan et al., 2019")  # fmt: skip
def fedper() -> Method:
    """Heads are not shared; normalisation layers belong to the body."""
    return Method(share="body")


@method("lg_fedavg", "client end: personalisation", "Each site has a body of its own under a shared head.",
        "Liang et al., 2020")  # fmt: skip
def lg_fedavg() -> Method:
    """Only heads are shared."""
    return Method(share="head")


@method("fedrep", "client end: personalisation", "Heads of the sites' own and a shared body are trained in turn.",
        "Collins et al., ICML 2021")  # fmt: skip
def fedrep(*, head_epochs: PositiveInt = 10) -> Method:
    """FedPer, where the head is trained first and the body then."""
    return Method(share="body", personal=("head_then_body", {"head_epochs": head_epochs}))


@method("ditto", "client end: personalisation", "Each site trains a model of its own near the shared one.",
        "Li et al., ICML 2021")  # fmt: skip
def ditto(*, weight: NonNegativeFloat = 0.1, epochs: PositiveInt | None = None) -> Method:
    """FedAvg, and a personal model besides."""
    return Method(personal=("ditto", {"weight": weight, "epochs": epochs}))


@method("apfl", "client end: personalisation", "Each site mixes a model of its own with the shared one.",
        "Deng et al., arXiv 2003.13461")  # fmt: skip
def apfl(*, mixture: Annotated[float, Field(ge=0, le=1)] = 0.5, learn_mixture: bool = True) -> Method:
    """FedAvg, and a mixture besides."""
    return Method(personal=("apfl", {"mixture": mixture, "learn_mixture": learn_mixture}))


@method("moon", "client end: domain shift", "Features are held near the shared model's, away from the last local ones.",
        "Li et al., CVPR 2021")  # fmt: skip
def moon(*, mu: NonNegativeFloat = 1.0, temperature: PositiveFloat = 0.5) -> Method:
    """FedAvg with a contrast between models in the loss."""
    return Method(local=[("model_contrastive", {"mu": mu, "temperature": temperature})])


@method("fedsld", "client end: domain shift", "Cases count so that each class has the weight it has in the federation.",
        "Luo and Wu, ISBI 2022")  # fmt: skip
def fedsld() -> Method:
    """FedAvg with weights from shared label counts."""
    return Method(local=[("label_shares", {})])


@method("scaffold", "client end: domain shift", "Control variates take the drift out of each local step.",
        "Karimireddy et al., ICML 2020")  # fmt: skip
def scaffold() -> Method:
    """FedAvg with control variates."""
    return Method(local=[("control_variates", {})])


@method("feddyn", "client end: domain shift", "Local losses are bent so that their optima agree.",
        "Acar et al., ICLR 2021")  # fmt: skip
def feddyn(*, alpha: PositiveFloat = 0.01) -> Method:
    """A dynamic term at the sites, and its counterpart at the server."""
    return Method(local=[("dynamic_regularisation", {"alpha": alpha})], server=[("feddyn", {"alpha": alpha})])


@method("fednova", "client end: unequal computation", "Updates count by their direction, not by their number of steps.",
        "Wang et al., NeurIPS 2020")  # fmt: skip
def fednova() -> Method:
    """FedAvg with normalised updates."""
    return Method(server=[("normalised", {})])


@method("cyclic", "communication: topology", "The model goes from site to site, again and again.",
        "Chang et al., JAMIA 2018")  # fmt: skip
def cyclic() -> Method:
    """Cyclic weight transfer."""
    return Method(topology="cyclic")


@method("incremental", "communication: topology", "The model goes from site to site once.",
        "Sheller et al., BrainLes 2018")  # fmt: skip
def incremental() -> Method:
    """Institutional incremental learning."""
    return Method(topology="incremental")


@method("fedavgm", "server end: optimisation", "The server adds momentum to the mean change.", "Hsu et al., 2019")
def fedavgm(*, lr: PositiveFloat = 1.0, momentum: Decay = 0.9) -> Method:
    """FedAvg with momentum at the server."""
    return Method(server=[("fedavgm", {"lr": lr, "momentum": momentum})])


@method("fedadam", "server end: optimisation", "The server uses the mean change as a gradient for Adam.", _REDDI)
def fedadam(*, lr: PositiveFloat = 0.01, beta1: Decay = 0.9, beta2: Decay = 0.99, tau: PositiveFloat = 1e-3) -> Method:
    """FedAvg with Adam at the server."""
    return Method(server=[("fedadam", {"lr": lr, "beta1": beta1, "beta2": beta2, "tau": tau})])


@method("fedyogi", "server end: optimisation", "The server uses the mean change as a gradient for Yogi.", _REDDI)
def fedyogi(*, lr: PositiveFloat = 0.01, beta1: Decay = 0.9, beta2: Decay = 0.99, tau: PositiveFloat = 1e-3) -> Method:
    """FedAvg with Yogi at the server."""
    return Method(server=[("fedyogi", {"lr": lr, "beta1": beta1, "beta2": beta2, "tau": tau})])


@method(
    "fedadagrad", "server end: optimisation", "The server treats the mean change as a gradient for Adagrad.", _REDDI
)
def fedadagrad(*, lr: PositiveFloat = 0.01, beta1: Decay = 0.0, tau: PositiveFloat = 1e-3) -> Method:
    """FedAvg with Adagrad at the server."""
    return Method(server=[("fedadagrad", {"lr": lr, "beta1": beta1, "tau": tau})])


@method("ida", "server end: aggregation", "Sites whose model is far from the mean model count less.",
        "Yeganeh et al., DART at MICCAI 2020")  # fmt: skip
def ida(*, times: Literal["none", "cases", "accuracy"] = "none") -> Method:
    """Inverse distance aggregation, or one of its variants: times the number of cases, or the inverse accuracy."""
    return Method(server=[("ida", {"times": times})])


@method("simagg", "server end: aggregation", "Each weight is averaged by size and by nearness to the sites' mean.",
        "Khan et al., BrainLes at MICCAI 2021")  # fmt: skip
def simagg() -> Method:
    """Similarity-weighted aggregation."""
    return Method(server=[("simagg", {})])


@method("regagg", "server end: aggregation", "Each weight is averaged by size times nearness to the sites' mean.",
        "Khan et al., BrainLes at MICCAI 2021")  # fmt: skip
def regagg() -> Method:
    """Regularised aggregation."""
    return Method(server=[("regagg", {})])


@method("loss_weights", "server end: aggregation", "Sites whose trained model has a high loss count less.",
        "Li et al., 2021, as told by Guan et al., 2024")  # fmt: skip
def loss_weights() -> Method:
    """FedAvg with weights by the inverse of the loss."""
    return Method(server=[("loss_weights", {})])


@method("fedcostwavg", "server end: aggregation", "Sites whose cost fell most since their last round count more.",
        "Mächler et al., BrainLes at MICCAI 2021")  # fmt: skip
def fedcostwavg(*, alpha: Fraction = 0.5) -> Method:
    """Cost-weighted averaging; α = 1 is FedAvg."""
    return Method(server=[("fedcostwavg", {"alpha": alpha})])


@method("guided_gradient", "server end: domain shift", "Only weights on whose direction the sites agree are moved.",
        "Fan et al., IJCNN 2021; agreement as in Tenison et al., TMLR 2023")  # fmt: skip
def guided_gradient(*, threshold: Fraction = 0.5) -> Method:
    """A mean masked by the agreement of signs."""
    return Method(server=[("guided_gradient", {"threshold": threshold})])


@method("feddg_ga", "server end: domain shift", "Sites where the common model is worse than their own count more.",
        "Zhang et al., CVPR 2023")  # fmt: skip
def feddg_ga(*, step: Decay = 0.2, rounds: PositiveInt | None = None) -> Method:
    """Generalisation adjustment: weights follow the gap between global and local validation loss."""
    return Method(server=[("feddg_ga", {"step": step, "rounds": rounds})])


@method("qfedavg", "server end: fairness", "Sites with a high loss count more, for more even performance.",
        "Li et al., ICLR 2020")  # fmt: skip
def qfedavg(*, q: NonNegativeFloat = 1.0, lr: PositiveFloat = 0.01) -> Method:
    """q-FedAvg; ``lr`` is the sites' learning rate, whose inverse stands for the smoothness of the loss."""
    return Method(server=[("qfedavg", {"q": q, "lr": lr})])


@method("afl", "server end: fairness", "Weights move towards the sites with the highest loss.",
        "Mohri et al., ICML 2019")  # fmt: skip
def afl(*, lr: NonNegativeFloat = 0.1) -> Method:
    """Agnostic federated learning: the worst mixture of sites counts."""
    return Method(server=[("afl", {"lr": lr})])


@method("fedce", "server end: fairness", "Sites count as much as they contribute to the model.",
        "Jiang et al., CVPR 2023")  # fmt: skip
def fedce(*, mode: Literal["plus", "times"] = "plus") -> Method:
    """Contribution by direction, and by the error of the model without the site."""
    return Method(server=[("fedce", {"mode": mode})])


_CORRUPT = "server end: corrupt sites"


@method("median", _CORRUPT, "Every weight is the median of the sites' values.", "Yin et al., ICML 2018")
def median() -> Method:
    """The coordinate-wise median."""
    return Method(server=[("median", {})])


@method("trimmed_mean", _CORRUPT, "Every weight is the mean without the highest and lowest values.",
        "Yin et al., ICML 2018")  # fmt: skip
def trimmed_mean(*, trim: NonNegativeInt = 1) -> Method:
    """The coordinate-wise trimmed mean."""
    return Method(server=[("trimmed_mean", {"trim": trim})])


@method("krum", _CORRUPT, "The one model that is nearest to most others.", "Blanchard et al., NeurIPS 2017")
def krum(*, corrupt: NonNegativeInt = 1) -> Method:
    """Krum."""
    return Method(server=[("krum", {"corrupt": corrupt})])


@method("multi_krum", _CORRUPT, "The mean of the models that are nearest to most others.",
        "Blanchard et al., NeurIPS 2017")  # fmt: skip
def multi_krum(*, corrupt: NonNegativeInt = 1, keep: PositiveInt | None = None) -> Method:
    """Multi-Krum."""
    return Method(server=[("multi_krum", {"corrupt": corrupt, "keep": keep})])


@method("bulyan", _CORRUPT, "Krum again and again, then a trimmed mean of those chosen.", "El Mhamdi et al., ICML 2018")
def bulyan(*, corrupt: NonNegativeInt = 1) -> Method:
    """Bulyan."""
    return Method(server=[("bulyan", {"corrupt": corrupt})])


@method("geometric_median", _CORRUPT, "The point with the smallest sum of distances to all models.",
        "Pillutla et al., IEEE TSP 2022")  # fmt: skip
def geometric_median(
    *, tolerance: PositiveFloat = 1e-6, steps: PositiveInt = 1000, smoothing: PositiveFloat = 1e-6
) -> Method:
    """Robust federated aggregation (RFA)."""
    options = {"tolerance": tolerance, "steps": steps, "smoothing": smoothing}
    return Method(server=[("geometric_median", options)])


@method("dos", _CORRUPT, "Sites that are outliers by distance count less.", "Alkhunaizi et al., MICCAI 2022")
def dos() -> Method:
    """Distance-based outlier suppression."""
    return Method(server=[("dos", {})])


@method("fltrust", _CORRUPT, "Sites count by how far they go the way of a trusted site.", "Cao et al., NDSS 2021")
def fltrust(*, trusted: str) -> Method:
    """FLTrust, with a trusted site in the place of the server's own data."""
    return Method(server=[("fltrust", {"trusted": trusted})])


@method("norm_bound", _CORRUPT, "Changes longer than a bound are shortened.", "Sun et al., 2019")
def norm_bound(*, bound: PositiveFloat | Literal["median"] = "median") -> Method:
    """A mean of changes of bounded length."""
    return Method(server=[("norm_bound", {"bound": bound})])
