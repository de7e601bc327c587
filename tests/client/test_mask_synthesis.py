"""Images made from masks that sites share: AsynDGAN and FedGAN for segmentation."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_synthesis import adam, changing, close, cross_entropy, ended, stop_at, with_tensors
from torch.nn import functional as nnf
from torch.nn.functional import one_hot

from helpers import Federation, declare, recorded, site_of
from polyclinic.candidates import code_of
from polyclinic.client.synthesis.generator import Maker
from polyclinic.client.synthesis.outlines import _order
from polyclinic.communication.message import Message
from polyclinic.engine import CheckedEngine
from polyclinic.errors import PolyclinicError, StudyError
from polyclinic.ignored import IGNORED
from polyclinic.models.generative import Discriminator, MaskGenerator
from polyclinic.options import EntryError
from polyclinic.randomness import own_randomness
from polyclinic.rounds import run_rounds
from polyclinic.running.progress import Checkpoint
from polyclinic.seeds import generator

PARTS = {"asyndgan": "synthetic_cases", "fed_gan": "federated_gan"}
both = pytest.mark.parametrize("method", PARTS)
SMALL = {"generator_rounds": 1, "steps": 2, "network_steps": 3, "batch_size": 4, "lr": 0.01, "latent": 5, "width": 4,
         "checked": 20, "masks": 12}  # fmt: skip
UNET = {"unet": {"channels": [2, 4], "residual_units": 0}}
SIDE, CLASSES = 8, 3


def pictures(site, cases, *, structures=(1, 2), size=SIDE, channels=1, noise=0.5, seed=0):
    """Squares of known brightness, 2 and -2, on a noisy background."""
    source = generator(seed, site, cases)
    masks = torch.zeros(cases, 1, size, size, dtype=torch.uint8)
    for mask in masks:
        for structure in structures:
            side = int(torch.randint(size // 4, size // 2, (), generator=source))
            row, column = torch.randint(size - side, (2,), generator=source).tolist()
            mask[0, row : row + side, column : column + side] = structure
    bright = torch.tensor([0.0, 2.0, -2.0])[masks.long()].expand(-1, channels, -1, -1)
    return bright + noise * torch.randn(bright.shape, generator=source), masks


def sites(sizes, **options):
    return {site: site_of(site, *pictures(site, cases, **options)) for site, cases in sizes.items()}


TWO = {"Aachen": 16, "Bonn": 6}


def made_of(data=None, entry=(), *, method="asyndgan", **options):
    options = {"model": UNET, "task": "segmentation", "classes": CLASSES, **options}
    options["training"] = {"rounds": 2, **options.get("training", {})}
    return Federation(data or sites(TWO), [{method: {**SMALL, **dict(entry), "label": method}}], **options)


def kept_of(plan):
    return plan.procedure[1].memory()


# Networks -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 30, 45), (1, 3, 9), (2, 17, 64)])
def test_images_have_the_size_of_their_masks_and_depend_on_them_alone(shape):
    maker = MaskGenerator(shape, 3, latent=4, width=4)
    judge = Discriminator(shape, 3, width=4)
    masks = torch.randint(0, 3, (3, 1, *shape[1:]), dtype=torch.uint8, generator=generator(0))
    numbers = torch.randn(3, maker.numbers, generator=generator(1))
    made = maker(numbers, masks)
    assert made.shape == (3, *shape)
    assert judge(made, masks).shape == (3,)
    torch.testing.assert_close(maker(numbers[1:2], masks[1:2]), made[1:2])
    blank = torch.zeros_like(masks)
    full = torch.ones_like(masks)
    assert not torch.allclose(maker(numbers, blank), maker(numbers, full)), "one class everywhere is seen, too"
    assert not torch.allclose(judge(made, blank), judge(made, full))


def test_the_generator_of_masks_is_a_u_net():
    """Written out: sides of 8 and 9 are halved once, so 9 is padded to 10."""
    with own_randomness(3):
        maker = MaskGenerator((2, 8, 9), 3, latent=4, width=4)
    state = dict(maker.named_parameters())
    masks = torch.randint(0, 3, (2, 1, 8, 9), dtype=torch.uint8, generator=generator(0))
    numbers = torch.randn(2, 4 + 72, generator=generator(1))
    style = numbers[:, :4] @ state["style.weight"].T + state["style.bias"]
    given = torch.cat(
        [one_hot(masks[:, 0].long(), 3).permute(0, 3, 1, 2).float(), style[:, :, None, None].expand(-1, -1, 8, 9),
         numbers[:, 4:].view(2, 1, 8, 9)], 1,
    )  # fmt: skip
    given = nnf.pad(given, (0, 1, 0, 0))
    layers = [(state[name], state[name.replace("weight", "bias")]) for name in state if name.endswith("conv.weight")]
    assert len(layers) == 5

    def bent(values):
        return torch.where(values > 0, values, 0.2 * values)

    fine = bent(nnf.conv2d(given, *layers[0], padding=1))
    coarse = bent(nnf.conv2d(fine, *layers[1], stride=2, padding=1))
    lowest = bent(nnf.conv2d(coarse, *layers[2], padding=1))
    up = bent(nnf.conv_transpose2d(torch.cat([coarse, lowest], 1), *layers[3], stride=2, padding=1, output_padding=1))
    made = nnf.conv_transpose2d(torch.cat([fine, up], 1), *layers[4], padding=1)[:, :, :, :9]
    close(maker(numbers, masks), made)


# Whose masks are shared -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_each_patient_has_a_mask_before_a_second_of_any(people):
    order = _order("Aachen", people)
    assert sorted(order) == list(range(len(people)))
    whose = [people[position] for position in order]
    first = len(set(people))
    assert len(set(whose[:first])) == first
    assert order != _order("Bonn", people) or len(people) < 6 or first == 1


def shared_by(made, site):
    with recorded(made.engine) as said:
        made.rounds()
    (reply,) = [one for function, at, _, one in said if function.endswith("/masks") and at == site]
    return reply.tensors


def places_of(masks, data):
    """Which of a site's cases these masks are of; no two are equal."""
    return [next(place for place, own in enumerate(data.targets) if torch.equal(own, mask)) for mask in masks]


