"""Auto-FedAvg: weights by hand and against autograd, what sites are sent and answer, and a site that is wrong."""

import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from helpers import Federation, image_sites, plain_module, recorded, survival_site, table_sites
from polyclinic.errors import SiteError, StudyError
from polyclinic.server.learned import _boxes, validation_gradient
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task
from server_exchange import close, play, rule, update

SIZES = {"A": 1, "B": 3}
CHANGES = {"A": [1.0, 0.0], "B": [0.0, 1.0]}


def answering(part, gradients):
    """Sites answer so; gives what they were sent."""
    sent = []

    def ask(verb, asked):
        assert verb == "gradient"
        sent.append({site: tensors["state"] for site, tensors in asked.items()})
        for site, tensors in asked.items():
            found = gradients[site](tensors["state"])
            yield site, found if isinstance(found, Exception) else {"gradient": torch.as_tensor(found).float()}

    part.part.ask = ask
    return sent


def constant(**gradients):
    return {site: lambda state, found=found: found for site, found in gradients.items()}


def round_of(part, number=0, changes=None, sizes=SIZES):
    updates = [update(site, change, sizes[site]) for site, change in (changes or CHANGES).items()]
    return play(part, updates, number=number, everyone=sizes)


# By hand --------------------------------------------------------------------------------------------------------------


def test_by_hand():
    """∇F is 1/4 (4, 0) + 3/4 (0, 4); along the changes 1 and 3, their mean 2.5: ∂F/∂b is 1/4 · −1.5 and 3/4 · 0.5."""
    part = rule("auto_fedavg", lr=math.log(2) / 0.375)
    sent = answering(part, constant(A=[4.0, 0.0], B=[0.0, 4.0]))
    close(round_of(part), [4 / 7, 3 / 7])  # 1/4 is doubled, 3/4 halved
    assert part.shares == pytest.approx({"A": 4 / 7, "B": 3 / 7})
    assert len(sent) == 1
    # The next round goes on from there: along (4/7 · 0 + ...) the sites are alike, and nothing moves.
    answering(part, constant(A=[2.0, 2.0], B=[2.0, 2.0]))
    close(round_of(part, 1), [4 / 7, 3 / 7])


def test_all_sites_are_sent_the_mean_and_nothing_else():
    part = rule("auto_fedavg")
    sent = answering(part, constant(A=[0.0, 0.0], B=[0.0, 0.0]))
    start = torch.tensor([10.0, 20.0])
    play(part, [update("A", [12.0, 20.0, 5.0], 1), update("B", [10.0, 24.0, 9.0], 3)], [*start, 7.0], trainable=2)
    for state in sent[0].values():
        close(state, [10.5, 23.0, 8.0])


def test_steps_go_on_from_one_another():
    several, single = rule("auto_fedavg", steps=3), rule("auto_fedavg", steps=1)
    for part in (several, single):
        answering(part, constant(A=[1.0, 0.0], B=[0.0, 0.5]))
    expected = [round_of(single, number) for number in range(3)][-1]
    close(round_of(several), expected)


@pytest.mark.parametrize("seed", range(4))
def test_the_gradient_is_that_of_the_loss_by_softmax(seed):
    generator = torch.Generator().manual_seed(seed)
    changes, optima = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    sizes = dict(zip("ABCD", (5, 1, 3, 2), strict=True))
    shares = torch.tensor(list(sizes.values())).double() / 11
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    logits = shares.log().requires_grad_()
    mean = start + logits.softmax(0) @ changes
    (shares @ ((mean - optima) ** 4).sum(1)).backward()
    expected = (logits.detach() - 0.1 * logits.grad).softmax(0)
    part = rule("auto_fedavg", lr=0.1)
    gradients = {
        site: lambda w, o=optimum: 4 * (w.double() - o) ** 3 for site, optimum in zip("ABCD", optima, strict=True)
    }
    answering(part, gradients)
    play(part, [update(s, (start + c).tolist(), sizes[s]) for s, c in zip("ABCD", changes, strict=True)], start)
    close(list(part.shares.values()), expected, 1e-5)


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"lr": 0.0}, {"lr": 5.0}])
def test_without_a_rate_or_where_nothing_differs_it_is_fedavg(options):
    part, mean = rule("auto_fedavg", **options), rule("mean")
    sent = answering(part, constant(A=[1.0, 1.0], B=[3.0, 3.0]))
    for number in range(3):
        close(round_of(part, number), round_of(mean, number))
    assert bool(sent) == bool(options["lr"])  # nothing is asked for nothing


def test_one_site_is_asked_nothing():
    part = rule("auto_fedavg")
    close(round_of(part, changes={"B": [0.25, 4.0]}), [0.25, 4.0])


# Sites that are away --------------------------------------------------------------------------------------------------


