"""Copies are found by their pixels, near copies by comparing every hash with every other."""

import random
from itertools import combinations

import pandas as pd
import pytest

from utils import duplicates
from utils.duplicates import FLAT, copies, copy_counts, near_copies

PAIRS = [("train", "train"), ("train", "valid"), ("train", "test"), ("valid", "valid"), ("valid", "test"),
         ("test", "test")]  # fmt: skip


def records(*rows):
    """Rows (split, sha256, phash) get the ids 0, 1, 2..."""
    table = pd.DataFrame(rows, columns=["split", "sha256", "phash"], dtype=object)
    return table.assign(
        image_id=[str(n) for n in range(len(rows))],
        caption=[f"c{n}" for n in range(len(rows))],
        repeated=False,
    )


def hashed(*rows):
    """Rows (split, number): no two images are the same, and the number is the perceptual hash."""
    return records(*((split, f"sha {n}", f"{number:016x}") for n, (split, number) in enumerate(rows)))


def numbers(counts):
    """The last column of a table of counts, whose first two are the pairs of splits in their order."""
    assert list(zip(counts["split"], counts["other split"], strict=True)) == PAIRS
    return counts.iloc[:, 2].tolist()


def test_equal_pixels_make_a_group_in_the_order_of_the_records():
    listed = copies(records(
        ("train", "x", None), ("train", "y", None), ("train", "z", None), ("valid", "y", None),
        ("test", "x", None), ("test", "y", None),
    ))  # fmt: skip
    assert listed.columns.tolist() == ["image_id", "split", "caption", "group"]
    assert listed.to_numpy().tolist() == [
        ["0", "train", "c0", 0], ["4", "test", "c4", 0], ["1", "train", "c1", 1], ["3", "valid", "c3", 1],
        ["5", "test", "c5", 1],
    ]  # fmt: skip


def test_pairs_without_pixels_are_no_copies():
    assert copies(records(("train", None, None), ("test", None, None), ("test", "x", None))).empty


def test_an_id_that_is_listed_twice_is_no_copy_of_itself():
    """The hub's copy of ROCOv2 lists four pairs more than the release: they would be sets in train."""
    listed = records(("train", "x", None), ("train", "x", None), ("test", "x", None))
    assert copies(listed.assign(repeated=[False, True, False]))["image_id"].tolist() == ["0", "2"]
    assert copies(listed.iloc[:2].assign(repeated=[False, True])).empty


def test_a_group_of_three_splits_counts_for_each_two_that_it_touches():
    x, y, z = "xyz"
    listed = copies(records(
        ("train", x, None), ("valid", x, None), ("test", x, None),  # one in each split
        ("train", y, None), ("train", y, None), ("test", y, None),  # two in train, one in test
        ("valid", z, None), ("valid", z, None), ("valid", z, None),  # three in valid are one set
    ))  # fmt: skip
    assert numbers(copy_counts(listed)) == [1, 1, 2, 1, 1, 0]


def test_no_copies_count_to_zero():
    assert numbers(copy_counts(copies(records(("train", "x", None))))) == [0] * 6
    assert numbers(copy_counts(copies(records()))) == [0] * 6


def test_near_copies_are_listed_nearest_first_with_their_splits():
    near, counts = near_copies(hashed(
        ("train", 0xFF00FF), ("valid", 0xFF00F0), ("test", 0xFF00FE), ("test", 0xFF00FF << 30),
        ("train", 0xFF00FF),
    ))  # fmt: skip
    assert near.columns.tolist() == ["first", "second", "first_split", "second_split", "bits"]
    assert near.to_numpy().tolist() == [
        ["0", "4", "train", "train", 0], ["0", "2", "train", "test", 1], ["2", "4", "test", "train", 1],
        ["1", "2", "valid", "test", 3], ["0", "1", "train", "valid", 4], ["1", "4", "valid", "train", 4],
    ]  # fmt: skip
    assert numbers(counts) == [1, 2, 2, 0, 1, 0]


