"""What is drawn: grey pictures of five modalities, four regions and three findings."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from utils.sample.anatomy import FAINT, GREYS, TABLES, grow_vessels, paint

MODALITIES = ("CT", "X-ray", "MR", "ultrasound", "angiography")
REGIONS = ("chest", "abdomen", "brain", "knee")
FINDINGS = ("nodule", "cyst", "calcification")
SIDES = ("right", "left")
SIZES = ("small", "large")

MODALITY_SHARES = (.26, .25, .20, .16, .13)  # ROCOv2's order, with the rare ones made less rare
NORMAL_SHARE = .09
NORMAL_CHEST_SHARE = .15  # the plain film that nothing is seen on is the commonest picture of all

CANVAS = 448  # pixels of the square that is painted before it is warped to the asked size
PLACES = {"chest": (.225, .49), "abdomen": (.2, .46), "brain": (.165, .47), "knee": (.24, .46)}
RADII = {"small": .058, "large": .108}
BACKGROUNDS = {"angiography": 192}


@dataclass(frozen=True)
class Phantom:
    """One picture's content; `side` is the patient's, and empty (as `size`) in a normal one."""

    modality: str
    region: str
    finding: str
    side: str = ""
    size: str = ""
    arrow: bool = False


def random_phantom(rng):
    """Draw a phantom's content at random from `rng` (a numpy Generator)."""
    modality = str(rng.choice(MODALITIES, p=MODALITY_SHARES))
    shares = (.4, .25, .15, .2) if modality == "X-ray" else (.27, .28, .27, .18)
    region = str(rng.choice(REGIONS, p=shares))
    film = modality == "X-ray" and region == "chest"
    if rng.random() < (NORMAL_CHEST_SHARE if film else NORMAL_SHARE):
        return Phantom(modality, region, "normal")
    finding, side, size = (str(rng.choice(names)) for names in (FINDINGS, SIDES, SIZES))
    return Phantom(modality, region, finding, side, size, arrow=bool(rng.random() < .3))


def picture_side(phantom):
    """The half of the picture that holds the finding: "left", "right" or "" (normal).

    Radiology looks at the patient face to face, or at a slice from the feet: the patient's right
    lies on the picture's left. Captions name the patient's side, plain descriptions the picture's.
    """
    return {"right": "left", "left": "right", "": ""}[phantom.side]


def random_size(phantom, rng):
    """Width and height in pixels (150 to 420) with the region's usual aspect."""
    aspect = {"chest": 1.12, "abdomen": 1.1, "brain": .88, "knee": 1.0}[phantom.region]
    aspect *= float(np.exp(rng.normal(0, .1)))
    longer = rng.uniform(220, 420)
    width, height = (longer, longer / aspect) if aspect > 1 else (longer * aspect, longer)
    return max(150, round(width)), max(150, round(height))


def draw(phantom, rng, size=(224, 224)):
    """Draw a phantom.

    Args: phantom; rng, a numpy Generator (jitter, texture, noise); size, (width, height) in pixels.
    Returns: uint8 array (height, width).
    Raises: KeyError for an unknown modality or region.
    """
    canvas = _paint_anatomy(phantom, rng)
    # the finding has random numbers of its own, so that one seed with and without it gives two
    # pictures that differ in nothing else
    own = np.random.default_rng(rng.integers(2 ** 32))
    place = _place(phantom, own)
    if phantom.finding in ("nodule", "cyst"):
        _paint_finding(canvas, phantom, place, own)
    pixels = _texture(np.asarray(canvas, np.float32), phantom.modality, rng)
    canvas = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    if phantom.finding == "calcification":  # after the texture, which would drown the specks
        _paint_finding(canvas, phantom, place, own)
    if phantom.modality == "ultrasound":
        canvas = _cut_fan(canvas)
    if phantom.arrow:
        _paint_arrow(canvas, phantom, place)
    return _expose(_warp(canvas, phantom, rng, size), phantom.modality, rng)


def doppler(pixels, phantom, rng):
    """Colour an ultrasound picture: a red and blue flow box away from the finding.

    Args: uint8 (height, width). Returns: uint8 (height, width, 3).
    """
    height, width = pixels.shape
    middle = {"left": .66, "right": .34, "": .5}[picture_side(phantom)]
    y, x = np.ogrid[0:1:height * 1j, 0:1:width * 1j]
    colour = np.repeat(pixels[..., None], 3, axis=2).astype(np.float32)
    for channel, shift in ((0, -.035), (2, .035)):
        reach = ((x - middle - shift) / .05) ** 2 + ((y - .62 - rng.normal(0, .02)) / .07) ** 2
        blob = np.exp(-reach ** 2)[..., None]
        target = np.zeros(3, np.float32)
        target[channel], target[1] = 245, 70
        colour += blob * (target - colour)
    return colour.clip(0, 255).astype(np.uint8)


def _paint_anatomy(phantom, rng):
    canvas = Image.new("L", (CANVAS, CANVAS), BACKGROUNDS.get(phantom.modality, 4))
    greys = GREYS[phantom.modality]
    if phantom.modality == "angiography":
        paint(canvas, FAINT[phantom.region], greys, rng)
        grow_vessels(canvas, phantom.region, greys["vessel"], rng)
        return canvas
    if phantom.modality == "CT":  # the table the patient lies on
        ImageDraw.Draw(canvas).arc([-.1 * CANVAS, -.5 * CANVAS, 1.1 * CANVAS, .965 * CANVAS],
                                   50, 130, fill=120, width=6)
    paint(canvas, TABLES[phantom.modality][phantom.region], greys, rng)
    return canvas


