"""HeteroFL: sites that train a share of the network's width."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers import Federation, image_sites, plain_module, recorded, site_of, table_site, table_sites
from polyclinic.communication.message import Message
from polyclinic.engine.processes import ProcessEngine
from polyclinic.errors import SiteError, StudyError, TrainingError
from polyclinic.models import build_model
from polyclinic.models.slices import slice_of
from polyclinic.options import EntryError
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.study.fit.networks import check_variants
from server_exchange import Rule, close

MLP = {"mlp": {"hidden": [6, 4], "norm": "batch"}}
WIDTHS = {"Bonn": 0.5, "Celle": 0.25}
MOMENTUM = {"sgd": {"lr": 0.1, "momentum": 0.9}}


def method(widths=WIDTHS, **options):
    parts = {key: options.pop(key) for key in ("default", "mask_classes") if key in options}
    return {"heterofl": {"widths": dict(widths), **parts, **options}}


def made(*methods, data=None, **options):
    options = {"model": MLP, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(data or table_sites(), list(methods), **options)


# By hand --------------------------------------------------------------------------------------------------------------


def test_weights_are_averaged_over_the_sites_that_have_them():
    """One input, two units, one output: weights a1 a2, b1 b2, v1 v2, c. Half of the width is a1, b1, v1, c.

    A counts three times and has all, B once and has half: (3 · 1 + 10) / 4 = 3.25, and 2 where B has nothing.
    """
    network = build_model("mlp", {"hidden": [2]}, (1,), 1)
    half, rule = slice_of(network, 0.5), Rule(("heterofl", {}))
    weights = {"A": 3.0, "B": 1.0}
    rule.begin(torch.zeros(7), torch.zeros(0), weights, variants={"B": half})
    rule.take("A", torch.tensor([1.0, 2, 3, 4, 5, 6, 7]), torch.zeros(0), 3.0, {})
    rule.take("B", torch.tensor([10.0, 20, 30, 40]), torch.zeros(0), 1.0, {})
    close(rule.finish(), [3.25, 2, 7.25, 4, 11.25, 6, 15.25])
    assert rule.shares == {"A": 0.75, "B": 0.25}


def test_what_no_site_of_a_round_has_stays_as_it_is_and_statistics_are_those_of_the_whole_network():
    """One input, two units with batch normalisation, one output. In the order of the state: weights, then means and
    variances of two channels, of which the narrow sites have the first."""
    network = build_model("mlp", {"hidden": [2], "norm": "batch"}, (1,), 1)
    half, rule = slice_of(network, 0.5), Rule(("heterofl", {}))
    start, statistics = torch.arange(11.0), torch.tensor([1.0, 2, 3, 4])

    def after(*others):
        sites = {"A": 1.0, "B": 3.0} | dict.fromkeys("CD"[: len(others)], 2.0)
        rule.begin(start, statistics, sites, variants={"A": half, "B": half})
        rule.take("A", torch.full((6,), 4.0), torch.tensor([5.0, 9]), 1.0, {})
        rule.take("B", torch.full((6,), 8.0), torch.tensor([9.0, 1]), 3.0, {})
        for site, values in zip("CD", others, strict=False):
            rule.take(site, torch.zeros(11), torch.tensor(values), 2.0, {})
        return rule.finish()

    expected = torch.cat([start, statistics])
    expected[half.places[:6]] += 7.0
    close(after(), expected)
    close(after([5.0, 6, 7, 8], [7.0, 8, 9, 10])[11:], [6.0, 7, 8, 9])


def test_running_statistics_are_those_of_what_the_whole_network_computes():
    """All sites have the same cases and learn next to nothing, so that the statistics of all these are known."""
    cases = torch.randn(64, 3, generator=torch.Generator().manual_seed(0)) + 2
    data = {name: site_of(name, cases, torch.arange(64) % 2) for name in ("Aachen", "Bonn", "Celle")}
    model = {"mlp": {"hidden": [8, 6], "norm": "batch"}}
    training = {"rounds": 40, "batch_size": 64, "optimizer": {"sgd": {"lr": 1e-9}}}
    federation = made(method(), data=data, model=model, training=training)
    module = plain_module(federation.template, federation.state()).eval()
    values = cases
    for layer in module:
        if isinstance(layer, torch.nn.BatchNorm1d):
            torch.testing.assert_close(layer.running_mean, values.mean(0), rtol=0.05, atol=0.05)
            torch.testing.assert_close(layer.running_var, values.var(0), rtol=0.1, atol=0.05)
        values = layer(values).detach()


def test_a_site_that_is_away_does_not_count():
    network = build_model("mlp", {"hidden": [2]}, (1,), 1)
    rule = Rule(("heterofl", {}))
    rule.begin(torch.zeros(7), torch.zeros(0), {"A": 3.0, "B": 1.0}, variants={"B": slice_of(network, 0.5)})
    rule.take("B", torch.tensor([10.0, 20, 30, 40]), torch.zeros(0), 1.0, {})
    close(rule.finish(), [10, 0, 20, 0, 30, 0, 40])


def test_a_round_is_that_of_two_small_programs():
    """Site A trains 3 → 4 → 2, site B 3 → 2 → 2 with hidden values doubled, both by plain PyTorch on tensors."""
    data = table_sites({"A": 16, "B": 12}, features=3)
    federation = made(method({"B": 0.5}, training={"local_epochs": 1, "batch_size": 100}), data=data,
                      model={"mlp": {"hidden": [4]}}, training={"rounds": 1})  # fmt: skip
    start = federation.initial(0)
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    whole = [federation.network(0).layout.split(start)[name].clone() for name in names]
    changes = []
    for site, units in (("A", 4), ("B", 2)):
        first, bias, last, final = (tensor.clone() for tensor in whole)
        mine = [first[:units], bias[:units], last[:, :units], final]
        mine = [tensor.clone().requires_grad_() for tensor in mine]
        hidden = F.relu(F.linear(data[site].inputs, mine[0], mine[1]) * 4 / units)
        F.cross_entropy(F.linear(hidden, mine[2], mine[3]), data[site].targets).backward()
        changes.append([-0.1 * tensor.grad for tensor in mine])
    (a, b), expected = changes, [tensor.clone() for tensor in whole]
    shares = 16 / 28, 12 / 28
    for place, (wide, narrow) in enumerate(zip(a, b, strict=True)):
        mean, inside = wide.clone(), tuple(slice(0, length) for length in narrow.shape)
        mean[inside] = shares[0] * wide[inside] + shares[1] * narrow
        expected[place] += mean
    close(federation.state(), torch.cat([tensor.flatten() for tensor in expected]), 1e-6)


# Identities -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [{}, {"Aachen": 1.0, "Celle": 1.0}])
def test_with_all_of_the_width_at_all_sites_it_is_fedavg_to_the_bit(share):
    assert torch.equal(made(method(share)).state(), made("fedavg").state())


def test_a_narrow_site_alone_trains_the_narrow_network_and_leaves_the_rest():
    """A single site of half the width: all that changes is what the small network has."""
    federation = made(method({}, default=0.5), data=table_sites({"Aachen": 20}))
    start, end = federation.initial(0), federation.state()
    places = slice_of(federation.template, 0.5).places
    others = torch.ones(len(start), dtype=torch.bool)
    others[places] = False
    assert torch.equal(start[others], end[others])
    assert not torch.equal(start[places], end[places])


def test_the_order_of_widths_follows_the_names_and_not_the_places_of_sites():
    data = table_sites()
    turned = dict(reversed(list(data.items())))
    close(made(method(), data=data).state(), made(method(), data=turned).state(), 1e-5)


# What a narrow site does ----------------------------------------------------------------------------------------------


def test_a_narrow_site_is_sent_computes_and_sends_less():
    federation = made(method({"Bonn": 0.5}), data=image_sites({"Aachen": 8, "Bonn": 8}),
                      model={"cnn": {"channels": [16, 32], "norm": "none"}})  # fmt: skip
    operations = {}
    with recorded(federation.engine) as said:
        original = {name: member.handle for name, member in federation.engine.members.items()}
        for name, member in federation.engine.members.items():
            member.handle = counting(original[name], name, operations)
        _, rows = federation.rounds()
    sizes = {site: federation.engine.members[site].run.network.layout.size for site in operations}
    for row in rows:
        numbers = 4 * sizes[row["site"]]
        assert numbers < row["bytes_up"] < numbers + 800
        assert numbers < row["bytes_down"] < numbers + 800
    assert sizes["Bonn"] < 0.3 * sizes["Aachen"]
    assert operations["Bonn"] < 0.5 * operations["Aachen"]
    asked = {(function, site): request for function, site, request, _ in said}
    assert len(asked["train", "Bonn"].tensors["state"]) == sizes["Bonn"]


def counting(handle, site, found):
    """Counts the operations of training."""

    def counted(function, request):
        if function != "train":
            return handle(function, request)
        with FlopCounterMode(display=False) as counter:
            reply = handle(function, request)
        found[site] = counter.get_total_flops()
        return reply

    return counted


def test_all_sites_are_validated_and_tested_with_the_whole_network():
    data = {name: table_site(name, cases, part=None) for name, cases in {"Aachen": 33, "Bonn": 24}.items()}
    federation = made(
        method({"Bonn": 0.5}), data=data, evaluation={"validation": 0.3, "folds": 2, "best_round": "loss"}
    )
    with recorded(federation.engine) as said:
        federation.outcome()
    asked = {}
    for function, site, request, _ in said:
        if site == "Bonn" and "state" in request.tensors:
            asked.setdefault(function, set()).add(len(request.tensors["state"]))
    small = {len(slice_of(federation.template, 0.5).places)}
    assert asked.keys() >= {"train", "evaluate", "threshold", "predict"}
    assert {function for function, sizes in asked.items() if sizes == small} == {"train"}
    assert all(sizes == {federation.template.layout.size} for function, sizes in asked.items() if function != "train")
    request, reply = next(one[2:] for one in said if one[:2] == ("predict", "Bonn"))
    run = federation.engine.members["Bonn"].run
    inputs, _ = run.dataset.batch(run.parts.test)
    module = plain_module(federation.template, request.tensors["state"]).eval()
    close(reply.tensors["probabilities"], module(inputs).softmax(1).detach(), 1e-5)


def test_nothing_is_learned_of_classes_that_a_site_has_not():
    """Their outputs are 0 whatever the weights, so the gradient of these is 0; without the mask it is not."""
    data = table_sites({"Aachen": 24}, classes=2)
    for masked in (True, False):
        federation = made(method({}, mask_classes=masked), data=data, classes=3, model={"mlp": {"hidden": [4]}})
        before, after = (federation.template.layout.split(v) for v in (federation.initial(0), federation.state()))
        assert torch.equal(before["2.weight"][2], after["2.weight"][2]) is masked
        assert torch.equal(before["2.bias"][2], after["2.bias"][2]) is masked
        assert not torch.equal(before["2.bias"][:2], after["2.bias"][:2])


def test_the_loss_with_a_mask_by_hand():
    """Outputs 1, 2, 5 of which the third class is absent: −log(e² / (e + e² + 1)), and 1 is what exp(0) is."""
    federation = made(method({}), data=table_sites({"Aachen": 24}), classes=3, model="logistic")
    federation.rounds()
    end = federation.engine.members["Aachen"].run.ends["heterofl"]
    outputs = end.outputs(torch.tensor([[1.0, 2.0, 5.0]]), {"present": torch.tensor([1.0, 1.0, 0.0])})
    e = torch.e
    close(F.cross_entropy(outputs, torch.tensor([1])), -torch.log(torch.tensor(e**2 / (e + e**2 + 1))))
    assert torch.equal(end.outputs(outputs, {}), outputs)


# Engines, failures, and a study that was stopped ----------------------------------------------------------------------


def test_messages_as_bytes_and_worker_processes_give_the_same():
    data = table_sites()
    expected = made(method(), data=data).state()
    assert torch.equal(made(method(), data=data, serialise=True).state(), expected)
    assert torch.equal(made(method(), data=data, stacked=True).state(), expected), "it is not trained together"
    engine = ProcessEngine(data, workers=2, threads=1, folders=dict.fromkeys(data))
    try:
        close(made(method(), data=data, engine=engine).state(), expected, 1e-5)
    finally:
        engine.close()


def test_a_run_resumed_from_any_round_ends_with_the_same_bytes(tmp_path):
    def train(folder, stop=None):
        federation = made(method(channel=["top_k"], local=["proximal"]), training={"rounds": 3, "optimizer": MOMENTUM},
                          folder=folder / "sites")  # fmt: skip

        def report(done, total):
            if done == stop:
                raise KeyboardInterrupt

        return federation.rounds(checkpoint=Checkpoint(folder / "job"), report=report)[0].models[FEDERATION]

    whole = train(tmp_path / "whole")
    for stop in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        assert torch.equal(train(tmp_path / str(stop)), whole)


@pytest.mark.parametrize("wrong", ["whole", "short", "nan"])
def test_an_answer_that_is_not_that_of_the_slice_is_its_sites_failure(wrong):
    federation = made(method(training={"quorum": 3}))
    original, whole = federation.engine.call, federation.template.layout.trainable

    def call(function, requests):
        for site, reply in original(function, requests):
            if (function, site) == ("train", "Bonn"):
                change = reply.tensors["change"].clone()
                change = {"whole": torch.zeros(whole), "short": change[:-1], "nan": change * torch.nan}[wrong]
                reply = Message(reply.fields, {**reply.tensors, "change": change})
            yield site, reply

    federation.engine.call = call
    progress, rows = federation.rounds()
    assert {row["site"] for row in rows} == {"Aachen", "Celle", "Dresden"}
    assert ("P301" if wrong == "nan" else "P401") in progress.failures[0]


def test_a_state_that_is_not_that_of_the_slice_is_refused_at_the_site():
    federation = made(method())
    federation.rounds()
    with recorded(federation.engine) as said:
        federation.rounds()
    request = next(one for function, site, one, _ in said if (function, site) == ("train", "Bonn"))
    wrong = Message(request.fields, {**request.tensors, "state": federation.initial(0)})
    ((_, reply),) = list(federation.engine.call("train", {"Bonn": wrong}))
    assert isinstance(reply, SiteError)
    assert reply.code == "P401"


@pytest.mark.parametrize("rule", ["fedadam", "norm_bound"])
def test_other_rules_of_the_server_go_on_from_its_mean(rule):
    entry = {"fedavg": {"server": [{"heterofl": {"widths": WIDTHS}}, rule]}}
    assert made(entry).state().isfinite().all()


@pytest.mark.parametrize(
    "channel", [["int8"], ["power_sgd"], ["random_k"], ["clip", {"gaussian_noise": {"noise": 0.1}}]]
)
def test_steps_of_the_channel_work_on_what_a_narrow_site_sends(channel):
    """With noise, statistics can't be shared, so the network has none."""
    entry = method(channel=channel)
    _, rows = made(entry, model={"mlp": {"hidden": [16, 16]}}).rounds()
    up = {row["site"]: row["bytes_up"] for row in rows}
    assert up["Celle"] < up["Bonn"] < up["Aachen"]


