"""Images that are there more than once: exact copies by their pixels, near copies by perceptual hash."""

import sys
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from tqdm import tqdm

from utils.pairs import SPLITS

NEAR = 4  # bits of 64 that two perceptual hashes may differ in
BLOCK = 64, 8192  # hashes compared at a time: half a million comparisons stay in a core's cache
LISTED = 10_000  # near pairs that are listed; all are counted
# What the perceptual hash gives for a picture of one grey: black, and any other.
FLAT = ("0000000000000000", "8000000000000000")


def copies(records: pd.DataFrame) -> pd.DataFrame:
    """List the images whose pixels are the same as another's.

    Args:
        records: columns image_id, split, sha256 (None where no pixel was read), caption, repeated (an ID
            that stands there again is no copy of itself).

    Returns:
        image_id, split, group (a number for each set of equal images), caption; ordered by group.
    """
    seen = records[records["sha256"].notna() & ~records["repeated"]]
    twice = seen[seen["sha256"].duplicated(keep=False)]
    group = pd.Series(pd.factorize(twice["sha256"])[0], index=twice.index)
    listed = twice[["image_id", "split", "caption"]].assign(group=group)
    return listed.sort_values("group", kind="stable", ignore_index=True)


def near_copies(records: pd.DataFrame, bits: int = NEAR) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Find the pairs of different images whose perceptual hashes differ in few bits.

    Every image is compared with every other: n (n - 1) / 2 comparisons, some seconds for ROCOv2.
    Of exact copies one stands for all; pictures of one flat grey have no hash to speak of and are left out.

    Args:
        records: columns image_id, split, sha256, phash (16 hex digits, None where no pixel was read).
        bits: the most bits that may differ.

    Returns:
        the near pairs, nearest first (first, second, first_split, second_split, bits), the first
        ``LISTED`` of them; and their number by the two splits.
    """
    seen = records[records["phash"].notna()].drop_duplicates("sha256")
    seen = seen[~seen["phash"].isin(FLAT)]
    hashes = np.array([int(text, 16) for text in seen["phash"]], dtype=np.uint64)
    splits = seen["split"].map(SPLITS.index).to_numpy(dtype=np.int64)
    first, second, differ, counts = close_pairs(hashes, splits, bits)
    ids, names = seen["image_id"].to_numpy(), seen["split"].to_numpy()
    table = pd.DataFrame({"first": ids[first], "second": ids[second], "first_split": names[first],
                          "second_split": names[second], "bits": differ})  # fmt: skip
    return table.sort_values("bits", kind="stable", ignore_index=True), split_counts(counts)


def close_pairs(hashes: np.ndarray, splits: np.ndarray, bits: int) -> tuple[np.ndarray, ...]:
    """Compare all hashes (n,) uint64, block by block.

    Returns:
        positions of the first and the second of each close pair, the bits in which they differ (at most
        ``LISTED`` of each, those of fewer bits first), and all pairs counted by split (3, 3).
    """
    found: list[np.ndarray] = []
    counts = np.zeros((len(SPLITS), len(SPLITS)), dtype=np.int64)
    high, wide = BLOCK
    bar = tqdm(range(0, len(hashes), high), desc="comparing hashes", unit="block", file=sys.stdout)
    for top in bar:
        for left in range(top, len(hashes), wide):
            differ = np.bitwise_count(hashes[top : top + high, None] ^ hashes[None, left : left + wide])
            rows, columns = np.nonzero(differ <= bits)
            rows, columns, few = rows + top, columns + left, differ[rows, columns]
            once = rows < columns
            rows, columns, few = rows[once], columns[once], few[once]
            np.add.at(counts, (splits[rows], splits[columns]), 1)
            found.append(np.stack([rows, columns, few.astype(np.int64)]))
        found = [shortened(found)]
    first, second, differ = shortened(found)
    return first, second, differ, counts


def shortened(found: list[np.ndarray]) -> np.ndarray:
    """Join lists of pairs (3, n) and keep the ``LISTED`` that differ in the fewest bits."""
    joined = np.concatenate([np.empty((3, 0), dtype=np.int64), *found], axis=1)
    return joined[:, np.argsort(joined[2], kind="stable")[:LISTED]]


def split_counts(counts: np.ndarray) -> pd.DataFrame:
    """Return counts (3, 3) by ordered pair of splits as a table by unordered pair: splits, pairs."""
    both = counts + counts.T - np.diag(np.diag(counts))
    places = combinations_with_replacement(range(len(SPLITS)), 2)
    rows = [(SPLITS[a], SPLITS[b], int(both[a, b])) for a, b in places]
    return pd.DataFrame(rows, columns=["split", "other split", "pairs"])


def copy_counts(listed: pd.DataFrame) -> pd.DataFrame:
    """Count groups of exact copies by the two splits that they touch: a group of three splits counts thrice.

    Args:
        listed: what :func:`copies` returned.
    """
    rows = []
    table = pd.crosstab(listed["group"], listed["split"]).reindex(columns=list(SPLITS), fill_value=0)
    for a, b in combinations_with_replacement(SPLITS, 2):
        touched = (table[a] > 1) if a == b else (table[a] > 0) & (table[b] > 0)
        rows.append((a, b, int(touched.sum())))
    return pd.DataFrame(rows, columns=["split", "other split", "groups"])
