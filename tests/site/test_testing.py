"""What a site says of the predictions that it keeps: nothing of a case, and nothing where there are few."""

import numpy as np
import pandas as pd
import pytest
import torch

from helpers import Federation, table_sites
from polyclinic.communication.message import Message
from polyclinic.errors import SiteError
from polyclinic.site.kept import KeptRows, Trial
from polyclinic.site.messages import Compare, KeptTrial, Spread
from polyclinic.site.messages import Test as Asked
from polyclinic.site.testing import spread
from polyclinic.statistics.evidence import site_evidence
from polyclinic.statistics.intervals import patient_weights
from polyclinic.tasks import build_task

SITES = {"Aachen": 41, "Bonn": 24}
RUN = "fedavg-seed0-fold0"
METRICS = ["auc", "acc"]


def federation_tested(folder=None, floor=5, kind="plain"):
    """A federation whose sites have tested two models that no one trained."""
    federation = Federation(table_sites(SITES, part=None), evaluation={"folds": 2}, folder=folder)
    federation.rounds()
    replies = {}
    for method, shift in (("fedavg", 0.0), ("other", 0.5)):
        fields = Asked(threshold=0.5, method=method, kind=kind, trained_on="federation", floor=floor).fields()
        state = {"state": federation.initial(3) + shift}
        replies[method] = federation.engine.ask("test", dict.fromkeys(SITES, Message(fields, state)))
    return federation, replies


def trials(*names):
    return [KeptTrial(run=RUN, method=name, trained_on="federation", name=name) for name in names]


def ask(federation, function, asked, tensors=None):
    return federation.engine.members["Aachen"].handle(function, Message(asked.fields(), tensors or {}))


def compare(**changes):
    given = {"task": "classification", "classes": 2, "metrics": METRICS, "trials": trials("fedavg", "other"),
             "bootstrap": 100, "floor": 5, "trust": True}  # fmt: skip
    return Compare(**(given | changes))


def test_rows_are_kept_on_disk_or_in_memory_and_say_the_same(tmp_path):
    answers = []
    for folder in (tmp_path, None):
        federation, replies = federation_tested(folder)
        assert all(of["Aachen"].fields == {"cases": 21, "patients": 21} for of in replies.values())
        answers.append(ask(federation, "compare", compare()))
    assert len(list((tmp_path / "Aachen" / "predictions").glob(f"{RUN}-*.csv"))) == 2
    assert answers[0].to_bytes() == answers[1].to_bytes()


def test_what_is_said_is_what_the_rows_say(tmp_path):
    federation, replies = federation_tested(tmp_path)
    kept = federation.engine.members["Aachen"].kept
    rows = pd.concat([kept.get(Trial(RUN, name, "federation")) for name in ("fedavg", "other")], ignore_index=True)
    assert list(rows.columns) == [
        "method", "run", "seed", "fold", "site", "subject", "case", "label", "score", "threshold", "trained_on",
    ]  # fmt: skip
    task = build_task("classification", 2)
    for name, of in replies.items():
        mine = rows[rows["method"] == name]
        assert of["Aachen"].tensors["values"].tolist() == list(task.values(mine, task.default_metrics).values())
    answer = ask(federation, "compare", compare())
    assert answer.fields["methods"] == ["fedavg", "other"]
    found = site_evidence(rows, "classification", 2, METRICS, bootstrap=100)
    for place, metric in enumerate(METRICS):
        for name in ("values", "differences", "variances", "patients"):
            np.testing.assert_array_equal(answer.tensors[name][place], getattr(found[metric], name))


def test_a_repeated_trial_replaces_its_rows(tmp_path):
    kept = KeptRows("A", tmp_path)
    frame = pd.DataFrame({"subject": ["01", "NA"], "score": [0.1, np.nan], "trained_on": ["x", "x"]})
    for factor in (1, 2):
        kept.put(Trial("run", "a/b", "x"), frame.assign(score=frame["score"] * factor))
    found = kept.get(Trial("run", "a/b", "x"))
    assert found["subject"].tolist() == ["01", "NA"]
    assert found["score"].tolist()[0] == 0.2
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(SiteError, match="P401 Site A has not kept the predictions of a/c in run"):
        kept.get(Trial("run", "a/c", "x"))


def test_few_patients_are_only_counted(tmp_path):
    federation, replies = federation_tested(tmp_path, floor=22)
    assert replies["fedavg"]["Aachen"].fields == {"cases": 21, "patients": 21, "withheld": True}
    assert not replies["fedavg"]["Aachen"].tensors
    for function, asked in (("compare", compare(floor=22)), ("spread", spread_question(floor=22))):
        answer = ask(federation, function, asked, spread_tensors(federation, replies) if function == "spread" else None)
        assert (answer.fields, answer.tensors) == ({"patients": 21}, {})
    federation.engine.members["Aachen"].floor = 30  # the site's own
    assert ask(federation, "compare", compare(floor=1)).fields == {"patients": 21}


