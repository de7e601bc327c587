"""The same rows at two sites under other names are told, honest coincidences are not."""

import numpy as np
import pandas as pd
import pytest

from note_helpers import note, numbers


def copied(frame, rows, site="B", seed=0):
    """The frame with rows of A at another site, too: other names, another order."""
    again = frame[frame["site"] == "A"].sample(rows, random_state=seed).assign(site=site)
    again["pid"] = [f"Z9{row:02}" for row in range(rows)]
    return pd.concat([frame, again], ignore_index=True)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("features", [3, 60])
def test_rows_of_another_site(opened, noise, rows, features):
    found = opened(copied(noise(features=features), rows))
    assert numbers(found) == ["N237"]
    assert f"the same in all {features} features at more than one site (rows: A {rows}, B {rows})" in note(
        found, "N237"
    )
    assert len(note(found, "N237").cases) == 2 * rows
    assert note(found, "N237").cases[0].startswith("A: row ")


def test_numbers_in_other_formats(opened, noise):
    frame = copied(noise(), 40)
    frame["f0"] = frame["f0"].astype(str)
    again = frame.index >= 80
    frame.loc[again, "f0"] = [f"{float(text):.6f}" for text in frame.loc[again, "f0"]]
    frame["f1"] = frame["f1"].astype(str)
    frame.loc[again, "f1"] = [f"{float(text):.8e}" for text in frame.loc[again, "f1"]]
    assert "A 40, B 40" in note(opened(frame), "N237")


def test_missing_values_are_equal(opened, noise):
    frame = noise(features=10)
    frame.loc[::3, "f4"] = np.nan
    assert "A 40, B 40" in note(opened(copied(frame, 40)), "N237")


def test_copies_with_other_labels(opened, noise):
    frame = copied(noise(), 40)
    changed = frame.index[frame.index >= 80][:7]
    frame.loc[changed, "y"] = 1 - frame.loc[changed, "y"]
    found = opened(frame)
    assert numbers(found) == ["N237", "N229"]
    assert "7 rows that stand several times have different labels" in note(found, "N229")


def groups(rng, count):
    """Few-valued measures of people, as clinics keep them: many people have equal rows."""
    return pd.DataFrame(
        {
            "site": rng.choice(list("AB"), count),
            "pid": [f"P{row}" for row in range(count)],
            "y": rng.integers(0, 2, count),
            "f0": rng.integers(0, 2, count),
            "f1": rng.integers(40, 80, count),
            "f2": rng.integers(1, 5, count),
            "f3": rng.integers(0, 2, count),
        }
    )


@pytest.mark.parametrize("count", [60, 300, 2000])
def test_people_with_equal_rows(opened, count):
    assert "N237" not in numbers(opened(groups(np.random.default_rng(3), count)))


def test_questionnaires_of_the_healthy(opened):
    """Thirty questions that most people answer with 0, and people who answer one with 1 answer others so, too."""
    rng = np.random.default_rng(0)
    ill = rng.beta(0.3, 2, 600)
    answers = (rng.random((600, 30)) < ill[:, None]).astype(int)
    frame = pd.DataFrame(answers, columns=[f"f{place}" for place in range(30)])
    frame = frame.assign(site=rng.choice(list("AB"), 600), pid=[f"P{row}" for row in range(600)])
    assert "N237" not in numbers(opened(frame.assign(y=rng.integers(0, 2, 600))))


def test_groups_only(opened):
    frame = groups(np.random.default_rng(3), 300)
    assert "N237" not in numbers(opened(frame, features=None, categorical=["f0", "f2", "f3"]))


def test_copies_among_people_with_equal_rows(opened):
    """Nine measures with some 30 bits: a hundred rows at two sites are no coincidence."""
    rng = np.random.default_rng(3)
    frame = groups(rng, 400)
    for place, most in enumerate((150, 400, 100, 60, 3)):
        frame[f"f{place + 4}"] = rng.integers(0, most, 400)
    assert numbers(opened(frame)) == []
    frame["site"] = frame["site"].where(frame.index >= 100, "A")
    again = frame[:100].assign(site="B", pid=[f"R{row}" for row in range(100)])
    assert "A 100, B 100" in note(opened(pd.concat([frame, again])), "N237")


def test_one_site_has_no_other(opened, noise):
    frame = noise("A", cases=80)
    assert "N237" not in numbers(opened(pd.concat([frame, frame.assign(pid=[f"Z{row}" for row in range(80)])])))


def test_equal_rows_of_few_groups_within_a_site(opened, noise):
    """Four people in a hundred share sex, smoking and stage; rows with six measures that are equal are copies."""
    rng = np.random.default_rng(0)
    frame = noise(cases=60, features=0)
    for place, groups in enumerate(["MF", "yn", "abc"]):
        frame[f"f{place}"] = rng.choice(list(groups), len(frame))
    assert numbers(opened(frame, categorical=["f0", "f1", "f2"])) == []
    frame = noise(features=6)
    measures = [f"f{place}" for place in range(6)]
    frame.loc[[5, 6], measures] = frame.loc[[1, 2], measures].to_numpy()
    found = opened(frame)
    assert numbers(found) == ["N202"]
    assert "Site A: 2 rows repeat an earlier one" in note(found, "N202")


def test_groups_that_a_site_does_not_have_are_no_constant_features(opened, noise):
    frame = noise(features=3)
    frame["f8"] = [f"{'B' if row in (50, 51) else 'A'}{row % 3}" for row in range(80)]
    assert numbers(opened(frame, categorical=["f8"])) == []
    frame.loc[frame["site"] == "B", "f8"] = "A0"
    found = opened(frame, categorical=["f8"])
    assert note(found, "N204") == "Features that are constant within a site, though not over all: B (f8)."
