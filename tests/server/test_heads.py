"""Heads of several labels are averaged over the sites that have labels of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import Federation, site_of
from polyclinic.errors import TrainingError
from polyclinic.models import build_model
from polyclinic.parts import Now, Update
from polyclinic.server.heads import LabelHeads, head_places
from polyclinic.server.mean import Mean
from polyclinic.state import FlatModule
from polyclinic.tasks import build_task
from polyclinic.tasks.base import Head

HEADS = [Head("tb", 2), Head("grade", 3)]


def view_of(model: FlatModule, shared: Any = lambda vector: vector) -> Any:
    """What `head_places` sees of a site."""
    task = build_task("multi_label", 5, heads=HEADS)
    return SimpleNamespace(task=task, layout=model.layout, vector=model.vector, shared=shared)


def combined(updates: list[tuple[str, list[float], float, list[float]]], places: Tensor, total: float) -> Tensor:
    """The change that comes of updates: site, change, weight and shares."""
    end = LabelHeads().at_server()
    end.name = "label_heads"
    end.meet({site: {"places": places} for site, *_ in updates}, {})
    size = len(updates[0][1])
    end.begin(Now(0, 1, 0.1, torch.zeros(size), torch.zeros(1), total))
    for site, change, weight, shares in updates:
        sent = {"label_heads": {"shares": torch.tensor(shares, dtype=torch.float64)}}
        end.add(Update(site, torch.tensor(change), torch.tensor([weight]), weight, sent))  # type: ignore[attr-defined]
    step = end.done()  # type: ignore[attr-defined]
    assert step.statistics.tolist() == pytest.approx(
        [sum(weight**2 for _, _, weight, _ in updates) / sum(weight for _, _, weight, _ in updates)]
    )
    return torch.as_tensor(step.change)


def test_heads_by_hand() -> None:
    # one weight of the body, two of the first head, one of the second
    places = torch.tensor([[0, 1, 3], [1, 3, 4]])
    updates = [
        ("A", [1.0, 1.0, 2.0, 9.0], 10.0, [1.0, 0.0]),
        ("B", [4.0, 3.0, 0.0, 2.0], 30.0, [0.5, 1.0]),
    ]
    found = combined(updates, places, 40.0)
    # body (10 * 1 + 30 * 4) / 40; first head (10 * 1 + 15 * 3) / 25, (10 * 2) / 25; second head B alone
    assert found.tolist() == pytest.approx([3.25, 2.2, 0.8, 2.0], rel=1e-6)


def test_a_head_of_which_nobody_has_labels_stays() -> None:
    updates = [("A", [1.0, 5.0, 5.0], 1.0, [1.0, 0.0]), ("B", [3.0, 7.0, 7.0], 1.0, [1.0, 0.0])]
    assert combined(updates, torch.tensor([[0, 1, 2], [1, 2, 3]]), 2.0).tolist() == [2.0, 6.0, 0.0]
    assert combined(updates[:1], torch.tensor([[0, 1, 2], [1, 2, 3]]), 2.0).tolist() == [1.0, 5.0, 0.0]


def test_with_all_labels_everywhere_it_is_the_mean_to_the_bit() -> None:
    random = torch.Generator().manual_seed(0)
    changes = torch.randn(3, 7, generator=random).tolist()
    weights = [7.0, 11.0, 3.0]
    updates = [(name, change, weight, [1.0, 1.0]) for name, change, weight in zip("ABC", changes, weights, strict=True)]
    mean = Mean()
    mean.begin(Now(0, 1, 0.1, torch.zeros(7), torch.zeros(1), 25.0))  # one site did not answer
    for name, change, weight in zip("ABC", changes, weights, strict=True):
        mean.add(Update(name, torch.tensor(change), torch.tensor([weight]), weight))
    found = combined(updates, torch.tensor([[0, 2, 4], [1, 5, 7]]), 25.0)
    assert torch.equal(found, mean.done().change)


def test_a_site_that_did_not_answer_has_no_part() -> None:
    updates = [("A", [1.0, 1.0, 9.0], 10.0, [1.0, 0.0]), ("B", [2.0, 3.0, 2.0], 10.0, [0.5, 1.0])]
    found = combined(updates, torch.tensor([[0, 1, 2], [1, 2, 3]]), 60.0)
    assert found.tolist() == pytest.approx([1.5, (10 + 15) / 15, 2.0], rel=1e-6)


def test_heads_are_the_rows_of_the_last_layer() -> None:
    model = build_model("mlp", {"hidden": [4]}, (3,), 5, seed=0)
    places = head_places(view_of(model)).tolist()
    marks = torch.zeros(model.layout.size)
    for head, start, end in places:
        marks[start:end] = head + 1
    tensors = model.layout.split(marks)
    weight, bias = list(tensors.values())[-2:]
    assert weight.shape == (5, 4)
    assert bias.tolist() == [1, 1, 2, 2, 2]
    assert (weight == torch.tensor([1, 1, 2, 2, 2])[:, None]).all()
    assert all((tensor == 0).all() for tensor in list(tensors.values())[:-2])


def test_only_shared_heads_count() -> None:
    model = build_model("mlp", {"hidden": [4]}, (3,), 5, seed=0)
    body = model.layout.size - 5 * 4 - 5
    assert head_places(view_of(model, lambda vector: vector[:body])).shape == (0, 3)


def test_a_network_without_a_row_for_each_output_is_refused() -> None:
    odd = FlatModule(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 6)))
    with pytest.raises(TrainingError, match="no row for each of its 5 outputs") as caught:
        head_places(view_of(odd))
    assert caught.value.code == "P302"
    headed = FlatModule(odd.module, [odd.module[1]])  # type: ignore[index]
    with pytest.raises(TrainingError, match="no row"):
        head_places(view_of(headed))


def test_sites_that_differ_in_where_heads_are_are_refused() -> None:
    end = LabelHeads().at_server()
    with pytest.raises(TrainingError, match="different places"):
        end.meet({"A": {"places": torch.tensor([[0, 0, 1]])}, "B": {"places": torch.tensor([[0, 1, 2]])}}, {})


def test_it_is_for_several_labels_only() -> None:
    site = site_of("A", torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(Exception, match="label_heads is for multi_label"):
        Federation({"A": site}, ["multi_task"])
