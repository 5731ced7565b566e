"""The evaluation's tables and files: systems side by side, on the same images, by the same metrics."""

from pathlib import Path

import pandas as pd

from utils import metrics
from utils.stages import StageFolder, read_json, write_json

SYSTEMS = ("most common caption", "base", "tuned")
HEADLINE = ["bleu_1", "bleu_4", "rouge_l", "cider", "modality_accuracy", "finding_accuracy",
            "side_accuracy", "all_right_share", "length_ratio", "unique_share"]  # fmt: skip


def join_references(predictions: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Put the reference caption and the modality beside each prediction.

    Raises:
        ValueError: a test image has no prediction.
    """
    joined = table[["image_id", "caption", "modality"]].merge(predictions, on="image_id", how="left")
    lost = joined["tuned"].isna()
    if lost.any():
        raise ValueError(
            f"{lost.sum()} of {len(joined)} images have no caption (first: "
            f"{joined['image_id'][lost].iloc[0]}). Run the generation cell again: it goes on."
        )
    return joined.rename(columns={"caption": "reference"})


def score_systems(joined: pd.DataFrame, common: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score base, tuned and the most common training caption on the same images.

    Args:
        joined: columns reference, base, tuned, modality.
        common: the most common training caption, the least that a model must beat.

    Returns:
        summary (one row a system) and ``joined`` with the tuned captions' own scores, prefixed
        ``tuned_``, beside the base's.
    """
    references, modalities = joined["reference"].tolist(), joined["modality"].tolist()
    answers = {"most common caption": [common] * len(joined), "base": joined["base"].tolist(),
               "tuned": joined["tuned"].tolist()}  # fmt: skip
    rows, scored = {}, joined
    for system, predictions in answers.items():
        rows[system], own = metrics.score_captions(references, predictions, modalities)
        if system in joined.columns:
            scored = scored.join(own.add_prefix(f"{system}_").set_index(scored.index))
    return pd.DataFrame(rows).T.loc[list(SYSTEMS)], scored


def settings(decoding: dict, prepared: StageFolder, trained: StageFolder) -> dict:
    """Collect all that a score depends on, so that nobody has to guess it later."""
    preprocess = read_json(prepared.path / "preprocess.json")
    run = read_json(trained.path / "run.json")
    return {
        "split": "test",
        "images": prepared.manifest["counts"]["test"],
        "model_id": preprocess["model_id"],
        "adapter_sha256": trained.manifest["files"]["adapter/adapter_model.safetensors"]["sha256"],
        "preset": run["preset"],
        "decoding": decoding | {"sampling": False},
        "token_limit": preprocess["token_limit"],
        "normalisation": "ImageCLEFmedical Caption: lower case, digits -> number, no punctuation",
        "cider": "CIDEr-D of pycocoevalcap, document frequencies from these references",
    }


def write_stage(folder: Path, scored: pd.DataFrame, summary: pd.DataFrame, settings: dict) -> dict:
    """Write predictions, scores and the submission file; return the stage's key figures."""
    scored.to_parquet(folder / "predictions.parquet", index=False)
    submission = scored[["image_id", "tuned"]].set_axis(["ID", "Caption"], axis=1)
    submission.to_csv(folder / "submission.csv", index=False)
    scores = {system: row.to_dict() for system, row in summary.iterrows()}
    write_json(folder / "metrics.json", {"settings": settings, "scores": scores})
    base, tuned = summary.loc["base"], summary.loc["tuned"]
    return {
        "images": len(scored),
        "cider": f"{base['cider']:.3f} -> {tuned['cider']:.3f}",
        "modality": f"{base['modality_accuracy']:.2f} -> {tuned['modality_accuracy']:.2f}",
        "all_right": f"{base['all_right_share']:.2f} -> {tuned['all_right_share']:.2f}",
    }
