"""Made cases that sites train on beside their own."""

import pandas as pd
import pytest
import torch
from test_mask_synthesis import made_of as outlined
from test_synthesis import blobs, both, close, ended, made_of

from elsewhere import alike_elsewhere
from going_on import training_goes_on
from helpers import Federation, image_sites, recorded, site_of, table_sites, write_image_study
from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine
from polyclinic.errors import SiteError
from polyclinic.options import EntryError
from polyclinic.rounds import run_rounds
from polyclinic.study.job import Job

MANY = {"Aachen": 9, "Bonn": 6}


def given_in(said):
    """Site -> what it was given last."""
    return {site: request.tensors for function, site, request, _ in said if function.endswith("/give")}


@both
@pytest.mark.parametrize("cases", [5, 20])
def test_a_step_is_down_the_mean_over_own_and_made_cases(method, cases):
    """Logistic regression that starts at zero gives both classes 1/2: a step goes by Σ (1[y = c] − 1/2) x / n."""
    made = made_of(table_sites(MANY), {"for_sites": cases}, method=method, training={"batch_size": 50})
    with recorded(made.engine) as said:
        _, progress, rows = ended(made)
    expected = torch.zeros(12)
    for site, given in given_in(said).items():
        assert given["images"].shape == (cases, 5)
        x, y = (
            torch.cat([made.data[site].inputs, given["images"]]),
            torch.cat([made.data[site].labels, given["labels"]]),
        )
        error = torch.stack([(y == kind).float() - 0.5 for kind in (0, 1)])
        change = torch.cat([(error @ x).flatten(), error.sum(1)]) / len(x)
        expected += 0.1 * change * MANY[site] / 15
    close(progress.model("federation"), expected)
    assert [row["examples"] for row in rows[-2:]] == [9, 6]


@both
def test_batches_have_as_many_made_cases_as_an_epoch_has_room_for(method, monkeypatch):
    """Of 9 cases in batches of 4 and 5, with 5 made ones: 3 (⌈4 · 5/9⌉) and 3 (⌈5 · 5/9⌉) beside them."""
    made = made_of(table_sites({"Aachen": 9}), {"for_sites": 5}, method=method, training={"batch_size": 4})
    seen, loss = [], type(made.plan().task).loss
    monkeypatch.setattr(type(made.plan().task), "loss", lambda task, outputs, targets: seen.append(len(targets)) or
                        loss(task, outputs, targets))  # fmt: skip
    ended(made)
    assert sorted(seen) == [7, 8]


@both
def test_each_site_is_given_other_cases_in_each_round(method):
    made = made_of(table_sites(MANY), {"for_sites": 4}, method=method, training={"rounds": 3})
    with recorded(made.engine) as said:
        ended(made)
    given = [request.tensors["images"] for function, _, request, _ in said if function.endswith("/give")]
    assert len(given) == 4
    assert len(torch.cat(given).unique(dim=0)) == 16


@both
@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options, method):
    def state(**options):
        return made_of(table_sites(MANY), {"for_sites": 4}, method=method, **options).state()

    assert torch.equal(state(**options), state())


@both
def test_a_resumed_training_ends_with_the_same_bytes(tmp_path, method):
    def made(folder, **options):
        return made_of(table_sites(MANY), {"for_sites": 4, "generator_rounds": 2}, method=method, folder=folder,
                       model={"mlp": {"hidden": [6], "dropout": 0.3, "norm": "batch"}},
                       training={"rounds": 5, "optimizer": {"adam": {}}, "optimizer_state": "keep"},
                       **options)  # fmt: skip

    training_goes_on(made, tmp_path, stops=(1, 2, 4))


def rare(seed, cases, share):
    """Two sites whose classes overlap, of which one is rare."""
    source = torch.Generator().manual_seed(seed)
    labels = (torch.arange(cases) < share * cases).long()
    return {
        site: site_of(
            site, torch.randn(cases, 2, generator=source) + torch.tensor([1.5, 1.0]) * labels[:, None], labels
        )
        for site in "AB"
    }


@both
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rare_class_is_found_more_often(method, seed):
    """A certain case: of 1 in 10 the mean network finds few, since most cases that look so are of the other class. With
    four times as many made cases, equally many of each class, it looks as frequent as the other."""
    tested = rare(seed + 10, 200, 0.5)["A"]

    def found(entry):
        training = {"rounds": 9, "local_epochs": 5}
        made = Federation(rare(seed, 80, 0.1), [entry], training=training)
        network = made.template
        network.load(made.state())
        right = network.module(tested.inputs).argmax(1) == tested.labels
        return [float(right[tested.labels == kind].float().mean()) for kind in (1, 0)]

    learn = {"generator_rounds": 6, "steps": 60, "batch_size": 32, "lr": 0.002, "width": 8, "balanced": True}
    (fewer, _), (more, others) = found("fedavg"), found({method: {**learn, "for_sites": 320}})
    assert more > fewer + 0.2, (fewer, more)
    assert others > 0.6


