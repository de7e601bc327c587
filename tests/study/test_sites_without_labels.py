"""Sites at which no case has a label: they train where a method learns without labels, and change nothing elsewhere."""

import numpy as np
import pandas as pd
import pytest
import torch

from elsewhere import Elsewhere, split_table
from helpers import Federation, site_of, table_sites, write_image_study, write_number_study, write_table_study
from polyclinic import Study
from polyclinic.errors import StudyError
from polyclinic.parts import build_part
from polyclinic.parts.site_end import looks_at_labels
from polyclinic.study.display import Display
from polyclinic.study.runner import run_study

SIZES = {"north": 30, "south": 24, "west": 20}
FIXMATCH = {"fixmatch": {"threshold": 0.6, "label": "fixmatch"}}
TEACHER = {"mean_teacher": {"ramp": 1, "label": "mean_teacher"}}


@pytest.fixture(autouse=True)
def without_report(monkeypatch):
    monkeypatch.setattr("polyclinic.study.runner.write_report", lambda folder, out=None: folder / "report.html")


def study(folder, writer=write_table_study, sizes=SIZES, *, gone=True, **entries):
    """A study in which ``west`` has no labels, really or, if they are not ``gone``, on purpose."""
    content = writer(folder, sizes)
    table = pd.read_csv(folder / content["data"]["table"])
    if gone:
        table[content["data"]["label" if "label" in content["data"] else "mask"]] = table[
            content["data"]["label" if "label" in content["data"] else "mask"]
        ].where(table["site"] != "west")
        table.to_csv(folder / content["data"]["table"], index=False)
    hidden = {} if gone else {"labels": {"share": 0, "sites": ["west"]}}
    content["data"] |= {"unlabelled": "use"} | hidden | entries.pop("data", {})
    content["training"] |= {"rounds": 2} | entries.pop("training", {})
    return content | {"methods": ["fedavg", FIXMATCH]} | entries


def run(folder, name="out", **options):
    return Study.of(study(folder, **options), folder).run(folder / name)


def note(result, number="N275"):
    (found,) = [str(one) for one in result.notes if one.number == number]
    return found


# What takes part -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaling", ["per_site", "federated"])
def test_other_methods_are_as_without_the_site(tmp_path, scaling):
    methods = ["single", "mix", "fedavg", {"scaffold": {}}]
    content = study(tmp_path, data={"scaling": scaling}, methods=methods)
    every = Study.of(content, tmp_path).run(tmp_path / "every")
    table = pd.read_csv(tmp_path / "cases.csv")
    table[table["site"] != "west"].to_csv(tmp_path / "cases.csv", index=False)
    others = Study.of(content, tmp_path).run(tmp_path / "others")
    columns = ["method", "site", "case", "score"]
    assert every.predictions[columns].equals(others.predictions[columns])
    assert set(every.rounds["site"]) == {"north", "south", "pool"}
    assert note(every) == (
        "No training case of 1 of 3 sites has a label (west 20 without one). They take part in no method. They are "
        "left out of single: each site trains a model by itself. They are left out of mix, fedavg, scaffold: nothing "
        "in it learns without labels. Not tested, since no test case there has a label: west."
    )


def test_a_method_that_learns_without_labels_trains_there(tmp_path):
    result = run(tmp_path, methods=["single", FIXMATCH, TEACHER, {"fixmatch": {"server": "qfedavg", "label": "fair"}}])
    steps = result.rounds.groupby(["method", "site"])["examples"].max()
    assert steps["fixmatch", "west"] == steps["mean_teacher", "west"] == 20, "as many as it has cases without a label"
    assert ("single", "west") not in steps.index
    assert ("fair", "west") not in steps.index
    assert "west" not in set(result.predictions["site"])
    assert "left out of fair: qfedavg looks at labels of each site" in note(result)
    validation = result.rounds[result.rounds["site"] == "west"]["validation_loss"]
    assert validation.isna().all(), "it has no say in which round is the best"
    flow = pd.read_csv(tmp_path / "out" / "flow.csv")
    flow = flow[(flow["site"] == "west") & flow["what"].isna()]
    assert flow.groupby("stage")["cases"].max().to_dict() == {
        "found": 20, "used": 20, "unlabelled": 20, "train": 0, "validation": 0, "test": 0,
    }  # fmt: skip
    sites = pd.read_csv(tmp_path / "out" / "sites.csv").set_index("site")
    assert sites.loc["west", ["used", "unlabelled", "class: kind 0", "class: kind 1"]].tolist() == [20, 20, 0, 0]