def spread_question(**changes):
    given = compare().model_dump() | {"trials": trials("fedavg", "other")} | changes
    return Spread(**{name: given[name] for name in Spread.model_fields})


def spread_tensors(federation, replies, factor=1.0):
    task, found = build_task("classification", 2), {"shares": torch.ones(2, 2, dtype=torch.float64)}
    member = federation.engine.members["Aachen"]
    for number, name in enumerate(("fedavg", "other")):
        totals = task.totals(member.kept.get(Trial(RUN, name, "federation")), METRICS)
        flat = np.concatenate([values.ravel().astype(np.float64) for values in totals.values()])
        found[f"totals{number}"] = torch.from_numpy(flat * factor)
    return found


def test_what_could_give_back_patients_is_refused(tmp_path):
    federation, replies = federation_tested(tmp_path)
    ask(federation, "compare", compare())
    with pytest.raises(SiteError, match="P401 Site Aachen was asked for 101 draws of a bootstrap, after 100 before"):
        ask(federation, "compare", compare(bootstrap=101))
    with pytest.raises(ValueError, match="a bootstrap at a site has 100 draws or more, or none"):
        compare(bootstrap=3)
    message = Message({**compare().fields(), "bootstrap": 3})
    with pytest.raises(SiteError, match=r"P401 A message 'compare' to site Aachen.*bootstrap: got 3"):
        federation.engine.members["Aachen"].handle("compare", message)
    ask(federation, "spread", spread_question(), spread_tensors(federation, replies))
    with pytest.raises(SiteError, match="P401 Site Aachen was asked to 'spread' with other totals than before"):
        ask(federation, "spread", spread_question(), spread_tensors(federation, replies, factor=2.0))
    wrong = spread_tensors(federation, replies) | {"totals0": torch.zeros(3, dtype=torch.float64)}
    with pytest.raises(
        SiteError, match="P401 Site Aachen was asked to 'spread' with totals that are none of this task"
    ):
        ask(federation, "spread", spread_question(), wrong)
    with pytest.raises(SiteError, match="P401 Site Aachen has not kept the predictions of third"):
        ask(federation, "compare", compare(trials=trials("third")))


def test_how_far_patients_lie_apart_is_what_a_bootstrap_finds():
    """Two sites' parts of the variance against resampling the patients of both; a patient has two cases."""
    rng = np.random.default_rng(4)
    count, names, task = 400, ["acc", "brier", "auc"], build_task("classification", 2)
    patient = np.arange(count) // 2
    label = rng.integers(0, 2, count)
    site = np.where(patient < 120, "A", "B")
    frames = {}
    for method, noise in (("one", 1.0), ("two", 1.5)):
        latent = label + rng.normal(size=count // 2)[patient] + noise * rng.normal(size=count)
        frames[method] = pd.DataFrame({
            "method": method, "run": "plain", "seed": 0, "fold": 0, "site": site, "trained_on": "federation",
            "subject": [f"p{n:03}" for n in patient], "case": [f"c{n:03}" for n in range(count)], "label": label,
            "score": 1 / (1 + np.exp(0.5 - latent)), "threshold": 0.5,
        })  # fmt: skip
    asked = Spread(task="classification", classes=2, metrics=names, trials=trials("one", "two"), floor=5)
    tensors = {"shares": torch.ones(2, 3, dtype=torch.float64)}
    for number, frame in enumerate(frames.values()):
        totals = task.totals(frame, names)
        tensors[f"totals{number}"] = torch.from_numpy(
            np.concatenate([t.ravel().astype(float) for t in totals.values()])
        )
    covariance = np.zeros((3, 2, 2))
    for name in ("A", "B"):
        kept = KeptRows(name, None)
        for method, frame in frames.items():
            kept.put(Trial(RUN, method, "federation"), frame[frame["site"] == name])
        covariance += spread(kept, asked, tensors, 5, {})[1]["covariance"].numpy()
    people = pd.DataFrame({"site": np.where(np.arange(count // 2) < 120, "A", "B")})
    weights = next(patient_weights(people, 4000, 1))[patient]
    draws = np.stack([task.measure(frame, names)(np.arange(count), weights) for frame in frames.values()])
    for place in range(3):
        found = np.cov(draws[:, place])
        np.testing.assert_allclose(covariance[place], found, atol=0.06 * found.max())
