"""Cleaning changes spaces and nothing else; cutting keeps the end of the sequence."""

import csv
import re
import unicodedata

import pytest

from utils.captions import clean, cut, token_ids, token_limit

NEWLINE = 50118


class Words:
    """A tokenizer that numbers words by their length, and that would add a BOS unless told not to."""

    def __call__(self, text, add_special_tokens=True, split_special_tokens=False):
        return {"input_ids": [2] * add_special_tokens + [len(word) for word in text.split()]}


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("  CT of the chest. ", "CT of the chest."),
        ("CT\tof\r\nthe\u2009chest\u00a0.", "CT of the chest ."),
        ("Ro\u0308ntgen", "R\u00f6ntgen"),
        (
            "A lesion in the lung.The arrow shows it.Follow-up",
            "A lesion in the lung. The arrow shows it. Follow-up",
        ),
        ("", ""),
    ],
)
def test_spaces_are_single_letters_composed_and_glued_sentences_parted(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    "caption",
    ["a mass of 3.5 cm", "e.g.The arrow", "T2.Axial", "T1w.FLAIR", "the left.right", "No. 5.A", "lung.the",
     "see www.example.org.The page", "https://doi.org/ab.Cd", "HTTP://site.Org", "Dr.Smith", "\u201cspicules\u201d \u2013 2 \u00d7 3 mm",
     "\ufffd 38 \u00b0C", "x < 5 & y", "RGB.Png"],
)  # fmt: skip
def test_what_is_not_surely_glued_stays_as_it_is(caption):
    assert clean(caption) == caption


@pytest.mark.parametrize(
    "word",
    ["left", "right", "RIGHT", "No", "without", "µm", "β-blocker", "T12/L1", "18F-FDG", "H&E", "O₂", "5⅓"],
)
def test_clinical_words_are_unchanged(word):
    assert clean(f"  {word}  ") == unicodedata.normalize("NFC", word)


def test_cleaning_twice_is_cleaning_once():
    once = clean(" the lung.The  heart.A sign.The end")
    assert once == "the lung. The heart.A sign. The end"
    assert clean(once) == once


def test_real_captions_differ_from_their_originals_in_spaces_only(real_captions):
    originals = []
    for path in sorted(real_captions.glob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            originals += [
                row["caption"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            ]
    assert len(originals) == 12487
    squeezed = [re.sub(r"\s", "", unicodedata.normalize("NFC", caption)) for caption in originals]
    cleaned = [clean(caption) for caption in originals]
    assert [re.sub(r"\s", "", caption) for caption in cleaned] == squeezed
    assert not [caption for caption in cleaned if re.search(r"\s\s|^\s|\s$", caption)]
    parted = sum(len(new) > len(" ".join(old.split())) for old, new in zip(originals, cleaned, strict=True))
    assert 0 < parted < 500  # some are glued; a rule that parts more than one in 25 parts too much


def test_a_captions_ids_end_in_the_newline_and_have_no_bos():
    assert token_ids("CT of the chest.", Words(), NEWLINE) == [2, 2, 3, 6, NEWLINE]
    assert token_ids("", Words(), NEWLINE) == [NEWLINE]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (5, [7, 8, 9, 10, NEWLINE]),
        (6, [7, 8, 9, 10, NEWLINE]),
        (4, [7, 8, 9, NEWLINE]),
        (2, [7, NEWLINE]),
        (1, [NEWLINE]),
    ],
)
def test_a_caption_that_is_cut_keeps_its_end_inside_the_limit(limit, expected):
    ids = [7, 8, 9, 10, NEWLINE]
    assert cut(ids, limit) == expected
    assert ids == [7, 8, 9, 10, NEWLINE]


@pytest.mark.parametrize(
    ("percentile", "room", "limit"),
    [(100, 99, 11), (50, 99, 6), (95, 99, 11), (94, 99, 11), (10, 99, 2), (100, 8, 8), (50, 6, 6)],
)
def test_the_limit_is_the_percentile_rounded_up_but_never_more_than_the_room(percentile, room, limit):
    # Lengths 1..11: the p-th percentile is 1 + p / 10.
    assert token_limit(list(range(1, 12)), percentile, room) == limit


def test_the_limit_is_a_plain_number_for_json():
    assert type(token_limit([3, 4], 99, 64)) is int


def test_the_name_of_a_special_token_in_a_caption_is_text(tiny_folder):
    """A caption that held "<image>" became an image token, and training stopped over one image too many."""
    from utils.model import load_tokenizer

    tokenizer = load_tokenizer(tiny_folder)
    ids = token_ids("<image> </s> <pad> chest", tokenizer, 202)
    assert not {700, 0, 1, 2, 3} & set(ids)
    assert tokenizer.decode(ids[:-1]) == "<image> </s> <pad> chest"