def test_labels_can_be_hidden_all(tmp_path):
    """Test cases keep theirs, so that it is seen what the site has of the others' training; validation has none."""
    result = run(tmp_path, gone=False, methods=["single", "fedavg", FIXMATCH])
    scored = result.predictions.groupby(["method", "site"])["case"].nunique()
    assert scored["fixmatch", "west"] == scored["fedavg", "west"] == 20
    assert ("single", "west") not in scored.index
    hidden = pd.read_csv(tmp_path / "out" / "flow.csv").query("site == 'west' and stage == 'hidden'")["cases"]
    assert hidden.tolist() == [10, 10]
    assert note(result, "N111").endswith("of 10 of 10 training cases there in the first fold, with those for "
                                         "validation. Test cases have all of theirs.")  # fmt: skip
    assert "Not tested" not in note(result)


def test_all_labels_can_not_be_hidden_everywhere(tmp_path):
    with pytest.raises(StudyError, match="name the `sites`"):
        Study.of(study(tmp_path, gone=False, data={"labels": {"share": 0}}), tmp_path)


def test_weights_of_classes_are_of_the_others():
    """Aachen and Bonn have four and eight of class 0, two and four of class 1: 18 / (2 · 12) and 18 / (2 · 6)."""
    sites = {}
    for name, cases in (("Aachen", 6), ("Bonn", 12), ("Celle", 9)):
        labels = (torch.arange(cases) % 3 == 2).long()
        sites[name] = site_of(name, torch.randn(cases, 2, generator=torch.Generator().manual_seed(cases)), labels)
    sites["Celle"].labelled, sites["Celle"].targets = torch.zeros(9, dtype=torch.bool), torch.full((9,), -1)
    federation = Federation(sites, [FIXMATCH], training={"class_weights": "balanced"})
    plan = federation.plan()
    assert plan.start.work.class_weights == (0.75, 1.5)
    assert plan.sites == ["Aachen", "Bonn", "Celle"]
    assert federation.state().isfinite().all()


@pytest.mark.parametrize(
    ("writer", "methods"),
    [(write_number_study, ["fedavg", TEACHER]), (write_image_study, ["fedavg", FIXMATCH])],
)
def test_numbers_and_images_alike(tmp_path, writer, methods):
    sizes = {"north": 12, "south": 10, "west": 8}
    result = run(tmp_path, writer=writer, sizes=sizes, methods=methods)
    label = "mean_teacher" if writer is write_number_study else "fixmatch"
    assert result.rounds.groupby(["method", "site"])["examples"].max()[label, "west"] == 8


def test_weights_in_the_mean_are_the_cases_trained_on():
    """North 6 of 6 with labels, West 12 without: the mean is (6 w_n + 12 w_w) / 18, under masks, too."""
    sites = table_sites({"Aachen": 6, "Bonn": 12})
    sites["Bonn"].labelled = torch.zeros(12, dtype=torch.bool)
    sites["Bonn"].targets = torch.full((12,), -1)
    found = {}
    for channel in ([], [{"secure_sum": {"least": 2}}]):
        method = {"fixmatch": {"threshold": 0.0, "channel": channel, "label": "fixmatch"}}
        federation = Federation(sites, [method], training={"batch_size": 6})
        plan = federation.plan()
        assert plan.weights == {"Aachen": 6.0, "Bonn": 12.0}
        found[len(channel)] = federation.state()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_a_site_without_labels_moves_by_its_pseudo_labels_alone():
    """Its steps are those of the term: with weight 0 it would stay where it was, so it does not take part at all."""
    sites = table_sites({"Aachen": 8, "Bonn": 8})
    sites["Bonn"].labelled = torch.zeros(8, dtype=torch.bool)
    sites["Bonn"].targets = torch.full((8,), -1)
    methods = ["fedavg", {"fixmatch": {"weight": 0, "label": "none"}}, {"fixmatch": {"threshold": 1.0, "label": "new"}}]
    federation = Federation(sites, methods)
    assert federation.plan("none").sites == ["Aachen"]
    assert torch.equal(federation.state("none"), federation.state("fedavg"))
    assert federation.plan("new").sites == ["Aachen", "Bonn"]
    start, alone, both = federation.initial(0), federation.state("fedavg"), federation.state("new")
    torch.testing.assert_close(both - start, (alone - start) / 2, rtol=0, atol=1e-6)  # nobody is sure: Bonn stays


