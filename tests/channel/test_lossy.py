"""Steps of the channel that send less: what the server sees, what stays at the site, and how many bytes go."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from channel_line import Line, size
from helpers import Federation, recorded, table_sites
from polyclinic.engine.checked import CheckedEngine
from polyclinic.rounds import run_rounds
from polyclinic.shapes import Misfit

SHAPES = [(7, 30), (7,), (2, 7), (2,)]
T = 233
#: All that are lossy, with options that make a difference to so few weights.
LOSSY = [
    ("float16", {}), ("bfloat16", {}), ("int8", {}), ("qsgd", {}), ("qsgd", {"bits": 2}),
    ("qsgd", {"bits": 8, "block": 128}), ("top_k", {"share": 0.05}), ("top_k", {"share": 0.4, "values": "int8"}),
    ("random_k", {"share": 0.05}), ("random_k", {"share": 0.4, "values": "float16", "places": "common"}),
    ("random_k", {"share": 0.2, "feedback": False}), ("power_sgd", {"rank": 1}),
    ("power_sgd", {"rank": 2, "values": "bfloat16"}),
]  # fmt: skip
#: Those with feedback.
FED_BACK = [entry for entry in LOSSY if entry[1].get("feedback", entry[0] != "qsgd")]


def named(entry):
    return f"{entry[0]}{entry[1] or ''}"


def line(*entries, shapes=SHAPES, **options):
    return Line(*entries, shapes=shapes, **options)


def changes(number, scale=1.0, seed=5):
    """Changes away from zero, some large."""
    source = torch.Generator().manual_seed(seed)
    return [scale * (torch.randn(T, generator=source) ** 3 + 0.3) for _ in range(number)]


# What the server sees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", LOSSY, ids=named)
def test_a_channel_declares_what_it_sends(entry):
    one = line(entry, statistics=4)
    packed = one.send(changes(1)[0], torch.arange(4.0))
    assert packed.keys() == one.declared.keys()
    for name, tensor in packed.items():
        one.declared[name].check(tensor, {"T": T, "S": 4})
    assert {name.partition("/")[2] for name in packed if "/" in name} <= one.parts[entry[0]].reveals.keys()
    assert torch.equal(one.see(packed)["statistics"], torch.arange(4.0)), "statistics are sent as they are"


@pytest.mark.parametrize("entry", LOSSY, ids=named)
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e5, 1e30])
def test_units_make_no_difference(entry, scale):
    """A change in other units (a power of two, so that nothing is rounded) is seen in these units."""
    unit = 2.0 ** round(math.log2(scale))
    (change,) = changes(1)
    found, expected = line(entry).through(change * unit), line(entry).through(change) * unit
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("entry", LOSSY, ids=named)
def test_nothing_but_zeros_stays_zeros(entry):
    one = line(entry)
    for _ in range(3):
        assert not one.through(torch.zeros(T)).any()


@pytest.mark.parametrize("entry", LOSSY, ids=named)
def test_what_a_part_is_given_is_not_written_to(entry):
    one = line(entry)
    for change in changes(3):
        before = change.clone()
        one.send(change)
        assert torch.equal(change, before)


@pytest.mark.parametrize("entry", [
    ("top_k", {"share": 1}), ("random_k", {"share": 1}), ("power_sgd", {"rank": 7}), ("zstd", {}),
], ids=named)  # fmt: skip
def test_settings_without_loss_are_identities(entry):
    one = line(entry, statistics=2)
    for change in changes(3):
        statistics = torch.tensor([1e8, 1e-3])
        seen = one.see(one.send(change, statistics))
        assert torch.equal(seen["change"], change)
        assert torch.equal(seen["statistics"], statistics)


@pytest.mark.parametrize("share", [1e-9, 0.004, 0.1, 0.1299, 0.131, 0.5, 0.99, 1])
@pytest.mark.parametrize("name", ["top_k", "random_k"])
def test_as_many_weights_are_sent_as_asked_for(name, share):
    one = line((name, {"share": share}))
    assert int((one.through(changes(1)[0]) != 0).sum()) == max(1, math.ceil(share * T - 1e-9))


# Sums over rounds -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", FED_BACK, ids=named)
def test_what_was_seen_and_what_is_left_are_all_changes(entry):
    one, total, seen = line(entry), torch.zeros(T, dtype=torch.float64), torch.zeros(T, dtype=torch.float64)
    for change in changes(12):
        total += change
        seen += one.through(change)
        left = one.kept(entry[0])["left"].double()
        torch.testing.assert_close(seen + left, total, rtol=1e-5, atol=1e-4)
    assert left.abs().max() > 0, "or nothing was tried"


@pytest.mark.parametrize("entry", [entry for entry in LOSSY if entry not in FED_BACK], ids=named)
def test_without_feedback_nothing_is_kept(entry):
    one = line(entry)
    one.send(changes(1)[0])
    assert not one.kept(entry[0])


@pytest.mark.parametrize("entry", FED_BACK, ids=named)
def test_feedback_can_be_left_out(entry):
    with_it, without = line(entry), line((entry[0], {**entry[1], "feedback": False}))
    first, second = changes(2)
    if entry[0] != "random_k":  # which then counts what it sends as often as its run is long
        assert torch.equal(with_it.through(first), without.through(first))
        assert not torch.equal(with_it.through(second), without.through(second))
    assert not without.kept(entry[0]).get("left", torch.zeros(0)).any()


@pytest.mark.parametrize(("entry", "bound"), [
    # Variance of a number over the draws. QSGD: min(d / s², √d / s) ‖v‖² in a block; random-k: (length − 1) v².
    (("qsgd", {"bits": 4, "block": 128}), None), (("qsgd", {"bits": 2}), None), (("qsgd", {"bits": 8}), None),
    (("random_k", {"share": 0.25, "feedback": False}), 3.0), (("random_k", {"share": 0.3, "feedback": False}), 3.0),
], ids=str)  # fmt: skip
def test_what_is_drawn_is_right_in_the_mean(entry, bound):
    """Each weight's mean over 4000 rounds lies as near as its own variance allows: 5 of 233 at most beyond 2.5 errors
    where 3 are expected, and none beyond 5."""
    one, (change,), rounds = line(entry), changes(1), 4000
    seen = torch.stack([one.through(change) for _ in range(rounds)]).double()
    error = seen.std(0) / math.sqrt(rounds)
    away = (seen.mean(0) - change.double()).abs() / error.clamp_min(1e-9 * change.abs().max())
    assert int((away > 2.5).sum()) <= 9
    assert away.max() < 5
    variance = (seen - change.double()).square().mean(0).sum()
    length = change.double().square().sum()
    if bound is None:
        levels, block = 2 ** (entry[1]["bits"] - 1) - 1, entry[1].get("block", 512)
        bound = min(block / levels**2, math.sqrt(block) / levels)
    assert 0.01 * bound * length < variance <= 1.05 * bound * length


# By hand --------------------------------------------------------------------------------------------------------------


def test_eight_bits_by_hand():
    """Largest 254, so a step is 2: 3 → 1.5 → 2 → 4 (half to even), −1 → −0.5 → 0, 5 → 2.5 → 2 → 4."""
    one = line(("int8", {}), shapes=[(5,)])
    assert one.through(torch.tensor([254.0, 3.0, -1.0, 5.0, -254.0])).tolist() == [254.0, 4.0, 0.0, 4.0, -254.0]
    assert one.kept("int8")["left"].tolist() == [0.0, -1.0, -1.0, 1.0, 0.0]


def test_blocks_have_scales_of_their_own():
    change = torch.ones(1024 + 3)
    change[1024:] = torch.tensor([1e-6, 2e-6, -127e-6])
    seen = line(("int8", {}), shapes=[(1027,)]).through(change)
    torch.testing.assert_close(seen, change, rtol=1e-6, atol=0)


def test_half_precision_by_hand():
    """Largest 4096 = 2^12: times 4 it is 2^14, where 16 bits have steps of 16, so of 4 here; 2051 has steps of 2."""
    one = line(("float16", {}), shapes=[(4,)])
    assert one.through(torch.tensor([4096.0, 4097.9, 2051.0, -1e-3])).tolist() == [
        4096.0, 4096.0, 2052.0, pytest.approx(-1e-3, rel=2**-11),
    ]  # fmt: skip


def test_half_precision_of_extreme_numbers():
    change = torch.tensor([3e38, -1e30, 5.0, 0.0])
    assert line(("float16", {}), shapes=[(4,)]).through(change).isfinite().all()
    small = torch.tensor([1e-38])
    torch.testing.assert_close(line(("float16", {}), shapes=[(1,)]).through(small), small, rtol=1e-3, atol=0)


def test_the_first_sixteen_bits_by_hand():
    """8 binary digits: 257 = 256 + 1 lies half way between 256 and 258, and goes to the even one."""
    seen = line(("bfloat16", {}), shapes=[(3,)]).through(torch.tensor([257.0, 259.0, 1e38]))
    assert seen[:2].tolist() == [256.0, 260.0]
    assert seen[2].item() == pytest.approx(1e38, rel=2**-8)


def test_a_number_too_large_for_sixteen_bits_is_refused_and_not_infinite():
    one = line(("bfloat16", {"feedback": False}), shapes=[(1,)])
    with pytest.raises(Misfit, match="not finite"):
        one.declared["change"].check(one.send(torch.tensor([3.4e38]))["change"], {"T": 1})


def test_two_bits_by_hand():
    """One level: a block [3, 0, −4] has length 5, so 3 is 5 with probability 0.6 and else 0, −4 is −5 with 0.8."""
    one = line(("qsgd", {"bits": 2}), shapes=[(3,)])
    seen = torch.stack([one.through(torch.tensor([3.0, 0.0, -4.0])) for _ in range(3000)])
    assert {tuple(row) for row in seen.tolist()} == {(a, 0.0, b) for a in (0.0, 5.0) for b in (-0.0, -5.0)}
    share = (seen != 0).double().mean(0)
    assert share[0] == pytest.approx(0.6, abs=0.04)
    assert share[2] == pytest.approx(0.8, abs=0.04)


def test_the_largest_are_sent_and_of_equal_ones_the_first():
    one = line(("top_k", {"share": 0.5}), shapes=[(6,)])
    assert one.through(torch.tensor([-1.0, 2.0, 1.0, -3.0, 1.0, 0.0])).tolist() == [-1.0, 2.0, 0.0, -3.0, 0.0, 0.0]
    assert one.kept("top_k")["left"].tolist() == [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]
    assert one.through(torch.zeros(6)).tolist() == [0.0, 0.0, 1.0, 0.0, 1.0, 0.0]


def test_one_weight_of_each_run_is_drawn():
    """Ten weights and four of them sent: runs of 2, 3, 2 and 3; without feedback each counts so often."""
    one, change = line(("random_k", {"share": 0.4, "feedback": False}), shapes=[(10,)]), torch.arange(1.0, 11.0)
    often = torch.zeros(10)
    for _ in range(600):
        seen = one.through(change)
        for start, length in ((0, 2), (2, 3), (5, 2), (7, 3)):
            (place,) = seen[start : start + length].nonzero()[:, 0].tolist()
            assert seen[start + place] == length * change[start + place]
        often += seen != 0
    expected = torch.tensor([300, 300, 200, 200, 200, 300, 300, 200, 200, 200])
    assert (often - expected).abs().max() < 65


def test_common_weights_are_the_same_at_all_sites_and_others_are_not():
    change = changes(1)[0]
    for places, same in (("common", True), ("own", False)):
        seen = [line(("random_k", {"places": places}), site=site).through(change) for site in ("Aachen", "Bonn")]
        assert torch.equal(*seen) is same
    again = [line(("random_k", {"places": "common"}), seed=seed).through(change) for seed in (1, 2)]
    assert not torch.equal(*again), "another seed of the study draws others"


def test_a_matrix_of_rank_one_is_sent_whole():
    matrix = torch.outer(torch.tensor([1.0, -2.0, 3.0]), torch.tensor([4.0, 5.0, -6.0, 0.5]))
    one = line(("power_sgd", {"rank": 1}), shapes=[(3, 2, 2), (2,)])
    packed = one.send(torch.cat([matrix.flatten(), torch.tensor([7.0, 8.0])]))
    assert packed["change"].shape == (3 + 4 + 2,)
    seen = one.see(packed)["change"]
    torch.testing.assert_close(seen[:12].view(3, 4), matrix, rtol=1e-5, atol=1e-5)
    assert seen[12:].tolist() == [7.0, 8.0]


def test_the_power_method_finds_the_largest_direction():
    """Of the same matrix in each round, without feedback: the best product of rank 1 (Eckart and Young)."""
    matrix = torch.randn(8, 20, generator=torch.Generator().manual_seed(2)) + 0.5
    one = line(("power_sgd", {"rank": 1, "feedback": False}), shapes=[(8, 20)])
    for _ in range(60):
        seen = one.through(matrix.flatten()).view(8, 20)
    left, sizes, right = torch.linalg.svd(matrix)
    torch.testing.assert_close(seen, sizes[0] * torch.outer(left[:, 0], right[0]), rtol=1e-3, atol=1e-3)


# Bytes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("entry", "expected"), [
    (("float16", {}), 2 * T + 1), (("bfloat16", {}), 2 * T), (("int8", {}), T + 4), (("qsgd", {}), (T + 1) // 2 + 4),
    (("qsgd", {"bits": 2}), 59 + 4), (("random_k", {"share": 0.1}), 24 * 4 + 8),
    (("top_k", {"share": 0.1}), 24 * 4 + 24),  # a byte for each place, since no gap has 255 weights
    (("top_k", {"share": 0.2}), 47 * 4 + 30),  # a bit for each of 233
    (("top_k", {"share": 0.1, "values": "int8"}), 24 + 4 + 24),
    (("power_sgd", {"rank": 1}), (7 + 30 + 7 + 2 + 7 + 2) * 4),
], ids=str)  # fmt: skip
def test_bytes_are_as_few_as_said(entry, expected):
    assert size(line(entry).send(changes(1)[0])) == expected


def test_packing_makes_alike_bytes_fewer_and_nothing_larger_than_its_head():
    zeros = torch.zeros(5000)
    assert size(line(("zstd", {}), shapes=[(5000,)]).send(zeros)) < 100
    drawn = torch.randint(2**31, (5000,), dtype=torch.int32, generator=torch.Generator().manual_seed(0))
    noise = drawn.view(torch.float32)
    one = line(("zstd", {}), shapes=[(5000,)])
    packed = one.send(noise)
    assert size(packed) <= 5000 * 4 + 2 * 11
    assert torch.equal(one.see(packed)["change"].view(torch.int32), noise.view(torch.int32)), "to the bit, also of NaN"


# Large vectors --------------------------------------------------------------------------------------------------------


@given(st.integers(0, 2**31), st.floats(0.0001, 0.6), st.sampled_from(["normal", "ties", "few", "rows"]))
@settings(max_examples=30, deadline=None)
def test_the_largest_of_many_are_those_that_sorting_finds(seed, share, kind):
    from polyclinic.channel.sparse import largest

    source = torch.Generator().manual_seed(seed)
    numbers = torch.randn(300_000, generator=source)
    if kind == "ties":
        numbers = numbers.mul(2).round()
    if kind == "few":
        numbers = numbers * (torch.rand(300_000, generator=source) < 1e-3)
    if kind == "rows":  # every fourth is large: what a sample in equal steps would see alone, or never
        numbers[::4] *= 1000
    count = math.ceil(share * len(numbers))
    order = numbers.abs().sort(descending=True, stable=True).indices[:count].sort().values
    assert torch.equal(largest(numbers, count), order)


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60, unique=True))
@settings(max_examples=100, deadline=None)
def test_places_are_read_as_they_were_written(places):
    from polyclinic.channel.sparse import _read_bits, _read_gaps, _write_bits, _write_gaps

    found = torch.tensor(sorted(places))
    assert torch.equal(_read_gaps(_write_gaps(found), len(found), 5001), found)
    assert torch.equal(_read_bits(_write_bits(found, 5001), len(found), 5001), found)


# Sites that send something else ---------------------------------------------------------------------------------------


def spoilt(packed, entry):
    """Updates that a site could send in place of its own, all of types that are known."""
    for name, tensor in packed.items():
        yield {**packed, name: tensor[:-1]}
        yield {**packed, name: torch.cat([tensor, tensor[-1:]])}
        yield {key: value for key, value in packed.items() if key != name}
        if tensor.is_floating_point():
            yield {**packed, name: tensor.clone().fill_(float("nan"))}
            yield {**packed, name: tensor.double()}
    if "top_k/places" in packed:
        places = packed["top_k/places"]
        yield {**packed, "top_k/places": torch.full_like(places, 254)}
        yield {**packed, "top_k/places": torch.full_like(places, 255)}
        yield {**packed, "top_k/places": torch.zeros_like(places[:0])}


@pytest.mark.parametrize("entry", [*LOSSY, ("zstd", {}), ("top_k", {"share": 0.3})], ids=named)
def test_a_site_that_sends_something_else_has_not_answered(entry):
    """The others go on where the quorum allows it, and it is named."""
    name, options = entry
    made = Federation(
        table_sites(), [{"fedavg": {"channel": [{name: options}]}}], model={"mlp": {"hidden": [5], "norm": "batch"}},
        training={"rounds": 1, "quorum": 3},
    )  # fmt: skip
    with recorded(made.engine) as said:
        made.rounds()
    honest = next(reply for function, site, _, reply in said if function == "train" and site == "Bonn")
    kinds = list(spoilt(honest.tensors, entry))
    assert len(kinds) >= 3
    original = made.engine.call
    for tensors in kinds:

        def call(function, requests, tensors=tensors):
            for site, reply in original(function, requests):
                yield site, (type(reply)(reply.fields, tensors) if (function, site) == ("train", "Bonn") else reply)

        made.engine.call = call
        try:
            plan = made.plan()
            progress, rows = run_rounds(plan, CheckedEngine(made.engine, plan.known))
        finally:
            made.engine.call = original
        assert [row["site"] for row in rows] == ["Aachen", "Celle", "Dresden"], tensors
        assert "Bonn" in " ".join(progress.failures)
        assert progress.model("federation").isfinite().all()
