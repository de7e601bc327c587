"""Masks in pictures: colours, palettes, transparency, lossy formats, EXIF; and what is told of them."""

import numpy as np
import pytest
from PIL import Image

from polyclinic.data.masks.classes import MaskClasses
from polyclinic.data.open import open_data
from polyclinic.data.pictures.decode import ImageFiles, Seen, decode_images
from polyclinic.data.spec import DataSpec
from polyclinic.errors import DataError
from polyclinic.ignored import IGNORED

SIZE = (24, 24)
DISC = np.hypot(*(np.indices(SIZE) - 11.5)) <= 7
BOX = np.zeros(SIZE, bool)
BOX[:4, :6] = True
RED, BLUE = (255, 0, 0), (0, 0, 255)


def painted(*layers, base=(0, 0, 0)):
    """An RGB picture: each ``(where, colour)`` on top of what is there."""
    pixels = np.empty((*SIZE, 3), np.uint8)
    pixels[:] = base
    for where, colour in layers:
        pixels[where] = colour
    return pixels


def palette(numbers, colours):
    picture = Image.fromarray(numbers.astype(np.uint8), "P")
    picture.putpalette([part for colour in colours for part in colour])
    return picture


def read(folder, picture, name="m.png", mask_classes=None, options=None, **mask):
    """Class indices of a picture as a mask, or the reason why it can't be used; and what was seen."""
    Image.new("RGB", SIZE).save(folder / "i.png")
    picture.save(folder / name, **(options or {}))
    classes = MaskClasses.of(DataSpec(mask={"column": "m", **mask}, mask_classes=mask_classes))
    seen = Seen()
    _, masks, failures = decode_images(ImageFiles(["i.png"], [name], [folder]), SIZE, "rgb", classes=classes, seen=seen)
    return failures.get(0) or masks[0, 0].numpy(), seen.masks.get(0)


def test_two_colours_of_a_palette_count_and_not_their_numbers(tmp_path):
    for name in ("m.gif", "m.png", "m.tif"):
        for numbers, colours in ((DISC, [(0, 0, 0), (255, 255, 255)]), (~DISC, [(255, 255, 255), (0, 0, 0)])):
            found, facts = read(tmp_path, palette(numbers, colours), name)
            assert np.array_equal(found, DISC), (name, colours)
            assert facts.count == 1


def test_a_bmp_file_that_pillow_takes_for_another_is_refused(tmp_path):
    reason = "mask file is a BMP of two colours that can't be read: save it as PNG"
    assert read(tmp_path, palette(DISC, [(0, 0, 0), (255, 255, 255)]), "m.bmp")[0] == reason
    assert np.array_equal(read(tmp_path, Image.fromarray(DISC), "m.bmp")[0], DISC)
    assert np.array_equal(read(tmp_path, palette(DISC, [(0, 0, 0), RED]), "m.bmp")[0], DISC)


def test_numbers_of_a_palette_count_where_the_study_names_numbers(tmp_path):
    numbers = DISC + 2 * BOX
    colours = [(0, 0, 0), (128, 0, 0), (0, 128, 0)]
    found, _ = read(tmp_path, palette(numbers, colours), mask_classes=["disc", "box"])
    assert np.array_equal(found, numbers)
    found, facts = read(tmp_path, palette(numbers, colours))
    assert np.array_equal(found, DISC | BOX)
    assert (facts.count, facts.coloured, facts.values) == (2, True, (0x008000, 0x800000))
    edge = np.where(BOX, 255, DISC)
    found, _ = read(tmp_path, palette(edge, [*colours[:2], *[(0, 0, 0)] * 253, (224, 224, 192)]), ignore=255)
    assert np.array_equal(found, np.where(BOX, IGNORED, DISC))
    # A grey palette whose numbers are not its grey values may mean the one or the other.
    swapped = palette(~DISC, [(255, 255, 255), (0, 0, 0)])
    reason, _ = read(tmp_path, swapped, mask_classes=["disc"])
    assert reason.startswith("mask has a palette whose numbers are not its grey values")
    assert np.array_equal(read(tmp_path, swapped, mask_classes=["disc"], palette="index")[0], ~DISC)
    assert np.array_equal(read(tmp_path, swapped, mask_classes={"disc": 255}, palette="colour")[0], DISC)