@pytest.mark.parametrize("name", ["frequency_episodes", "site_unlearning", "dp_sgd", "qfedavg", "label_heads"])
def test_parts_that_look_at_labels_say_so(name):
    assert looks_at_labels(build_part(name, {"noise": 1.0} if name == "dp_sgd" else {}).at_site())


@pytest.mark.parametrize("name", ["normalised", "model_contrastive", "label_shares", "virtual_samples", "peer_labels"])
def test_parts_that_do_not_say_so_too(name):
    assert not looks_at_labels(build_part(name, {}).at_site())


def test_an_attack_on_labels_finds_none(tmp_path):
    with pytest.raises(StudyError, match="changes labels, and west has none"):
        run(tmp_path, attack={"sites": ["west"], "label_flip": {}})


# Engines -------------------------------------------------------------------------------------------------------------


def test_sites_elsewhere_give_the_same_numbers(tmp_path):
    content = study(tmp_path, methods=["single", "fedavg", FIXMATCH, TEACHER], data={"scaling": "federated"})
    content["evaluation"] |= {"predictions": "coordinator"}
    folders = split_table(tmp_path)
    here = Study.of(content, tmp_path).run(tmp_path / "here")
    run_study(Study.of(content, tmp_path), tmp_path / "there", engine=Elsewhere(folders, tmp_path / "sites"))
    for name in ("predictions.csv", "flow.csv", "sites.csv"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert "west" in set(here.rounds["site"])


def test_after_an_interruption_the_bytes_are_the_same(tmp_path):
    class Interrupted(Display):
        def round(self, done, total):
            if done == 1:
                raise KeyboardInterrupt

    content = study(tmp_path, methods=[TEACHER])
    whole = Study.of(content, tmp_path).run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_study(Study.of(content, tmp_path), tmp_path / "parts", display=Interrupted())
    parts = Study.of(content, tmp_path).run(tmp_path / "parts", resume=True)
    assert whole.predictions["score"].tolist() == parts.predictions["score"].tolist()


# Benefit -------------------------------------------------------------------------------------------------------------


def clouds(seed):
    """Two clouds that are 3 deviations apart in one of ten features; two sites know four labels each, one none."""
    rng, sites = np.random.default_rng(seed), {}
    for name, cases in (("Aachen", 4), ("Bonn", 4), ("Celle", 200)):
        label = np.arange(cases) % 2
        inputs = rng.normal(size=(cases, 10))
        inputs[:, 0] += np.where(label == 1, 1.5, -1.5)
        sites[name] = site_of(name, torch.from_numpy(inputs).float(), torch.from_numpy(label))
    truth = sites["Celle"].targets
    sites["Celle"].labelled, sites["Celle"].targets = torch.zeros(200, dtype=torch.bool), torch.full((200,), -1)
    return sites, truth


def test_cases_of_a_site_without_labels_show_where_the_classes_lie():
    """A certain case: eight labels tell roughly how the clouds lie, and 200 cases of the third site tell it well."""
    gains, training = [], {"rounds": 20, "batch_size": 8, "local_steps": 10, "weights": "uniform"}
    for seed in range(5):
        sites, truth = clouds(seed)
        found = []
        for method in ("fedavg", {"fixmatch": {"threshold": 0.8, "weight": 3.0}}):
            federation = Federation(sites, [method], training=training)
            model = federation.network(0)
            model.load(federation.state())
            with torch.no_grad():
                found.append(float((model.module(sites["Celle"].inputs).argmax(1) == truth).float().mean()))
        gains.append(found[1] - found[0])
    assert min(gains) > 0, gains
    assert np.mean(gains) > 0.03, gains
