"""Caption metrics: offline, deterministic, from two lists of strings.

`references[i]` and `predictions[i]` are the captions of image i. Scores from word overlap (BLEU,
ROUGE, CIDEr) compare normalised captions; the agreement on facts reads the captions as written.
Every function raises ValueError when the lists are empty, differ in length or hold no strings.
"""

import re
import string
from collections import Counter

import numpy as np
import pandas as pd
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer

from utils.terms import FACETS, MODALITY_CUIS, modality_terms, named_terms

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(caption: str) -> str:
    """Normalise a caption as the ImageCLEFmedical Caption evaluator does.

    Lower case, then each run of digits becomes "number", then `string.punctuation` is removed
    (github.com/taubsity/clef-caption-evaluation). Digits go first, so "3.5" is "numbernumber".
    """
    return re.sub(r"\d+", "number", caption.lower()).translate(_NO_PUNCTUATION)


def bleu(references: list[str], predictions: list[str]) -> dict[str, float]:
    """Return corpus BLEU (Papineni et al. 2002): "bleu_1" to "bleu_4", each 0 to 1.

    Computed by pycocoevalcap on normalised words, so without a PTB tokenizer. That library adds
    1e-15 to match counts and 1e-9 to n-gram counts; a corpus without any 4-word caption therefore
    scores a small BLEU-4 instead of none. A pair of empty captions adds nothing; a corpus of
    nothing but such pairs scores 1, an empty corpus of predictions 0.
    """
    references, predictions = _normalised(references, predictions)
    if not any(text.split() for text in references + predictions):
        scores = [1.0] * 4
    else:
        scores, _ = Bleu(4).compute_score(*_coco(references, predictions), verbose=0)
    return {f"bleu_{n}": float(score) for n, score in enumerate(scores, start=1)}


def cider(references: list[str], predictions: list[str]) -> tuple[float, np.ndarray]:
    """Return the mean CIDEr-D and the array of shape (n,), each 0 to 10 as pycocoevalcap scales.

    CIDEr-D as implemented there (Vedantam et al. 2015, clipped, length penalty sigma 6), on
    normalised words. Document frequencies come from the references given, so scores of two sets
    of images are not comparable, and n-grams that every reference holds weigh nothing: a single
    pair scores 0. A pair with an empty caption, also one of two empty ones, scores 0.
    """
    references, predictions = _normalised(references, predictions)
    if not any(text.split() for text in references):
        # The library takes the maximum of an empty table of document frequencies here.
        return 0.0, np.zeros(len(references))
    mean, each = Cider().compute_score(*_coco(references, predictions))
    return float(mean), np.asarray(each, dtype=float)


def rouge(references: list[str], predictions: list[str]) -> pd.DataFrame:
    """Return ROUGE-1 and ROUGE-L F1 (Lin 2004) per caption: columns rouge_1, rouge_l, 0 to 1.

    Computed by rouge_score without stemming on normalised captions, as the ImageCLEFmedical
    evaluator does. Two empty captions score 1, an empty and a non-empty one 0.
    """
    references, predictions = _normalised(references, predictions)
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    rows = []
    for reference, prediction in zip(references, predictions, strict=True):
        if not reference.split() and not prediction.split():
            rows.append((1.0, 1.0))
            continue
        score = scorer.score(reference, prediction)
        rows.append((score["rouge1"].fmeasure, score["rougeL"].fmeasure))
    return pd.DataFrame(rows, columns=["rouge_1", "rouge_l"])


def fact_agreement(
    references: list[str],
    predictions: list[str],
    modalities: list[str | None] | None = None,
) -> pd.DataFrame:
    """Return which facts each prediction gets right: n rows of booleans.

    Columns modality_right, region_right, finding_right, side_right and all_right. A facet is right
    when the prediction names exactly the terms that the reference names (`utils.terms`); where the
    reference names none, the prediction must name none. `modalities[i]`, where known from the
    image's concepts, replaces the modality read from the reference; None leaves the reference's.
    """
    _check(references, predictions)
    known = _known_modalities(modalities, len(references))
    rows = []
    for reference, prediction, modality in zip(references, predictions, known, strict=True):
        expected, named = named_terms(reference), named_terms(prediction)
        if modality is not None:
            expected["modality"] = modality_terms(modality)
        rows.append([named[facet] == expected[facet] for facet in FACETS])
    right = pd.DataFrame(rows, columns=[f"{facet}_right" for facet in FACETS])
    return right.assign(all_right=right.all(axis=1))


