"""One row an image: its reference, what every system says of it, and how good each caption is."""

import numpy as np
import pandas as pd

from utils import concepts, facts, metrics
from utils.captionparts import SYSTEMS as MODELS
from utils.predictions import check_ids, check_texts

# System -> column of its captions. The first two look at no image, or generate nothing: the least to beat.
SYSTEMS = {"most common caption": "common", "nearest image": "nearest", "base": "base", "tuned": "tuned"}
EACH = ("rouge_1", "rouge_l", "cider", "chrf", "concept_f1")  # kept for each caption


def join(
    test: pd.DataFrame, predictions: pd.DataFrame, nearest: pd.DataFrame, train: pd.DataFrame
) -> pd.DataFrame:
    """Put what every system says of each test image beside its reference.

    Args:
        test: captions of the test split: image_id, caption, modality, cuis, mode, chroma.
        predictions: image_id, base, tuned, and what goes with them.
        nearest: image_id, train_id: the training image that looks most alike.
        train: captions of the training split.

    Returns:
        one row an image in the order of ``test``: its reference, modality, colour ("RGB, grey pixels"),
        cuis, the captions common, nearest, base, tuned, and the other columns of ``predictions``.

    Raises:
        PredictionError: a test image has no caption or several, or a caption is no text.
    """
    for table in (predictions, nearest):
        check_ids(table["image_id"], test["image_id"].tolist())
    for system in MODELS:
        check_texts(predictions["image_id"], predictions[system], empty=True)
    said = nearest[["image_id", "train_id"]].merge(
        train[["image_id", "caption"]].set_axis(["train_id", "nearest"], axis=1), on="train_id", how="left"
    )
    kept = test[["image_id", "caption", "modality", "cuis"]].rename(columns={"caption": "reference"})
    common = metrics.most_common_caption(train["caption"].tolist())
    joined = kept.assign(colour=colour_of(test), common=common)
    joined = joined.merge(said, on="image_id").merge(predictions, on="image_id")
    known = joined["modality"].astype(object)
    return joined.assign(modality=known.where(known.notna(), None))


def colour_of(table: pd.DataFrame) -> list[str]:
    """Name the file's mode and, where pixels were read, whether it shows colour."""
    shown = np.where(table["chroma"].fillna(0) > 0, ", colour", ", grey pixels")
    shown = np.where(table["chroma"].isna(), "", shown)
    return (table["mode"].fillna("unknown") + shown).tolist()


def per_caption(joined: pd.DataFrame, measures: dict, names: concepts.ConceptNames | None) -> pd.DataFrame:
    """Put the scores of each caption of base and tuned beside it, prefixed with the system."""
    references, scored = joined["reference"].tolist(), joined
    for system in MODELS:
        captions = joined[system].tolist()
        found = {m: measures[system][m].each for m in EACH if m in measures[system]}
        for flip in ("negation_flip", "side_flip"):
            found[flip] = measures[system][f"{flip}_share"].each
        rows = facts.fact_agreement(references, captions, joined["modality"].tolist()).assign(**found)
        if names is not None:
            rows["invented"] = np.asarray(measures[system]["invented_share"].each).astype(bool)
            errors = concepts.concept_errors(references, captions, joined["cuis"].tolist(), names)
            rows = rows.join(errors.add_suffix("_concepts"))
        scored = scored.join(rows.add_prefix(f"{system}_").set_index(scored.index))
    return scored


def chosen(scored: pd.DataFrame, count: int, seed: int) -> dict[str, pd.DataFrame]:
    """Choose captions to read: the best and worst tuned ones by CIDEr, and some at random."""
    ordered = scored.sort_values("tuned_cider", kind="stable")
    drawn = scored.sample(min(count, len(scored)), random_state=seed)
    return {"Best": ordered.iloc[::-1].head(count), "Worst": ordered.head(count), "Random": drawn}
