"""FedMD: sites send what they find in a public set, and learn the mean of it."""

import pytest
import torch
from torch import nn

from helpers import (
    SIZES,
    Federation,
    image_sites,
    number_site,
    plain_module,
    recorded,
    site_of,
    table_sites,
    with_public,
)
from polyclinic.engine import LocalEngine
from polyclinic.errors import StudyError
from polyclinic.parts.distilling import batches_of, distil, divergence, outputs_on, shuffled
from polyclinic.running.progress import Checkpoint
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task

PUBLIC = torch.randn(20, 5, generator=torch.Generator().manual_seed(3))
BATCH_NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}


def sites(**options):
    return with_public(table_sites(**options), PUBLIC)


def owns(federation, label):
    """The model that each site has of its own after all rounds."""
    progress, _ = federation.rounds(label)
    return {site: kept.own for site, kept in federation.kept(progress).items()}


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for site in first:
        if tolerance:
            torch.testing.assert_close(first[site], second[site], **tolerance)
        else:
            assert torch.equal(first[site], second[site]), site


# Identities -----------------------------------------------------------------------------------------------------------


def test_without_weight_it_is_training_alone_to_the_bit():
    methods = ["single", {"fedmd": {"weight": 0, "label": "fedmd"}}]
    federation = Federation(sites(), methods, model=BATCH_NORM, training={"rounds": 3})
    same(owns(federation, "single"), owns(federation, "fedmd"))


def test_the_first_round_is_training_alone_and_the_second_is_not():
    for rounds, equal in ((1, True), (2, False)):
        federation = Federation(sites(), ["single", "fedmd"], training={"rounds": rounds})
        alone, together = owns(federation, "single"), owns(federation, "fedmd")
        assert all(torch.equal(alone[site], together[site]) is equal for site in alone)


def test_one_site_alone_digests_what_it_knows():
    """The consensus of one is its own outputs: the mean absolute difference is 0, and so is its gradient."""
    one = {"Aachen": sites()["Aachen"]}
    federation = Federation(one, ["single", "fedmd"], training={"rounds": 3})
    same(owns(federation, "single"), owns(federation, "fedmd"))


def test_all_of_a_public_set_is_a_draw_of_as_many():
    methods = ["fedmd", {"fedmd": {"cases": len(PUBLIC), "label": "drawn"}}]
    federation = Federation(sites(), methods, training={"rounds": 3})
    same(owns(federation, "fedmd"), owns(federation, "drawn"))


@pytest.mark.parametrize("options", [{"serialise": True}, {"stacked": True}])
def test_other_engines_give_the_same(options):
    made = [Federation(sites(), ["fedmd"], training={"rounds": 3}, **one) for one in ({}, options)]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if "stacked" in options else {}
    same(owns(made[0], "fedmd"), owns(made[1], "fedmd"), **tolerance)


# Numbers by hand ------------------------------------------------------------------------------------------------------


def linear(*weights):
    layer = nn.Linear(1, 2, bias=False)
    model = FlatModule(nn.Sequential(layer), [layer])
    model.load(torch.tensor(weights))
    return model


class Rows:
    """A public set of a table."""

    shape = (1,)

    def __init__(self, *values):
        self.values = torch.tensor(values)[:, None]

    def __len__(self):
        return len(self.values)

    def batch(self, index):
        return self.values[index], None


def test_one_step_towards_a_consensus_by_hand():
    """Outputs w x of w = (1, −1) at x = 2 and 3 are (2, −2) and (3, −3); wanted are (5, −2) and (0, −4). The mean of
    |2 − 5|, |−2 + 2|, |3 − 0|, |−3 + 4| has the gradient ((−2 + 3) / 4, (0 + 3) / 4); with a rate of 0.4 that is w =
    (1 − 0.1, −1 − 0.3)."""
    wanted = torch.tensor([[5.0, -2.0], [0.0, -4.0]])
    found = distil(
        linear(1.0, -1.0), torch.tensor([1.0, -1.0]), Rows(2.0, 3.0), [torch.tensor([0, 1])],
        lambda outputs, index: (outputs - wanted[index]).abs().mean(),
        lambda parameters: torch.optim.SGD(parameters, lr=0.4).step,
    )  # fmt: skip
    assert found.tolist() == pytest.approx([0.9, -1.3])


