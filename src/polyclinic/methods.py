"""The published methods: each is one composition of parts.

A method is local rules + what is shared + a personal model + a channel + a server rule + a topology + a procedure. Any
method of a study file can be given other parts (``{fedprox: {mu: 0.1, share: no_norm, server: [trimmed_mean, {fedadam:
{lr: 0.01}}]}}``), so combinations need no names of their own. This file names parts and loads none: their options stand
where the parts are, see `polyclinic.composition`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

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
ShareName = Literal["all", "no_norm", "no_norm_statistics", "body", "head", "none"]


@dataclass(frozen=True)
class SharedModules:
    """Some modules of the network; what is not shared stays at the site.

    Attributes:
        modules: patterns of their paths, see `polyclinic.paths`; empty for all.
        without: patterns of those that stay at the site.
        roles: what of them is shared; key of ``SHARES``.
    """

    modules: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    roles: ShareName = "all"

    def __str__(self) -> str:
        """In words."""
        words = ["the modules " + ", ".join(self.modules) if self.modules else "all modules"]
        words += [f"without {', '.join(self.without)}"] if self.without else []
        return " ".join([*words, *([f"({self.roles})"] if self.roles != "all" else [])])


#: What of the model is shared.
Share = ShareName | SharedModules

#: Part -> options: how a part is written in a study file and sent to a site.
PartEntry = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Method:
    """A composition of parts.

    Attributes:
        scope: who trains: ``federation`` (sites with a server), ``sites`` (each alone) or ``pool`` (all data together).
        work: ``train`` (local optimiser steps) or ``gradient`` (one full-batch gradient a round).
        local: parts of local training, applied in this order.
        share: what of the model is shared; key of ``SHARES``, or some modules.
        personal: the way to a personal model, or None.
        channel: what is done to all that leaves a site, in this order.
        server: the parts of the server rule.
        topology: which sites share a model, and in which order they meet the server.
        procedure: what happens between server and sites until their updates are there.
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
    channel: Sequence[PartEntry] = ()
    server: Sequence[PartEntry] = (("mean", {}),)
    topology: PartEntry = ("star", {})
    procedure: PartEntry = ("local", {})
    tests: Literal["own", "cross", "ensemble"] = "own"
    keep_optimizer: bool = False

    def selection(self, layout: Layout) -> Selection:
        """The coordinates of the model's state that are shared."""
        return layout.select(SHARES[self.shared.roles], self.shared.modules, self.shared.without)

    @property
    def shared(self) -> SharedModules:
        """What of the model is shared; of all modules, where none are named."""
        return self.share if isinstance(self.share, SharedModules) else SharedModules(roles=self.share)

    @property
    def text(self) -> str:
        """The same text for the same parts, whether they were spelt out or not."""
        return json.dumps(asdict(self))

    @property
    def named_parts(self) -> list[tuple[str, str]]:
        """Place and name of each part, ``("server", "mean")``, those that do not differ from fedavg's among them."""
        single = [("personal", self.personal), ("topology", self.topology), ("procedure", self.procedure)]
        places = {"local": self.local, "channel": self.channel, "server": self.server}
        listed = [(place, name) for place, entries in places.items() for name, _ in entries]
        return listed + [(place, part[0]) for place, part in single if part is not None]

    @property
    def parts(self) -> list[PartEntry]:
        """All parts with two ends, in the order of their ends at a site: what leaves it passes the channel last."""
        return [*self.local, *self.server, self.topology, self.procedure, *self.channel]


#: What a method has whose parts do nothing that fedavg does not.
PLAIN_PARTS = frozenset({("server", "mean"), ("topology", "star"), ("procedure", "local")})


@dataclass(frozen=True)
class Published:
    """A method of the literature.

    Attributes:
        place: in the survey (Guan et al. 2024).
        summary: one line.
        citation: where it is from.
        method: its parts, without options.
        network: that it is for; empty for any.
    """

    place: str
    summary: str
    citation: str
    method: Method
    network: str = ""


#: Methods by name.
PUBLISHED: dict[str, Published] = {}


def publish(
    name: str, place: str, summary: str, citation: str, *, local: Sequence[str] = (), server: Sequence[str] = (),
    channel: Sequence[str] = (), personal: str = "", topology: str = "star", procedure: str = "local",
    network: str = "", **others: Any,
) -> None:  # fmt: skip
    """Enter a method whose options are those of the parts that it names, and which may be for one ``network`` only;
    ``others`` are fields of `Method`.

    Raises:
        ValueError: the name is taken.
    """
    if name in PUBLISHED:
        raise ValueError(f"there is a method {name!r} already")
    method = Method(
        local=[(part, {}) for part in local],
        server=[(part, {}) for part in server or ("mean",)],
        channel=[(part, {}) for part in channel],
        personal=(personal, {}) if personal else None,
        topology=(topology, {}),
        procedure=(procedure, {}),
        **others,
    )
    PUBLISHED[name] = Published(place, summary, citation, method, network)