def test_a_transparent_colour_of_a_palette_is_background(tmp_path):
    picture = palette(DISC, [(255, 255, 255), RED])
    found, facts = read(tmp_path, picture, options={"transparency": 0})
    assert np.array_equal(found, DISC)
    assert facts.alpha == "hidden"


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (10, 20, 30)])
def test_a_mask_in_the_transparency(tmp_path, colour):
    pixels = np.dstack([painted(base=colour), np.where(DISC, 255, 0).astype(np.uint8)])
    found, facts = read(tmp_path, Image.fromarray(pixels))
    assert np.array_equal(found, DISC)
    assert facts.alpha == "only"
    grey = Image.fromarray(np.dstack([np.full(SIZE, 255, np.uint8), pixels[..., 3]]), "LA")
    assert np.array_equal(read(tmp_path, grey)[0], DISC)


def test_paint_on_a_transparent_picture(tmp_path):
    alpha = np.where(DISC, 255, 0).astype(np.uint8)
    found, facts = read(tmp_path, Image.fromarray(np.dstack([painted((DISC, RED), base=(255, 255, 255)), alpha])))
    assert np.array_equal(found, DISC)
    assert facts.alpha == "hidden"
    opaque = np.full(SIZE, 255, np.uint8)
    found, facts = read(tmp_path, Image.fromarray(np.dstack([painted((DISC, RED)), opaque])))
    assert np.array_equal(found, DISC)
    assert facts.alpha == ""


def test_colours_as_classes(tmp_path):
    picture = Image.fromarray(painted((DISC, RED), (BOX, BLUE)))
    classes = {"disc": "#ff0000", "box": ["blue", "#000080"]}
    expected = np.where(BOX, 2, DISC)
    assert np.array_equal(read(tmp_path, picture, mask_classes=classes)[0], expected)
    assert np.array_equal(read(tmp_path, picture.quantize(8), mask_classes=classes)[0], expected)
    assert (
        read(tmp_path, picture, mask_classes={"disc": "red"})[0] == "mask has a colour that is none of `mask_classes`"
    )
    found, _ = read(tmp_path, picture, mask_classes={"disc": "red"}, ignore="blue")
    assert np.array_equal(found, np.where(BOX, IGNORED, DISC))
    white = Image.fromarray(painted((DISC, RED), base=(255, 255, 255)))
    found, _ = read(tmp_path, white, mask_classes={"disc": "red"}, background="white")
    assert np.array_equal(found, DISC)
    assert np.array_equal(read(tmp_path, white, background="#fff")[0], DISC)
    drawing = Image.fromarray(np.where(DISC, 0, 255).astype(np.uint8))  # black on white, one channel
    assert np.array_equal(read(tmp_path, drawing, background="white")[0], DISC)
    reason, _ = read(tmp_path, picture, mask_classes=["disc"])
    assert reason == "mask has colours, not one value for each structure"
    assert read(tmp_path, picture, above=0)[0] == reason


def test_one_colour_is_the_foreground_and_several_are_told(tmp_path):
    found, facts = read(tmp_path, Image.fromarray(painted((DISC, (0, 0, 9)))))
    assert np.array_equal(found, DISC)
    assert facts.count == 1
    found, facts = read(tmp_path, Image.fromarray(painted((DISC, RED), (BOX, BLUE))))
    assert np.array_equal(found, DISC | BOX)
    assert (facts.count, facts.values) == (2, (0x0000FF, 0xFF0000))
    reason, _ = read(tmp_path, Image.fromarray(painted((DISC, RED), base=(255, 255, 255))))
    assert reason.startswith("mask has several colours and none is the background")


@pytest.mark.parametrize("quality", [30, 75, 95, 100])
def test_a_jpeg_mask_is_refused_until_the_study_says_what_is_foreground(tmp_path, quality):
    picture = Image.fromarray(np.where(DISC, 255, 0).astype(np.uint8))
    reason, _ = read(tmp_path, picture, "m.jpg", options={"quality": quality})
    assert reason == "mask is a JPEG file, which changes values: say `mask: {above: 127}` if that is meant"
    found, _ = read(tmp_path, picture, "m.jpg", options={"quality": quality}, above=127)
    assert np.array_equal(found, DISC)
    reason, _ = read(tmp_path, picture, "m.jpg", {"disc": 255}, options={"quality": 75})
    assert reason == "mask has a value that is none of `mask_classes` (JPEG files change values)"
    small = Image.fromarray(DISC.astype(np.uint8))
    assert "JPEG" in str(read(tmp_path, small, "m.jpg", options={"quality": 100})[0])
    red = Image.fromarray(painted((DISC, RED)))
    assert read(tmp_path, red, "m.jpg")[0] == "mask has too many colours: soft edges, or a lossy file format (JPEG)"
    assert "JPEG" in str(read(tmp_path, picture, "m.tif", options={"compression": "jpeg"})[0])
    assert np.array_equal(read(tmp_path, Image.new("L", SIZE, 255), "m.jpg")[0], np.ones(SIZE))


