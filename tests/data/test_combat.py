"""ComBat from summaries against ComBat on pooled data: an implementation of the papers' formulas, and neuroCombat."""

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from polyclinic.data.combat import Estimate, Moments, SiteEffect, estimate, small_groups, summarise
from polyclinic.errors import DataError

NAMES = ["sex", "age"]


def example() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values ``[21, 4]`` of three sites with differences in mean and spread, covariates (male, age), and sites."""
    case, feature = np.arange(21), np.arange(4)
    site = np.repeat(["A", "B", "C"], [6, 8, 7])
    number = np.repeat([0, 1, 2], [6, 8, 7])[:, None]
    male, age = (case**2 % 3 % 2).astype(float), 20.0 + case * 7 % 31
    shift = np.array([0, 1.5, -1])[number] * (1 + 0.2 * np.cos(feature))
    noise = np.array([1, 2, 0.5])[number] * np.sin(1.7 * case[:, None] * (feature + 1) + feature)
    effect = 0.05 * age[:, None] * (feature - 1) + 0.5 * male[:, None] * feature
    return np.round(10 + feature + effect + shift + noise, 3), np.stack([male, age], axis=1), site


#: Cases 0, 5, 6, 13, 14, 20 of the example as neuroCombat 0.2.12 harmonises it, its iteration carried on to the end:
#: (reference batch, empirical Bayes) -> values.
NEUROCOMBAT = {
    (None, True): [
        [9.184776049, 12.253354830, 14.366627119, 16.121136963],
        [9.933792941, 11.057847734, 15.291391696, 16.933171001],
        [7.845183412, 11.908944121, 14.871043662, 15.559007500],
        [7.808760114, 13.026635509, 14.378632252, 18.583627270],
        [8.255041294, 11.021084108, 13.787430171, 16.692153139],
        [9.007980728, 11.734465123, 15.107003667, 19.253876889],
    ],
    (None, False): [
        [9.100572022, 12.014289059, 14.519307000, 16.301942493],
        [9.767002974, 11.129762593, 15.369701166, 16.957346555],
        [7.924558805, 11.992975006, 14.901621735, 15.456827385],
        [7.881681277, 13.132053006, 14.502410281, 18.480384941],
        [8.076618685, 10.893616162, 13.796831021, 16.932816534],
        [9.057482265, 11.687220479, 15.004625246, 19.228438971],
    ],
    ("B", True): [
        [10.500060197, 14.069763066, 15.908790619, 18.282174246],
        [11.633590105, 12.327376182, 16.740107449, 18.581679924],
        [8.850000000, 13.777000000, 16.777000000, 16.940000000],
        [9.133000000, 15.039000000, 15.370000000, 20.024000000],
        [9.357515594, 12.251022334, 14.529790376, 18.216807648],
        [10.531385629, 13.161011963, 16.335793060, 21.582920310],
    ],
}


def federated(values, covariates, site, *, reference=None, empirical_bayes=True, names=NAMES, left_out=(), least=1):
    """Harmonised values, each site's from its own values and what the others' summaries gave."""
    y, x = torch.from_numpy(values), torch.from_numpy(covariates)
    members = {name: torch.from_numpy(np.flatnonzero(site == name)) for name in dict.fromkeys(site.tolist())}
    shared = {
        n: Moments.from_tensors(summarise(y[i], x[i], least).to_tensors())
        for n, i in members.items()
        if n not in left_out
    }
    common, _ = estimate(shared, names, reference)
    found = np.empty_like(values)
    for name, i in members.items():
        effect = SiteEffect.none(y.shape[1])
        if name != reference:
            effect = SiteEffect.fit(y[i], x[i], common, empirical_bayes=empirical_bayes)
        found[i.numpy()] = effect.remove(y[i], x[i], common).numpy()
    return found


def pooled(values, covariates, site, *, reference=None, empirical_bayes=True):
    """ComBat with all cases in one place, feature by feature, after Johnson et al. and Fortin et al.

    A missing value is left out of the sums of its feature.
    """
    sites = list(dict.fromkeys(site.tolist()))
    ones = np.stack([site == name for name in sites], axis=1).astype(float)
    z, back = np.full_like(values, np.nan), []
    for feature in range(values.shape[1]):
        y = values[:, feature]
        there = ~np.isnan(y)
        design = np.concatenate([ones, covariates], axis=1)
        fitted, *_ = np.linalg.lstsq(design[there], y[there], rcond=None)
        residual = (y - design @ fitted)[there]
        share = ones[there].sum(axis=0)
        if reference is not None:
            residual, share = residual[site[there] == reference], (np.array(sites) == reference).astype(float)
        alpha = share @ fitted[: len(sites)] / share.sum()
        expected = alpha + covariates @ fitted[len(sites) :]
        sigma = np.sqrt(np.mean(residual**2))
        z[:, feature] = (y - expected) / sigma
        back.append((expected, sigma))
    found = values.copy()
    for name in sites:
        mine = site == name
        own = z[mine]
        count = (~np.isnan(own)).sum(axis=0)
        g, d = np.nanmean(own, axis=0), np.nanvar(own, axis=0, ddof=1)
        gamma, delta = g.copy(), d.copy()
        if name == reference:
            gamma, delta = np.zeros_like(g), np.ones_like(d)
        elif empirical_bayes:
            m, t2, v, s2 = g.mean(), g.var(ddof=1), d.mean(), d.var(ddof=1)
            lam, theta = (v**2 + 2 * s2) / s2, (v**3 + v * s2) / s2
            for _ in range(500):
                gamma = (count * t2 * g + delta * m) / (count * t2 + delta)
                delta = (theta + 0.5 * np.nansum((own - gamma) ** 2, axis=0)) / (count / 2 + lam - 1)
        for feature, (expected, sigma) in enumerate(back):
            found[mine, feature] = sigma / np.sqrt(delta[feature]) * (own[:, feature] - gamma[feature]) + expected[mine]
    return found


@pytest.mark.parametrize(("reference", "empirical_bayes"), list(NEUROCOMBAT))
def test_equals_neurocombat(reference, empirical_bayes):
    found = federated(*example(), reference=reference, empirical_bayes=empirical_bayes)
    expected = NEUROCOMBAT[reference, empirical_bayes]
    np.testing.assert_allclose(found[[0, 5, 6, 13, 14, 20]], expected, rtol=0, atol=2e-9)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), sites=st.integers(2, 6), features=st.integers(3, 8), covariates=st.integers(0, 3),
    missing=st.sampled_from([0.0, 0.15]), empirical_bayes=st.booleans(), with_reference=st.booleans(),
)  # fmt: skip
def test_equals_pooled_combat(seed, sites, features, covariates, missing, empirical_bayes, with_reference):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(14, 40, size=sites)
    number = np.repeat(np.arange(sites), sizes)
    site = np.array([f"site {i}" for i in number])
    x = rng.normal(50, 10, size=(len(site), covariates))
    scale = rng.uniform(0.3, 3, size=(sites, features))[number]
    y = 1000 + rng.normal(0, 2, size=(sites, features))[number] + x @ rng.normal(size=(covariates, features))
    y += scale * rng.normal(size=y.shape)
    y[rng.random(y.shape) < missing] = np.nan
    reference = "site 1" if with_reference else None
    found = federated(y, x, site, reference=reference, empirical_bayes=empirical_bayes, names=["x"] * covariates)
    expected = pooled(y, x, site, reference=reference, empirical_bayes=empirical_bayes)
    assert (np.isnan(found) == np.isnan(y)).all()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("table", ["grey_matter_volumes", "cortical_thickness"])
def test_equals_pooled_combat_at_sixteen_real_sites(table, data_folder):
    cases = pd.read_csv(data_folder / "abide-regional" / f"{table}.csv")
    values, site = cases.iloc[:, 6:].to_numpy(dtype=np.float64), cases["site"].to_numpy(dtype=object)
    covariates = np.stack([cases["sex"] == "M", cases["age"]], axis=1).astype(np.float64)
    found, expected = (combat(values, covariates, site) for combat in (federated, pooled))
    assert np.abs((found - expected) / values.std(axis=0)).max() < 1e-9


def test_moments_by_hand():
    values = torch.tensor([[1.0, 5.0], [2.0, float("nan")], [6.0, 7.0]])
    moments = summarise(values, torch.tensor([[10.0], [20.0], [60.0]], dtype=torch.float64), least=2)
    assert moments.features.count.tolist() == [3, 2]
    assert moments.features.mean.tolist() == [3, 6]
    assert moments.features.m2.tolist() == [14, 2]
    assert moments.covariate_mean.tolist() == [[30], [35]]
    assert moments.covariate_m2.flatten().tolist() == pytest.approx([1400, 1250])
    assert moments.cross.flatten().tolist() == pytest.approx([140, 50])  # 2·20 + 1·10 + 3·30; 1·25 + 1·25


def test_two_sites_that_differ_in_mean_only_become_alike():
    """Without covariates and empirical Bayes, both sites get the mean of all and the pooled spread."""
    values = np.array([[0.0], [1], [2], [3], [4], [10], [11], [12], [13], [14]])
    site = np.repeat(["A", "B"], 5)
    found = federated(values, np.empty((10, 0)), site, empirical_bayes=False, names=[])
    # Pooled variance 2, each site's own (n - 1) is 2.5: the residuals shrink by sqrt(2 / 2.5).
    expected = 7 + np.tile(np.arange(-2, 3), 2)[:, None] * np.sqrt(2)
    np.testing.assert_allclose(found, 7 + (expected - 7) / np.sqrt(2.5), atol=1e-12)


def test_the_effect_of_a_covariate_stays_though_the_sites_differ_in_it():
    rng = np.random.default_rng(1)
    site = np.repeat(["young", "old"], 200)
    age = np.concatenate([rng.normal(30, 5, 200), rng.normal(70, 5, 200)])[:, None]
    values = 100 - 0.5 * age + np.where(site == "old", 8.0, 0.0)[:, None] + rng.normal(size=(400, 5))
    kept = federated(values, age, site, names=["age"])
    lost = federated(values, np.empty((400, 0)), site, names=[])
    slope = [np.polyfit(age[:, 0], found[:, 0], 1)[0] for found in (kept, lost)]
    assert slope[0] == pytest.approx(-0.5, abs=0.02)
    assert abs(slope[1]) < 0.1


def test_a_site_that_took_no_part_is_fitted_to_the_others():
    values, covariates, site = example()
    found = federated(values, covariates, site, left_out=["C"])
    others = site != "C"
    np.testing.assert_allclose(found[others], federated(values[others], covariates[others], site[others]), atol=1e-12)
    assert (
        abs(found[site == "C"].mean() - found[others].mean())
        < 0.3
        < abs(values[site == "C"].mean() - values[others].mean())
    )
    changed = np.where(others[:, None], values, values + 100)
    np.testing.assert_allclose(federated(changed, covariates, site, left_out=["C"])[others], found[others], atol=1e-12)


def test_a_value_is_harmonised_the_same_with_and_without_its_neighbours():
    values, covariates, site = example()
    y, x = torch.from_numpy(values), torch.from_numpy(covariates)
    common, _ = estimate({n: summarise(y[site == n], x[site == n]) for n in "ABC"}, NAMES)
    effect = SiteEffect.fit(y[:6], x[:6], common)
    together = effect.remove(y[:6], x[:6], common)
    assert torch.equal(effect.remove(y[2:3], x[2:3], common), together[2:3])
    back = Estimate.from_tensors(common.to_tensors())
    assert torch.equal(effect.remove(y[:6], x[:6], back), together)


# What can't be harmonised -----------------------------------------------------------------------------------------


def test_constant_features_stay_as_they_are():
    values, covariates, site = example()
    values[:, 1] = 0.1
    values[:, 2] = 3 * covariates[:, 1] - 7  # the covariate itself
    y, x = torch.from_numpy(values), torch.from_numpy(covariates)
    _, unusable = estimate({n: summarise(y[site == n], x[site == n]) for n in "ABC"}, NAMES)
    assert unusable.tolist() == [False, True, True, False]
    found = federated(values, covariates, site)
    assert np.array_equal(found[:, 1:3], values[:, 1:3])
    np.testing.assert_allclose(found[:, [0, 3]], pooled(values[:, [0, 3]], covariates, site), atol=1e-9)


def test_a_feature_that_is_constant_at_one_site_is_only_shifted_there():
    values, _, site = example()
    values[site == "A", 0] = 7.0
    none = np.empty((len(site), 0))
    found = federated(values, none, site, empirical_bayes=False, names=[])
    assert np.ptp(found[site == "A", 0]) < 1e-12
    assert np.isfinite(found).all()


def test_a_site_without_a_feature_gets_the_mean_of_its_priors():
    values, covariates, site = example()
    values[site == "A", 0] = np.nan
    y, x = torch.from_numpy(values), torch.from_numpy(covariates)
    common, _ = estimate({n: summarise(y[site == n], x[site == n]) for n in "ABC"}, NAMES)
    raw = SiteEffect.fit(y[:6], x[:6], common, empirical_bayes=False)
    effect = SiteEffect.fit(y[:6], x[:6], common)
    assert effect.shift[0].item() == pytest.approx(raw.shift[1:].mean().item())
    assert effect.spread[0].item() == pytest.approx(raw.spread[1:].mean().item())
    assert (raw.shift[0].item(), raw.spread[0].item()) == (0.0, 1.0)


@pytest.mark.parametrize("cases", [0, 1, 2])
def test_a_tiny_site_shares_nothing_and_is_still_harmonised(cases):
    values, covariates, site = example()
    y, x = torch.from_numpy(values), torch.from_numpy(covariates)
    tiny = summarise(y[:cases], x[:cases])
    assert all(not tensor.any() for tensor in tiny.to_tensors().values())
    shared = {n: summarise(y[site == n], x[site == n]) for n in "BC"}
    common, _ = estimate(shared, NAMES)
    with_tiny, _ = estimate({"A": tiny, **shared}, NAMES)
    for name, tensor in common.to_tensors().items():
        torch.testing.assert_close(with_tiny.to_tensors()[name], tensor, rtol=1e-14, atol=1e-14)
    effect = SiteEffect.fit(y[:cases], x[:cases], common)
    assert torch.isfinite(effect.remove(y[:6], x[:6], common)).all()
    assert cases > 1 or effect.spread.tolist() == [1.0] * 4
    assert cases > 0 or effect.shift.tolist() == [0.0] * 4


def test_one_feature_has_nothing_to_borrow_from():
    values, covariates, site = example()
    one = federated(values[:, :1], covariates, site)
    np.testing.assert_array_equal(one, federated(values[:, :1], covariates, site, empirical_bayes=False))


def test_features_that_agree_in_shift_and_spread():
    values = np.array([[0.0], [1], [2], [3], [4], [10], [12], [14], [16], [18]]).repeat(3, axis=1)
    site, none = np.repeat(["A", "B"], 5), np.empty((10, 0))
    found = federated(values, none, site, names=[])
    np.testing.assert_allclose(found, federated(values, none, site, empirical_bayes=False, names=[]), atol=1e-9)


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (lambda sex, age, site: (site == "A").astype(float), "'field' does not vary within any site"),
        (lambda sex, age, site: np.full(len(site), 3.0), "'field' is the same for all cases"),
        (lambda sex, age, site: 2 * age - sex + (site == "B"), "sex, age, field determine each other"),
    ],
)
def test_a_covariate_that_can_not_be_told_apart_is_named(column, sentence):
    values, covariates, site = example()
    more = np.column_stack([covariates, column(covariates[:, 0], covariates[:, 1], site)])
    with pytest.raises(DataError, match=f"P207 .*{sentence}.* Take .* out of `covariates`"):
        federated(values, more, site, names=[*NAMES, "field"])


def test_a_reference_that_sent_nothing():
    with pytest.raises(DataError, match="P207 The reference site D sent no summary"):
        federated(*example(), reference="D")
    values, covariates, site = example()
    with pytest.raises(DataError, match="P207 The reference site A sent no summary: it needs 5 training cases"):
        federated(values[3:], covariates[3:], site[3:], reference="A", least=5)


def test_no_site_is_large_enough():
    values, covariates, site = example()
    with pytest.raises(DataError, match="P207 No site has 5 training cases"):
        federated(values[::4], covariates[::4], site[::4], least=5)


# Small groups -----------------------------------------------------------------------------------------------------


def test_the_values_of_a_single_woman_do_not_follow_from_the_sums():
    rng = np.random.default_rng(0)
    y, sex = torch.from_numpy(rng.normal(size=(12, 2))), torch.zeros(12, 1, dtype=torch.float64)
    sex[4] = 1
    open_sums = summarise(y, sex)
    recovered = open_sums.features.mean + open_sums.cross[:, 0] / (1 - 1 / 12) * (11 / 12)
    torch.testing.assert_close(recovered, y[4])
    sums = summarise(y, sex, groups=[[0]])
    men = torch.cat([y[:4], y[5:]])
    torch.testing.assert_close(sums.features.mean, men.mean(0))
    assert sums.features.count.tolist() == [11, 11]
    assert not sums.cross.abs().max() > 1e-12
    assert small_groups(sex, [[0]]) == 1


@pytest.mark.parametrize(
    ("columns", "groups", "kept"),
    [
        ([[0] * 7 + [1] * 5], [[0]], 12),
        ([[0] * 8 + [1] * 4], [[0]], 8),
        ([[0] * 4 + [1] * 8], [[0]], 8),
        ([[1] * 4 + [2] * 8], [[0]], 8),  # groups by a number with two values
        ([[1] * 4 + [2] * 4 + [3] * 4], [[0]], 12),  # a number
        ([[0] * 7 + [1] * 5 + [0] * 0, [0] * 2 + [1] * 5 + [0] * 5], [[0, 1]], 10),  # the first group has two
        ([[0] * 5 + [1] * 7, [1] * 4 + [0] * 8], [[0], [1]], 7),  # without the four, the first five are one
        ([[0] * 4 + [1] * 4 + [0] * 4], [[0]], 8),
        ([[0] * 4 + [1] * 4], [[0]], 0),
    ],
)
def test_cases_of_small_groups_are_left_out(columns, groups, kept):
    x = torch.tensor(columns, dtype=torch.float64).T
    y = torch.arange(len(x), dtype=torch.float64)[:, None]
    assert summarise(y, x, groups=groups).features.count.tolist() == [kept]
    assert small_groups(x, groups) == (len(x) - kept if kept else 0)


def test_groups_are_counted_feature_by_feature():
    x = torch.tensor([[0.0] * 6 + [1] * 6], dtype=torch.float64).T
    y = torch.ones(12, 2, dtype=torch.float64)
    y[:3, 1] = torch.nan
    assert summarise(y, x, groups=[[0]]).features.count.tolist() == [12, 6]
