"""Whether made cases are copies: what a site finds, and what it means."""

import pytest
import torch
from scipy.stats import binom

from polyclinic.client.synthesis.memorisation import SIDE, Copied, least_each, reduced, told, told_of_pairs
from polyclinic.seeds import generator

SUSPICIOUS = 0.01


def numbers(*names, count, dims=6, spread=1.0):
    return spread * torch.randn(count, dims, generator=generator(*names), dtype=torch.float64)


def found(made, training, held):
    return Copied.of(told(made, training, held))


def test_numbers_by_hand():
    """Training cases 0 and 10 on a line, held out 1, 4, 7: made 0.1 is 0.1 from the one and 0.9 from the other."""
    training, held, made = (torch.tensor(one).double()[:, None] for one in ([0.0, 10.0], [1.0, 4.0, 7.0], [0.1, 8.0]))
    one = found(made, training, held)
    # Held out: 1 is 1 from training and 3 from another held-out one, 4 is 4 and 3, 7 is 3 and 3. The limit is 1/3.
    assert (one.nearer, one.held_nearer, one.held) == (1, 1, 3)
    assert one.made_least == pytest.approx(0.1 / 0.9)
    assert (one.held_median, one.held_least) == (pytest.approx(1.0), pytest.approx(1 / 3))
    assert one.expected == 0.25
    # With the smallest of 3 as the limit U ~ Beta(1, 3): P(1 of 2 or more below) = 1 − E (1 − U)² = 1 − 3/5.
    assert one.chance == pytest.approx(0.4)


def test_of_an_even_number_the_median_is_between_the_two_in_the_middle():
    """Made ones have 0.1 / 0.9 and 2 / 1, held-out ones 1 / 3 and 2 / 3."""
    training, held, made = (torch.tensor(one).double()[:, None] for one in ([0.0, 6.0], [1.0, 4.0], [0.1, 2.0]))
    one = found(made, training, held)
    assert (one.made_median, one.held_median) == (pytest.approx((0.1 / 0.9 + 2) / 2), pytest.approx(0.5))


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_found_and_others_are_not(seed):
    training, held = numbers("t", seed, count=80), numbers("h", seed, count=40)
    fresh = numbers("m", seed, count=100)
    assert found(fresh, training, held).chance >= SUSPICIOUS
    copies = training[torch.arange(100) % 80] + numbers("e", seed, count=100, spread=0.02)
    assert found(copies, training, held).chance < 1e-6
    assert found(torch.cat([copies[:30], fresh[:70]]), training, held).chance < SUSPICIOUS


@pytest.mark.parametrize("seed", range(5))
def test_what_is_merely_smooth_is_no_copy(seed):
    """All made cases near the middle: nearer to training cases than held-out ones are, and to held-out ones as well."""
    training, held = numbers("t", seed, count=80, dims=30), numbers("h", seed, count=80, dims=30)
    smooth = numbers("s", seed, count=100, dims=30, spread=0.3)
    nearest = [torch.cdist(one, training).amin(1).median() for one in (smooth, held)]
    assert nearest[0] < 0.8 * nearest[1]
    assert found(smooth, training, held).chance >= SUSPICIOUS


def test_false_alarms_are_as_rare_as_they_should_be():
    """No copies, 200 times: the share of chances below 5 % is at most a little more than that."""
    alarms = 0
    for seed in range(200):
        source = torch.Generator().manual_seed(seed)
        training, held, made = (torch.randn(size, 3, generator=source).double() for size in (30, 20, 40))
        alarms += found(made, training, held).chance < 0.05
    assert binom.sf(alarms - 1, 200, 0.05) > 0.001, alarms


def test_a_single_copy_shows_as_the_nearest():
    training, held, made = numbers("t", count=50), numbers("h", count=50), numbers("m", count=50)
    made[7] = training[3]
    one = found(made, training, held)
    assert one.made_least == 0
    assert one.held_least > 0


