"""A teacher that was trained elsewhere: each site learns from it while it trains."""

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from helpers import Federation, number_site, plain_module, recorded, site_of, table_sites
from polyclinic.client.few_labels.teacher import Teacher
from polyclinic.errors import SiteError, StudyError
from polyclinic.parts import Batch
from polyclinic.running.progress import Checkpoint
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task


def teaching(here, data, *methods, teacher=None, **options):
    """A federation with the file ``teacher.safetensors``: the network of another seed, or a state ``[P]``."""
    federation = Federation(data, list(methods), **options)
    vector = federation.initial(7) if teacher is None else teacher
    tensors = federation.template.layout.split(vector)
    module = federation.template.module
    others = {name: value.clone() for name, value in module.state_dict().items() if name not in tensors}
    save_file({**{name: value.clone() for name, value in tensors.items()}, **others}, here / "teacher.safetensors")
    federation.runner.planner.folder = here
    return federation


def taught(**options):
    return {"public_teacher": {"weights": "teacher.safetensors", "label": "taught", **options}}


def test_the_weights_that_a_study_writes_are_a_teacher(tmp_path):
    """They lack the integer buffers of batch normalisation."""
    model = {"mlp": {"hidden": [4], "norm": "batch"}}
    federation = teaching(tmp_path, table_sites(), taught(), model=model)
    expected = federation.state("taught")
    tensors = federation.template.layout.split(federation.initial(7))
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "teacher.safetensors")
    assert torch.equal(federation.state("taught"), expected)


def test_without_weight_it_is_fedavg_to_the_bit(tmp_path):
    federation = teaching(tmp_path, table_sites(), "fedavg", taught(weight=0), training={"rounds": 2})
    assert torch.equal(federation.state("taught"), federation.state("fedavg"))


def test_a_teacher_that_the_model_agrees_with_teaches_nothing_at_first(tmp_path):
    """In a round of one step the model is the teacher: the divergence and its gradient are 0."""
    data = table_sites()
    federation = Federation(data, ["fedavg"])
    first, training = federation.initial(0), {"batch_size": 100}
    federation = teaching(tmp_path, data, "fedavg", taught(), teacher=first, training=training)
    torch.testing.assert_close(federation.state("taught"), federation.state("fedavg"), rtol=0, atol=1e-7)


def test_the_term_by_hand():
    """Teacher (0, 1), model (0, 3): at x = 1 the second class has p = σ(1) = 0.731 and q = σ(3) = 0.953. λ T² KL(p ‖ q)
    with λ = 2 and T = 1, and the gradient λ (q − p)."""
    layer = nn.Linear(1, 2, bias=False)
    model = FlatModule(nn.Sequential(layer), [layer])
    model.load(torch.tensor([0.0, 3.0]))
    end = Teacher(weights="x", weight=2.0).at_site()
    end._teacher, end._task = torch.tensor([0.0, 1.0]), build_task("classification", 2)
    inputs, nothing = torch.tensor([[1.0]]), torch.empty(0)
    batch = Batch(inputs, torch.tensor([0]), model, nothing, 0, model.module(inputs), nothing)
    p, q = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(-3))
    term = end.loss(batch, {})
    assert term.item() == pytest.approx(2 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))), abs=1e-6)
    term.backward()
    assert model.gradient.tolist() == pytest.approx([2 * (p - q), 2 * (q - p)], abs=1e-6)  # nothing to the teacher
    assert model.module.training