def test_the_divergence_by_hand():
    """p = σ(0, ln 3) = (1/4, 3/4), q = (1/2, 1/2): KL = 1/4 ln(1/2) + 3/4 ln(3/2) = 0.130812. With T = 2, p = 1 /
    (1 + √3) = 0.366025: 4 · (0.366025 ln 0.732051 + 0.633975 ln 1.267949) = 0.145363."""
    task = build_task("classification", 2)
    wanted = torch.tensor([[0.0, 1.0986123]])
    outputs = torch.zeros(1, 2, requires_grad=True)
    term = divergence(task, outputs, wanted)
    assert term.item() == pytest.approx(0.130812, abs=1e-6)
    term.backward()
    assert outputs.grad.tolist() == [pytest.approx([0.25, -0.25])]  # q − p
    assert float(divergence(task, torch.zeros(1, 2), wanted, 2.0)) == pytest.approx(0.145363, abs=1e-6)
    one = build_task("classification", 2, ("binary_cross_entropy", {}))
    assert float(divergence(one, torch.zeros(1, 1), wanted[:, 1:])) == pytest.approx(0.130812, abs=1e-6)
    number = build_task("regression", 0)
    assert float(divergence(number, torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [2.0]]))) == 4.5


def test_a_round_is_that_of_a_small_program_of_its_own():
    """Two rounds of logistic regression, written down anew: train, look, take the mean by cases, digest, train."""
    two = {name: data for name, data in sites().items() if name in ("Aachen", "Bonn")}
    training = {"rounds": 2, "batch_size": 64, "optimizer": {"sgd": {"lr": 0.2}}}
    federation = Federation(two, [{"fedmd": {"weight": 3.0, "epochs": 2, "label": "fedmd"}}], training=training)
    found = owns(federation, "fedmd")
    modules = {site: plain_module(federation.template, federation.initial(0)) for site in two}
    consensus = None
    for _ in range(2):
        for site, data in two.items():
            module = modules[site]
            for wanted, inputs in [(consensus, PUBLIC)] * 2 * (consensus is not None) + [(None, data.inputs)]:
                module.zero_grad()
                outputs = module(inputs)
                loss = (
                    nn.functional.cross_entropy(outputs, data.targets)
                    if wanted is None
                    else 3.0 * (outputs - wanted).abs().mean()
                )
                loss.backward()
                with torch.no_grad():
                    for parameter in module.parameters():
                        parameter -= 0.2 * parameter.grad
        with torch.no_grad():
            weights = {site: len(data) / sum(len(one) for one in two.values()) for site, data in two.items()}
            consensus = sum(weights[site] * modules[site](PUBLIC) for site in two)
    for site, module in modules.items():
        own = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
        torch.testing.assert_close(found[site], own, rtol=1e-4, atol=1e-6)


def test_batches_of_a_public_set_have_two_cases_at_least():
    source = torch.Generator().manual_seed(0)
    for cases, size, sizes in ((7, 3, [3, 4]), (6, 3, [3, 3]), (4, 1, [1, 1, 1, 1]), (2, 8, [2])):
        order = shuffled(cases, size, source)
        batches = [next(order) for _ in sizes]
        assert [len(batch) for batch in batches] == sizes
        assert batches_of(cases, size) == len(sizes)
        assert torch.cat(batches).sort().values.tolist() == list(range(cases))


# What is sent ---------------------------------------------------------------------------------------------------------


def test_what_leaves_a_site_are_logits_and_no_weights():
    federation = Federation(sites(), [{"fedmd": {"cases": 6, "label": "fedmd"}}], training={"rounds": 2})
    with recorded(federation.engine) as said:
        _, rows = federation.rounds("fedmd")
    trained = [(asked, reply) for function, _, asked, reply in said if function == "train"]
    assert len(trained) == 2 * len(SIZES)
    for asked, reply in trained:
        assert (
            reply.tensors["change"].numel()
            == reply.tensors["statistics"].numel()
            == asked.tensors["state"].numel()
            == 0
        )
        assert {name for name, tensor in reply.tensors.items() if tensor.numel()} == {"public_consensus/logits"}
        assert reply.tensors["public_consensus/logits"].shape == (6, 2)
    numbers = 6 * 2 * 4
    assert all(numbers < row["bytes_up"] < numbers + 800 for row in rows)


def test_a_malformed_answer_is_that_sites_failure():
    class Lying(LocalEngine):
        def call(self, function, requests):
            for site, reply in super().call(function, requests):
                if function == "train" and site == "Bonn":
                    reply.tensors["public_consensus/logits"] = torch.zeros(3, 2)
                yield site, reply

    federation = Federation(sites(), ["fedmd"], training={"rounds": 2, "quorum": 3}, engine=Lying(sites()))
    progress, rows = federation.rounds("fedmd")
    assert {row["site"] for row in rows} == set(SIZES) - {"Bonn"}
    assert any(("Bonn" in failure and "P401" in failure) or "logits" in failure for failure in progress.failures)
    with pytest.raises(Exception, match="Bonn"):
        Federation(sites(), ["fedmd"], engine=Lying(sites()), training={"quorum": 4}).rounds("fedmd")


def test_a_secure_sum_of_the_logits_is_their_mean():
    methods = ["fedmd", {"fedmd": {"channel": ["secure_sum"], "label": "hidden"}}]
    federation = Federation(sites(), methods, training={"rounds": 3})
    same(owns(federation, "fedmd"), owns(federation, "hidden"), rtol=1e-5, atol=1e-6)


