"""N-grams of many texts at once, as sparse counts: what BLEU, CIDEr and chrF are made of."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

# A text is a list of words or, for n-grams of characters, a string.
Text = Sequence[str]


def ngram_counts(lists: Sequence[Sequence[Text]], order: int) -> list[list[csr_array]]:
    """Count the n-grams of lists of N texts each, for n = 1 to `order`.

    Returns for each list its counts of each n: an array of shape (N, n-grams). Equal n-grams have
    one column in all lists, so that the counts of two lists can be compared.
    """
    texts = list(chain.from_iterable(lists))
    words, n = pd.factorize(np.fromiter(chain.from_iterable(texts), dtype=object))[0], len(lists[0])
    owners = np.repeat(np.arange(len(texts)), [len(text) for text in texts])
    starts, grams, counts = np.arange(len(words)), words, []
    for length in range(1, order + 1):
        if length > 1:
            # An n-gram is the (n-1)-gram at its start and the word at its end, in the same text.
            ends = starts + length - 1
            whole = ends < len(words)
            whole[whole] = owners[starts[whole]] == owners[ends[whole]]
            starts = starts[whole]
            grams = pd.factorize(grams[whole] * (len(words) + 1) + words[starts + length - 1])[0]
        shape = (len(texts), grams.max(initial=-1) + 1)
        counts.append(csr_array((np.ones(len(grams)), (owners[starts], grams)), shape=shape))
    return [[each[start : start + n] for each in counts] for start in range(0, len(texts), n)]


def matches(references: Sequence[csr_array], predictions: Sequence[csr_array]) -> np.ndarray:
    """Return what the n-grams of N pairs of texts have in common: (N, order, 3).

    Last axis: n-grams of the prediction, of the reference, and those that match, each n-gram of
    the prediction as often at most as the reference has it (Papineni et al. 2002).
    """
    return np.stack(
        [
            np.column_stack([own.sum(axis=1), of.sum(axis=1), own.minimum(of).sum(axis=1)])
            for of, own in zip(references, predictions, strict=True)
        ],
        axis=1,
    )