@both
def test_a_site_shares_as_many_as_are_asked_for_and_keeps_patients_aside(method):
    data = sites({"Aachen": 30, "Bonn": 11})
    told = shared_by(made_of(data, {"masks": 16}, method=method), "Aachen")
    assert (len(told["masks"]), len(told["aside"])) == (12, 4)
    assert len({*places_of(told["masks"], data["Aachen"]), *places_of(told["aside"], data["Aachen"])}) == 16
    told = shared_by(made_of(data, {"masks": 16}, method=method), "Bonn")
    assert (len(told["masks"]), len(told["aside"])) == (11, 0)


def test_all_folds_and_seeds_share_nearly_the_same_masks():
    data = {"Aachen": site_of("Aachen", *pictures("Aachen", 40), None)}
    found = set()
    for fold in range(4):
        made = made_of(data, {"masks": 12}, evaluation={"folds": 4})
        made.fold = made.prepare(fold)
        told = shared_by(made, "Aachen")
        found |= {*places_of(told["masks"], data["Aachen"]), *places_of(told["aside"], data["Aachen"])}
    assert 12 <= len(found) <= 20


def test_only_masks_that_say_everything_are_shared_and_learned_from():
    """Two of Aachen's cases have pixels of which nothing is known, two some of which two classes are possible."""
    data = sites({"Aachen": 9, "Bonn": 6})
    masks = data["Aachen"].targets.clone()
    masks[[0, 3], 0, 2, 2] = IGNORED
    masks[[5, 8], 0, 0, 0] = code_of([1, 2])
    data["Aachen"] = replace(data["Aachen"], targets=masks)
    made = made_of(data, {"batch_size": 50})
    assert sorted(places_of(shared_by(made, "Aachen")["masks"], data["Aachen"])) == [1, 2, 4, 6, 7]
    assert made.state().isfinite().all()
    data["Bonn"] = replace(data["Bonn"], targets=masks[[0, 3, 5, 8, 0, 3]])
    with pytest.raises(PolyclinicError, match="No training case of site Bonn has a mask that says of every pixel"):
        made_of(data).rounds()
    progress, rows = made_of(data, training={"quorum": 1}).rounds()
    assert {row["site"] for row in rows} == {"Aachen"}
    assert progress.model("federation").isfinite().all()


# Numbers --------------------------------------------------------------------------------------------------------------


def network(kind, names, **sizes):
    with own_randomness(generator(*names).initial_seed()):
        return kind((1, SIDE, SIDE), CLASSES, **sizes)


