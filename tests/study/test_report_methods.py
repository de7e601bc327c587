"""What the report says of many methods: their options, which are references, which are shown first."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import yaml

from helpers import with_runs
from polyclinic.cli import _print_results
from polyclinic.notes import Note
from polyclinic.study.described import described
from polyclinic.study.entries import Training
from polyclinic.study.method_entries import MethodReader
from polyclinic.study.report import figures
from polyclinic.study.report.answer import answer
from polyclinic.study.report.attack import attacked
from polyclinic.study.report.folder import Folder
from polyclinic.study.report.methods import featured, is_reference, method_lines
from polyclinic.study.report.page import CONTENT, render

UNSEEN = " (unseen site)"


def folder_of(tmp_path, scores, *, methods=None, notes=()):
    """A folder with a row for each method, by its score."""
    rows = [(label, 0, 0, "federation", "A", "auc", score) for label, score in scores.items()]
    columns = ["method", "seed", "fold", "trained_on", "tested_on", "metric", "value"]
    with_runs(pd.DataFrame(rows, columns=columns)).to_csv(tmp_path / "results.csv", index=False)
    summary = [(label, "auc", "all", score, np.nan, np.nan, np.nan) for label, score in scores.items()]
    columns = ["method", "metric", "over", "mean", "deviation", "low", "high"]
    with_runs(pd.DataFrame(summary, columns=columns)).to_csv(tmp_path / "summary.csv", index=False)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({"methods": methods or []}))
    (tmp_path / "notes.json").write_text(json.dumps([note.to_json() for note in notes]))
    return Folder(tmp_path)


def test_options_are_told_once(tmp_path):
    """The label tells ``corrupt`` and the name tells the server rule; other parts have words of their own."""
    common = {"share": "all", "personal": None, "local": [], "topology": "star"}
    krum = {"label": "krum(corrupt=3)", "corrupt": 3, "server": [{"krum": {"corrupt": 3}}], **common}
    mine = {"label": "ours", "corrupt": 3, "server": {"krum": {"corrupt": 3}}, **common}
    other = {"label": "fedprox(mu=0.1, server=median)", "mu": 0.1, "server": [{"median": {}}], **common}
    norm = {"label": "fedbn", "server": [{"mean": {}}], **common, "share": "no_norm"}
    cyclic = {"label": "cyclic", "server": [{"mean": {}}], **common, "topology": "cyclic"}
    entries = [{"krum": krum}, {"krum": mine}, {"fedprox": other}, {"fedbn": norm}, {"cyclic": cyclic}]
    folder = folder_of(tmp_path, {next(iter(one.values()))["label"]: 0.8 for one in entries}, methods=entries)
    assert {line.label: line.options for line in method_lines(folder)} == {
        "krum(corrupt=3)": "",
        "ours": "corrupt: 3",
        "fedprox(mu=0.1, server=median)": "",
        "fedbn": "",
        "cyclic": "",
    }


def test_a_method_of_another_version_is_told_with_all_its_options(tmp_path):
    entry = {"fedprox": {"label": "a", "gone": 1, "mu": 0.5}}
    (line,) = method_lines(folder_of(tmp_path, {"a": 0.8}, methods=[entry]))
    assert line.options == "gone: 1, mu: 0.5"


def test_a_reference_is_one_by_its_name_in_the_catalogue(tmp_path):
    entries = [{"mix": {"label": "fedavg"}}, {"fedavg": {"label": "mix"}}, {"single": {"label": "x (attacked)"}}]
    folder = folder_of(tmp_path, {"fedavg": 0.9, "mix": 0.8, "x": 0.7}, methods=entries)
    assert [is_reference(folder, label) for label in ("fedavg", "mix", "x (attacked)", "x")] == [
        True, False, True, False,
    ]  # fmt: skip


MANY = {"single": 0.1, "a": 0.6, "b": 0.9, "mix": 0.2, "fedavg": 0.3, "c": 0.8, "d": 0.7, "a" + UNSEEN: 0.99}


def test_of_many_methods_the_compared_and_the_best_are_shown_first(tmp_path):
    assert featured(folder_of(tmp_path, MANY)) == ["single", "b", "mix", "fedavg", "c", "d"]


def test_few_methods_are_all_shown(tmp_path):
    few = {label: MANY[label] for label in ("a", "single", "a" + UNSEEN)}
    assert featured(folder_of(tmp_path, few)) == ["a", "single", "a" + UNSEEN]


def test_curves_of_the_other_methods_are_folded_and_none_is_lost(tmp_path):
    folder = folder_of(tmp_path, MANY)
    rows = [(m, 0, 0, "A", k, k % 2, s * (k % 2)) for m, s in MANY.items() for k in range(8)]
    columns = ["method", "seed", "fold", "site", "subject", "label", "score"]
    with_runs(pd.DataFrame(rows, columns=columns)).to_csv(folder.path / "predictions.csv", index=False)
    text = render(Folder(folder.path))
    section = text[text.index('<h2 id="curves">') : text.index("<h3>Calibration")]
    shown, folded = section.split("<details>")
    assert re.findall("<h4>(.*)</h4>", shown) == ["single", "b", "mix", "fedavg", "c", "d"]
    assert re.findall("<h4>(.*)</h4>", folded) == ["a", "a" + UNSEEN]
    assert f"<summary>2 more: a, a{UNSEEN}</summary>" in folded


def test_results_at_unseen_sites_have_figures_and_tables_of_their_own(tmp_path):
    folder = folder_of(tmp_path, {"mix": 0.9, "fedavg": 0.8, "mix" + UNSEEN: 0.7, "fedavg" + UNSEEN: 0.6})
    results = CONTENT["site_results"](folder)
    assert "mix 0.90; fedavg 0.80." in results.panels[0].words
    assert "mix 0.70; fedavg 0.60." in results.unseen[0].words
    # References are grey, federated methods blue: one of each in both panels.
    for panel in (results.panels[0], results.unseen[0]):
        assert all(colour.lower() in panel.picture for colour in (figures.GREY, figures.BLUE))
    assert "<details open><summary>Tested at sites that took no part in training</summary>" in render(folder)


def test_the_best_at_unseen_sites_leaves_the_data_at_the_sites(tmp_path):
    folder = folder_of(tmp_path, {"fedavg": 0.8, "mix" + UNSEEN: 0.7, "fedavg" + UNSEEN: 0.6})
    assert answer(folder)[-1].striptags() == (
        "At sites that took no part in training, the best was fedavg with 0.600; mix reached 0.700 there."
    )


def test_long_labels_break_before_parentheses_only(tmp_path):
    text = render(folder_of(tmp_path, {"trimmed_mean(trim=3)": 0.8}))
    assert '<th scope="row">trimmed_mean<wbr>(trim=3)</th>' in text


def test_the_same_warning_of_several_methods_is_given_once(tmp_path):
    notes = [
        Note("N803", "fedavg: Round 1 was skipped."),
        Note("N202", "Site A: 1 row is odd."),
        Note("N803", "median: Round 1 was skipped."),
    ]
    folder = folder_of(tmp_path, {"fedavg": 0.8, "median": 0.7}, notes=notes)
    found = CONTENT["notes"](folder)
    assert found == ["fedavg, median: Round 1 was skipped.", "Site A: 1 row is odd."]
    assert [note.number for note in found] == ["N803", "N202"]


def test_nothing_is_said_of_deviations_where_there_was_one_run(tmp_path):
    text = render(folder_of(tmp_path, {"fedavg": 0.8, "median": 0.7}))
    assert "deviation" not in text
    assert "Each method was run once" in text


def test_a_method_that_runs_away_does_not_flatten_the_others():
    """Highest losses 1, 1 and 9: the axes end at three times their median, and the third panel says where it goes."""
    rows = [(m, 0, 0, n, loss) for m, ends in {"a": (1, 0), "b": (1, 0.5), "c": (1, 9)}.items()
            for n, loss in enumerate(ends)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["method", "seed", "fold", "round", "loss"])
    a, _, c = figures.convergence(table, ["a", "b", "c"], [("loss", "training")], axis="Loss", name="loss")
    assert a.words == "Loss: training went from 1.00 to 0.00."
    assert c.words == "Loss: training went from 1.00 to 9.00; cut off, its highest value is 9."
    assert "up to 9 ↑" in c.picture
    assert "up to" not in a.picture


def test_the_best_with_corrupt_sites_is_named_too(tmp_path):
    """Krum loses least, as it had least to lose; the median is better with corrupt sites."""
    scores = {"fedavg": 0.9, "median": 0.85, "krum": 0.7}
    scores |= {"fedavg (attacked)": 0.4, "median (attacked)": 0.8, "krum (attacked)": 0.69}
    folder = folder_of(tmp_path, scores)
    sites = pd.DataFrame({"site": ["A", "B"], "found": 9, "used": 9, "rejected": 0, "corrupt": [False, True]})
    sites.to_csv(tmp_path / "sites.csv", index=False)
    said = attacked(Folder(folder.path)).answer.striptags()
    assert "most was lost by fedavg (from 0.900 to 0.400" in said
    assert "least by krum (from 0.700 to 0.690" in said
    assert said.endswith("With corrupt sites the best was median with 0.800.")


@pytest.mark.parametrize(("scored", "words"), [("TF", "1 site has too few cases"), ("FF", "2 sites have too few")])
def test_one_site_and_several_are_spoken_of_as_such(tmp_path, capsys, scored, words):
    folder = folder_of(tmp_path, {"fedavg": 0.8})
    sites = pd.DataFrame({"site": ["A", "B"], "scored": [letter == "T" for letter in scored]})
    results = SimpleNamespace(summary=folder.summary, sites=sites, notes=[Note("N202", "odd")] * 6, folder=tmp_path)
    _print_results(results, ["auc"])
    printed = " ".join("".join(capsys.readouterr()).split())
    assert words in printed
    assert "1 more note is in the report." in printed


def test_where_nothing_is_lost_nothing_is_said_to_be(tmp_path):
    """Corrupt sites can raise a sensitivity: that is no loss, whichever method gains least."""
    scores = {"fedavg": 0.1, "median": 0.2, "fedavg (attacked)": 0.4, "median (attacked)": 0.3}
    folder = folder_of(tmp_path, scores)
    sites = pd.DataFrame({"site": ["A", "B"], "found": 9, "used": 9, "rejected": 0, "corrupt": [False, True]})
    sites.to_csv(tmp_path / "sites.csv", index=False)
    said = attacked(Folder(folder.path)).answer.striptags()
    assert "no method lost anything, neither median (from 0.200 to 0.300" in said
    folder_of(tmp_path, scores | {"median (attacked)": 0.1})
    assert "most was lost by median (from 0.200 to 0.100" in attacked(Folder(folder.path)).answer.striptags()
    assert ", and fedavg (from 0.100 to 0.400" in attacked(Folder(folder.path)).answer.striptags()


#: What a study file makes of a method -> summary, parts, sources and options that the report tells.
TOLD = [
    ({"fedavg": {"server": [{"mean": {}}], "local": [{"proximal": {"mu": 0.3}}]}},
     "Local training, then the mean of the models.",
     [("proximal (mu: 0.3)", "Local models are held near the global one.")],
     "McMahan et al., AISTATS 2017; Li et al., MLSys 2020", ""),
    ({"fedavg": {"server": [{"norm_bound": {}}, {"trimmed_mean": {"trim": 1}}]}},
     "",
     [("norm_bound", "Changes longer than a bound are shortened."),
      ("trimmed_mean (trim: 1)", "Every weight is the mean without the highest and lowest values.")],
     "Sun et al., 2019; Yin et al., ICML 2018", ""),
    ({"fedprox": {"mu": 0.1, "server": [{"median": {}}]}},
     "Local models are held near the global one.",
     [("median", "Every weight is the median of the sites' values.")],
     "Li et al., MLSys 2020; Yin et al., ICML 2018", "mu: 0.1"),
    ({"fedadam": {"lr": 0.1, "server": [{"median": {}}]}},
     "", [("median", "Every weight is the median of the sites' values.")], "Yin et al., ICML 2018", ""),
    ({"fedbn": {"share": "all"}}, "", [], "", "share: all"),
    ({"fedavg": {"share": "body", "topology": "cyclic"}},
     "", [("cyclic", "The model goes from site to site, again and again.")], "Chang et al., JAMIA 2018", "share: body"),
    ({"fedavg": {"procedure": {"split": {}}, "server": [{"mean": {}}]}},
     "", [("split", "Features and gradients go to and fro.")], "Gupta and Raskar, 2018", ""),
    ({"elsewhere": {"server": [{"mean": {}}], "share": "all", "topology": "star", "procedure": "local", "power": 2}},
     "From a plug-in.", [], "Someone, 2030", "power: 2"),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "summary", "parts", "citation", "options"), TOLD)
def test_a_method_is_told_by_the_parts_that_it_has(tmp_path, entry, summary, parts, citation, options):
    (name,) = entry
    entry[name] |= {"label": "ours", "personal": None, "channel": []}
    folder = folder_of(tmp_path, {"ours": 0.8}, methods=[entry])
    described = {
        "methods": {"elsewhere": ["From a plug-in.", "Someone, 2030"]},
        "parts": {"split": ["Features and gradients go to and fro.", "Gupta and Raskar, 2018"]},
    }
    (tmp_path / "provenance.json").write_text(json.dumps({"described": described}))
    (line,) = method_lines(Folder(folder.path))
    assert (line.summary, line.parts, line.citation, line.options) == (summary, parts, citation, options)
    assert all(name in render(Folder(folder.path)) for name, _ in parts)


def test_a_run_writes_down_what_its_parts_say_of_themselves():
    methods = MethodReader("classification", Training(), mixed=False)
    plain = methods.read("fedprox", ())
    mine = methods.read({"fedavg": {"local": [{"proximal": {"mu": 0.3}}], "personal": "apfl"}}, ())
    assert described([plain]) == {"methods": {}, "parts": {}}
    found = described([plain, mine])["parts"]
    assert found["proximal"][0].startswith("FedProx: adds μ/2")
    assert found["proximal"][1] == "Li et al., Federated optimization in heterogeneous networks, MLSys 2020"
    assert found["apfl"][1] == "Deng et al., Adaptive personalized federated learning, arXiv 2003.13461, algorithm 1"
