"""What of the model is shared, by the paths of its modules."""

import json
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers import Federation, declare, plain_module, table_sites, write_image_study, write_table_study
from polyclinic.errors import SiteError, StudyError
from polyclinic.methods import Method, SharedModules
from polyclinic.models import build_model
from polyclinic.parts import FEDERATION
from polyclinic.paths import names
from polyclinic.rounds import run_rounds
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator
from polyclinic.state import FlatModule, Layout
from polyclinic.study.fit.networks import check_share
from polyclinic.study.notes import idle_parts
from polyclinic.study.study import Study

SMALL = {"Aachen": 12, "Bonn": 9, "Celle": 8}
#: Modules 0 (linear), 1 (normalisation), 3 (linear), 4 (normalisation), 6 (the head).
DEEP = {"mlp": {"hidden": [5, 4], "norm": "batch"}}
BODY = ["[0-5]"]


@pytest.mark.parametrize(("pattern", "path", "named"), [
    ("encoder", "encoder.0.weight", True), ("encoder", "encoders.0.weight", False), ("encoder", "my.encoder.x", False),
    ("features.*", "features.0.weight", True), ("features.*", "features", False), ("*.bias", "a.b.bias", True),
    ("blocks.[0-2]", "blocks.2.mlp.weight", True), ("blocks.[0-2]", "blocks.3.weight", False),
    ("blocks.[!0]", "blocks.10.weight", False), ("blocks.[!0]", "blocks.1.weight", True),
    ("blocks.?", "blocks.1.weight", True), ("blocks.?", "blocks.10.weight", False), ("*norm*", "a.norm1.bias", True),
    ("Encoder", "encoder.x", False), ("encoder.0.weight", "encoder.0.weight", True), ("*", "x", True),
    ("enc.", "enc.0", False), (".", "a.b", False), ("[", "a", False),
])  # fmt: skip
def test_what_patterns_name(pattern, path, named):
    assert names(pattern, path) is named


@settings(max_examples=60, deadline=None)
@given(st.text("*?[]!-.ab", min_size=1, max_size=200))
def test_no_pattern_takes_long(pattern):
    """At most a few thousand characters are compared with each other."""
    names(pattern, ("a" * 60 + ".") * 4 + "b")


@given(
    modules=st.lists(st.sampled_from(["0", "1", "6", "*.weight", "*", "3.*", "[!6]"]), max_size=3),
    without=st.lists(st.sampled_from(["0.bias", "4", "*.running_*", "6"]), max_size=3),
    roles=st.sampled_from(["all", "no_norm", "no_norm_statistics", "body", "head"]),
)
def test_a_choice_and_its_rest_make_the_whole(modules, without, roles):
    layout = build_model("mlp", DEEP["mlp"], (3,), 2).layout
    chosen = Method(share=SharedModules(tuple(modules), tuple(without), roles)).selection(layout)
    rest = layout.rest(chosen)
    vector, again = torch.randn(layout.size), torch.full((layout.size,), torch.nan)
    chosen.put(again, chosen.take(vector))
    rest.put(again, rest.take(vector))
    assert torch.equal(again, vector)
    assert chosen.size + rest.size == layout.size
    assert chosen.trainable + rest.trainable == layout.trainable
    assert len(layout.inside(chosen)) + len(layout.inside(rest)) == len(layout.entries)


def test_a_tensor_that_two_modules_use_stays_if_either_of_them_does():
    """Else a decoder that is tied to an encoder would travel under the other's name."""
    tied = nn.ModuleDict({"encoder": nn.Linear(3, 3), "decoder": nn.Linear(3, 3), "out": nn.Linear(3, 2)})
    tied["decoder"].weight = tied["encoder"].weight
    layout = Layout.of(tied)
    assert {entry.name: entry.paths for entry in layout.entries}["encoder.weight"] == (
        "encoder.weight",
        "decoder.weight",
    )
    for kept in ("encoder", "decoder"):
        found = {entry.name for entry in layout.inside(layout.select({e.role for e in layout.entries}, (), (kept,)))}
        assert "encoder.weight" not in found
        assert "out.weight" in found
    assert layout.unnamed(["decoder.weight"]) == []


