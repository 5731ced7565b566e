"""The anatomy of the phantoms: tables of shapes on a unit square, and how to paint them.

A shape is `(kind, tissue, *numbers)`; x runs right, y runs down, both from 0 to 1. Kinds:
`disc` cx cy rx ry; `ring` width cx cy rx ry; `arc` width cx cy rx ry from to (degrees, clockwise
from three o'clock); `line` width x y x y ...; `poly` x y x y ... A kind that ends in `2` is painted
twice, the second time mirrored at the middle line.
"""

import numpy as np
from PIL import ImageDraw

# CT and MR cut the same body; only the grey of each tissue tells them apart, as in life.
SLICES = {
    "chest": [
        ("disc", "fat", .5, .5, .46, .37), ("disc", "soft", .5, .5, .42, .33),
        ("arc2", "bone", .024, .27, .5, .205, .285, 95, 150),
        ("arc2", "bone", .024, .27, .5, .205, .285, 205, 262),
        ("disc2", "lung", .275, .49, .165, .235), ("disc", "soft", .53, .44, .115, .14),
        ("disc", "fluid", .46, .38, .045, .045), ("disc", "fluid", .56, .62, .04, .04),
        ("disc", "bone", .5, .72, .062, .055), ("disc", "marrow", .5, .72, .036, .03),
        ("line", "bone", .025, .5, .76, .5, .82), ("line2", "bone", .02, .49, .76, .4, .79),
        ("disc", "bone", .5, .2, .055, .016),
    ],
    "abdomen": [
        ("disc", "fat", .5, .5, .46, .38), ("disc", "soft", .5, .5, .405, .325),
        ("disc", "fat", .53, .46, .3, .22), ("disc", "liver", .3, .43, .18, .215),
        ("disc", "liver", .42, .33, .14, .09), ("disc", "liver", .8, .46, .06, .13),
        ("disc", "lung", .56, .3, .07, .035), ("disc", "soft", .56, .35, .085, .04),
        ("disc2", "liver", .33, .64, .072, .1), ("disc2", "fat", .36, .64, .03, .045),
        ("disc", "fluid", .54, .58, .036, .036), ("disc", "bone", .5, .69, .075, .06),
        ("disc", "marrow", .5, .685, .05, .038), ("line", "bone", .028, .5, .74, .5, .82),
        ("line2", "bone", .022, .47, .75, .39, .78),
    ],
    "brain": [
        ("disc", "fat", .5, .5, .375, .465), ("disc", "bone", .5, .5, .355, .445),
        ("disc", "fluid", .5, .5, .32, .41), ("disc", "soft", .5, .5, .31, .4),
        ("disc2", "liver", .345, .47, .125, .28), ("line", "fluid", .012, .5, .1, .5, .32),
        ("line", "fluid", .012, .5, .68, .5, .9),
        ("poly2", "fluid", .488, .36, .45, .3, .425, .32, .46, .42, .488, .47),
        ("poly2", "fluid", .49, .52, .44, .62, .41, .68, .45, .68, .49, .58),
        ("line2", "fluid", .008, .19, .42, .25, .44), ("line2", "fluid", .008, .21, .62, .27, .59),
        ("line2", "fluid", .008, .3, .16, .33, .22), ("line2", "fluid", .008, .33, .86, .36, .8),
    ],
    "knee": [
        ("disc2", "fat", .26, .52, .22, .33), ("disc2", "soft", .26, .53, .195, .295),
        ("disc2", "bone", .26, .49, .155, .18), ("disc2", "marrow", .26, .49, .14, .163),
        ("disc2", "bone", .26, .255, .09, .045), ("disc2", "marrow", .26, .255, .075, .03),
        ("disc2", "fluid", .27, .73, .03, .03), ("disc2", "fat", .22, .735, .03, .025),
    ],
}