@pytest.mark.parametrize("sizes", [{"Aachen": 16}, TWO], ids=["one site", "two sites"])
def test_steps_are_those_of_a_plain_gan(sizes):
    """An independent small program: one generator, a discriminator a site, and the sites' losses by their weights."""
    data = sites(sizes)
    made = made_of(data)
    with recorded(made.engine) as said:
        plan, _, rows = ended(made)
    told = {site: reply.tensors for function, site, _, reply in said if function.endswith("/masks")}
    maker = network(MaskGenerator, (0, "stage", 0, 0, "generator"), latent=5, width=4)
    judges = {site: network(Discriminator, (0, "parts", site, 0, 0, "discriminator"), width=4) for site in data}
    first, optimizers = adam(maker), {site: adam(judge) for site, judge in judges.items()}
    losses = {site: [] for site in data}
    for step in range(2):
        together = torch.zeros(())
        for site, one in data.items():
            masks, judge, source = told[site]["masks"], judges[site], generator(0, "stage", 0, 0, "made", site, step)
            wanted = masks[torch.multinomial(torch.ones(len(masks)).double(), 4, replacement=True, generator=source)]
            false = maker(torch.randn(4, 5 + SIDE * SIDE, generator=source), wanted)
            aside = places_of(told[site]["aside"], one)
            learned = torch.tensor([place for place in range(len(one)) if place not in aside])
            seed = generator(0, "parts", site, 0, 0, "real", step)
            order = learned[torch.randperm(len(learned), generator=seed)[:4]]
            real, no = judge(one.inputs[order], one.targets[order]), judge(false.detach(), wanted)
            loss = cross_entropy(real, torch.ones_like(real)) + cross_entropy(no, torch.zeros_like(no))
            optimizers[site].zero_grad()
            loss.backward()
            optimizers[site].step()
            losses[site].append(float(loss.detach()))
            yes = judge(false, wanted)
            together = together + len(one) / sum(sizes.values()) * cross_entropy(yes, torch.ones_like(yes))
        first.zero_grad()
        together.backward()
        first.step()
    close(kept_of(plan)["generator/network"], torch.cat([one.detach().flatten() for one in maker.parameters()]))
    for site, found in losses.items():
        (loss,) = (row["loss"] for row in rows if (row["round"], row["site"]) == (0, site))
        assert loss == pytest.approx(sum(found) / 2, rel=1e-5)


@both
def test_the_model_learns_from_made_images_with_their_masks(method):
    """Its steps are those of plain training; the masks of a site, those kept aside, too, are as many as its weight."""
    made = made_of(method=method, training={"optimizer": {"sgd": {"lr": 0.1, "momentum": 0.9}}})
    with recorded(made.engine) as said:
        plan, progress, _ = ended(made)
    told = {site: reply.tensors for function, site, _, reply in said if function.endswith("/masks")}
    maker = network(MaskGenerator, (0, "stage", 0, 0, "generator"), latent=5, width=4)
    learned = kept_of(plan)["generator" if method == "fed_gan" else "generator/network"]
    torch.nn.utils.vector_to_parameters(learned, maker.parameters())
    masks = torch.cat([told[site][name] for site in TWO for name in ("masks", "aside")])
    shares = torch.cat([torch.full((12,), 16 / 22 / 12), torch.full((6,), 6 / 22 / 6)]).double()
    model = made.network(0)
    model.load(made.initial(0))
    optimizer = torch.optim.SGD(model.module.parameters(), lr=0.1, momentum=0.9)
    for step in range(3):
        source = generator(0, "stage", 0, 1, "network", step)
        wanted = masks[torch.multinomial(shares, 4, replacement=True, generator=source)]
        inputs = maker(torch.randn(4, 5 + SIDE * SIDE, generator=source), wanted).detach()
        optimizer.zero_grad()
        plan.task.loss(model.module(inputs), wanted).mean().backward()
        optimizer.step()
    close(progress.model("federation"), model.vector)


def test_one_site_trains_its_own_pair_with_fed_gan():
    """Masks that it does not share it learns from, too: with few shared ones the generator is the same."""
    data = sites({"Aachen": 10})
    few, many = (kept_of(ended(made_of(data, {"masks": masks}, method="fed_gan"))[0])["generator"] for masks in (3, 10))
    assert torch.equal(few, many)