def test_a_killed_training_goes_on_to_the_same_bytes(tmp_path):
    training = {"rounds": 4}
    options = [{"fedmd": {"cases": 7, "label": "fedmd"}}]

    class Killed(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 2:
            raise Killed

    whole = owns(Federation(sites(), options, training=training, folder=tmp_path / "a"), "fedmd")
    first = Federation(sites(), options, training=training, folder=tmp_path / "b")
    with pytest.raises(Killed):
        first.rounds("fedmd", checkpoint=Checkpoint(tmp_path / "job"), report=stop)
    again = Federation(sites(), options, training=training, folder=tmp_path / "b")
    progress, _ = again.rounds("fedmd", checkpoint=Checkpoint(tmp_path / "job"))
    same(whole, {site: kept.own for site, kept in again.kept(progress).items()})


# Certain case ---------------------------------------------------------------------------------------------------------


def corners(names, seed, cases=40):
    """Cases around the corners of a triangle, one for each class."""
    source = torch.Generator().manual_seed(seed)
    places = torch.tensor([[3.0, 0.0], [-1.5, 2.6], [-1.5, -2.6]])
    labels = torch.tensor(names).repeat_interleave(cases // len(names))
    return places[labels] + 0.4 * torch.randn(len(labels), 2, generator=source), labels


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sites_that_lack_a_class_learn_it_from_the_others(seed):
    """Each site lacks one of three classes, and has it only in the public set, without labels."""
    data = {}
    for number, known in enumerate(([0, 1], [1, 2], [2, 0])):
        inputs, labels = corners(known, 10 * seed + number)
        data[f"Site {number}"] = site_of(f"Site {number}", inputs, labels)
    public = corners([0, 1, 2], 100 + seed, 60)[0]
    training = {"rounds": 30, "batch_size": 20, "optimizer": {"sgd": {"lr": 0.3}}}
    methods = ["single", {"fedmd": {"epochs": 5, "label": "fedmd"}}]
    federation = Federation(
        with_public(data, public), methods, model={"mlp": {"hidden": [8]}}, training=training, classes=3
    )
    inputs, labels = corners([0, 1, 2], 200 + seed, 120)
    right = {}
    for label in ("single", "fedmd"):
        found = []
        for own in owns(federation, label).values():
            module = plain_module(federation.template, own).eval()
            found.append(float((module(inputs).argmax(1) == labels).float().mean()))
        right[label] = found
    assert max(right["single"]) < 0.7  # two classes of three
    assert min(right["fedmd"]) > 0.9


# Other tasks, and what is refused --------------------------------------------------------------------------------


def test_outlines_and_numbers_have_a_consensus_too():
    pictures = image_sites({"Aachen": 8, "Bonn": 6}, masks=True)
    public = next(iter(image_sites({"Celle": 5}).values())).inputs
    numbers = {name: number_site(name, 12) for name in ("Aachen", "Bonn")}
    for data, task, model, shared in (
        (pictures, "segmentation", {"unet": {"channels": [2, 4], "residual_units": 0}}, public),
        (numbers, "regression", "logistic", PUBLIC),
    ):
        federation = Federation(
            with_public(data, shared), ["single", "fedmd"], model=model, task=task,
            training={"rounds": 2, "batch_size": 4, "optimizer": {"sgd": {"lr": 0.01}}},
        )  # fmt: skip
        alone, together = owns(federation, "single"), owns(federation, "fedmd")
        assert all(own.isfinite().all() for own in together.values())
        assert not any(torch.equal(alone[site], together[site]) for site in alone)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"fedavg": {"local": ["public_consensus", "control_variates"]}}, "reads gradients off the way"),
        ({"fedsgd": {"local": ["public_consensus"]}}, "reads gradients off the way"),
        ({"fedmd": {"topology": "cyclic"}}, "needs a server between the sites"),
    ],
)
def test_what_makes_no_sense_is_refused(method, words):
    with pytest.raises(StudyError, match=f"P104.*{words}"):
        Federation(sites(), [method])


def test_without_a_public_set_it_is_refused():
    with pytest.raises(StudyError, match=r"P104.*the study has none"):
        Federation(table_sites(), ["fedmd"])


def test_some_weights_can_be_shared_besides():
    federation = Federation(sites(), [{"fedmd": {"share": "all", "label": "both"}}, "fedavg"], training={"rounds": 2})
    assert not torch.equal(federation.state("both"), federation.state("fedavg"))


def test_outputs_are_those_of_evaluation():
    federation = Federation(sites(), ["fedmd"], model=BATCH_NORM)
    vector, public = federation.initial(0), federation.public()
    module = plain_module(federation.template, vector).eval()
    torch.testing.assert_close(outputs_on(federation.template, vector, public), module(PUBLIC).detach())
    assert federation.template.module.training