# Refused --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"channel": ["secure_sum"]}, "put in place site by site"),
        ({"local": ["control_variates"]}, "control_variates needs all sites to train the study's network"),
        ({"local": ["dynamic_regularisation"]}, "needs all sites"),
        ({"share": "no_norm"}, "no part can stay there"),
        ({"personal": "ditto"}, "gives each site a model"),
        ({"training": {"optimizer_state": "keep"}}, "starts anew each round"),
        ({"channel": ["clip", {"central_noise": {"noise": 1.0}}]}, "how far one site can move a mean"),
        ({"topology": "cyclic"}, "only one at a time"),
    ],
)
def test_what_does_not_go_with_it_is_refused_in_a_sentence(entry, words):
    with pytest.raises(EntryError, match=words):
        made(method(**entry))


@pytest.mark.parametrize("width", [0, 1.5, -0.5, "half"])
def test_a_width_is_a_share(width):
    with pytest.raises(EntryError, match="P102"):
        made(method({"Bonn": width}))


def checked(federation, *, unseen=False):
    network = build_model(*federation.declaration.model_part, federation.shape, 2)
    check_variants(federation.method(), network, list(federation.data), unseen=unseen)


def test_somebody_has_to_train_the_whole_network():
    checked(made(method()))
    with pytest.raises(StudyError, match=r"P104 .* nobody train the whole network: the largest width is 0.75"):
        checked(made(method({"Bonn": 0.5}, default=0.75)))
    one = dict.fromkeys(["Bonn", "Celle", "Dresden"], 0.5)
    checked(made(method(one)))
    with pytest.raises(StudyError, match="nobody train the whole network where Aachen is left out"):
        checked(made(method(one)), unseen=True)