def test_soft_edges(tmp_path):
    big = Image.fromarray(np.kron(np.where(DISC, 255, 0), np.ones((4, 4))).astype(np.uint8))
    soft = big.rotate(30, Image.Resampling.BICUBIC).resize(SIZE, Image.Resampling.LANCZOS)
    assert str(read(tmp_path, soft)[0]).startswith("mask has grey values")
    assert np.array_equal(read(tmp_path, soft, above=127)[0], np.asarray(soft) > 127)
    tinted = Image.merge("RGB", [soft, Image.new("L", SIZE), Image.new("L", SIZE)])
    assert str(read(tmp_path, tinted)[0]).startswith("mask has too many colours")


def test_bits_and_deep_masks(tmp_path):
    assert np.array_equal(read(tmp_path, Image.fromarray(DISC))[0], DISC)
    assert np.array_equal(read(tmp_path, Image.fromarray(DISC), mask_classes=["disc"])[0], DISC)
    assert np.array_equal(read(tmp_path, Image.fromarray(DISC), mask_classes={"disc": "white"})[0], DISC)
    deep = Image.fromarray((DISC * 40_000).astype(np.uint16))
    assert np.array_equal(read(tmp_path, deep)[0], DISC)
    assert np.array_equal(read(tmp_path, deep, "m.tif", {"disc": 40_000})[0], DISC)
    soft = Image.fromarray((DISC * 0.7).astype(np.float32))
    assert "no whole numbers" in read(tmp_path, soft, "m.tif")[0]
    assert np.array_equal(read(tmp_path, soft, "m.tif", above=0.5)[0], DISC)


def test_everything_ignored_leaves_nothing(tmp_path):
    assert read(tmp_path, Image.new("L", SIZE, 255), ignore=255)[0] == "mask leaves out everything (`ignore`)"


# Sites ----------------------------------------------------------------------------------------------------------------


def site_notes(folder, masks, images=None, **data):
    """Numbers, texts and cases of the notes on masks of sites: ``{site: [mask, ...]}``."""
    return [note for note in all_notes(folder, masks, images, **data) if note[0].startswith("N4")]


def all_notes(folder, masks, images=None, **data):
    """The same of all notes."""
    rows = ["site,image,mask"]
    for site, pictures in masks.items():
        for number, picture in enumerate(pictures):
            name = f"{site}{number}"
            noise = np.random.default_rng([number, *site.encode()]).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            options = {} if images is None else images(name)
            Image.fromarray(noise).save(folder / f"{name}.png", **options)
            picture.save(folder / f"{name}m.png")
            rows.append(f"{site},{name}.png,{name}m.png")
    (folder / "t.csv").write_text("\n".join(rows) + "\n")
    base = {"table": "t.csv", "site": "site", "image": "image", "mask": "mask", "size": SIZE}
    opened = open_data(DataSpec.model_validate(base | data), folder, "masks")
    return [(note.number, str(note), note.cases) for note in opened.notes]


def grey(where, value=255):
    return Image.fromarray((where * value).astype(np.uint8))


def test_plain_masks_have_no_notes(tmp_path):
    assert site_notes(tmp_path, {"A": [grey(DISC), grey(BOX)], "B": [grey(DISC)]}) == []


def test_sites_that_write_masks_differently(tmp_path):
    notes = site_notes(tmp_path, {"A": [grey(DISC, 1)], "B": [grey(DISC), grey(BOX)]})
    text = "Sites write the foreground of masks as different values: 1 at A; 255 at B. All of them count as foreground."
    assert notes == [("N413", text, ())]
    (note,) = site_notes(tmp_path, {"A": [grey(DISC, 1), grey(BOX, 2)]})
    text = "Site A: masks write the foreground as different values: 1, 2. Each of them counts as foreground."
    assert note == ("N413", text, ())
    with pytest.raises(DataError, match=r"Site C: 1 of 1 .*none is the background"):
        site_notes(tmp_path, {"B": [grey(DISC)], "C": [Image.fromarray((DISC + 1).astype(np.uint8))]})