@both
def test_images(method):
    data = image_sites(MANY, size=8)
    made = made_of(data, {"for_sites": 6}, method=method, model={"cnn": {"channels": [4]}})
    _, progress, _ = ended(made)
    assert progress.model("federation").isfinite().all()


@both
def test_images_are_made_of_a_site_s_own_masks(method):
    """And they are trained on with these masks; no site is sent another's."""
    made = outlined(entry={"for_sites": 7}, method=method)
    with recorded(made.engine) as said:
        made.rounds()
    shared = {site: len(torch.cat([reply.tensors["masks"], reply.tensors["aside"]]))
              for function, site, _, reply in said if function.endswith("/masks")}  # fmt: skip
    given = given_in(said)
    assert given.keys() == shared.keys() == {"Aachen", "Bonn"}
    for site, one in given.items():
        assert one.keys() == {"images", "labels"}
        assert one["labels"].shape == (7,)
        assert int(one["labels"].max()) < shared[site]


@both
def test_a_site_that_was_given_none_does_not_train(method):
    made = made_of(table_sites(MANY), {"for_sites": 4, "generator_rounds": 0}, method=method)
    plan = made.plan()
    plan.procedure[1]._trained_at_sites = lambda asked, maker, count: asked.stage.train(
        {site: asked.stage.state(site) for site in asked.going}
    )
    with pytest.raises(SiteError, match=r"P401 Site Aachen was asked to train before it was given made cases\."):
        run_rounds(plan, CheckedEngine(made.engine, plan.known))


@both
def test_a_site_takes_none_where_the_study_does_not_say_so(method):
    made = made_of(table_sites(MANY), method=method)
    with recorded(made.engine) as said:
        ended(made)
    function, request = next((one[0], one[2]) for one in said if one[0].endswith("/check"))
    asked = Message(request.fields, {"images": torch.zeros(2, 5), "labels": torch.tensor([0, 1])})
    with pytest.raises(SiteError, match=r"P401 .*trains on none"):
        made.engine.members["Aachen"].handle(function.replace("check", "give"), asked)


@both
def test_what_goes_with_it(method):
    entry = {"for_sites": 4}
    made_of(table_sites(MANY), entry, method=method, training={"local_epochs": {"Aachen": 2, "Bonn": 3}}).state()
    made_of(table_sites(MANY), entry, method=method, training={"class_weights": [1.0, 2.0]}).state()
    with pytest.raises(EntryError, match=r"P104 .*in the first 1 rounds sites do not train, so proximal has nothing"):
        made_of(table_sites(MANY), {**entry, "local": ["proximal"]}, method=method)


@both
def test_a_study_tests_what_sites_trained(method):
    made = made_of(
        blobs(0), {"for_sites": 8}, method=method, training={"rounds": 3}, evaluation={"folds": 2, "validation": 0.2}
    )
    outcome = made.runner.run(Job((made.method(),), 0, 0), made.fold)
    trained = [row for row in outcome.rounds if row["round"] == max(one["round"] for one in outcome.rounds)]
    assert {row["examples"] for row in trained} == {len(made.local.members[site].parts.train) for site in "AB"}
    assert {row["site"] for row in outcome.memorisation} == {"A", "B"}
    assert len(outcome.predictions)


def test_sites_elsewhere_train_on_the_same_cases(tmp_path):
    """Outlined pictures that are augmented, and a site that is left out in turn."""
    made = {"generator_rounds": 1, "steps": 2, "batch_size": 4, "width": 4, "latent": 4, "checked": 4, "for_sites": 6,
            "masks": 5, "label": "made"}  # fmt: skip
    content = write_image_study(tmp_path, {"Aachen": 12, "Bonn": 10, "Celle": 9})
    content |= {"methods": [{"asyndgan": made}]}
    content["data"]["augmentation"] = [{"RandFlip": {"prob": 0.5, "spatial_axis": 1}}]
    content["evaluation"] |= {"unseen_sites": True, "predictions": "coordinator"}
    alike_elsewhere(content, tmp_path, ("predictions.csv", "exchanged.csv"))
    rows = pd.read_csv(tmp_path / "here" / "rounds.csv")
    assert (rows.groupby(["run", "round"])["examples"].nunique() > 1).any(), "sites train on as many cases as they have"