def test_a_site_that_does_not_answer_is_left_out_of_the_loss():
    part, alone = rule("auto_fedavg"), rule("auto_fedavg")
    answering(part, constant(A=SiteError("P401", "Away.", site="A"), B=[0.0, 4.0]))
    answering(alone, constant(A=[0.0, 4.0], B=[0.0, 4.0]))
    close(round_of(part), round_of(alone))
    answering(part, constant(A=SiteError("P401", "Away.", site="A"), B=SiteError("P401", "Away.", site="B")))
    before = part.part.recall("share")
    round_of(part, 1)
    close(part.part.recall("share"), before)


@pytest.mark.parametrize(
    ("method", "asked"), [("auto_fedavg", "auto_fedavg/gradient"), ("fedsm", "super_model/tell_apart")]
)
def test_the_quorum_judges_who_gives_no_answer(monkeypatch, method, asked):
    def trained(quorum):
        made = Federation(table_sites(), [method], training={"rounds": 2, "quorum": quorum})
        member, handle = made.engine.members["Bonn"], made.engine.members["Bonn"].handle

        def away(function, request):
            if function == asked:
                raise SiteError("P401", "Site Bonn is away.", site="Bonn")
            return handle(function, request)

        monkeypatch.setattr(member, "handle", away)
        return made.rounds()

    everyone = len(table_sites())
    for quorum in (None, everyone):
        with pytest.raises(SiteError, match="P401 Site Bonn is away"):
            trained(quorum)
    progress, rows = trained(everyone - 1)
    assert progress.failures == [f"When asked to {asked}, Bonn did not answer. Bonn: P401 Site Bonn is away."]
    assert {row["site"] for row in rows} == set(table_sites())  # its update counts all the same


def test_a_site_that_sits_out_keeps_its_share():
    part, sizes = rule("auto_fedavg"), {"A": 1, "B": 1, "C": 2}
    answering(part, constant(A=[9.0, 0.0], B=[0.0, 1.0], C=[0.0, 0.0]))
    round_of(part, sizes=sizes)
    kept = part.part.recall("share")
    assert kept["C"] == 0.5
    assert kept["A"] < 0.25 < kept["B"]
    assert kept["A"] + kept["B"] == pytest.approx(0.5)


def test_huge_gradients_give_numbers():
    part = rule("auto_fedavg", lr=1e6)
    answering(part, constant(A=[1e30, 0.0], B=[0.0, -1e30]))
    for number in range(3):
        assert round_of(part, number).isfinite().all()
    close(part.shares, {"A": 0.0, "B": 1.0})
    close(round_of(part, 3, {"A": [5.0, 5.0]}), [5.0, 5.0])


def test_goes_on_from_a_checkpoint():
    first, second = rule("auto_fedavg"), rule("auto_fedavg")
    for part in (first, second):
        answering(part, constant(A=[4.0, 0.0], B=[0.0, 4.0]))
    round_of(first)
    memory = {key: value.clone() for key, value in first.memory().items()}
    second.restore(memory)
    assert torch.equal(round_of(first, 1), round_of(second, 1))
    assert first.shares == second.shares != {"A": 0.25, "B": 0.75}


def test_a_round_that_is_given_up_is_not_remembered():
    part = rule("auto_fedavg")
    answering(part, constant(A=[4.0, 0.0], B=[0.0, 4.0]))
    part.begin(torch.zeros(2), torch.zeros(0), SIZES)
    for site, change in CHANGES.items():
        part.take(site, torch.tensor(change), torch.zeros(0), SIZES[site], {})
    assert not part.memory()


# What it is for -------------------------------------------------------------------------------------------------------


def test_a_site_with_wrong_training_labels_loses_its_weight():
    """All validation losses are (w − 1)²; A and B train halfway to 1, C (half of all cases) halfway to −1."""
    sizes = {"A": 1, "B": 1, "C": 2}

    def trained(name):
        part, weight, counted = rule(name), 0.0, []
        if name == "auto_fedavg":
            answering(part, {site: lambda w: 2 * (w - 1) for site in sizes})
        for number in range(30):
            updates = [update(s, [(weight + (-1 if s == "C" else 1)) / 2], n) for s, n in sizes.items()]
            weight = float(play(part, updates, [weight], number=number))
            counted.append(part.shares["C"])
        return weight, counted

    weight, counted = trained("auto_fedavg")
    assert all(later < earlier for earlier, later in pairwise(counted))
    assert counted[-1] < 0.1
    assert weight > 0.7
    assert trained("mean")[0] == pytest.approx(0.0)


# At the sites ---------------------------------------------------------------------------------------------------------


def questions(federation):
    """Who was asked what in all rounds, and what was answered."""
    with recorded(federation.engine) as said:
        federation.kept(federation.rounds()[0])
    return [(site, ask, reply) for function, site, ask, reply in said if function == "auto_fedavg/gradient"]