def test_equal_cases():
    """Held-out cases that stand in the training part, too: their limit is 0, and only other copies are below it."""
    training = numbers("t", count=20)
    one = found(torch.cat([training[:1], training[10:12]]), training, training[:10])
    assert (one.nearer, one.held_nearer, one.held) == (2, 10, 10)
    assert one.chance > SUSPICIOUS


def test_without_cases_to_compare_with_nothing_is_told():
    training = numbers("t", count=20)
    for held, learned in ((training[:1], training), (training[:0], training), (training, training[:0])):
        one = found(training, learned, held)
        assert not one.known
        assert one.nearer == 0


def test_images_are_compared_at_few_pixels():
    images = torch.rand(3, 2, 48, 10)
    rows = reduced(images)
    assert rows.shape == (3, 2 * SIDE * 10)
    torch.testing.assert_close(rows.view(3, 2, SIDE, 10).mean((2, 3)), images.double().mean((2, 3)))
    noisy = images + 0.1 * torch.randn(images.shape)
    assert (reduced(noisy) - rows).std() < 0.08
    assert reduced(torch.rand(4, 7)).shape == (4, 7)


def test_cases_that_are_all_as_far_from_each_other_are_no_copies():
    """In very many dimensions all distances are nearly equal, so that what is nearer is so by next to nothing."""
    for seed in range(5):
        training, held = numbers("t", seed, count=20, dims=900), numbers("h", seed, count=5, dims=900)
        one = found(numbers("m", seed, count=1, dims=900).repeat(40, 1), training, held)
        assert one.chance > SUSPICIOUS
        assert found(training.repeat(2, 1), training, held).chance < SUSPICIOUS


def pairs(learned, aside):
    return Copied.of(told_of_pairs(*(torch.tensor(one).double() for one in (learned, aside))))


def test_images_of_masks_by_hand():
    """The median of 4, 2 and 5 is 4: nearness 1, 0.5 and 1.25, and the limit 0.5; of the others 0.25, 0.5 and 2."""
    one = pairs([1.0, 2.0, 8.0], [4.0, 2.0, 5.0])
    assert (one.made, one.nearer, one.held_nearer, one.held) == (3, 2, 1, 3)
    assert (one.made_median, one.made_least, one.held_median, one.held_least) == (0.5, 0.25, 1.0, 0.5)
    # With the smallest of 3 as the limit U ~ Beta(1, 3): P(2 of 3 or more below) = 3 E U² − 2 E U³ = 3/10 − 2/20.
    assert one.chance == pytest.approx(0.2)


def test_images_of_masks_that_are_nearer_by_next_to_nothing_are_no_copies():
    aside = (1 + 0.001 * torch.arange(8)).tolist()
    assert pairs([0.95] * 24, aside).nearer == 0
    assert pairs([0.1] * 24, aside).chance < SUSPICIOUS
    assert pairs([0.0] * 24, [0.0] * 8).chance > SUSPICIOUS, "all are alike, those that nobody saw, too"
    assert not pairs([0.0] * 24, [1.0]).known
    assert not pairs([], [1.0] * 8).known


def test_false_alarms_of_images_of_masks_are_as_rare_as_they_should_be():
    """Distances of both groups are drawn alike, 400 times."""
    alarms = 0
    for seed in range(400):
        apart = torch.rand(32, generator=torch.Generator().manual_seed(seed)).exp()
        alarms += pairs(apart[:24].tolist(), apart[24:].tolist()).chance < 0.05
    assert binom.sf(alarms - 1, 400, 0.05) > 0.001, alarms


def test_of_each_mask_the_nearest_image_counts():
    found = least_each(torch.tensor([3.0, 1.0, 2.0, 5.0]), torch.tensor([0, 2, 2, 0]), 4)
    assert found.tolist() == [3.0, torch.inf, 1.0, torch.inf]