def test_several_values(tmp_path):
    several = Image.fromarray((DISC + 3 * BOX).astype(np.uint8))
    notes = site_notes(tmp_path, {"A": [several, grey(DISC, 1)]})
    text = (
        "Site A: 1 of 2 masks has several values besides the background (1, 3), and all of them count as foreground: "
        "name structures in `mask_classes`, or say `mask: {above: 0}` if that is meant."
    )
    assert notes == [("N410", text, ("A0.png",))]
    assert site_notes(tmp_path, {"A": [several]}, mask={"above": 0}) == []
    assert site_notes(tmp_path, {"A": [several]}, mask_classes={"disc": 1, "box": 3}) == []
    coloured = Image.fromarray(painted((DISC, RED), (BOX, BLUE)))
    (note,) = site_notes(tmp_path, {"A": [coloured]})
    assert note[1].startswith("Site A: the mask has several colours besides the background (#0000ff, #ff0000), and")


def test_masks_that_cover_everything_nothing_or_most(tmp_path):
    whole, most, none = grey(np.ones(SIZE)), grey(~BOX), grey(np.zeros(SIZE))
    (note,) = site_notes(tmp_path, {"A": [whole, whole], "B": [grey(DISC), whole]})
    assert note[0] == "N411"
    assert note[1].startswith("Site A: all 2 masks cover everything")
    (note,) = site_notes(tmp_path, {"A": [most, whole, most], "B": [grey(DISC)]})
    assert note[0] == "N412"
    assert note[1].startswith("Site A: all 3 masks cover more than half of the image: if foreground and background are")
    assert site_notes(tmp_path, {"A": [most]}, mask={"column": "mask", "background": 255}) == []
    (note,) = site_notes(tmp_path, {"A": [none, none]})
    assert note[:2] == ("N401", "Site A: 2 masks have no foreground.")


def test_transparency_is_told(tmp_path):
    only = Image.fromarray(np.dstack([painted(), np.where(DISC, 255, 0).astype(np.uint8)]))
    (note,) = site_notes(tmp_path, {"A": [only, grey(DISC)]})
    text = "Site A: 1 of 2 masks has been taken from the transparency, because the picture has one colour."
    assert note == ("N414", text, ("A0.png",))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_image_that_exif_turns_beside_a_mask_that_it_does_not_is_told(tmp_path, kind):
    def upside_down(name):
        exif = Image.Exif()
        exif[0x0112] = 3
        return {"exif": exif, "format": kind} if name == "A0" else {}

    (note,) = site_notes(tmp_path, {"A": [grey(DISC), grey(BOX)]}, images=upside_down)
    assert note[0] == "N415"
    assert note[1].startswith("Site A: 1 of 2 masks has another EXIF orientation than the image")


def test_ignored_pixels_are_no_foreground_for_check(tmp_path):
    rim = (np.hypot(*(np.indices(SIZE) - 11.5)) <= 9) & ~DISC
    mask = Image.fromarray((DISC + 255 * rim).astype(np.uint8))
    assert site_notes(tmp_path, {"A": [mask]}, mask={"ignore": 255}) == []
    (note,) = site_notes(tmp_path, {"A": [Image.fromarray((255 * rim).astype(np.uint8))]}, mask={"ignore": 255})
    assert note[0] == "N401"


def test_what_the_size_leaves_nothing_of_is_told_and_is_no_mask_without_foreground(tmp_path):
    speck = np.zeros(SIZE)
    speck[1, 1] = 1  # the nearest pixels of a picture of half the size are others
    empty = grey(np.zeros(SIZE))
    found = all_notes(tmp_path, {"A": [grey(speck), empty, grey(DISC)]}, size=[6, 6])
    notes = {number: (text, cases) for number, text, cases in found}
    assert notes["N702"][0] == (
        "Site A: in 1 of 3 cases nothing of foreground is left in `size`: it is too small. Use a larger `size`."
    )
    assert notes["N702"][1] == ("A0.png",)
    assert notes["N401"] == ("Site A: 1 mask has no foreground.", ("A1.png",))


def test_a_structure_that_the_size_loses_is_not_said_to_be_missing_at_the_site(tmp_path):
    rim = np.where(DISC, 1, 0)
    rim[1, 1] = 2
    masks = {"A": [grey(rim, 1)], "B": [grey(np.where(DISC, 1, 0) + 2 * BOX, 1)]}
    found = all_notes(tmp_path, masks, size=[6, 6], mask_classes=["disc", "box"])
    assert [(number, text[:50]) for number, text, _ in found if number in ("N402", "N702")] == [
        ("N702", "Site A: in 1 of 1 cases nothing of box is left in ")
    ]
