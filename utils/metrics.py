"""Metrics of word overlap: offline, deterministic, from two lists of strings.

`references[i]` and `predictions[i]` are the captions of image i. Texts are read in two forms.
The official one is normalised as ImageCLEFmedical Caption does, its words are what spaces part.
The raw one, with the suffix `_raw` on a metric's name, is the caption as written: words of
sacrebleu's 13a tokenizer, case kept, for BLEU and CIDEr; of rouge_score's own tokenizer for
ROUGE; characters for chrF. Every function raises ValueError when the lists are empty, differ in
length or hold no strings.
"""

import re
import string
from collections import Counter

import numpy as np
import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from utils.cider import References, cider_measures
from utils.ngrams import ngram_counts
from utils.overlap import bleu_measures, chrf_measure
from utils.resampling import Measure, mean_of

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TOKENIZER = Tokenizer13a()
WORDS = 4  # BLEU and CIDEr count n-grams of up to four words


def normalise(caption: str) -> str:
    """Normalise a caption as the ImageCLEFmedical Caption evaluator does.

    Lower case, then each run of digits becomes "number", then `string.punctuation` is removed
    (github.com/taubsity/clef-caption-evaluation). Digits go first, so "3.5" is "numbernumber".
    """
    return re.sub(r"\d+", "number", caption.lower()).translate(_NO_PUNCTUATION)


def bleu(references: list[str], predictions: list[str]) -> dict[str, float]:
    """Return corpus BLEU on normalised words: "bleu_1" to "bleu_4", each 0 to 1.

    See `utils.overlap.bleu_measures`. A pair of empty captions adds nothing; a corpus of nothing
    but such pairs scores 1, an empty corpus of predictions 0.
    """
    measures = bleu_measures(*_normalised_counts(references, predictions))
    return {name: measure.value for name, measure in measures.items()}


def cider(references: list[str], predictions: list[str]) -> tuple[float, np.ndarray]:
    """Return the mean CIDEr-D on normalised words and the array of shape (n,), each 0 to 10.

    See `utils.cider`. Document frequencies come from the references given, so scores of two sets
    of images are not comparable, and n-grams that every reference holds weigh nothing: a single
    pair of captions with words scores 0.
    """
    found, own = _normalised_counts(references, predictions)
    each = cider_measures(References(found), own)["cider"].each
    return float(each.mean()), each


def rouge(references: list[str], predictions: list[str]) -> pd.DataFrame:
    """Return ROUGE-1 and ROUGE-L F1 (Lin 2004) per caption: columns rouge_1, rouge_l, 0 to 1.

    Computed by rouge_score without stemming on normalised captions, as the ImageCLEFmedical
    evaluator does. Two empty captions score 1, an empty and a non-empty one 0.
    """
    check_texts(references, predictions)
    return _rouge([normalise(text) for text in references], [normalise(text) for text in predictions])


def overlap_measures(references: list[str], systems: dict[str, list[str]]) -> dict[str, dict[str, Measure]]:
    """Return every metric of word overlap, for each system (name -> predictions).

    Keys: bleu_1 to bleu_4, cider (CIDEr-D), cider_plain, rouge_1, rouge_l and chrf, of normalised
    texts; then each with `_raw`. ROUGE is the mean of the images' F1.
    """
    for predictions in systems.values():
        check_texts(references, predictions)
    measures: dict[str, dict[str, Measure]] = {system: {} for system in systems}
    for suffix, form, words in (("", normalise, str.split), ("_raw", str, raw_words)):
        texts = [[form(text) for text in each] for each in (references, *systems.values())]
        found, *counts = ngram_counts([[words(text) for text in each] for each in texts], WORDS)
        shared = References(found)
        for system, predictions, own in zip(systems, texts[1:], counts, strict=True):
            scores = bleu_measures(found, own) | cider_measures(shared, own)
            scores |= {name: mean_of(each) for name, each in _rouge(texts[0], predictions).items()}
            scores["chrf"] = chrf_measure(texts[0], predictions)
            measures[system] |= {name + suffix: score for name, score in scores.items()}
    return measures


def raw_words(caption: str) -> list[str]:
    """Return the words of a caption as written, by sacrebleu's 13a tokenizer (mteval-v13a)."""
    return _TOKENIZER(caption).split()


def most_common_caption(train_captions: list[str]) -> str:
    """Return the most frequent caption, the baseline that looks at no image.

    Outer space is ignored and blank captions do not count; of equally frequent captions the first
    in code-point order is taken. Raises ValueError when there is no caption.
    """
    counts = Counter(text.strip() for text in train_captions if text.strip())
    if not counts:
        raise ValueError(
            "There is no training caption to take the most common one from: "
            "pass the captions of the train split."
        )
    return min(counts, key=lambda text: (-counts[text], text))


def check_texts(references: list[str], predictions: list[str]) -> None:
    """Raise ValueError unless both are lists of texts, equally many and at least one."""
    for name, captions in (("references", references), ("predictions", predictions)):
        if isinstance(captions, str):
            raise ValueError(f"The {name} are one string, {captions[:40]!r}: pass a list of captions.")
        wrong = [(i, caption) for i, caption in enumerate(captions) if not isinstance(caption, str)]
        if wrong:
            raise ValueError(
                f"{len(wrong)} of {len(captions)} {name} are not text, but e.g. number {wrong[0][0]} is "
                f"{wrong[0][1]!r}: drop these images or replace their captions before scoring."
            )
    if len(references) != len(predictions):
        raise ValueError(
            f"There are {len(references)} references and {len(predictions)} predictions: "
            "pass one prediction for each reference, in the same order."
        )
    if not len(references):
        raise ValueError("There are no captions to score: pass at least one reference.")


def _normalised_counts(references: list[str], predictions: list[str]) -> list:
    check_texts(references, predictions)
    texts = [[normalise(text).split() for text in each] for each in (references, predictions)]
    return ngram_counts(texts, WORDS)


def _rouge(references: list[str], predictions: list[str]) -> pd.DataFrame:
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    rows = []
    for reference, prediction in zip(references, predictions, strict=True):
        if not reference.split() and not prediction.split():
            rows.append((1.0, 1.0))
            continue
        score = scorer.score(reference, prediction)
        rows.append((score["rouge1"].fmeasure, score["rougeL"].fmeasure))
    return pd.DataFrame(rows, columns=["rouge_1", "rouge_l"])
