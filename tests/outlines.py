"""Sites of pictures with structures of known outlines, and how well a model outlines them."""

import numpy as np
import torch

from helpers import site_of

SIZE = 16


def discs(name, cases, seed, *, squares):
    """Images of a disc, and perhaps of a brighter square, which is no part of its mask; eight of them for tests."""

    def disc(rng, rows, columns):
        radius, (row, column) = rng.uniform(2.5, 5), rng.uniform(5, SIZE - 5, 2)
        return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2

    return _site(name, cases, seed, disc, squares=squares)


def bars(name, cases, seed, *, squares):
    """The same of a bar from a corner of its box to another, which it fills to about two fifths."""

    def bar(rng, rows, columns):
        half, (row, column), side = rng.uniform(3, 4.5), rng.uniform(5, SIZE - 5, 2), rng.choice([-1, 1])
        inside = np.maximum(abs(rows - row), abs(columns - column)) <= half
        return inside & (abs((rows - row) - side * (columns - column)) <= 2)

    return _site(name, cases, seed, bar, squares=squares)


def _site(name, cases, seed, structure, *, squares):
    rng = np.random.default_rng(1000 * seed + sum(map(ord, name)))
    pixels, masks = rng.normal(90, 10, (cases + 8, 1, SIZE, SIZE)), np.zeros((cases + 8, 1, SIZE, SIZE), np.uint8)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for image, mask in zip(pixels[:, 0], masks[:, 0], strict=True):
        mask[:] = structure(rng, rows, columns)
        image += 60 * mask
        places = [(top, left) for top in range(SIZE - 4) for left in range(SIZE - 4)
                  if not mask[max(top - 1, 0) : top + 5, max(left - 1, 0) : left + 5].any()]  # fmt: skip
        if squares and places:
            top, left = places[rng.integers(len(places))]
            image[top : top + 4, left : left + 4] += 110
    site = site_of(name, torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.from_numpy(masks))
    site.parts = ["train"] * cases + ["test"] * 8
    return site


def mean_dice(federation, label, site):
    """Of a model, over a site's test cases."""
    model = federation.network(0)
    model.load(federation.state(label))
    model.module.eval()
    with torch.no_grad():
        found = model.module(site.inputs[-8:].float() / 255) > 0
    truth = site.targets[-8:] == 1
    both, either = ((one.flatten(1).sum(1)) for one in (found & truth, torch.cat([found, truth], dim=1)))
    return float((2 * both / either).mean())