@pytest.mark.parametrize("seed", range(3))
def test_a_model_of_made_images_alone_segments_real_ones(seed):
    """Each site has one of two structures. Alone neither knows the other's; made images teach both."""
    model = {"unet": {"channels": [8, 16], "residual_units": 0}}
    data = {
        site: site_of(site, *pictures(site, cases, structures=own, size=16, seed=seed))
        for site, cases, own in (("A", 40, [1]), ("B", 16, [2]))
    }
    entry = {"generator_rounds": 4, "steps": 40, "network_steps": 50, "batch_size": 16, "lr": 0.002, "latent": 8,
             "width": 8, "masks": 32}  # fmt: skip
    adam = {"optimizer": {"adam": {"lr": 0.01}}}
    made = made_of(data, entry, model=model, training={"rounds": 6, **adam})
    images, masks = pictures("test", 40, size=16, seed=seed)

    def dice(state):
        network = made.network(0)
        network.load(state)
        network.module.eval()
        with torch.no_grad():
            found = network.module(images).argmax(1, keepdim=True)
        return [
            float(2 * ((found == k) & (masks == k)).sum() / ((found == k).sum() + (masks == k).sum())) for k in (1, 2)
        ]

    assert min(dice(made.state())) > 0.65
    for site, other in (("A", 1), ("B", 0)):
        alone = Federation({site: data[site]}, ["fedavg"], model=model, task="segmentation", classes=CLASSES,
                           training={"rounds": 10, "batch_size": 16, **adam})  # fmt: skip
        assert dice(alone.state())[other] < 0.05


# Kinds of data --------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("channels", "classes", "size"), [(1, 2, 8), (3, 3, 10)])
def test_channels_structures_and_sizes(method, channels, classes, size):
    """One structure, colours, sides that are no multiples of 4; some pictures and one site have no structure."""
    data = sites({"Aachen": 9, "Bonn": 5}, channels=channels, size=size, structures=range(1, classes))
    blank = data["Aachen"].targets.clone()
    blank[:4] = 0
    data["Aachen"] = replace(data["Aachen"], targets=blank)
    data["Bonn"] = replace(data["Bonn"], targets=torch.zeros_like(data["Bonn"].targets))
    plan, progress, _ = ended(made_of(data, method=method, classes=classes))
    assert progress.model("federation").isfinite().all()
    made = plan.procedure[1].made()
    assert made.inputs.shape[1] == channels
    assert made.labels.shape == (len(made.inputs), 1, *made.inputs.shape[2:])
    assert made.masks == {"Aachen": 9, "Bonn": 5}


# Copies ---------------------------------------------------------------------------------------------------------------


