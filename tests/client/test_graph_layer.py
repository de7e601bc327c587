"""A graph network of each site behind the shared one."""

import math

import pandas as pd
import pytest
import torch
from torch import nn

from helpers import Federation, catalogued, declare, finding_site, recorded, site_of
from polyclinic.client.domain_shift.graph import Graph, together
from polyclinic.errors import StudyError
from polyclinic.parts import FEDERATION
from polyclinic.running.progress import Checkpoint
from polyclinic.study.final_model.entry import unusable

KIND = {"task": "multi_label", "classes": 4}
NORM = {"mlp": {"hidden": [6], "norm": "batch", "dropout": 0.3}}


def sites(**has):
    return {name: finding_site(name, 24, own, part=None) for name, own in has.items()}


def graph_layer(**options):
    return {"graph_layer": {"label": "graph", **options}}


# Exact numbers --------------------------------------------------------------------------------------------------------


def test_how_labels_go_together():
    """Of five cases four have both labels: one with both, one with neither, and two with the second alone."""
    labels = torch.tensor([[1, 1, -1], [0, 0, -1], [0, 1, -1], [0, 1, -1], [1, -1, 1]])
    found = together(labels)
    assert found[0, 1].tolist() == [0.25, 0.25, 0.5, 0]
    assert found[1, 0].tolist() == [0.25, 0.25, 0, 0.5]
    assert found[0, 2].tolist() == [1, 0, 0, 0]
    assert not found[1, 2].any(), "they are never known together"
    assert not found.diagonal().any()


def by_loops(graph, weights, edges, widths, outputs):
    """A case, a label, a layer and a neighbour after another."""
    pieces = dict(enumerate(torch.split(weights, [math.prod(shape) for shape in graph.shapes])))
    parts = [piece.view(shape) for piece, shape in zip(pieces.values(), graph.shapes, strict=True)]
    found = outputs.clone()
    for case, row in enumerate(outputs):
        nodes = [torch.cat([own, torch.zeros(graph.outputs - len(own))]) for own in torch.split(row, widths)]
        hidden = [node @ parts[0] + parts[1] for node in nodes]
        for layer in range(graph.depth):
            matrices, own, kept, added = parts[2 + 4 * layer : 6 + 4 * layer]
            after = []
            for j, node in enumerate(hidden):
                told = [
                    other @ torch.tanh(edges[j, i] @ matrices + own).view(graph.width, graph.width)
                    for i, other in enumerate(hidden)
                    if edges[j, i].any()
                ]
                mean = sum(told) / len(told) if told else torch.zeros(graph.width)
                after.append(node + torch.relu(node @ kept + mean + added))
            hidden = after
        corrected = [(node + one @ parts[-1])[:width] for node, one, width in zip(nodes, hidden, widths, strict=True)]
        found[case] = torch.cat(corrected)
    return found


@pytest.mark.parametrize("depth", [1, 3])
def test_a_graph_network_by_loops(depth):
    graph, widths = Graph(3, 2, depth), [2, 3, 1]
    source = torch.Generator().manual_seed(depth)
    weights = torch.randn(sum(map(math.prod, graph.shapes)), generator=source)
    edges = torch.rand(3, 3, 4, generator=source)
    edges[0, 2] = edges[2, 0] = 0
    edges[range(3), range(3)] = 0
    outputs = torch.randn(4, 6, generator=source)
    found = graph(weights, edges, torch.tensor(widths), outputs)
    torch.testing.assert_close(found, by_loops(graph, weights, edges, widths, outputs), rtol=1e-4, atol=1e-5)
    assert torch.equal(graph(graph.initial(), edges, torch.tensor(widths), outputs), outputs), "at first"


def linear(shape, outputs):
    layer = nn.Linear(shape[0], outputs)
    return layer, [layer]


