"""Health: what a collapsed, looping or cut captioner shows, before any score is believed.

Words are those of normalised captions, so that the length ratio is the one BLEU's brevity penalty
sees. Every function raises ValueError when its lists are empty, differ in length or hold no strings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from utils.metrics import check_texts, normalise
from utils.resampling import Measure, mean_of, ratio_of


@dataclass(frozen=True)
class UniqueShare:
    """Distinct captions over n: a figure of one list, without replicates.

    An image drawn twice repeats its caption, so a resampled list is less varied by construction.
    """

    captions: tuple[str, ...]
    each: None = None

    @property
    def n(self) -> int:
        """The images: all count."""
        return len(self.captions)

    @property
    def value(self) -> float:
        """The share, 1 / n to 1; outer space is ignored."""
        return len({text.strip() for text in self.captions}) / self.n

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) NaNs for counts (B, N)."""
        return np.full(len(counts), np.nan)


def health_measures(
    references: list[str], predictions: list[str], cut: Sequence[bool] | None = None
) -> dict[str, Measure]:
    """Return length_ratio, unique_share, empty_share, mean_words, repetition and cut_share.

    length_ratio: words of all predictions over words of all references; NaN without a reference
    word. unique_share: distinct predictions over n. empty_share: predictions without a word.
    mean_words: words a prediction. repetition: of all runs of three words, those that stand earlier
    in the same prediction; NaN where no prediction has three words. cut_share, only with `cut`:
    predictions that ended at the length limit, without an end token (`cut[i]`).
    """
    check_texts(references, predictions)
    expected = np.array([len(normalise(text).split()) for text in references])
    words = [normalise(text).split() for text in predictions]
    lengths = np.array([len(text) for text in words])
    runs = [list(zip(text, text[1:], text[2:], strict=False)) for text in words]
    totals = np.array([len(own) for own in runs])
    repeats = totals - np.array([len(set(own)) for own in runs])
    measures = {
        "length_ratio": ratio_of(lengths, expected, len(words)),
        "unique_share": UniqueShare(tuple(predictions)),
        "empty_share": mean_of(lengths == 0),
        "mean_words": mean_of(lengths),
        "repetition": ratio_of(repeats, totals, int((totals > 0).sum())),
    }
    return measures if cut is None else measures | {"cut_share": mean_of(_flags(cut, len(words)))}


def _flags(cut: Sequence[bool], n: int) -> np.ndarray:
    flags = list(cut)
    wrong = [i for i, flag in enumerate(flags) if not isinstance(flag, bool | np.bool_)]
    if len(flags) != n or wrong:
        raise ValueError(
            f"`cut` has {len(flags)} values for {n} captions, {len(wrong)} of them neither True nor False "
            f"(first numbers: {wrong[:3]}): pass one boolean a caption, in the same order."
        )
    return np.array(flags)