def test_images_are_compared_with_those_of_their_own_masks(monkeypatch):
    """A generator that gives the very images of the masks that it learned from, and something else for others."""
    data = sites({"Aachen": 24, "Bonn": 20})
    known = {
        mask.numpy().tobytes(): image
        for one in data.values()
        for image, mask in zip(one.inputs, one.targets, strict=True)
    }
    made = made_of(data, {"masks": 20})
    with recorded(made.engine) as said:
        honest = ended(made)[0].procedure[1].made()
    aside = {
        mask.numpy().tobytes()
        for name, _, _, reply in said
        if name.endswith("/masks")
        for mask in reply.tensors["aside"]
    }
    assert all(one["counts"].tolist()[0] == 15 for one in honest.told.values())
    assert len(aside) == 10

    def copying(self, numbers, masks):
        keys = [mask.numpy().tobytes() for mask in masks]
        noise = torch.randn(len(masks), 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
        return torch.stack([noise[i] if key in aside else known[key] for i, key in enumerate(keys)])

    monkeypatch.setattr(Maker, "inputs", copying)
    told = ended(made_of(data, {"masks": 20}))[0].procedure[1].made().told
    for one in told.values():
        assert one["counts"].tolist() == [15, 15, 1, 5]
        assert one["nearness"][:2].tolist() == [0, 0]


def test_masks_without_any_structure_are_not_compared():
    data = sites({"Aachen": 24})
    masks = data["Aachen"].targets.clone()
    masks[::2] = 0
    told = ended(made_of({"Aachen": replace(data["Aachen"], targets=masks)}, {"masks": 24}))[0].procedure[1].made().told
    made, _, _, held = told["Aachen"]["counts"].tolist()
    assert made + held == 12


def test_all_slices_of_a_patient_are_on_one_side_and_one_of_them_counts():
    """Fifteen patients with four slices each, of which a third shows nothing; 40 masks are shared."""
    images, masks = pictures("Aachen", 60)
    masks[::3] = 0
    data = {"Aachen": replace(site_of("Aachen", images, masks), subjects=[f"patient {row // 4}" for row in range(60)])}
    made = made_of(data, {"masks": 40})
    with recorded(made.engine) as said:
        told = ended(made)[0].procedure[1].made().told["Aachen"]["counts"].tolist()
    (reply,) = [one for name, _, _, one in said if name.endswith("/masks")]
    assert sum(len(one) for one in reply.tensors.values()) == 40
    end = made.local.members["Aachen"].run.ends[PARTS["asyndgan"]]
    own = end.outlines(None)
    patients = own.shared // 4
    assert len(set(patients.tolist())) == 15
    assert len(set(patients[-own.aside :].tolist())) == 3
    assert not set(patients[: -own.aside].tolist()) & set(patients[-own.aside :].tolist())
    assert set((own.learned // 4).tolist()) == set(patients[: -own.aside].tolist())
    assert len(own.learned) == 48
    shown = {patient for patient, mask in zip(patients.tolist(), own.masks, strict=True) if mask.any()}
    assert told[0] + told[3] == len(shown), "of each patient the first mask that shows something"


def test_of_few_patients_nobody_is_kept_aside_and_nothing_is_told():
    plan = ended(made_of(sites({"Aachen": 11}), {"masks": 100}))[0]
    assert plan.procedure[1].made().told["Aachen"]["counts"].tolist() == [0, 0, 0, 0]


# Messages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "verb"), [("asyndgan", "judge"), ("fed_gan", "learn")])
def test_masks_leave_once_and_no_site_is_sent_any(method, verb):
    made = made_of(method=method, training={"rounds": 4}, entry={"generator_rounds": 2})
    with recorded(made.engine) as said:
        made.rounds()
    own = [(name.partition("/")[2], one, reply) for name, site, one, reply in said
           if name.startswith(PARTS[method]) and site == "Bonn"]  # fmt: skip
    assert [name for name, _, _ in own].count("masks") == 1
    assert {name for name, _, _ in own} >= {"begin", verb, "check"} - ({"begin"} if method == "fed_gan" else set())
    assert all(one.tensors.keys() <= {"images", "labels", "generator", "discriminator"} for _, one, _ in own)
    assert all(not {"masks", "aside"} & reply.tensors.keys() for name, _, reply in own if name != "masks")
    asked = [one for name, one, _ in own if name == "check"]
    assert len(asked) == 1
    assert asked[0].tensors["labels"].max() == 5, "places among the site's own six masks"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_tensors(masks=lambda one: one + 3), "values beyond the 3 classes"),
        (with_tensors(masks=lambda one: torch.full_like(one, IGNORED)), "values beyond the 3 classes"),
        (with_tensors(aside=lambda one: torch.full_like(one[:1], IGNORED) if len(one) else one + 9,
                      masks=lambda one: one + 9), "values beyond"),
        (with_tensors(masks=lambda one: one.repeat(3, 1, 1, 1)), "18 masks, and was asked for 12"),
        (with_tensors(masks=lambda one: one[:0]), "no masks"),
        (with_tensors(masks=lambda one: one[..., :4]), "masks: got"),
        (with_tensors(masks=lambda one: one[:, :, None]), "masks: got"),
        (with_tensors(masks=lambda one: one.float()), "masks: got"),
        (lambda reply: Message(reply.fields, {"masks": reply.tensors["masks"]}), "no masks"),
        (lambda reply: Message(reply.fields, {}), "no masks"),
    ],
)  # fmt: skip
@both
def test_masks_that_can_not_be_are_their_site_s_failure(method, change, words):
    made = made_of(method=method, training={"quorum": 1})
    changing(made.engine, "Bonn", f"{PARTS[method]}/masks", change)
    progress, rows = made.rounds()
    assert {row["site"] for row in rows} == {"Aachen"}
    assert any("Bonn" in note and "P401" in note and words in note for note in progress.failures), progress.failures
    assert progress.model("federation").isfinite().all()
    made = made_of(method=method)
    changing(made.engine, "Bonn", f"{PARTS[method]}/masks", change)
    with pytest.raises(PolyclinicError, match="Bonn"):
        made.rounds()