def test_two_steps_by_plain_autograd():
    """One site, two rounds of one step: both networks go down the gradient of the loss of the corrected outputs."""
    data = {"A": finding_site("A", 8)}
    with catalogued("linear", linear):
        federation = Federation(data, [graph_layer(depth=1, width=2)], model="linear",
                                training={"rounds": 2, "batch_size": 8}, **KIND)  # fmt: skip
        progress, _ = federation.rounds()
        first = federation.initial(0)
    memory, member = federation.kept(progress)["A"].personal, federation.engine.members["A"]
    inputs, targets = member.dataset.batch(torch.arange(8))
    graph, task = Graph(int(memory["widths"].max()), 2, 1), member.run.task
    shared, own = first.clone(), graph.initial()
    for _ in range(2):
        shared.requires_grad_()
        own.requires_grad_()
        weight, bias = shared[: 4 * 4].view(4, 4), shared[16:]
        outputs = graph(own, memory["edges"], memory["widths"], inputs @ weight.T + bias)
        task.loss(outputs, targets).mean().backward()
        shared, own = ((one - 0.1 * one.grad).detach() for one in (shared, own))
    torch.testing.assert_close(progress.model(FEDERATION), shared, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(memory["graph"], own, rtol=1e-4, atol=1e-6)
    assert not torch.equal(own, graph.initial())


# Identities -----------------------------------------------------------------------------------------------------------


def test_without_layers_it_is_fedavg_to_the_bit():
    data = sites(Aachen=(0, 1), Bonn=(0,), Celle=(0, 1))
    federation = Federation(
        data, ["fedavg", graph_layer(depth=0)], model=NORM, training={"rounds": 3},
        evaluation={"folds": 2, "validation": 0.2, "best_round": "loss"}, **KIND,
    )  # fmt: skip
    assert torch.equal(federation.state("graph"), federation.state("fedavg"))
    plain, graph = (pd.concat(federation.outcome(label).predictions) for label in ("fedavg", "graph"))
    assert plain["score[tb]"].tolist() == graph["score[tb]"].tolist()


def test_the_graph_stays_at_the_site():
    federation = Federation(
        {name: finding_site(name, 24) for name in ("Aachen", "Bonn")},
        [graph_layer()],
        model=NORM,
        training={"rounds": 2},
        **KIND,
    )
    with recorded(federation.engine) as said:
        progress, _ = federation.rounds()
    for function, _, request, reply in said:
        if function == "train":
            assert set(reply.tensors) == {"change", "statistics"}
            assert set(request.tensors) == {"state"}
    kept = federation.kept(progress)
    assert not torch.equal(kept["Aachen"].personal["graph"], kept["Bonn"].personal["graph"])


@pytest.mark.parametrize("optimizer", [{"sgd": {"lr": 0.1, "momentum": 0.9}}, {"adam": {"lr": 0.01}}], ids=str)
def test_killed_and_resumed_it_ends_with_the_same_bytes(tmp_path, optimizer):
    class Killed(BaseException):
        pass

    def report(done, rounds):
        if done == 2:
            raise Killed

    def trained(folder, **options):
        federation = Federation(
            sites(Aachen=(0, 1), Bonn=(0,), Celle=(0, 1)), [graph_layer()], model=NORM, folder=folder,
            training={"rounds": 4, "optimizer": optimizer}, evaluation={"folds": 2, "validation": 0.2,
                                                                        "best_round": "loss"}, **KIND,
        )  # fmt: skip
        progress, _ = federation.rounds(**options)
        kept = federation.kept(progress)
        return [progress.model(FEDERATION), *(kept[site].personal["graph"] for site in sorted(kept))]

    whole = trained(tmp_path / "whole")
    with pytest.raises(Killed):
        trained(tmp_path / "sites", checkpoint=Checkpoint(tmp_path / "job"), report=report)
    again = trained(tmp_path / "sites", checkpoint=Checkpoint(tmp_path / "job"))
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))


# Refusals -------------------------------------------------------------------------------------------------------------


def test_it_is_for_several_labels():
    with pytest.raises(StudyError, match="label_graph is for multi_label, and the task is classification"):
        declare(methods=["graph_layer"])
    method = declare(task="multi_label", methods=["graph_layer"]).study_methods[0]
    assert "two networks" in unusable(method.method)


# Benefit --------------------------------------------------------------------------------------------------------------


def test_labels_that_go_together_differently():
    """A certain case: the second label is the first at one site and its opposite at the other, so no shared model can
    be right in more than half of all; which it is, the labels of each site tell."""
    signal = torch.tensor([[1.0], [-1.0]] * 16)
    first = (signal[:, 0] > 0).long()
    data = {
        name: site_of(name, signal, torch.stack([first, 2 + (first if same else 1 - first)], 1), None)
        for name, same in (("Aachen", True), ("Bonn", False))
    }
    for seed in range(3):
        federation = Federation(
            data, ["fedavg", graph_layer()], model="logistic", evaluation={"folds": 2},
            training={"rounds": 12, "optimizer": {"sgd": {"lr": 0.5}}}, **KIND,
        )  # fmt: skip
        right = {}
        for label in ("fedavg", "graph"):
            cases = pd.concat(federation.outcome(label, seed=seed).predictions)
            right[label] = [
                ((cases[f"score[{name}]"] > 0.5) == (cases[f"label[{name}]"] == 1)).mean() for name in ("tb", "edema")
            ]
        assert right["fedavg"][1] <= 0.6, right
        assert min(right["graph"]) == 1, right