@pytest.mark.parametrize(
    ("model", "share"), [("logistic", "all"), ({"mlp": {"hidden": [4], "norm": "batch"}}, "no_norm_statistics")]
)
def test_a_site_answers_the_gradient_of_its_validation_loss(model, share):
    """Against an ordinary module, with running statistics, all cases at once."""
    sizes = {"Aachen": 33, "Bonn": 10}
    federation = Federation(
        table_sites(sizes, part=None), [{"auto_fedavg": {"share": share}}], model=model,
        evaluation={"validation": 0.4, "folds": 2},
    )  # fmt: skip
    asked = questions(federation)
    assert {site for site, *_ in asked} == set(sizes)
    for site, ask, reply in asked:
        run = federation.local.members[site].run
        vector = run.shared_model(ask.tensors["state"])
        module = plain_module(federation.template, vector).eval()
        inputs, targets = run.view.cases(None, "validation")
        assert 1 < len(targets) < sizes[site]
        nn.functional.cross_entropy(module(inputs), targets).backward()
        found = torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()])
        torch.testing.assert_close(reply.tensors["gradient"], found, rtol=1e-4, atol=1e-6)


def test_no_site_is_sent_what_another_one_sent():
    federation = Federation(table_sites(), ["auto_fedavg"], training={"rounds": 2})
    with recorded(federation.engine) as said:
        _, rows = federation.rounds()
    assert all(set(ask.tensors) == {"state"} for function, _, ask, _ in said if function != "start")
    asked = [ask.tensors["state"] for function, _, ask, _ in said if function == "auto_fedavg/gradient"]
    assert all(torch.equal(one, asked[0]) for one in asked[:4])
    size = federation.template.layout.trainable
    assert {row["extra_up"] for row in rows} == {f"auto_fedavg/gradient [{size}] {4 * size} bytes"}


@pytest.mark.parametrize("task", ["segmentation", "survival"])
def test_other_tasks(task):
    if task == "segmentation":
        sites, model = image_sites({"Aachen": 6, "Bonn": 5}, masks=True), {"unet": {"channels": [2, 4]}}
    else:
        sites, model = {name: survival_site(name, 12) for name in ("Aachen", "Bonn")}, "logistic"
    said = questions(Federation(sites, ["auto_fedavg"], task=task, model=model))
    assert len(said) == 2
    assert all(reply.tensors["gradient"].isfinite().all() and reply.tensors["gradient"].any() for *_, reply in said)


def test_stacked_sites_learn_the_same_weights():
    states = [
        Federation(table_sites(), ["auto_fedavg"], training={"rounds": 3}, stacked=s).state() for s in (False, True)
    ]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


def test_boxes_cover_a_volume_and_their_shares_are_of_it():
    inputs = torch.arange(2 * 5 * 4 * 7).view(2, 1, 5, 4, 7)
    found = list(_boxes(inputs, inputs.clone(), (2, 4, 3)))
    assert {tuple(one.shape) for one, _, _ in found} == {(2, 1, 2, 4, 3)}
    assert all(torch.equal(one, mask) for one, mask, _ in found)
    assert sum(share for *_, share in found) == pytest.approx(1)
    assert set(torch.cat([one.reshape(-1) for one, *_ in found]).tolist()) == set(inputs.reshape(-1).tolist())
    assert len(list(_boxes(inputs, inputs, (5, 4, 7)))) == 1


def test_large_images_are_gone_through_in_the_boxes_of_training():
    """Three images of 6 x 4 in boxes of 4 x 4, by twos: rows 0 to 3 and 2 to 5, each half of an image."""
    generator = torch.Generator().manual_seed(1)
    network = FlatModule(nn.Conv2d(1, 1, 3, padding=1))
    task = build_task("segmentation", 2)
    inputs, masks = torch.randn(3, 1, 6, 4, generator=generator), torch.randint(2, (3, 1, 6, 4), generator=generator)
    view = SimpleNamespace(
        vector=network.vector.clone(), trainable=10, layout=network.layout, shapes=[(1, 1, 3, 3), (1,)],
        input_shape=(1, 4, 4), bags=False, batch_size=2, model=network, task=task, shared=lambda vector: vector,
        count=lambda part: 3, cases=lambda index, part: (inputs[index], masks[index]),
    )  # fmt: skip
    found = validation_gradient(view)
    module = plain_module(network, network.vector)
    losses = [task.loss(module(inputs[:, :, rows]), masks[:, :, rows]) for rows in (slice(0, 4), slice(2, 6))]
    torch.stack(losses).mean().backward()
    close(found, torch.cat([parameter.grad.reshape(-1) for parameter in module.parameters()]))


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"channel": [{"secure_sum": {"group_size": 2}}]}, "sends something of each site"),
        ({"channel": ["secure_sum"]}, "needs each site's update"),
        ({"server": ["normalised", "auto_fedavg"]}, "with normalised that is no model"),
        ({"channel": ["clip", {"gaussian_noise": {"noise": 1.0}}]}, "tells more of a site's patients"),
    ],
)
def test_what_it_does_not_go_with(entry, words):
    with pytest.raises(StudyError, match=words):
        Federation(table_sites(), [{"auto_fedavg": {"share": "no_norm", **entry}}]).plan()
