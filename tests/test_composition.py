"""Published methods name parts, and their options are those of the parts: each stands in one place."""

import pytest

from helpers import declare
from polyclinic.composition import METHODS
from polyclinic.methods import PUBLISHED
from polyclinic.options import EntryError, describe_options, option_names
from polyclinic.parts import PLACES, build_chain


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_options_of_a_method_are_those_of_its_parts(name: str) -> None:
    method = PUBLISHED[name].method
    listed = {"local": method.local, "channel": method.channel, "server": method.server,
              "topology": [method.topology], "procedure": [method.procedure]}  # fmt: skip
    expected = [
        line for key, parts in listed.items() for part, _ in parts for line in describe_options(PLACES[key][part])
    ]
    own = [line for line in describe_options(METHODS[name]) if line in expected or method.personal]
    assert sorted(own) == sorted(describe_options(METHODS[name]))
    assert set(expected) <= set(describe_options(METHODS[name]))


def test_an_option_reaches_the_part_that_has_it() -> None:
    assert METHODS["fedadam"](lr=0.5).server == [("fedadam", {"lr": 0.5, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3})]
    assert METHODS["feddyn"](alpha=0.3).local == [("dynamic_regularisation", {"alpha": 0.3})]
    assert METHODS["ditto"](weight=2.0).personal == ("ditto", {"weight": 2.0, "epochs": None})
    assert option_names(METHODS["fedavg"]) == []


@pytest.mark.parametrize(("entry", "message"), [
    ({"fedprox": {"mew": 0.1}}, "fedprox has no option 'mew'"),
    ({"fedavg": {"mu": 0.1}}, "fedavg has no option 'mu'"),
    ({"fedprox": {"local": ["proximal"]}}, "The part proximal is there twice"),
    ({"fedavg": {"server": ["median", "trimmed_mean"]}}, "median and trimmed_mean both put the updates together"),
    ({"fedavg": {"server": ["feddyn"]}}, "'feddyn' is no server rule: it is a method"),
    ({"fedavg": {"procedure": "nothing"}}, "'nothing' is no procedure"),
    ({"fedavg": {"channel": "nothing"}}, "expected a list of parts"),
    ({"single": {"channel": []}}, "single has no server, so `channel` means nothing"),
    ({"fedadam": {"lr": 0.1, "server": "median"}}, "'lr' is an option of what fedadam has under `server`"),
    ({"fedadam": {"lr": 0.1, "server": ["median", {"fedadam": {"lr": 0.2}}]}}, "'lr' is an option of what fedadam has"),
    ({"ditto": {"weight": 2.0, "personal": "apfl"}}, "'weight' is an option of what ditto has under `personal`"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(entry: object, message: str) -> None:
    with pytest.raises(EntryError, match=message):
        declare(methods=[entry])


def test_feddyn_goes_with_parts_of_the_server() -> None:
    (method,) = declare(methods=[{"feddyn": {"server": ["norm_bound", {"fedadam": {"lr": 0.1}}]}}]).study_methods
    chain = build_chain(method.method.channel, method.method.local, method.method.server)
    assert list(chain) == ["dynamic_regularisation", "norm_bound", "fedadam"]


@pytest.mark.parametrize("entry", [
    *sorted(PUBLISHED.keys() - {"fltrust", "attention_mil", "fairfed", "multi_task", "graph_layer", "public_teacher",
                               "fl_mrcm", "fedmri", "fedmix", "feddm"}),
    {"fltrust": {"trusted": "a"}}, {"public_teacher": {"weights": "teacher.safetensors"}}, {"fl_mrcm": {"target": "a"}},
    {"fedadam": {"lr": 0.1, "local": ["proximal"]}},
    {"fedadam": {"server": "median"}}, {"ditto": {"personal": "apfl"}}, {"fedadam": {"server": ["median", "fedadam"]}},
], ids=str)  # fmt: skip
def test_an_entry_with_every_default_filled_in_is_the_same_method(entry: object) -> None:
    data = {"table": "cases.csv", "site": "site", "image": "image", "label": "label", "size": [8, 8]}
    (method,) = declare(methods=[entry], data=data, public=True).study_methods
    (again,) = declare(methods=[method.entry], data=data, public=True).study_methods
    assert again == method


def test_options_of_a_part_that_is_gone_are_not_filled_in() -> None:
    (method,) = declare(methods=[{"fedadam": {"server": "median"}}]).study_methods
    assert "lr" not in method.entry["fedadam"]
