"""Fed-Align: features trained to be taken for those of other sites."""

import math
from functools import partial

import pytest
import torch

from going_on import training_goes_on
from helpers import Federation, catalogued, recorded, sites_apart, straight, table_sites, trained_state
from plugin_helpers import failing
from polyclinic.client.domain_shift.adversaries import AdversarialAlignment
from polyclinic.client.domain_shift.site_classifier import SiteClassifier
from polyclinic.client.features import frozen_features
from polyclinic.models import build_model
from polyclinic.options import EntryError
from polyclinic.parts import Batch, Now, Step, Update

MLP = {"mlp": {"hidden": [4]}}
NORM_MLP = {"mlp": {"hidden": [4], "norm": "batch", "dropout": 0.3}}
PART = "adversarial_alignment"


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def tables(*methods, **options):
    options = {"model": MLP, **options}
    options["training"] = {"rounds": 4, **options.get("training", {})}
    return Federation(options.pop("data", None) or table_sites(), list(methods), **options)


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


#: A discriminator of one feature: relu(2 f + 1) · 3 − 4.
WEIGHTS = torch.tensor([2.0, 1.0, 3.0, -4.0])


def batch_of(features, seed=5):
    nothing = torch.empty(0)
    return Batch(nothing, nothing, build_model("logistic", {}, (1,), 2), nothing, seed, nothing, features)


def test_a_step_by_hand():
    """All own features are 1: no deviation, so no noise. D(1) = 3 · 3 − 4 = 5; the only one of others is 0: D(0) = −1.

    D_k goes down softplus(−5) + softplus(−1): slopes of its outputs are −σ(−5) at the own and σ(−1) at the other
    feature; those of the weights (2, 1, 3, −4) are 3 · 1, 3, 3, 1 of the former, and 0, 3, 1, 1 of the latter.
    The term is −log σ(D_j(1)) of D_j = −D_k's last layer: D_j(1) = −3 · 3 + 4 = −5, slope −σ(5) · (−3 · 2) = 6 σ(5).
    """
    part = AdversarialAlignment(weight=0.5, rate=0.1, hidden=1)
    end = part.at_site()
    end._network, end._weights = SiteClassifier(1, 1, 1), WEIGHTS
    features = torch.ones(2, 1, requires_grad=True)
    adversary = torch.tensor([[2.0, 1.0, -3.0, 4.0]])
    term = end.loss(batch_of(features), {"others": torch.zeros(1, 1), "adversaries": adversary})
    close(term.detach(), 0.5 * math.log(1 + math.exp(5)), 1e-5)
    term.backward()
    close(features.grad, torch.full((2, 1), 0.5 * 6 * sigmoid(5) / 2), 1e-5)
    mine, theirs = -sigmoid(-5), sigmoid(-1)
    slopes = torch.tensor([3 * mine, 3 * mine + 3 * theirs, 3 * mine + 1 * theirs, mine + theirs])
    close(end._weights, WEIGHTS - 0.1 * slopes, 1e-5)
    again = end._weights
    end.loss(batch_of(features), {"others": torch.zeros(1, 1), "adversaries": adversary})
    assert torch.equal(end._weights, again), "of one batch there is one step, however often it is looked at"


def test_what_a_site_shares_is_handed_to_the_others_and_kept_while_it_is_away():
    end, weights = AdversarialAlignment().at_server(), torch.zeros(2)
    end.name = PART
    everyone = {"A": 1.0, "B": 1.0, "C": 1.0}

    def played(number, **sent):
        end.begin(Now(number, 9, 0.1, weights, torch.zeros(0), 3.0, everyone))
        for site, memory in sent.items():
            end.take(Update(site, weights, torch.zeros(0), 1.0, {PART: memory}))
        end.finish(Step(weights, torch.zeros(0), {}))

    assert end.send("A") == {}
    one, two = torch.full((1, 2), 1.0), torch.full((2, 2), 2.0)
    played(0, B={"features": two}, A={"features": one})
    assert torch.equal(end.send("A")["others"], two)
    assert torch.equal(end.send("C")["others"], torch.cat([one, two]))
    played(1, A={"features": 3 * one, "discriminator": torch.arange(3.0)})
    assert torch.equal(end.send("C")["others"], torch.cat([3 * one, two]))
    assert torch.equal(end.send("B")["adversaries"], torch.arange(3.0)[None])
    assert "adversaries" not in end.send("A")
    other = AdversarialAlignment().at_server()
    other.restore(end.memory())
    assert all(torch.equal(other.send("B")[name], tensor) for name, tensor in end.send("B").items())