def test_networks_that_have_no_width_are_refused():
    with pytest.raises(StudyError, match=r"P104 .* no hidden layer"):
        checked(made(method(), model="logistic"))
    with pytest.raises(TrainingError, match="P302 Group normalisation"):
        checked(made(method({"Bonn": 0.3}), data=image_sites(), model={"cnn": {"channels": [16], "norm": "group"}}))


# A case in which it helps for certain ---------------------------------------------------------------------------------


def signs(cases, feature, seed, sign=1):
    """Two classes by the sign of one feature; the other one is 0."""
    source = torch.Generator().manual_seed(seed)
    classes, inputs = torch.arange(cases) % 2, torch.zeros(cases, 2)
    inputs[:, feature] = (2 * classes - 1) * (1 + torch.rand(cases, generator=source))
    return inputs, classes if sign == 1 else 1 - classes


@pytest.mark.parametrize("seed", range(4))
def test_a_site_whose_computer_is_too_small_is_learned_from(seed):
    """Classes of the small site follow a feature that is 0 at the large one, this way or the other: whatever a model
    says that was trained without it, it is right in half of the cases. With it, it is right in all, both ways."""
    large = site_of("Large", *signs(60, 0, seed))
    training, model = {"rounds": 15, "optimizer": {"sgd": {"lr": 0.3}}}, {"mlp": {"hidden": [16]}}

    def right(federation, site):
        module = plain_module(federation.template, federation.state(seed=seed)).eval()
        return int((module(site.inputs).argmax(1) == site.targets).sum())

    alone = made("fedavg", data={"Large": large}, training=training, model=model)
    found = {"alone": [], "both": []}
    for sign in (1, -1):
        small = site_of("Small", *signs(60, 1, seed + 10, sign))
        data = {"Large": large, "Small": small}
        both = made(method({"Small": 0.5}), data=data, training=training, model=model)
        found["alone"].append(right(alone, small))
        found["both"] += [right(both, small), right(both, large)]
    assert sum(found["alone"]) == 60
    assert found["both"] == [60] * 4