@pytest.mark.parametrize("entry", [
    {"modules": BODY}, {"without": ["6"]}, {"modules": ["*"], "without": ["6"]}, {"without": ["6"], "roles": "body"},
    {"modules": ["0", "1", "3", "4"], "roles": "all"}, {"roles": "body"},
])  # fmt: skip
@pytest.mark.parametrize("stacked", [False, True])
def test_paths_that_name_the_body_are_share_body(entry, stacked):
    """To the last bit: states, what is kept, what is said of rounds."""
    found = []
    for share in ("body", entry):
        methods = [{"fedavg": {"share": share}}]
        one = Federation(table_sites(SMALL), methods, model=DEEP, training={"rounds": 3}, stacked=stacked)
        progress, rows = one.rounds()
        kept = one.kept(progress)
        own = torch.stack([kept[site].own for site in SMALL])
        found.append((progress.model(FEDERATION), own, [row | {"seconds": 0} for row in rows]))
    (body, own, rows), (state, same, seen) = found
    assert torch.equal(body, state)
    assert torch.equal(own, same)
    assert rows == seen


def by_hand(federation, rounds, travels):
    """FedAvg of the tensors whose names ``travels`` holds for, in plain PyTorch; the others stay. State dicts."""
    first = plain_module(federation.network(0), federation.initial(0)).state_dict()
    sites = {site: {name: tensor.clone() for name, tensor in first.items()} for site in SMALL}
    for number in range(rounds):
        for site, state in sites.items():
            module = plain_module(federation.network(0), federation.initial(0)).train()
            module.load_state_dict(state)
            optimizer, data = torch.optim.SGD(module.parameters(), lr=0.1), federation.data[site]
            order = torch.randperm(len(data.inputs), generator=generator(0, "train", site, 0, number))
            for batch in order.split({12: [8, 4], 9: [9], 8: [8]}[len(order)]):
                optimizer.zero_grad()
                F.cross_entropy(module(data.inputs[batch]), data.targets[batch]).backward()
                optimizer.step()
            sites[site] = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        for name in filter(travels, first):
            mean = sum(sites[site][name] * cases for site, cases in SMALL.items()) / sum(SMALL.values())
            for state in sites.values():
                state[name] = mean
    return sites


