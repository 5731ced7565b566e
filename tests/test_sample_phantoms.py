"""The sample's pictures and words: what is drawn is what is said."""

import re

import numpy as np
import pytest

from utils.sample import phantoms, texts

MODALITY = {
    "CT": r"\bCT\b|computed tomograph",
    "MR": r"\bMRI?\b|magnetic resonance",
    "X-ray": r"x-?ray|radiograph",
    "ultrasound": r"ultraso(und|nogra)|sonogra",
    "angiography": r"angiogra",
}
REGION = {
    "chest": r"chest|thora|lung|pulmon",
    "abdomen": r"abdom|liver|hepat|renal|kidney",
    "brain": r"brain|head|cranial|cerebr",
    "knee": r"knee|patell",
}
FINDING = {"nodule": r"nodule", "cyst": r"cyst", "calcification": r"calcif"}
SIDE = {"left": r"\bleft\b", "right": r"\bright\b"}


def found(lexicon, text):
    return [name for name, pattern in lexicon.items() if re.search(pattern, text, re.IGNORECASE)]


# ---- pictures


@pytest.mark.parametrize("modality", phantoms.MODALITIES)
@pytest.mark.parametrize("region", phantoms.REGIONS)
def test_a_picture_has_the_asked_size_and_a_range_of_greys(modality, region):
    picture = phantoms.draw(
        phantoms.Phantom(modality, region, "normal"), np.random.default_rng(0), size=(200, 160)
    )
    assert picture.shape == (160, 200)
    assert picture.dtype == np.uint8
    assert picture.std() > 20


@pytest.mark.parametrize("region", phantoms.REGIONS)
@pytest.mark.parametrize(("side", "brighter"), [("right", "left"), ("left", "right")])
def test_the_patients_side_is_drawn_on_the_other_half_of_the_picture(region, side, brighter):
    """Same random numbers with and without the nodule: the difference is the nodule alone."""
    with_nodule = phantoms.Phantom("X-ray", region, "nodule", side, "large")
    full, bare = (
        phantoms.draw(phantom, np.random.default_rng(3)).astype(int)
        for phantom in (with_nodule, phantoms.Phantom("X-ray", region, "normal", side))
    )
    halves = {"left": (full - bare)[:, :112].sum(), "right": (full - bare)[:, 112:].sum()}
    assert max(halves, key=halves.get) == brighter == phantoms.picture_side(with_nodule)
    rng = np.random.default_rng(0)
    assert found(SIDE, texts.caption(with_nodule, rng)) == [side]
    assert found(SIDE, texts.description(with_nodule, rng)) == [brighter]


def drawn_and_bare(modality, region, finding, size):
    """Two pictures by the same random numbers: with the finding, and without."""
    return [
        phantoms.draw(
            phantoms.Phantom(modality, region, name, "left", size), np.random.default_rng(5)
        ).astype(int)
        for name in (finding, "normal")
    ]


def test_a_nodule_is_bright_a_cyst_dark_and_specks_are_scattered():
    pictures = {name: drawn_and_bare("CT", "brain", name, "large") for name in phantoms.FINDINGS}
    changed = {name: np.abs(full - bare) > 50 for name, (full, bare) in pictures.items()}
    grey = {name: pictures[name][0][changed[name]] for name in pictures}
    assert np.median(grey["nodule"]) > 200
    assert np.median(grey["cyst"]) < 40
    assert grey["calcification"].max() > 200
    assert changed["calcification"].sum() < 0.6 * changed["nodule"].sum()


def test_a_large_finding_covers_more_than_twice_a_small_one():
    areas = {}
    for size in phantoms.SIZES:
        full, bare = drawn_and_bare("X-ray", "chest", "nodule", size)
        areas[size] = (np.abs(full - bare) > 30).sum()
    assert areas["large"] > 2 * areas["small"] > 400


def test_doppler_colours_the_half_without_the_finding():
    phantom = phantoms.Phantom("ultrasound", "abdomen", "cyst", "right", "small")
    rng = np.random.default_rng(0)
    coloured = phantoms.doppler(phantoms.draw(phantom, rng), phantom, rng).astype(int)
    tint = np.ptp(coloured, axis=2)
    assert tint[:, :100].max() == 0
    assert tint[:, 112:].max() > 100


# ---- words


def test_every_caption_names_exactly_what_is_drawn():
    rng = np.random.default_rng(0)
    for _ in range(1500):
        phantom = phantoms.random_phantom(rng)
        text = texts.caption(phantom, rng)
        assert found(MODALITY, text) == [phantom.modality], text
        assert found(REGION, text) == [phantom.region], text
        assert found(FINDING, text) == [phantom.finding] * (phantom.finding != "normal"), text
        assert found(SIDE, text) == [phantom.side] * (phantom.side != ""), text
        assert ("(arrow)" in text) == phantom.arrow


def test_descriptions_hold_no_medical_word():
    rng = np.random.default_rng(1)
    for _ in range(1500):
        phantom = phantoms.random_phantom(rng)
        text = texts.description(phantom, rng)
        assert not found(MODALITY | REGION | FINDING, text), text
        assert found(SIDE, text) == [phantoms.picture_side(phantom)] * (phantom.side != "")


def test_remarks_of_long_captions_hold_no_word_of_the_lexicon():
    for remark in texts.REMARKS:
        assert not found(MODALITY | REGION | FINDING | SIDE, remark), remark
