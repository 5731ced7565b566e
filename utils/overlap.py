"""BLEU and chrF from the n-grams that a caption shares with its reference.

Both are formulae of counts summed over images. A corpus without any word scores 1 by both.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.sparse import csr_array

from utils.ngrams import matches, ngram_counts
from utils.resampling import Sums

# Added to match counts and to n-gram counts by the COCO caption code (pycocoevalcap).
TINY, SMALL = 1e-15, 1e-9
# chrF as sacrebleu's default: characters up to 6, recall weighing twice as much (Popović 2015).
CHARACTERS, BETA = 6, 2


def bleu_measures(references: Sequence[csr_array], predictions: Sequence[csr_array]) -> dict[str, Sums]:
    """Return corpus BLEU (Papineni et al. 2002), "bleu_1" to "bleu_4", from counts of 1 to 4 words.

    The formula is the COCO caption code's: a corpus without a match of some length scores a small
    BLEU instead of none. There is no BLEU of a single image.
    """
    statistics = matches(references, predictions).reshape(references[0].shape[0], -1)
    return {
        f"bleu_{order}": Sums(statistics, partial(_bleu, order), len(statistics)) for order in range(1, 5)
    }


def chrf_measure(references: list[str], predictions: list[str]) -> Sums:
    """Return corpus chrF of the texts' characters without spaces, 0 to 1.

    As sacrebleu's CHRF, divided by 100. `each` is the chrF of one image; two texts without a
    character score 1.
    """
    texts = [["".join(text.split()) for text in texts] for texts in (references, predictions)]
    # A caption has many characters, and no image needs another's: some at a time save memory.
    slices = [slice(start, start + 1000) for start in range(0, len(references), 1000)]
    counts = np.concatenate(
        [matches(*ngram_counts([of[rows] for of in texts], CHARACTERS)) for rows in slices]
    )
    written = np.array([bool(of or own) for of, own in zip(*texts, strict=True)])
    # Predicted n-grams of a length that the reference has none of do not count.
    counts[..., 0] *= counts[..., 1] > 0
    statistics = np.column_stack([counts.reshape(len(counts), -1), written])
    return Sums(statistics, _chrf, len(statistics), _chrf(statistics))


def _bleu(order: int, sums: np.ndarray) -> np.ndarray:
    predicted, expected, matching = np.moveaxis(_triples(sums), -1, 0)
    precisions = (matching[..., :order] + TINY) / (predicted[..., :order] + SMALL)
    # The 1-grams of a text are its words, so their number is its length.
    ratio = (predicted[..., 0] + TINY) / (expected[..., 0] + SMALL)
    brevity = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    score = np.prod(precisions, axis=-1) ** (1 / order) * brevity
    return np.where((predicted[..., 0] == 0) & (expected[..., 0] == 0), 1.0, score)


def _chrf(sums: np.ndarray) -> np.ndarray:
    predicted, expected, matching = np.moveaxis(_triples(sums[..., :-1]), -1, 0)
    found = (predicted > 0) & (expected > 0)
    lengths = np.maximum(1, found.sum(axis=-1))
    precision, recall = (
        np.divide(matching, of, out=np.zeros_like(matching), where=found).sum(axis=-1) / lengths
        for of in (predicted, expected)
    )
    weighted = BETA**2 * precision + recall
    score = (1 + BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1.0)
    return np.where(sums[..., -1] == 0, 1.0, score)


def _triples(sums: np.ndarray) -> np.ndarray:
    """Return sums (..., 3 x order) as (..., order, 3): predicted, expected, matching n-grams."""
    return sums.reshape(*sums.shape[:-1], -1, 3)
