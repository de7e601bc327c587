"""FL-MRCM: latent codes that are taken for those of a target site."""

import math
from functools import partial

import pytest
import torch

from going_on import training_goes_on
from helpers import Federation, catalogued, measured_site, recorded, sites_apart, straight, table_sites
from plugin_helpers import failing
from polyclinic.client.domain_shift.domain_identifiers import DomainIdentifier
from polyclinic.client.domain_shift.site_classifier import SiteClassifier
from polyclinic.models import build_model
from polyclinic.options import EntryError
from polyclinic.parts import Batch, Now, Step, Update

MLP = {"mlp": {"hidden": [4]}}
PART = "domain_identifier"
METHOD = {"fl_mrcm": {"target": "Bonn"}}
UNROLLED = {"unrolled": {"network": {"unet": {"channels": [4, 8], "residual_units": 0, "norm": "instance"}}}}


def close(actual, expected, tolerance=1e-6):
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=tolerance, atol=tolerance)


def tables(*methods, **options):
    options = {"model": MLP, **options}
    options["training"] = {"rounds": 4, **options.get("training", {})}
    return Federation(options.pop("data", None) or table_sites(), list(methods), **options)


def sigmoid(number):
    return 1 / (1 + math.exp(-number))


#: An identifier of one feature: relu(2 z + 1) · 3 − 4.
WEIGHTS = torch.tensor([2.0, 1.0, 3.0, -4.0])


def test_a_step_by_hand():
    """C(1) = 3 · 3 − 4 = 5 for the own codes and C(0) = −1 for the target's: half the slopes of both go down.

    Slopes of the outputs are −σ(−5) / 2 and σ(−1) / 2; of the weights (2, 1, 3, −4) those of C(1) are 3, 3, 3, 1, and
    those of C(0) are 0, 3, 1, 1. The term is softplus(C(1)) with the new weights, whose slope is σ(C) times 3 · 2 anew.
    """
    part = DomainIdentifier(target="T", weight=0.5, rate=0.1, hidden=1)
    end = part.at_site()
    end._network, end._weights = SiteClassifier(1, 1, 1), WEIGHTS
    codes, nothing = torch.ones(2, 1, requires_grad=True), torch.empty(0)
    batch = Batch(nothing, nothing, build_model("logistic", {}, (1,), 2), nothing, 5, nothing, codes)
    term = end.loss(batch, {"target": torch.zeros(1, 1)})
    mine, theirs = -sigmoid(-5) / 2, sigmoid(-1) / 2
    a, b, c, d = WEIGHTS - 0.1 * torch.tensor([3 * mine, 3 * mine + 3 * theirs, 3 * mine + theirs, mine + theirs])
    close(end._weights, torch.stack([a, b, c, d]), 1e-5)
    output = float((a + b) * c + d)
    close(term.detach(), 0.5 * math.log(1 + math.exp(output)), 1e-5)
    term.backward()
    close(codes.grad, torch.full((2, 1), 0.5 * sigmoid(output) * float(a * c) / 2), 1e-5)
    again = end._weights
    end.loss(batch, {"target": torch.zeros(1, 1)})
    assert torch.equal(end._weights, again), "of one batch there is one step, however often it is looked at"


def test_the_target_alone_shares_and_the_others_are_told():
    end, weights = DomainIdentifier(target="B").at_server(), torch.zeros(2)
    end.name = PART
    everyone = {"A": 1.0, "B": 1.0}

    def played(number, **sent):
        end.begin(Now(number, 9, 0.1, weights, torch.zeros(0), 2.0, everyone))
        for site, memory in sent.items():
            end.take(Update(site, weights, torch.zeros(0), 1.0, {PART: memory}))
        end.finish(Step(weights, torch.zeros(0), {}))

    assert end.send("A") == {}
    played(0, A={"codes": torch.ones(1, 2)}, B={"codes": torch.full((1, 2), 2.0)})
    assert torch.equal(end.send("A")["target"], torch.full((1, 2), 2.0))
    assert end.send("B") == {}
    played(1, A={})
    other = DomainIdentifier(target="B").at_server()
    other.restore(end.memory())
    assert torch.equal(other.send("A")["target"], torch.full((1, 2), 2.0)), "it stays while the target is away"


