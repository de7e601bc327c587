"""Draw the pictures of docs/phantom.md: ``python docs/phantom_pictures.py``."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from nibabel import orientations
from nibabel.affines import apply_affine
from PIL import Image

from polyclinic.data.phantom import EFFECTS, Phantom, PhantomSubject
from polyclinic.data.readers.volume import Volume

IMAGES = Path(__file__).resolve().parent / "images"
#: Tissues in the colours outside, fluid, grey matter, white matter.
COLOURS = matplotlib.colors.ListedColormap(["#000000", "#3b7dd8", "#b9b9b9", "#ffffff"])


def cut(volume: Volume, axis: int, millimetres: float) -> tuple[np.ndarray, float]:
    """A slice at a place in the scan's frame, to be drawn with its origin below, and its aspect."""
    turn = orientations.io_orientation(volume.affine)
    values = orientations.apply_orientation(volume.values, turn)
    affine = volume.affine @ orientations.inv_ornt_aff(turn, volume.values.shape)
    place = np.zeros(3)
    place[axis] = millimetres
    index = int(np.clip(np.rint(apply_affine(np.linalg.inv(affine), place)[axis]), 0, values.shape[axis] - 1))
    widths = np.delete(np.abs(np.diag(affine))[:3], axis)
    return values.take(index, axis).T, widths[1] / widths[0]


def show(axes: plt.Axes, volume: Volume, axis: int, millimetres: float, **options: object) -> None:
    """Draw a slice."""
    values, aspect = cut(volume, axis, millimetres)
    axes.imshow(values, origin="lower", aspect=aspect, **({"cmap": "gray"} | options))
    axes.axis("off")


def dose_picture() -> None:
    """The same person with more and more disease."""
    doses = (0.0, 1.0, 2.0)
    figure, grid = plt.subplots(2, 2 * len(doses), figsize=(11, 4.4), facecolor="white")
    for number, dose in enumerate(doses):
        subject = Phantom(0, spacing=1.75, dose=dose, effects=()).subject(0, 1)
        for row, (axis, place) in enumerate(((1, -4.0), (2, 8.0))):
            show(grid[row, 2 * number], subject.image, axis, place, vmax=460)
            show(grid[row, 2 * number + 1], subject.tissue, axis, place, cmap=COLOURS, vmin=0, vmax=3)
        hippocampi = subject.truth["left_hippocampus"] + subject.truth["right_hippocampus"]
        told = f"dose {dose:g}: hippocampi {hippocampi:.1f} ml, ventricles {subject.ventricle_volume:.0f} ml"
        grid[0, 2 * number].set_title(told, fontsize=9, loc="left")
    save(figure, "phantom-dose.png")


def sites_picture() -> None:
    """The same person in the scanners of six sites."""
    figure, grid = plt.subplots(3, 6, figsize=(11, 5.8), facecolor="white")
    for site in range(6):
        subject = scanned(site)
        for row, (axis, place) in enumerate(((2, 8.0), (1, -4.0), (0, 20.0))):
            show(grid[row, site], subject.image, axis, place)
        about = subject.image.about
        size = " × ".join(f"{width:g}" for width in np.round(subject.image.spacing, 2))
        codes = "".join(orientations.aff2axcodes(subject.image.affine))
        grid[0, site].set_title(f"{about['vendor']} {about['field_strength']:g} T, {codes}\n{size} mm", fontsize=9)
    save(figure, "phantom-sites.png")


def scanned(site: int) -> PhantomSubject:
    """The first person of the first site in the scanner of another site."""
    scanner = Phantom(0, effects=EFFECTS).scanners[site]
    return Phantom(0, sites=1, spacing=1.75, scanners=(scanner,)).subject(0, 0)


def save(figure: plt.Figure, name: str) -> None:
    """Write a picture with few colours, which makes a small file."""
    figure.subplots_adjust(left=0.005, right=0.995, top=0.93, bottom=0.005, wspace=0.03, hspace=0.03)
    drawn = BytesIO()
    figure.savefig(drawn, dpi=80)
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(48).save(IMAGES / name, optimize=True)
    print(IMAGES / name)


if __name__ == "__main__":
    dose_picture()
    sites_picture()
