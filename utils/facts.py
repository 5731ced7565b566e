"""Agreement on facts: what a caption states by the words of the lexicon (`utils.terms`).

Overlap of words hardly notices that "left" became "right" or that a "no" was lost; a reader does.
The captions are read as written. Every function raises ValueError when its lists are empty, differ
in length or hold no strings.
"""

import numpy as np
import pandas as pd

from utils.metrics import check_texts
from utils.resampling import Sums, mean_of
from utils.terms import FACETS, MODALITY_CUIS, modality_terms, named_terms, negated_terms


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
    check_texts(references, predictions)
    known = _known_modalities(modalities, len(references))
    rows = []
    for reference, prediction, modality in zip(references, predictions, known, strict=True):
        expected, named = named_terms(reference), named_terms(prediction)
        if modality is not None:
            expected["modality"] = modality_terms(modality)
        rows.append([named[facet] == expected[facet] for facet in FACETS])
    right = pd.DataFrame(rows, columns=[f"{facet}_right" for facet in FACETS])
    return right.assign(all_right=right.all(axis=1))


def fact_measures(
    references: list[str],
    predictions: list[str],
    modalities: list[str | None] | None = None,
) -> dict[str, Sums]:
    """Return shares of images, 0 to 1, with the images' own values (NaN where one does not count).

    modality_, region_, finding_ and side_accuracy, all_right_share: the means of `fact_agreement`;
    every image counts. laterality_agreement: of the images whose reference names a side, those
    whose prediction names exactly the same. side_flip_share: of the images where both name exactly
    one side, those that name opposite ones. negation_flip_share: of the images where both mention
    some same finding, affirmed or denied, those where one text only affirms and the other only
    denies such a finding. A share of no image is NaN, with n = 0.
    """
    right = fact_agreement(references, predictions, modalities)
    shares = {f"{facet}_accuracy": mean_of(right[f"{facet}_right"]) for facet in FACETS}
    return {
        **shares,
        "all_right_share": mean_of(right["all_right"]),
        **_side_shares(references, predictions),
        "negation_flip_share": _negation_flips(references, predictions),
    }


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


def _side_shares(references: list[str], predictions: list[str]) -> dict[str, Sums]:
    sides = [
        (named_terms(reference)["side"], named_terms(prediction)["side"])
        for reference, prediction in zip(references, predictions, strict=True)
    ]
    same = np.array([expected == named for expected, named in sides])
    stated = np.array([bool(expected) for expected, _ in sides])
    single = np.array([len(expected) == len(named) == 1 for expected, named in sides])
    return {"laterality_agreement": mean_of(same, stated), "side_flip_share": mean_of(~same, single)}


def _negation_flips(references: list[str], predictions: list[str]) -> Sums:
    flips, shared = [], []
    for reference, prediction in zip(references, predictions, strict=True):
        said, other_said = (named_terms(text)["finding"] for text in (reference, prediction))
        denied, other_denied = negated_terms(reference), negated_terms(prediction)
        shared.append(bool((said | denied) & (other_said | other_denied)))
        # What a text both affirms and denies ("no effusion on the left") is opposite to nothing.
        lost = (said - denied) & (other_denied - other_said)
        flips.append(bool(lost | (denied - said) & (other_said - other_denied)))
    return mean_of(np.array(flips), np.array(shared))


def _named_modality(caption: str) -> str:
    named = named_terms(caption)["modality"]
    if not named:
        return "none"
    for modality in MODALITY_CUIS.values():
        if named == modality_terms(modality):
            return modality
    return "several"


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