def test_a_step_is_that_of_a_small_program_of_its_own(tmp_path):
    one = {"Aachen": table_sites()["Aachen"]}
    training = {"batch_size": 64, "optimizer": {"sgd": {"lr": 0.2}}}
    federation = teaching(tmp_path, one, taught(weight=0.5, temperature=3.0), training=training)
    found = federation.state("taught")
    module = plain_module(federation.template, federation.initial(0))
    teacher = plain_module(federation.template, federation.initial(7))
    data = one["Aachen"]
    outputs, wanted = module(data.inputs), teacher(data.inputs).detach()
    soft = nn.functional.kl_div((outputs / 3).log_softmax(1), (wanted / 3).softmax(1), reduction="batchmean")
    (nn.functional.cross_entropy(outputs, data.targets) + 0.5 * 9 * soft).backward()
    own = torch.cat([(p - 0.2 * p.grad).detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(found, own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_teacher_that_knows_the_truth_helps_sites_with_wrong_labels(tmp_path, seed):
    """A third of the labels of both sites are wrong; the teacher separates the classes as they are."""
    source = torch.Generator().manual_seed(seed)
    data = {}
    for name in ("Aachen", "Bonn"):
        inputs = torch.randn(30, 2, generator=source)
        labels = (inputs[:, 1] > inputs[:, 0]).long()
        wrong = torch.rand(30, generator=source) < 0.35
        data[name] = site_of(name, inputs, labels ^ wrong.long())
    training = {"rounds": 40, "batch_size": 10, "optimizer": {"sgd": {"lr": 0.1}}}
    truth = torch.tensor([4.0, -4.0, -4.0, 4.0, 0.0, 0.0])  # the logit of class 1 less that of class 0 is 8 (x1 − x0)
    federation = teaching(tmp_path, data, "fedavg", taught(weight=10.0), training=training, teacher=truth)
    inputs = torch.randn(400, 2, generator=source)
    labels = (inputs[:, 1] > inputs[:, 0]).long()
    right = {}
    for label in ("fedavg", "taught"):
        module = plain_module(federation.template, federation.state(label)).eval()
        right[label] = (module(inputs).argmax(1) == labels).float().mean().item()
    assert right["taught"] > max(0.95, right["fedavg"])


def test_the_teacher_is_sent_once_and_again_where_a_training_goes_on(tmp_path):
    class Killed(Exception):  # noqa: N818
        pass

    def stop(done, total):
        if done == 2:
            raise Killed

    options = {"training": {"rounds": 4}}
    federation = teaching(tmp_path, table_sites(), taught(), **options)
    with recorded(federation.engine) as said:
        whole = federation.state("taught")
    assert [function for function, *_ in said].count("teacher/teach") == 4
    first = teaching(tmp_path, table_sites(), taught(), **options, folder=tmp_path / "sites")
    with pytest.raises(Killed):
        first.rounds(checkpoint=Checkpoint(tmp_path / "job"), report=stop)
    again = teaching(tmp_path, table_sites(), taught(), **options, folder=tmp_path / "sites")
    progress, _ = again.rounds(checkpoint=Checkpoint(tmp_path / "job"))
    assert torch.equal(progress.model("federation"), whole)


def test_numbers_have_a_teacher_too(tmp_path):
    data = {name: number_site(name, 12) for name in ("Aachen", "Bonn")}
    federation = teaching(tmp_path, data, "fedavg", taught(), task="regression")
    assert not torch.equal(federation.state("taught"), federation.state("fedavg"))


def test_a_bundle_has_its_weights_where_they_are(tmp_path):
    federation = teaching(tmp_path, table_sites(), taught())
    file = federation.state("taught")
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    (tmp_path / "teacher.safetensors").rename(tmp_path / "bundle" / "models" / "model.safetensors")
    other = Federation(table_sites(), [taught(weights="bundle")])
    other.runner.planner.folder = tmp_path
    assert torch.equal(other.state("taught"), file)


def test_weights_that_are_not_there_or_of_another_network_are_told(tmp_path):
    part = Teacher(weights="teacher.safetensors")
    network = Federation(table_sites(), ["fedavg"]).template
    before = network.vector.clone()
    with pytest.raises(StudyError, match=r"P102.*no file with the teacher's weights: teacher\.safetensors"):
        part.check_files(network, tmp_path)
    save_file({"other": torch.zeros(2)}, tmp_path / "teacher.safetensors")
    with pytest.raises(StudyError, match=r"P102.*lacks.*own kind"):
        part.check_files(network, tmp_path)
    (tmp_path / "teacher.safetensors").write_bytes(b"no tensors")
    with pytest.raises(StudyError, match=r"P102.*damaged"):
        part.check_files(network, tmp_path)
    assert torch.equal(network.vector, before)


def test_a_site_that_was_sent_no_teacher_does_not_train(tmp_path):
    federation = teaching(tmp_path, table_sites(), taught())
    with recorded(federation.engine):
        federation.rounds()
    end = federation.engine.members["Bonn"].run.ends["teacher"]
    end._teacher = None
    with pytest.raises(SiteError, match=r"P401.*Bonn was sent no teacher"):
        end.begin(federation.engine.members["Bonn"].run.view, {})