CHOICES = {
    "some": ({"modules": ["0", "1"]}, lambda name: name[0] in "01"),
    "without": ({"without": ["3", "6.bias"]}, lambda name: name[0] != "3" and name != "6.bias"),
    "roles": ({"modules": ["0", "[1-4]"], "roles": "no_norm_statistics"}, lambda name: not re.search("^6|runn", name)),
    "one": ({"modules": ["*.bias"], "without": ["[14].*"]}, lambda name: name in ("0.bias", "3.bias", "6.bias")),
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("engine", ["local", "serialised", "stacked"])
def test_some_modules_are_averaged_and_the_others_stay(choice, engine):
    share, travels = CHOICES[choice]
    how = {"local": {}, "serialised": {"serialise": True}, "stacked": {"stacked": True}}[engine]
    one = Federation(table_sites(SMALL), [{"fedavg": {"share": share}}], model=DEEP, training={"rounds": 3}, **how)
    expected = by_hand(one, 3, lambda name: "num_batches" not in name and travels(name))
    progress, _ = one.rounds()
    state, kept = progress.model(FEDERATION), one.kept(progress)
    assert len(state) == sum(e.size for e in one.template.layout.entries if travels(e.name))
    for site, member in one.local.members.items():
        whole = torch.empty(one.template.layout.size)
        member.run.shared.put(whole, state)
        member.run.private.put(whole, kept[site].own)
        for name, tensor in one.template.layout.split(whole).items():
            torch.testing.assert_close(tensor, expected[site][name], rtol=1e-5, atol=1e-6, msg=f"{site} {name}")


@pytest.mark.parametrize("channel", [
    ["top_k"], [{"power_sgd": {"rank": 1}}], ["int8", "secure_sum"], ["clip", {"gaussian_noise": {"noise": 0.1}}],
])  # fmt: skip
def test_steps_of_the_channel_work_on_the_weights_that_are_shared(channel):
    share = {"without": ["3"], "roles": "no_norm_statistics"}
    entry = {"fedavg": {"share": share, "channel": channel, "label": "some"}}
    one = Federation(table_sites(SMALL), [entry], model=DEEP, training={"rounds": 2})
    progress, _ = one.rounds()
    selection = one.method().method.selection(one.template.layout)
    assert len(progress.model(FEDERATION)) == selection.size == selection.trainable
    assert progress.model(FEDERATION).isfinite().all()


def test_a_training_that_is_resumed_ends_the_same(tmp_path):
    class Stop(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 1:
            raise Stop

    def training(folder):
        entry = {"fedavg": {"share": {"without": ["3"]}, "personal": "ditto", "training": {"optimizer_state": "keep"}}}
        return Federation(table_sites(SMALL), [entry], model=DEEP, training={"rounds": 3}, folder=folder)

    (tmp_path / "progress").mkdir()
    with pytest.raises(Stop):
        training(tmp_path / "a").rounds(checkpoint=Checkpoint(tmp_path / "progress"), report=stop)
    again, whole = training(tmp_path / "a"), training(tmp_path / "b")
    found, expected = again.rounds(checkpoint=Checkpoint(tmp_path / "progress"))[0], whole.rounds()[0]
    assert torch.equal(found.model(FEDERATION), expected.model(FEDERATION))
    kept, same = again.kept(found), whole.kept(expected)
    assert all(torch.equal(kept[site].own, same[site].own) for site in SMALL)


# Studies --------------------------------------------------------------------------------------------------------------


def test_a_study_says_what_is_shared_and_an_unseen_site_gets_all_models(tmp_path):
    entries = write_table_study(tmp_path, SMALL)
    entries["methods"] = ["fedavg", {"fedavg": {"share": {"modules": ["0", "1"]}}}]
    entries["evaluation"] |= {"unseen_sites": True, "folds": 2}
    Study.of(entries, tmp_path).run(tmp_path / "out")
    told = pd.read_csv(tmp_path / "out" / "exchanged.csv")
    label = "fedavg(share=(modules: 0+1))"
    assert told.to_dict("records") == [{
        "method": label, "payload": "model",
        "reveals": "the modules 0, 1: 6 of 8 tensors with 32 of 42 numbers; the others stay at the site while it "
                   "trains",
    }]  # fmt: skip
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert set(results.loc[results["run"] == "unseen", "method"]) == {"fedavg", label}
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("6 of 8 tensors with 32 of 42 numbers") >= 2


@pytest.mark.parametrize(("share", "words"), [
    ({"modules": ["classifer"]}, "P103 .*names the module 'classifer', and unet has none. .*there are: "),
    ({"without": ["features.9"]}, "P103 .*names the module 'features.9'"),
    ({"modules": ["*"], "without": ["*"]}, "P104 .*the modules .* without .*, and there are no weights of it in"),
    ({"modules": ["*running*"]}, "P103|P104 .*no weights of it in unet"),
    ({}, "P102 .*names nothing"), ({"modules": []}, "P102 .*at least 1"), ({"modules": "features"}, "P102 .*a list"),
    ({"modules": ["a b"]}, "P102 .*got 'a b'; expected the path of"), ({"modules": ["("]}, "expected the path"),
    ({"modules": ["a" * 201]}, "expected the path of a module"), ({"modules": [3]}, "P102 .*got 3; expected a text"),
    ({"modules": ["a"] * 101}, "P102 .*at most 100"), ({"module": ["a"]}, "P103 .*'module'.* Did you mean 'modules'"),
    ({"modules": ["*"], "roles": "none"}, "P103 .*use the method single"),
    ({"modules": ["*"], "roles": "bodi"}, "P103 .*Did you mean 'body'"), (["body"], "P103 .*can't be shared"),
    ({"roles": ["body"], "modules": ["*"]}, "P103 .*can't be shared"),
])  # fmt: skip
def test_a_choice_that_does_not_fit_is_refused_before_training(tmp_path, share, words):
    entries = write_image_study(tmp_path, {"Aachen": 6, "Bonn": 6})
    entries |= {"model": {"unet": {"norm": "batch"}}, "methods": [{"fedavg": {"share": share, "label": "some"}}]}
    with pytest.raises(StudyError, match=words):
        Study.of(entries, tmp_path).check()
    assert not (tmp_path / "out").exists()


def test_a_choice_of_everything_is_told():
    layout = build_model("mlp", DEEP["mlp"], (3,), 2).layout
    for modules, notes in ((["*"], 1), (["[0-5]"], 0)):
        study = declare(model=DEEP, methods=[{"fedavg": {"share": {"modules": modules}}}])
        found = idle_parts(study, layout)
        assert ["shares the whole model here" in str(note) for note in found] == [True] * notes


def test_a_site_refuses_a_module_that_its_network_has_not():
    one = Federation(table_sites(SMALL), [{"fedavg": {"share": {"without": ["6"]}}}], model=DEEP)
    plan = one.plan()
    for changed in ({"without": ["7"]}, {"without": ["6", "(a+)+$"]}, {"without": ["6"] * 101}):
        start = plan.start.model_copy(update=changed)
        with pytest.raises(SiteError, match="P401"):
            run_rounds(replace(plan, start=start), one.engine)


@pytest.mark.parametrize("kind", ["monai", "bundle"])
def test_networks_of_monai_have_their_own_names(tmp_path, kind):
    """Modules of a plain U-Net: `model.0` goes down, `model.1` is in between, `model.2` goes up."""
    pytest.importorskip("monai")
    own = {"spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8], "strides": [2]}
    network = {"network": "UNet", "arguments": own}
    if kind == "bundle":
        (tmp_path / "unet" / "configs").mkdir(parents=True)
        definition = json.dumps({"network_def": {"_target_": "UNet", **own}})
        (tmp_path / "unet" / "configs" / "inference.json").write_text(definition)
        network = {"path": str(tmp_path / "unet"), "weights": False}
    entries = write_image_study(tmp_path, {"Aachen": 6, "Bonn": 6})
    entries |= {"model": {kind: network}, "methods": [{"fedavg": {"share": {"without": ["model.2"]}}}]}
    entries["training"] |= {"rounds": 1}
    Study.of(entries, tmp_path).run(tmp_path / "out")
    (told,) = pd.read_csv(tmp_path / "out" / "exchanged.csv")["reveals"]
    layout = build_model("monai", {"network": "UNet", "arguments": own}, (1, 16, 16), 1).layout
    inside = [entry for entry in layout.entries if not entry.name.startswith("model.2")]
    assert f"{len(inside)} of {len(layout.entries)} tensors with {sum(e.size for e in inside):,} of" in told
    entries["methods"] = [{"fedavg": {"share": {"modules": ["encoder"]}}}]
    with pytest.raises(StudyError, match=r"'encoder', and .* In the network there are: model\.0, model\.1, model\.2"):
        Study.of(entries, tmp_path).check()


def test_layers_that_count_all_batches_are_shared_together(tmp_path):
    """A network has one count of batches for all of them."""
    for share, refused in (({"modules": ["0"]}, True), ({"modules": ["0"], "roles": "no_norm_statistics"}, False)):
        network = FlatModule(nn.ModuleList([nn.BatchNorm1d(3, momentum=None), nn.BatchNorm1d(3, momentum=None)]))
        method = declare(methods=[{"fedavg": {"share": share}}]).study_methods[0]
        if refused:
            with pytest.raises(StudyError, match=r"P104 .*shares some normalisation layers"):
                check_share(method, network, "own")
        else:
            check_share(method, network, "own")