# A projection: everything on the beam's way adds up, so ribs cross the lungs.
PROJECTIONS = {
    "chest": [
        ("poly", "soft", .02, 1, .04, .3, .2, .12, .4, .06, .42, 0, .58, 0, .6, .06, .8, .12,
         .96, .3, .98, 1),
        ("disc2", "lung", .285, .5, .165, .345), ("poly2", "haze", 0, 1, .1, .8, .28, .73, .47, .84,
                                                   .5, 1),
        *[("arc2", "rib", .02, .33, .27 + .095 * i, .21, .1, 150, 300) for i in range(6)],
        ("disc", "haze", .555, .64, .135, .155), ("line", "bone", .075, .5, 0, .5, 1),
        ("line2", "bone", .03, .47, .16, .3, .12, .12, .16),
        *[("line", "gap", .008, .465, .08 + .09 * i, .535, .08 + .09 * i) for i in range(10)],
    ],
    "abdomen": [
        ("poly", "soft", .06, 0, .1, .4, .05, .75, .03, 1, .97, 1, .95, .75, .9, .4, .94, 0),
        *[("arc2", "rib", .022, .34, .1 + .1 * i, .25, .1, 140, 250) for i in range(2)],
        ("disc", "haze", .27, .3, .17, .16), ("disc", "lung", .6, .22, .09, .05),
        ("disc", "lung", .68, .62, .05, .08), ("disc", "lung", .4, .64, .06, .035),
        ("disc", "lung", .55, .7, .05, .03), ("line", "bone", .1, .5, 0, .5, .8),
        *[("line", "gap", .01, .45, .06 + .105 * i, .55, .06 + .105 * i) for i in range(8)],
        *[("line2", "bone", .022, .46, .11 + .105 * i, .4, .1 + .105 * i) for i in range(6)],
        ("poly2", "rib", .47, .93, .42, .76, .24, .7, .12, .78, .18, .92, .34, 1, .45, 1),
    ],
    "brain": [
        ("disc", "bone", .5, .42, .39, .4), ("disc", "soft", .5, .42, .365, .375),
        ("poly", "soft", .24, .6, .76, .6, .7, .92, .58, .99, .42, .99, .3, .92),
        ("poly2", "rib", .2, .6, .24, .6, .3, .92, .42, .97, .42, 1, .28, .97, .22, .8),
        ("ring2", "bone", .02, .365, .64, .085, .065), ("disc2", "lung", .365, .64, .075, .055),
        ("poly", "lung", .5, .66, .45, .8, .55, .8), ("line", "bone", .014, .5, .66, .5, .8),
        *[("line", "bone", .028, .38 + .04 * i, .86, .38 + .04 * i, .92) for i in range(7)],
        ("line", "gap", .006, .36, .89, .64, .89), ("line", "haze", .008, .5, .05, .5, .35),
    ],
    "knee": [
        ("poly2", "soft", .06, 0, .46, 0, .44, .45, .46, .6, .42, 1, .1, 1, .05, .6, .08, .45),
        ("line2", "rib", .13, .26, 0, .26, .36), ("line2", "haze", .07, .26, 0, .26, .3),
        ("disc2", "rib", .2, .415, .085, .085), ("disc2", "rib", .32, .415, .085, .085),
        ("disc2", "bone", .26, .33, .065, .07), ("line2", "soft", .014, .12, .505, .4, .505),
        ("poly2", "rib", .115, .52, .4, .52, .39, .6, .325, .7, .32, 1, .2, 1, .195, .7, .12, .6),
        ("line2", "haze", .06, .26, .72, .26, 1), ("line2", "rib", .04, .125, .62, .13, 1),
    ],
}

# Echoes inside the fan; bone stops the beam, hence the shadows below it.
ECHOES = {
    "chest": [
        ("poly", "soft", 0, 0, 1, 0, 1, .28, 0, .28), ("poly", "lung", 0, .28, 1, .28, 1, 1, 0, 1),
        ("disc2", "bone", .36, .2, .07, .022), ("poly2", "gap", .3, .22, .42, .22, .34, 1, .14, 1),
        *[("arc", "bone", .014 - .002 * i, .5, .28 + .2 * i, .4, .03, 180, 360) for i in range(4)],
    ],
    "abdomen": [
        ("poly", "liver", 0, 0, 1, 0, 1, 1, 0, 1), ("arc", "bone", .02, .5, .55, .46, .36, 20, 160),
        ("disc2", "soft", .36, .53, .15, .17), ("disc", "fluid", .5, .3, .05, .035),
        ("disc", "fluid", .43, .2, .025, .02), ("disc", "fluid", .6, .22, .03, .018),
        ("disc", "fluid", .5, .8, .06, .03),
    ],
    "brain": [
        ("poly", "soft", 0, 0, 1, 0, 1, 1, 0, 1), ("ring", "bone", .022, .5, .52, .4, .4),
        ("line", "bone", .01, .5, .14, .5, .4), ("disc2", "liver", .33, .53, .09, .2),
        ("poly2", "fluid", .485, .42, .4, .33, .37, .36, .42, .46, .485, .52),
        ("arc2", "bone", .01, .36, .75, .1, .06, 190, 350), ("disc", "bone", .5, .72, .03, .06),
    ],
    "knee": [
        ("poly", "soft", 0, 0, 1, 0, 1, 1, 0, 1), ("poly", "liver", 0, .16, 1, .16, 1, .27, 0, .27),
        *[("line", "bone", .005, .1, .17 + .022 * i, .9, .17 + .022 * i) for i in range(5)],
        ("poly", "gap", 0, 1, .05, .78, .3, .72, .5, .84, .7, .72, .95, .78, 1, 1),
        ("arc2", "bone", .03, .31, .86, .2, .14, 190, 350), ("disc", "fluid", .5, .66, .1, .035),
    ],
}