def caption_health(references: list[str], predictions: list[str]) -> dict[str, float]:
    """Return what a collapsed or cut captioner shows, before any score is believed.

    length_ratio: words of all predictions over words of all references (1 when neither has any;
    without a reference word the divisor is 1). unique_share: distinct predictions over n.
    empty_share: predictions without a word. mean_words: words a prediction. Words are those of
    normalised captions, so that the ratio is the one BLEU's brevity penalty sees.
    """
    normal_references, normal_predictions = _normalised(references, predictions)
    expected = sum(len(text.split()) for text in normal_references)
    lengths = [len(text.split()) for text in normal_predictions]
    written, n = sum(lengths), len(predictions)
    return {
        "length_ratio": 1.0 if written == expected else written / max(1, expected),
        "unique_share": len({text.strip() for text in predictions}) / n,
        "empty_share": lengths.count(0) / n,
        "mean_words": written / n,
    }


def score_captions(
    references: list[str],
    predictions: list[str],
    modalities: list[str | None] | None = None,
) -> tuple[dict[str, float], pd.DataFrame]:
    """Score predictions by every metric of this module.

    Returns (summary, per_caption). The summary holds plain floats, and n as an int. per_caption
    has n rows in the order given: rouge_1, rouge_l, cider and the booleans of `fact_agreement`.
    """
    mean_cider, each_cider = cider(references, predictions)
    overlap = rouge(references, predictions)
    facts = fact_agreement(references, predictions, modalities)
    summary = {
        **bleu(references, predictions),
        **{name: float(mean) for name, mean in overlap.mean().items()},
        "cider": mean_cider,
        **{f"{facet}_accuracy": float(facts[f"{facet}_right"].mean()) for facet in FACETS},
        "all_right_share": float(facts["all_right"].mean()),
        **caption_health(references, predictions),
        "n": len(references),
    }
    return summary, pd.concat([overlap.assign(cider=each_cider), facts], axis=1)


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


def modality_confusion(modalities: list[str | None], predictions: list[str]) -> pd.DataFrame:
    """Count captions by the image's modality (rows) and the modality they name (columns).

    Columns are the modalities, then "none" and "several". Rows are the modalities that occur;
    images of unknown modality (None) are left out.
    """
    known = _known_modalities(modalities, len(predictions))
    pairs = [
        (modality, _named_modality(prediction))
        for modality, prediction in zip(known, predictions, strict=True)
        if modality is not None
    ]
    order = list(dict.fromkeys([*MODALITY_CUIS.values(), *sorted({true for true, _ in pairs})]))
    table = pd.DataFrame(0, index=order, columns=[*order, "none", "several"])
    for true, named in pairs:
        table.loc[true, named] += 1
    table = table[table.sum(axis=1) > 0]
    return table.rename_axis(index="modality", columns="named in the caption")


def _named_modality(caption: str) -> str:
    named = named_terms(caption)["modality"]
    if not named:
        return "none"
    for modality in MODALITY_CUIS.values():
        if named == modality_terms(modality):
            return modality
    return "several"


def _coco(references: list[str], predictions: list[str]) -> tuple[dict, dict]:
    """Return both lists in pycocoevalcap's form: image number -> list of captions."""
    return (
        {i: [text] for i, text in enumerate(references)},
        {i: [text] for i, text in enumerate(predictions)},
    )


def _normalised(references: list[str], predictions: list[str]) -> tuple[list[str], list[str]]:
    _check(references, predictions)
    return [normalise(text) for text in references], [normalise(text) for text in predictions]


def _known_modalities(modalities: list[str | None] | None, n: int) -> list[str | None]:
    if modalities is None:
        return [None] * n
    if len(modalities) != n:
        raise ValueError(
            f"There are {len(modalities)} modalities for {n} captions: "
            "pass one modality (or None) an image, in the same order."
        )
    # A parquet column brings a missing modality back as NaN.
    return [None if pd.isna(modality) else modality for modality in modalities]


def _check(references: list[str], predictions: list[str]) -> None:
    if len(references) != len(predictions):
        raise ValueError(
            f"There are {len(references)} references and {len(predictions)} predictions: "
            "pass one prediction for each reference, in the same order."
        )
    if not len(references):
        raise ValueError("There are no captions to score: pass at least one reference.")
    for name, captions in (("reference", references), ("prediction", predictions)):
        for i, caption in enumerate(captions):
            if not isinstance(caption, str):
                raise ValueError(
                    f"The {name} number {i} is {caption!r}, not text: "
                    "drop that image or replace its caption before scoring."
                )