_FRAME = "comparison"
_SURVEY = "Guan et al., Pattern Recognition 151 (2024)"
_MCMAHAN = "McMahan et al., AISTATS 2017"
_REDDI = "Reddi et al., ICLR 2021"
_SHIFT = "client end: domain shift"
_FEW_LABELS = "client end: few labels"
_PERSONAL = "client end: personalisation"
_AGGREGATION = "server end: aggregation"
_OPTIMISATION = "server end: optimisation"
_FAIRNESS = "server end: fairness"
_CORRUPT = "server end: corrupt sites"
_COMMUNICATION = "communication: optimisation"
_TOPOLOGY = "communication: topology"

publish(
    "single",
    _FRAME,
    "Each site trains alone and is tested on its own held-out part.",
    _SURVEY,
    scope="sites",
    share="none",
    keep_optimizer=True,
)
publish(
    "cross",
    _FRAME,
    "The model of each site is tested on every other site.",
    _SURVEY,
    scope="sites",
    share="none",
    tests="cross",
    keep_optimizer=True,
)
publish(
    "ensemble",
    _FRAME,
    "Mean of the probabilities that the models of all sites predict.",
    _SURVEY,
    scope="sites",
    share="none",
    tests="ensemble",
    keep_optimizer=True,
)
publish(
    "mix",
    _FRAME,
    "All training parts pooled in one place: the reference that gives up privacy.",
    _SURVEY,
    scope="pool",
    keep_optimizer=True,
)
publish("fedsgd", _COMMUNICATION, "One full-batch gradient a site and round.", _MCMAHAN, work="gradient")
publish(
    "dynamic_fusion",
    _COMMUNICATION,
    "Sites send their update only when their model got better.",
    "Zhang et al., IEEE IoT Journal 2021",
    channel=["dynamic_fusion"],
)
publish("fedavg", _AGGREGATION, "Local training, then the mean of the models.", _MCMAHAN)
publish("fedprox", _SHIFT, "Local models are held near the global one.", "Li et al., MLSys 2020", local=["proximal"])
publish("fedbn", _SHIFT, "Normalisation layers stay at the site.", "Li et al., ICLR 2021", share="no_norm")
publish(
    "silobn",
    _SHIFT,
    "Normalisation statistics stay at the site; scale and shift are shared.",
    "Andreux et al., DART 2020",
    share="no_norm_statistics",
)
publish(
    "fedper", _PERSONAL, "Each site has a head of its own on a shared body.", "Arivazhagan et al., 2019", share="body"
)
publish(
    "lg_fedavg", _PERSONAL, "Each site has a body of its own under a shared head.", "Liang et al., 2020", share="head"
)
publish(
    "fedmri",
    _PERSONAL,
    "Each site has a decoder of its own; the shared encoder stays near the received one by a contrast.",
    "Feng et al., IEEE TMI 2022",
    network="unrolled",
    share=SharedModules(without=("decoder",)),
    local=["weighted_contrast"],
)
publish(
    "fedrep",
    _PERSONAL,
    "Heads of the sites' own and a shared body are trained in turn.",
    "Collins et al., ICML 2021",
    share="body",
    personal="head_then_body",
)
publish(
    "ditto",
    _PERSONAL,
    "Each site trains a model of its own near the shared one.",
    "Li et al., ICML 2021",
    personal="ditto",
)
publish(
    "apfl",
    _PERSONAL,
    "Each site mixes a model of its own with the shared one.",
    "Deng et al., arXiv 2003.13461",
    personal="apfl",
)
publish(
    "fed_moe",
    _PERSONAL,
    "A gate says for each case how much the shared model and one of the site's own count.",
    "Li et al., Medical Image Analysis 2020",
    personal="mixture_of_experts",
)
publish(
    "graph_layer",
    _PERSONAL,
    "A graph network of each site corrects each label by the others, as they go together there.",
    "Chakravarty et al., ISBI 2021",
    personal="label_graph",
)
publish(
    "fourier",
    _PERSONAL,
    "Low frequencies of weights are shared, more in each round; high ones stay.",
    "Chen et al., MICCAI 2021",
    share="no_norm",
    personal="fourier",
)
publish(
    "moon",
    _SHIFT,
    "Features are held near the shared model's, away from the last local ones.",
    "Li et al., CVPR 2021",
    local=["model_contrastive"],
)
publish(
    "fedsld",
    _SHIFT,
    "Cases count so that each class has the weight it has in the federation.",
    "Luo and Wu, ISBI 2022",
    local=["label_shares"],
)
publish(
    "fixmatch",
    _FEW_LABELS,
    "What the model is sure of in a case without a label, it shall find in a changed view, too.",
    "Sohn et al., NeurIPS 2020; at each site as in Jeong et al., ICLR 2021",
    local=["pseudo_labels"],
)
publish(
    "mean_teacher",
    _FEW_LABELS,
    "Cases without a label are predicted as the running mean of the site's models does.",
    "Tarvainen and Valpola, NeurIPS 2017",
    local=["mean_teacher"],
)
publish(
    "fedirm",
    _FEW_LABELS,
    "Classes are as alike where labels are guessed as where sites know them, with a mean teacher.",
    "Liu et al., MICCAI 2021",
    local=["mean_teacher", "relation_matching"],
)
publish(
    "fedperl",
    _FEW_LABELS,
    "The mean of the most similar sites' models helps each site to label its cases.",
    "Bdair et al., MELBA 2022",
    local=["peer_labels"],
)
publish(
    "fedmix",
    _FEW_LABELS,
    "Where there is no mask, the common model's outlines are learned as far as boxes or image labels allow.",
    "Wicaksana et al., IEEE TMI 2023",
    local=["weak_masks"],
    server=["mixed_weights"],
)
publish(
    "feddm",
    _FEW_LABELS,
    "Boxes become outlines as far as a site's model and two peers' agree; what changes undo in each other is left out.",
    "Zhu et al., IEEE TMI 2023",
    local=["calibrated_boxes"],
    server=["deconflicted"],
)
publish(
    "fedvss",
    _FEW_LABELS,
    "Models are smooth around each site's cases, and agree with the common one where it is sure.",
    "Zhu and Luo, MICCAI 2022",
    local=["virtual_samples"],
)
publish(
    "fedmoco",
    _FEW_LABELS,
    "The first rounds learn from all cases without labels, the others from the few that have one.",
    "Dong and Voiculescu, MICCAI 2021",
    local=["momentum_contrast"],
)
publish(
    "attention_mil",
    _FEW_LABELS,
    "One label a bag: attention finds which of its instances count.",
    "Lu et al., Medical Image Analysis 2022; Ilse et al., ICML 2018",
    channel=["weight_noise"],
    network="gated_attention",
)
publish(
    "multi_task",
    _FEW_LABELS,
    "Of several labels each has a head of its own, averaged over the sites that have it.",
    "Huang et al., IEEE TBME 2023",
    server=["label_heads"],
)
publish(
    "fedmd",
    _FEW_LABELS,
    "Sites learn the mean of what all their models find in a public set; no weights leave them.",
    "Li and Wang, arXiv 1910.03581",
    local=["public_consensus"],
    share="none",
)
publish(
    "feddf",
    _FEW_LABELS,
    "The mean model learns on a public set what the sites' models find there together.",
    "Lin et al., NeurIPS 2020",
    server=["ensemble_distillation"],
)
publish(
    "fedad",
    _FEW_LABELS,
    "The server's model learns what sites find in a public set, and where they look; no weights leave them.",
    "Gong et al., ICCV 2021",
    channel=["attention_distillation"],
)
publish(
    "public_teacher",
    _FEW_LABELS,
    "Each site also learns from a teacher that was trained elsewhere.",
    "Kumar et al., IEEE TII 2021, as told by Guan et al., 2024; Hinton et al., arXiv 1503.02531",
    local=["teacher"],
)
publish(
    "scaffold",
    _SHIFT,
    "Control variates take the drift out of each local step.",
    "Karimireddy et al., ICML 2020",
    local=["control_variates"],
)
publish(
    "feddyn",
    _SHIFT,
    "Local losses are bent so that their optima agree.",
    "Acar et al., ICLR 2021",
    local=["dynamic_regularisation"],
)
publish(
    "harmofl",
    _SHIFT,
    "Images are rebuilt with the mean look of all sites; steps go to flat optima.",
    "Jiang et al., AAAI 2022",
    local=["mean_amplitude", "weight_perturbation"],
)
publish(
    "style_transfer",
    _SHIFT,
    "Each image is brought to the mean brightness and contrast of all sites' images.",
    "Reinhard et al., IEEE CG&A 2001; between sites as in Ke et al., ISBI 2021",
    local=["mean_style"],
)
publish(
    "style_generator",
    _SHIFT,
    "A light generator that sites learn together brings the images of all to one style, by curves and colours.",
    "Ke et al., ISBI 2021; Yan et al., IEEE JBHI 2021; by sliced transport as in Rabin et al., SSVM 2011",
    local=["style_curves"],
)
publish(
    "elcfs",
    _SHIFT,
    "Each step must also help on images with the look of other sites.",
    "Liu et al., CVPR 2021",
    local=["frequency_episodes"],
)
publish(
    "fed_align",
    _SHIFT,
    "Features are trained to be taken for those of other sites by their adversaries.",
    "Li et al., Medical Image Analysis 2020",
    local=["adversarial_alignment"],
)
publish(
    "fl_mrcm",
    _SHIFT,
    "Latent codes of all sites are trained to be taken for those of a target site by identifiers.",
    "Guo et al., CVPR 2021",
    local=["domain_identifier"],
)
publish(
    "fedharmony",
    _SHIFT,
    "Features from which a classifier can't tell the site, by means and deviations alone.",
    "Dinsdale et al., MICCAI 2022",
    local=["proximal", "site_unlearning"],
)
publish(
    "tent",
    _SHIFT,
    "Normalisation is adapted to the cases that are predicted, without their labels.",
    "Wang et al., ICLR 2021",
    local=["tent"],
)
publish(
    "fedsm",
    _SHIFT,
    "A selector that tells sites apart says for each case whose site's model predicts it.",
    "Xu et al., CVPR 2022",
    local=["super_model"],
    personal="second_model",
)
publish(
    "iop_fl",
    _SHIFT,
    "Sites have models of their own; elsewhere each case gets the mixture of them that is surest.",
    "Jiang et al., IEEE TMI 2023",
    local=["test_time_routing"],
    personal="accumulated",
)
publish(
    "splitavg",
    _SHIFT,
    "The head learns at the server from the features of all sites' batches at once.",
    "Zhang et al., IEEE JBHI 2022",
    procedure="concatenated_features",
)
publish(
    "asyndgan",
    _FEW_LABELS,
    "A generator learns from discriminators that stay at the sites; the model learns from what it makes alone.",
    "Chang et al., CVPR 2020",
    procedure="synthetic_cases",
)
publish(
    "fed_gan",
    _FEW_LABELS,
    "Sites train a generator and a discriminator of their own, both are averaged; the model learns from what is made.",
    "Rasouli et al., arXiv 2006.07228, 2020",
    procedure="federated_gan",
)
publish(
    "heterofl",
    "client end: unequal computation",
    "Each site trains as much of the network's width as its computer can.",
    "Diao et al., ICLR 2021",
    server=["heterofl"],
)
publish(
    "lora",
    "client end: unequal computation",
    "Low-rank adapters of a frozen network are trained and sent; their products are averaged.",
    "Hu et al., ICLR 2022; exact mean as in Singhal et al., ACL 2025",
    local=["lora"],
)
publish(
    "bitfit",
    "client end: unequal computation",
    "All biases and the head of a frozen network are trained and sent, and nothing else.",
    "Ben Zaken et al., ACL 2022",
    local=["partial_tuning"],
)
publish(
    "fednova",
    "client end: unequal computation",
    "Updates count by their direction, not by their number of steps.",
    "Wang et al., NeurIPS 2020",
    server=["normalised"],
)
publish(
    "cyclic",
    _TOPOLOGY,
    "The model goes from site to site, again and again.",
    "Chang et al., JAMIA 2018",
    topology="cyclic",
)
publish(
    "incremental",
    _TOPOLOGY,
    "The model goes from site to site once.",
    "Sheller et al., BrainLes 2018",
    topology="incremental",
)
publish(
    "fedavgm", _OPTIMISATION, "The server adds momentum to the mean change.", "Hsu et al., 2019", server=["fedavgm"]
)
publish("fedadam", _OPTIMISATION, "The server uses the mean change as a gradient for Adam.", _REDDI, server=["fedadam"])
publish("fedyogi", _OPTIMISATION, "The server uses the mean change as a gradient for Yogi.", _REDDI, server=["fedyogi"])
publish(
    "fedadagrad",
    _OPTIMISATION,
    "The server treats the mean change as a gradient for Adagrad.",
    _REDDI,
    server=["fedadagrad"],
)
publish(
    "ida",
    _AGGREGATION,
    "Sites whose model is far from the mean model count less.",
    "Yeganeh et al., DART at MICCAI 2020",
    server=["ida"],
)
publish(
    "simagg",
    _AGGREGATION,
    "Each weight is averaged by size and by nearness to the sites' mean.",
    "Khan et al., BrainLes at MICCAI 2021",
    server=["simagg"],
)
publish(
    "regagg",
    _AGGREGATION,
    "Each weight is averaged by size times nearness to the sites' mean.",
    "Khan et al., BrainLes at MICCAI 2021",
    server=["regagg"],
)
publish(
    "loss_weights",
    _AGGREGATION,
    "Sites whose trained model has a high loss count less.",
    "Li et al., 2021, as told by Guan et al., 2024",
    server=["loss_weights"],
)
publish(
    "fedcostwavg",
    _AGGREGATION,
    "Sites whose cost fell most since their last round count more.",
    "Mächler et al., BrainLes at MICCAI 2021",
    server=["fedcostwavg"],
)
publish(
    "fedpidavg",
    _AGGREGATION,
    "Sites whose cost fell most, or was high over the last rounds, count more.",
    "Mächler et al., BrainLes at MICCAI 2022",
    server=["fedpidavg"],
)
publish(
    "auto_fedavg",
    _AGGREGATION,
    "How much sites count is learned on the validation cases of all.",
    "Xia et al., arXiv 2104.10195",
    server=["auto_fedavg"],
)
publish(
    "guided_gradient",
    "server end: domain shift",
    "Only weights on whose direction the sites agree are moved.",
    "Fan et al., IJCNN 2021; agreement as in Tenison et al., TMLR 2023",
    server=["guided_gradient"],
)
publish(
    "feddg_ga",
    "server end: domain shift",
    "Sites where the common model is worse than their own count more.",
    "Zhang et al., CVPR 2023",
    server=["feddg_ga"],
)
publish(
    "qfedavg",
    _FAIRNESS,
    "Sites with a high loss count more, for more even performance.",
    "Li et al., ICLR 2020",
    server=["qfedavg"],
)
publish(
    "propfair",
    _FAIRNESS,
    "Sites count more the less they have to lose: proportional fairness.",
    "Zhang et al., arXiv 2202.01666",
    server=["propfair"],
)
publish(
    "afl", _FAIRNESS, "Weights move towards the sites with the highest loss.", "Mohri et al., ICML 2019", server=["afl"]
)
publish(
    "fairfed",
    _FAIRNESS,
    "Sites count less where the model treats groups of patients otherwise than over all sites.",
    "Ezzeldin et al., AAAI 2023",
    server=["equal_opportunity"],
)
publish(
    "fedce",
    _FAIRNESS,
    "Sites count as much as they contribute to the model.",
    "Jiang et al., CVPR 2023",
    server=["fedce"],
)
publish(
    "median", _CORRUPT, "Every weight is the median of the sites' values.", "Yin et al., ICML 2018", server=["median"]
)
publish(
    "trimmed_mean",
    _CORRUPT,
    "Every weight is the mean without the highest and lowest values.",
    "Yin et al., ICML 2018",
    server=["trimmed_mean"],
)
publish(
    "krum", _CORRUPT, "The one model that is nearest to most others.", "Blanchard et al., NeurIPS 2017", server=["krum"]
)
publish(
    "multi_krum",
    _CORRUPT,
    "The mean of the models that are nearest to most others.",
    "Blanchard et al., NeurIPS 2017",
    server=["multi_krum"],
)
publish(
    "bulyan",
    _CORRUPT,
    "Krum again and again, then a trimmed mean of those chosen.",
    "El Mhamdi et al., ICML 2018",
    server=["bulyan"],
)
publish(
    "geometric_median",
    _CORRUPT,
    "The point with the smallest sum of distances to all models.",
    "Pillutla et al., IEEE TSP 2022",
    server=["geometric_median"],
)
publish(
    "dos", _CORRUPT, "Sites that are outliers by distance count less.", "Alkhunaizi et al., MICCAI 2022", server=["dos"]
)
publish(
    "fltrust",
    _CORRUPT,
    "Sites count by how far they go the way of a trusted site.",
    "Cao et al., NDSS 2021",
    server=["fltrust"],
)
publish("norm_bound", _CORRUPT, "Changes longer than a bound are shortened.", "Sun et al., 2019", server=["norm_bound"])

#: The methods of this package; others are of plug-ins.
OWN = frozenset(PUBLISHED)
