"""FedHarmony: features from which a classifier can't tell the site."""

import math
from functools import partial

import pytest
import torch

from going_on import training_goes_on
from helpers import Federation, catalogued, recorded, sites_apart, straight, table_sites, trained_state
from plugin_helpers import failing
from polyclinic.client.domain_shift.site_classifier import SiteClassifier
from polyclinic.client.domain_shift.unlearning import SiteUnlearning
from polyclinic.client.features import frozen_features
from polyclinic.models import build_model
from polyclinic.options import EntryError
from polyclinic.parts import Batch, Now, Step, Update

MLP = {"mlp": {"hidden": [4]}}
NORM_MLP = {"mlp": {"hidden": [4], "norm": "batch", "dropout": 0.3}}
PART = "site_unlearning"
NONE = {"fedharmony": {"mu": 0, "weight": 0, "label": "none"}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def tables(*methods, **options):
    options = {"model": MLP, **options}
    options["training"] = {"rounds": 4, **options.get("training", {})}
    return Federation(options.pop("data", None) or table_sites(), list(methods), **options)


def batch_of(features, seed=5):
    nothing = torch.empty(0)
    return Batch(nothing, nothing, build_model("logistic", {}, (1,), 2), nothing, seed, nothing, features)


def test_a_step_by_hand():
    """One feature, a layer between of one, two sites. Own features are 2 (site 1); site 0 has mean 1 and deviation 0.

    The classifier is h = relu(f), outputs (h, −h): (2, −2) for 2, (1, −1) for 1. It gives site 0 the probabilities
    p = σ(4) and q = σ(2). Cross entropy has slopes (p, −p) / 2 of the outputs of the former, whose label is 1, and
    (q − 1, 1 − q) / 2 of the latter. Of the last bias they are the sums, of the last weights h times them; of h they
    are 2 p / 2 and 2 (q − 1) / 2, which times f go to the first weight and alone to the first bias.
    """
    part = SiteUnlearning(weight=0.5, rate=0.1, hidden=1)
    end = part.at_site()
    start = torch.tensor([1.0, 0.0, 1.0, -1.0, 0.0, 0.0])
    end._network, end._weights = SiteClassifier(1, 1, 2), start
    features = torch.full((3, 1), 2.0, requires_grad=True)
    given = {"means": torch.tensor([[1.0], [7.0]]), "deviations": torch.zeros(2, 1), "place": torch.tensor(1)}
    term = end.loss(batch_of(features), given)
    p, q = 1 / (1 + math.exp(-4)), 1 / (1 + math.exp(-2))
    first, bias = 0.5 * (2 * 2 * p + 1 * 2 * (q - 1)), 0.5 * (2 * p + 2 * (q - 1))
    up = 0.5 * (2 * p + (q - 1))
    last = 0.5 * (p + (q - 1))
    weights = start - 0.1 * torch.tensor([first, bias, up, -up, last, -last])
    close(end._weights, weights, 1e-5)
    w, b, u, v, c, d = weights.tolist()
    hidden = 2 * w + b
    outputs = torch.tensor([u * hidden + c, v * hidden + d])
    close(term.detach(), -0.5 * float(outputs.log_softmax(0).mean()), 1e-5)
    term.backward()
    share = float(outputs.softmax(0)[0])
    slope = 0.5 * ((share - 0.5) * u + (0.5 - share) * v) * w / 3
    close(features.grad, torch.full((3, 1), slope), 1e-5)
    assert slope > 0.01, "or the test could not fail"


def test_the_term_is_least_where_the_classifier_is_undecided():
    """All outputs alike: −(1/K) Σ log (1/K) = log K."""
    end = SiteUnlearning(rate=1e-30).at_site()
    end._network, end._weights = SiteClassifier(2, 3, 4), torch.zeros(2 * 3 + 3 + 3 * 4 + 4)
    given = {"means": torch.zeros(4, 2), "deviations": torch.ones(4, 2), "place": torch.tensor(2)}
    close(end.loss(batch_of(torch.randn(5, 2)), given), math.log(4))


def test_what_the_server_knows():
    """Classifiers are averaged by the sites' weights: (3 · 1 + 1 · 5) / 4 = 2."""
    end, weights = SiteUnlearning().at_server(), torch.zeros(2)
    end.name = PART
    everyone = {"A": 3.0, "B": 1.0, "C": 1.0}

    def played(number, **sent):
        end.begin(Now(number, 9, 0.1, weights, torch.zeros(0), 5.0, everyone))
        for site, memory in sent.items():
            end.take(Update(site, weights, torch.zeros(0), everyone[site], {PART: memory}))
        end.finish(Step(weights, torch.zeros(0), {}))

    def said(number, classifier=None):
        own = {"mean": torch.full((2,), number), "deviation": torch.full((2,), number + 0.5)}
        return own if classifier is None else {**own, "classifier": torch.full((3,), classifier)}

    played(0, A=said(1.0))
    assert end.send("A") == end.send("B") == {}, "there is nobody to be told apart from"
    played(1, B=said(2.0), A=said(1.0))
    sent = end.send("B")
    assert sent["means"].tolist() == [[1.0, 1.0], [2.0, 2.0]]
    assert sent["deviations"].tolist() == [[1.5, 1.5], [2.5, 2.5]]
    assert int(sent["place"]) == 1
    assert "common" not in sent
    assert end.send("C") == {}
    played(2, A=said(4.0, 1.0), B=said(2.0, 5.0))
    assert end.send("A")["common"].tolist() == [2.0, 2.0, 2.0]
    assert end.send("A")["means"].tolist() == [[4.0, 4.0], [2.0, 2.0]]
    other = SiteUnlearning().at_server()
    other.restore(end.memory())
    assert all(torch.equal(other.send("A")[name], tensor) for name, tensor in end.send("A").items())
    played(3, C=said(9.0), A=said(4.0, 1.0))
    assert "common" not in end.send("A"), "of two sites, and now there are three"


@pytest.mark.parametrize("model", [MLP, NORM_MLP])
def test_without_its_terms_it_is_fedavg_to_the_bit_and_nothing_is_shared(model):
    made = tables("fedavg", NONE, model=model)
    with recorded(made.engine) as said:
        assert torch.equal(made.state("none"), made.state("fedavg"))
    assert not [name for _, _, _, reply in said for name in reply.tensors if name.startswith(PART)]


def test_without_the_confusion_it_is_fedprox_and_with_it_the_term_begins_in_the_second_round():
    for rounds, same in ((1, True), (2, False)):
        made = tables("fedprox", "fedharmony", {"fedharmony": {"weight": 0, "label": "near"}},
                      training={"rounds": rounds})  # fmt: skip
        assert torch.equal(made.state("near"), made.state("fedprox"))
        assert torch.equal(made.state("fedharmony"), made.state("fedprox")) is same


def test_means_and_deviations_are_those_of_the_features():
    made = tables("fedharmony", training={"rounds": 1})
    with recorded(made.engine) as said:
        made.rounds()
    answers = [(site, request, reply) for function, site, request, reply in said if function == "train"]
    assert len(answers) == 4
    for site, request, reply in answers:
        features = frozen_features(made.template, trained_state(request, reply), made.data[site].inputs)
        close(reply.tensors[f"{PART}/mean"], features.mean(0), 1e-5)
        close(reply.tensors[f"{PART}/deviation"], features.std(0, correction=0), 1e-5)


def test_features_of_sites_come_together_where_the_class_does_not_need_them_apart():
    data, found = sites_apart(), {}
    training = {"rounds": 40, "batch_size": 16, "optimizer": {"sgd": {"lr": 0.05}}, "local_steps": 4}
    with catalogued("straight", straight):
        for method in ("fedavg", {"fedharmony": {"rate": 0.5, "mu": 0}}):
            made = Federation(data, [method], model="straight", training=training)
            body = made.state()[:4].view(2, 2)
            features = {name: site.inputs @ body.T for name, site in data.items()}
            gap = (features["A"].mean(0) - features["B"].mean(0)).norm()
            classes = (features["A"][1::2].mean(0) - features["A"][::2].mean(0)).norm()
            found[str(method)] = float(gap / classes)
    plain, harmonised = found.values()
    assert harmonised < 0.6 * plain


def test_a_site_that_is_away_is_still_told_apart():
    made = tables("fedharmony", training={"rounds": 3, "quorum": 2})
    failing(made.engine, (1, "Bonn"))
    with recorded(made.engine) as said:
        made.rounds()
    last = [request.tensors for function, _, request, _ in said if function == "train"][-4:]
    assert all(tensors[f"{PART}/means"].shape == (4, 4) for tensors in last)
    assert sorted(int(tensors[f"{PART}/place"]) for tensors in last) == [0, 1, 2, 3]


def test_messages_as_bytes_and_a_resumed_run_give_the_same_bytes(tmp_path):
    training_goes_on(partial(tables, "fedharmony", model=NORM_MLP), tmp_path, (1, 2, 3))


def test_one_site_is_known_to_all():
    made = tables("fedavg", {"fedharmony": {"mu": 0, "label": "alone"}}, data=table_sites({"Aachen": 20}))
    assert torch.equal(made.state("alone"), made.state("fedavg"))


def test_noise_on_changes_does_not_cover_means():
    with pytest.raises(EntryError, match="P104 site_unlearning tells more of a site's patients"):
        tables({"fedharmony": {"channel": ["clip", {"gaussian_noise": {"noise": 1.0}}]}})