def test_the_number_of_bits_is_a_limit_that_belongs_to_it():
    table = hashed(("train", 0b1), ("train", 0b111110), ("train", 0b1111100))
    assert near_copies(table, bits=6)[0]["bits"].tolist() == [2, 6, 6]
    assert near_copies(table, bits=5)[0]["bits"].tolist() == [2]
    assert near_copies(table)[0]["bits"].tolist() == [2]
    assert near_copies(table, bits=1)[0].empty


def test_the_highest_bit_counts_like_any_other():
    near, _ = near_copies(hashed(("train", 2**64 - 1), ("train", 2**63 - 1)))
    assert near["bits"].tolist() == [1]


def test_of_exact_copies_one_stands_for_all():
    near, counts = near_copies(records(
        ("train", "x", "00000000000000ff"), ("test", "x", "00000000000000ff"),
        ("test", "y", "00000000000000fe"), ("valid", "y", "00000000000000fe"),
    ))  # fmt: skip
    assert near.to_numpy().tolist() == [["0", "2", "train", "test", 1]]
    assert numbers(counts) == [0, 0, 1, 0, 0, 0]


def test_flat_pictures_and_pictures_without_a_hash_are_left_out():
    flat = [("train", f"flat {n}", FLAT[n % 2]) for n in range(6)]
    near, counts = near_copies(records(*flat, ("test", None, None), ("test", "x", "8000000000000001")))
    assert near.empty
    assert numbers(counts) == [0] * 6


@pytest.mark.parametrize("count", [0, 1])
def test_of_no_image_or_one_there_is_no_pair(count):
    near, counts = near_copies(hashed(*[("train", 7)] * count))
    assert near.columns.tolist() == ["first", "second", "first_split", "second_split", "bits"]
    assert near.empty
    assert numbers(counts) == [0] * 6


def crowd(count):
    """Hashes of a few pictures, each changed in up to four bits, so that many are near to others."""
    draw = random.Random(0)
    centres = [draw.getrandbits(64) for _ in range(count // 8)]
    rows = []
    for _ in range(count):
        number = draw.choice(centres)
        for bit in draw.sample(range(64), draw.randint(0, 4)):
            number ^= 1 << bit
        rows.append((draw.choice(["train", "valid", "test"]), number))
    return sorted(rows, key=lambda row: ["train", "valid", "test"].index(row[0]))


def by_hand(rows, limit):
    """Every pair that is near, compared in plain Python."""
    numbered = list(enumerate(rows))
    pairs = [
        (str(i), str(j), s, t, (a ^ b).bit_count()) for (i, (s, a)), (j, (t, b)) in combinations(numbered, 2)
    ]
    return sorted((pair for pair in pairs if pair[4] <= limit), key=lambda pair: pair[4])


@pytest.mark.parametrize("block", [(64, 8192), (7, 13), (13, 7), (1, 1), (300, 5), (5, 300)])
def test_near_copies_equal_a_comparison_in_plain_python(block, monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", block)
    rows = crowd(300)
    expected = by_hand(rows, 4)
    near, counts = near_copies(hashed(*rows))
    assert len(expected) > 300
    assert sorted(near.itertuples(index=False, name=None)) == sorted(expected)
    assert near["bits"].tolist() == [pair[4] for pair in expected]
    tally = [sum((s, t) == pair for *_, s, t, _ in expected) for pair in PAIRS]
    assert numbers(counts) == tally  # rows are in the order of the splits, so that no pair is turned


def test_the_nearest_pairs_are_listed_and_all_are_counted(monkeypatch):
    rows = crowd(300)
    expected = by_hand(rows, 4)
    monkeypatch.setattr(duplicates, "LISTED", 20)
    monkeypatch.setattr(duplicates, "BLOCK", (7, 13))
    near, counts = near_copies(hashed(*rows))
    assert near["bits"].tolist() == [pair[4] for pair in expected[:20]]
    assert set(near.itertuples(index=False, name=None)) <= set(expected)
    assert counts["pairs"].sum() == len(expected)


def test_a_pair_counts_the_same_whichever_split_comes_first():
    near, counts = near_copies(
        hashed(("test", 1), ("train", 3), ("valid", 0xFF << 40), ("train", 0xFE << 40))
    )
    assert len(near) == 2
    assert numbers(counts) == [0, 1, 1, 0, 0, 0]