def _place(phantom, rng):
    offset, y = PLACES[phantom.region]
    sign = -1 if picture_side(phantom) == "left" else 1
    return .5 + sign * (offset + rng.normal(0, .018)), y + rng.normal(0, .03)


def _paint_finding(canvas, phantom, place, rng):
    radius = RADII[phantom.size] * rng.uniform(.92, 1.08) * CANVAS
    x, y = place[0] * CANVAS, place[1] * CANVAS
    pen = ImageDraw.Draw(canvas)

    def disc(cx, cy, r, **style):
        pen.ellipse([cx - r, cy - r, cx + r, cy + r], **style)

    if phantom.finding == "nodule":
        disc(x, y, radius, fill=250)
    elif phantom.finding == "cyst":
        disc(x, y, radius, fill=8, outline=240, width=round(.016 * CANVAS))
    else:
        for _ in range(7 if phantom.size == "small" else 16):
            angle, reach = rng.uniform(0, 2 * np.pi), radius * 1.15 * np.sqrt(rng.uniform())
            # a dark halo keeps each speck apart from bright tissue, as edge enhancement does
            sx, sy, r = x + reach * np.cos(angle), y + reach * np.sin(angle), rng.uniform(4, 6.5)
            disc(sx, sy, r + 3, fill=50)
            disc(sx, sy, r, fill=255)


def _paint_arrow(canvas, phantom, place):
    """A white arrow with a dark edge that comes from below and outside, as radiologists set it."""
    out = -1 if place[0] < .5 else 1
    reach = RADII[phantom.size] * 1.25
    tip = np.array(place) + np.array([out * .7, .7]) * reach
    along, across = np.array([out * .7071, .7071]), np.array([-.7071, out * .7071])
    for grow, grey in ((.006, 0), (0, 255)):
        head = [tip - along * grow * 2, tip + along * (.05 + grow) + across * (.026 + grow),
                tip + along * (.05 + grow) - across * (.026 + grow)]
        pen = ImageDraw.Draw(canvas)
        pen.polygon([tuple(p * CANVAS) for p in head], fill=grey)
        shaft = [tuple((tip + along * reach) * CANVAS) for reach in (.045, .1 + grow)]
        pen.line(shaft, fill=grey, width=round((.016 + 2 * grow) * CANVAS))


def _smooth_field(rng, cells):
    """Smooth noise over the canvas, standard deviation about 1."""
    coarse = rng.standard_normal((cells, cells), np.float32)
    return np.asarray(Image.fromarray(coarse).resize((CANVAS, CANVAS), Image.Resampling.BICUBIC))


def _texture(pixels, modality, rng):
    if modality == "ultrasound":  # speckle: interference grains, worse with depth
        grain = np.abs(_smooth_field(rng, 100) + .6 * _smooth_field(rng, 55))
        depth = np.linspace(1.1, .75, CANVAS, dtype=np.float32)[:, None]
        return pixels * (.45 + .75 * grain) * depth + 3
    if modality == "MR":  # coil shading and tissue texture
        return pixels * (1 + .08 * _smooth_field(rng, 3) + .05 * _smooth_field(rng, 50))
    if modality == "X-ray":
        return pixels + 9 * _smooth_field(rng, 5) + 2 * _smooth_field(rng, 60)
    if modality == "angiography":
        return pixels + 8 * _smooth_field(rng, 4) + 2 * _smooth_field(rng, 40)
    inside = pixels > 15
    return pixels + inside * 5 * _smooth_field(rng, 60)


def _cut_fan(canvas):
    mask = Image.new("L", canvas.size, 0)
    pen, side = ImageDraw.Draw(mask), CANVAS
    pen.pieslice([-.48 * side, -1.0 * side, 1.48 * side, .96 * side], 44, 136, fill=255)
    pen.pieslice([.36 * side, -.16 * side, .64 * side, .12 * side], 0, 360, fill=0)
    return Image.composite(canvas, Image.new("L", canvas.size, 0), mask)


def _warp(canvas, phantom, rng, size):
    """Scale, turn and shift the square canvas into a picture of `size`, by one affine map."""
    # films and angiograms fill their frame: stay so close that no corner of the canvas shows
    filled = phantom.modality == "angiography" or (
        phantom.modality == "X-ray" and phantom.region != "brain")
    zoom, turn = rng.uniform(*((.86, .92) if filled else (.95, 1.1))), rng.uniform(-.05, .05)
    shift = rng.uniform(-.018, .018, 2)
    a, b = zoom * np.cos(turn) * CANVAS / size[0], -zoom * np.sin(turn) * CANVAS / size[1]
    d, e = zoom * np.sin(turn) * CANVAS / size[0], zoom * np.cos(turn) * CANVAS / size[1]
    c = (.5 + shift[0]) * CANVAS - a * size[0] / 2 - b * size[1] / 2
    f = (.5 + shift[1]) * CANVAS - d * size[0] / 2 - e * size[1] / 2
    fill = BACKGROUNDS.get(phantom.modality, 4)
    return canvas.transform(size, Image.Transform.AFFINE, (a, b, c, d, e, f),
                            Image.Resampling.BILINEAR, fillcolor=fill)


def _expose(image, modality, rng):
    blur = {"X-ray": 1.1, "MR": .8, "CT": .5, "angiography": .7, "ultrasound": .5}[modality]
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(blur)), np.float32)
    gain, offset = rng.uniform(.88, 1.06), rng.uniform(-6, 6)
    noise = rng.standard_normal(pixels.shape, np.float32) * rng.uniform(1.5, 5)
    return (pixels * gain + offset + noise).clip(0, 255).astype(np.uint8)