@pytest.mark.parametrize("model", [MLP, NORM_MLP])
def test_without_its_term_it_is_fedavg_to_the_bit_and_nothing_is_shared(model):
    made = tables("fedavg", {"fed_align": {"weight": 0, "label": "none"}}, model=model)
    with recorded(made.engine) as said:
        assert torch.equal(made.state("none"), made.state("fedavg"))
    assert not [name for _, _, _, reply in said for name in reply.tensors if name.startswith(PART)]


def test_the_term_begins_in_the_third_round():
    for rounds, same in ((2, True), (3, False)):
        made = tables("fedavg", "fed_align", training={"rounds": rounds})
        assert torch.equal(made.state("fed_align"), made.state("fedavg")) is same


def test_no_feature_leaves_without_noise():
    made = tables({"fed_align": {"noise": 0.5, "cases": 6}}, training={"rounds": 1})
    with recorded(made.engine) as said:
        made.rounds()
    sent = {site: reply.tensors[f"{PART}/features"] for function, site, _, reply in said if function == "train"}
    assert {site: len(features) for site, features in sent.items()} == {
        "Aachen": 6,
        "Bonn": 6,
        "Celle": 5,
        "Dresden": 6,
    }
    ends = {site: trained_state(*exchange) for function, site, *exchange in said if function == "train"}
    for site, vector in ends.items():
        plain = frozen_features(made.template, vector, made.data[site].inputs)
        apart = (sent[site][:, None] - plain[None]).norm(dim=2).amin(1)
        assert (apart > 0.01 * plain.std()).all()


def test_features_of_sites_come_together_where_the_class_does_not_need_them_apart():
    data, found = sites_apart(), {}
    training = {"rounds": 40, "batch_size": 16, "optimizer": {"sgd": {"lr": 0.05}}, "local_steps": 4}
    with catalogued("straight", straight):
        for method in ("fedavg", {"fed_align": {"rate": 0.5, "noise": 0.05}}):
            made = Federation(data, [method], model="straight", training=training)
            body = made.state()[:4].view(2, 2)
            features = {name: site.inputs @ body.T for name, site in data.items()}
            gap = (features["A"].mean(0) - features["B"].mean(0)).norm()
            classes = (features["A"][1::2].mean(0) - features["A"][::2].mean(0)).norm()
            found[str(method)] = float(gap / classes)
    plain, aligned = found.values()
    assert aligned < 0.6 * plain


def test_a_site_that_is_away_keeps_its_discriminator():
    kept = []
    for rounds in (2, 3, 4):
        made = tables("fed_align", training={"rounds": rounds, "quorum": 2})
        failing(made.engine, (2, "Bonn"))
        progress, _ = made.rounds()
        kept.append(made.kept(progress)["Bonn"].parts[PART]["discriminator"])
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_messages_as_bytes_and_a_resumed_run_give_the_same_bytes(tmp_path):
    training_goes_on(partial(tables, "fed_align", model=NORM_MLP), tmp_path, (1, 2, 3))


def test_one_site_has_nobody_to_be_taken_for():
    data = table_sites({"Aachen": 20})
    made = tables("fedavg", "fed_align", data=data)
    assert torch.equal(made.state("fed_align"), made.state("fedavg"))


def test_noise_on_changes_does_not_cover_features():
    with pytest.raises(EntryError, match="P104 adversarial_alignment tells more of a site's patients"):
        tables({"fed_align": {"channel": ["clip", {"gaussian_noise": {"noise": 1.0}}]}})
    with pytest.raises(EntryError, match="P104 adversarial_alignment"):
        tables({"fed_align": {"channel": ["secure_sum"]}})