@pytest.mark.parametrize("labels", [lambda one: one + 50, lambda one: one[:2]])
def test_a_site_refuses_places_that_none_of_its_masks_has(labels):
    made = made_of()
    original = made.engine.call

    def call(function, requests):
        if function.endswith("/judge"):
            requests = {
                site: Message(one.fields, {**one.tensors, "labels": labels(one.tensors["labels"])})
                for site, one in requests.items()
            }
        yield from original(function, requests)

    made.engine.call = call
    with pytest.raises(PolyclinicError, match="P401"):
        made.rounds()


@both
@pytest.mark.parametrize("options", [{"stacked": True}, {"serialise": True}])
def test_engines_agree(options, method):
    assert torch.equal(made_of(method=method, **options).state(), made_of(method=method).state())


@both
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, method):
    def train(folder, stop=None):
        made = made_of(method=method, entry={"generator_rounds": 2}, training={"rounds": 4}, folder=folder / "sites")
        plan = made.plan()
        with recorded(made.engine) as said:
            progress, _ = run_rounds(
                plan,
                CheckedEngine(made.engine, plan.known),
                checkpoint=Checkpoint(folder / "job"),
                report=stop_at(stop),
            )
        asked = sum(name.endswith("/masks") for name, *_ in said)
        return {"model": progress.model("federation"), **plan.procedure[1].memory()}, asked

    whole, asked = train(tmp_path / "whole")
    assert asked == 2
    for stop in (1, 2, 3):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / str(stop), stop)
        found, asked = train(tmp_path / str(stop))
        assert asked == 0, "masks are in the checkpoint"
        assert found.keys() == whole.keys()
        assert all(torch.equal(found[name], whole[name]) for name in whole)


# What is refused ------------------------------------------------------------------------------------------------------

MASKS = {"table": "cases.csv", "site": "site", "image": "image", "mask": "mask", "size": [16, 16]}


def declared(entry, *, data=(), method="asyndgan", **options):
    return declare(task="segmentation", data={**MASKS, **dict(data)}, model=UNET, training={"rounds": 3},
                   methods=[{method: {"generator_rounds": 1, **entry}}], **options)  # fmt: skip


@both
def test_what_can_not_be_is_refused(method):
    partly = {"mask_classes": ["one", "two"], "structures": {"A": ["one"], "B": ["one", "two"]}}
    for entry, data, why in (
        ({}, {}, "it is not said how many"),
        ({"masks": 8, "balanced": True}, {}, "`balanced` is about classes of cases"),
        ({"masks": 8}, partly, "some sites did not outline all structures"),
        ({"masks": 8, "local": ["proximal"]}, {}, "proximal has nothing to change"),
        ({"masks": 8, "channel": ["secure_sum"]}, {}, "secure_sum has nothing to change"),
    ):
        with pytest.raises(EntryError, match=f"P104 .*{why}"):
            declared(entry, data=data, method=method)
    declared({"masks": 8}, data={"mask_classes": ["one", "two"]}, method=method)
    with pytest.raises(StudyError, match="P102"):
        declared({"masks": 0}, method=method)
    with pytest.raises(EntryError, match="P104 `masks` is for segmentation"):
        declare(training={"rounds": 3}, methods=[{method: {"generator_rounds": 1, "masks": 8}}])
    volume = torch.zeros(4, 1, 8, 8, 8)
    data = {"Aachen": site_of("Aachen", volume, volume.to(torch.uint8))}
    made = made_of(data, method=method)
    with recorded(made.engine) as said, pytest.raises(StudyError, match=r"P104 .*flat images"):
        made.rounds()
    assert not any(name.endswith("/masks") for name, *_ in said), "before any mask leaves a site"


@both
def test_a_site_s_policy_must_allow_that_masks_leave(method):
    from polyclinic.federation.ends.policy import refusals
    from polyclinic.federation.site_file import Policy

    def refused(study, **policy):
        return list(refusals(Policy(floor=1, predictions=True, overlays=True, **policy), study, ""))

    (why,) = refused(declared({"masks": 8}, method=method))
    assert f"has masks of the site's patients given to the server, up to 8 ({PARTS[method]})" in why
    assert not refused(declared({"masks": 8}, method=method), masks=True)
    assert not refused(declare(training={"rounds": 3}, methods=[{method: {"generator_rounds": 1}}]))