def test_without_its_term_it_is_fedavg_to_the_bit_and_nothing_is_shared():
    made = tables("fedavg", {"fl_mrcm": {"target": "Bonn", "weight": 0}})
    with recorded(made.engine) as said:
        assert torch.equal(made.state(made.declaration.study_methods[1].label), made.state("fedavg"))
    assert not [name for _, _, _, reply in said for name in reply.tensors if name.startswith(PART)]


def test_the_term_begins_in_the_second_round_and_the_target_alone_sends():
    for rounds, same in ((1, True), (2, False)):
        made = tables("fedavg", METHOD, training={"rounds": rounds})
        label = made.declaration.study_methods[1].label
        with recorded(made.engine) as said:
            assert torch.equal(made.state(label), made.state("fedavg")) is same
        assert {site for _, site, _, reply in said if f"{PART}/codes" in reply.tensors} == {"Bonn"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_codes_come_to_those_of_the_target_where_the_class_does_not_need_them_apart(seed):
    data, found = sites_apart(), []
    training = {"rounds": 40, "batch_size": 16, "optimizer": {"sgd": {"lr": 0.05}}, "local_steps": 4}
    with catalogued("straight", straight):
        for method in ("fedavg", {"fl_mrcm": {"target": "B", "rate": 0.2, "noise": 0.05}}):
            made = Federation(data, [method], model="straight", training=training)
            body = made.state(seed=seed)[:4].view(2, 2)
            codes = {name: site.inputs @ body.T for name, site in data.items()}
            gap = (codes["A"].mean(0) - codes["B"].mean(0)).norm()
            found.append(float(gap / (codes["A"][1::2].mean(0) - codes["A"][::2].mean(0)).norm()))
    assert found[1] < 0.6 * found[0]


def test_an_identifier_stays_while_its_site_is_away():
    kept = []
    for rounds in (2, 3, 4):
        made = tables(METHOD, training={"rounds": rounds, "quorum": 2})
        failing(made.engine, (2, "Aachen"))
        progress, _ = made.rounds()
        kept.append(made.kept(progress)["Aachen"].parts[PART]["identifier"])
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[1], kept[2])


@pytest.mark.parametrize("method", [METHOD, "fedmri"])
def test_images_are_reconstructed_and_a_resumed_run_gives_the_same_bytes(tmp_path, method):
    data = {name: measured_site(name, cases) for name, cases in (("Aachen", 8), ("Bonn", 6))}

    made = partial(Federation, data, [method], model=UNROLLED, task="reconstruction", classes=0, training={"rounds": 3})
    training_goes_on(made, tmp_path, (1, 2))


def test_codes_of_a_reconstruction_are_latent():
    data = {name: measured_site(name, cases) for name, cases in (("Aachen", 8), ("Bonn", 6))}
    made = Federation(data, [METHOD], model=UNROLLED, task="reconstruction", classes=0, training={"rounds": 2})
    with recorded(made.engine) as said:
        made.state()
    sent = [reply.tensors[f"{PART}/codes"] for _, _, _, reply in said if f"{PART}/codes" in reply.tensors]
    assert [codes.shape for codes in sent] == [(6, 8)] * 2, "the coarsest layer has 8 channels"


def test_noise_on_changes_does_not_cover_codes():
    for channel in (["clip", {"gaussian_noise": {"noise": 1.0}}], ["secure_sum"]):
        with pytest.raises(EntryError, match="P104 domain_identifier"):
            tables({"fl_mrcm": {"target": "Bonn", "channel": channel}})