GREYS = {  # tissue -> grey level, 0 to 255
    "CT": dict(fat=62, soft=128, liver=150, lung=22, bone=240, marrow=186, fluid=108, gap=10),
    "MR": dict(fat=232, soft=96, liver=132, lung=10, bone=18, marrow=176, fluid=206, gap=10),
    "X-ray": dict(soft=104, haze=128, lung=42, rib=150, bone=196, gap=120),
    "ultrasound": dict(soft=92, liver=120, lung=62, bone=235, fluid=20, gap=12),
    "angiography": dict(soft=176, bone=158, vessel=40),
}

TABLES = {"CT": SLICES, "MR": SLICES, "X-ray": PROJECTIONS, "ultrasound": ECHOES}

# Angiography: where trunks start, their heading (degrees, 90 is down), length, width, branchings.
TRUNKS = {
    "chest": [(.5, .98, 270, .37, .05, 0), (.5, .62, 200, .16, .032, 5),
              (.5, .62, 340, .16, .032, 5), (.5, .62, 235, .16, .026, 4),
              (.5, .62, 305, .16, .026, 4), (.5, .6, 270, .2, .03, 2)],
    "abdomen": [(.5, 0, 90, .71, .045, 0), (.5, .34, 165, .13, .024, 4),
                (.5, .34, 15, .13, .024, 4), (.5, .22, 205, .12, .02, 3),
                (.5, .22, 335, .12, .02, 3), (.5, .7, 112, .3, .032, 1), (.5, .7, 68, .3, .032, 1)],
    "brain": [(.42, 1, 270, .32, .032, 0), (.58, 1, 270, .32, .032, 0),
              (.42, .69, 205, .12, .022, 5), (.58, .69, 335, .12, .022, 5),
              (.42, .69, 272, .13, .02, 5), (.58, .69, 268, .13, .02, 5)],
    "knee": [(.26, 0, 90, .54, .035, 0), (.74, 0, 90, .54, .035, 0),
             (.26, .52, 100, .2, .025, 2), (.26, .52, 76, .2, .022, 2),
             (.74, .52, 80, .2, .025, 2), (.74, .52, 104, .2, .022, 2)],
}
FAINT = {  # bone that subtraction did not remove wholly
    "chest": [("line", "soft", .09, .5, 0, .5, 1)],
    "abdomen": [("line", "soft", .1, .5, 0, .5, 1)],
    "brain": [("ring", "soft", .02, .5, .45, .42, .42)],
    "knee": [("line2", "soft", .12, .26, 0, .26, .45), ("line2", "soft", .1, .26, .53, .26, 1)],
}


def paint(image, shapes, greys, rng):
    """Paint a table of shapes on a square PIL image (mode L), each a little off its place."""
    pen, side = ImageDraw.Draw(image), image.width
    for kind, tissue, *numbers in shapes:
        wobble = 1 + rng.normal(0, .02, len(numbers))
        steps = (False, True) if kind.endswith("2") else (False,)
        for mirrored in steps:
            values = list(numbers * wobble if kind[0] in "dr" else numbers)
            _shape(pen, kind.rstrip("2"), values, greys[tissue], side, mirrored)


def _shape(pen, kind, values, grey, side, mirrored):
    if kind in ("ring", "arc", "line"):
        width, *values = values
        width = max(1, round(width * side))
    if kind in ("line", "poly"):
        xs = [1 - x if mirrored else x for x in values[::2]]
        points = [(x * side, y * side) for x, y in zip(xs, values[1::2], strict=True)]
        if kind == "poly":
            return pen.polygon(points, fill=grey)
        return pen.line(points, fill=grey, width=width, joint="curve")
    cx, cy, rx, ry, *angles = values
    cx = 1 - cx if mirrored else cx
    box = [(cx - rx) * side, (cy - ry) * side, (cx + rx) * side, (cy + ry) * side]
    if kind == "disc":
        return pen.ellipse(box, fill=grey)
    start, end = angles or (0, 360)
    if mirrored:
        start, end = 180 - end, 180 - start
    return pen.arc(box, start, end, fill=grey, width=width)


def grow_vessels(image, region, grey, rng):
    """Draw the vessel tree of a region: each trunk forks, and each fork is thinner and shorter."""
    pen, side = ImageDraw.Draw(image), image.width
    buds = list(TRUNKS[region])
    while buds:
        x, y, heading, length, width, forks = buds.pop()
        for _ in range(3):  # three bent pieces look grown, one straight piece looks ruled
            # a trunk that does not fork carries others at its end, so it must arrive there
            heading += rng.normal(0, 7) if forks else 0
            nx = x + length / 3 * np.cos(np.radians(heading))
            ny = y + length / 3 * np.sin(np.radians(heading))
            pen.line([x * side, y * side, nx * side, ny * side], fill=grey,
                     width=max(2, round(width * side)), joint="curve")
            x, y = nx, ny
        if forks:
            for turn in (-26, 26):
                buds.append((x, y, heading + turn + rng.normal(0, 8), length * rng.uniform(.7, .95),
                             width * .72, forks - 1))
