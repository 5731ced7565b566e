"""Read back what the stages wrote, for the notebooks: tables, logs and pictures."""

import json
from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from utils.stages import StageFolder, read_json


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table of a stage; an unknown modality is None and not NaN."""
    table = pd.read_parquet(path).astype({"modality": object})
    return table.assign(modality=table["modality"].where(table["modality"].notna(), None))


def read_records(stage: StageFolder) -> pd.DataFrame:
    """Read every pair of stage 01 with its reason."""
    return read_table(stage.path / "records.parquet")


def read_revision(stage: StageFolder) -> str | None:
    """Read which commit of a hub data set stage 01 has looked at; None for other sources."""
    return read_json(stage.path / "report.json")["revision"]


def read_prepared(folder: Path, records: pd.DataFrame) -> list[Image.Image]:
    """Read the prepared images of some records of stage 02, which may be unfinished, in their order."""
    found = {}
    for split, some in records.groupby("split"):
        found |= read_bytes(folder, split, some["image_id"].tolist())
    return [Image.open(BytesIO(found[image_id])) for image_id in records["image_id"]]


def read_captions(stage: StageFolder, split: str) -> pd.DataFrame:
    """Read the captions of one split of stage 02, ordered by image id."""
    table = read_table(stage.path / "captions.parquet")
    return table[table["split"] == split].sort_values("image_id", ignore_index=True)


def read_images(stage: StageFolder, split: str, image_ids: list[str]) -> list[Image.Image]:
    """Read prepared images of one split of stage 02, in the order asked for."""
    found = read_bytes(stage.path, split, image_ids)
    return [Image.open(BytesIO(found[image_id])).convert("RGB") for image_id in image_ids]


def read_bytes(folder: Path, split: str, image_ids: list[str]) -> dict[str, bytes]:
    """Return image id -> PNG bytes of some prepared images of one split."""
    found = {}
    for path in sorted(folder.glob(f"images-{split}-*.parquet")):
        table = pq.read_table(path, filters=[("image_id", "in", list(image_ids))])
        found |= {row["image_id"]: row["image"]["bytes"] for row in table.to_pylist()}
    return found


def read_log(path: Path) -> pd.DataFrame:
    """Read ``log.jsonl`` of stage 03: one row a line, with the columns loss, eval_loss, learning_rate."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    columns = ["step", "seconds", "loss", "eval_loss", "learning_rate"]
    table = pd.DataFrame(lines)
    return table.reindex(columns=[*columns, *table.columns.difference(columns)])


def read_predictions(folder: Path) -> pd.DataFrame:
    """Join the parts of stage 04: image_id, base, base_logprob, tuned, tuned_logprob, by id."""
    parts = [pd.DataFrame(read_json(p)) for p in sorted((folder / "parts").glob("part-*.json"))]
    return pd.concat(parts, ignore_index=True).sort_values("image_id", ignore_index=True)


def training_figures(run: dict) -> dict:
    """Return the key figures of stage 03 from its ``run.json``."""
    return {
        "processes": run["processes"],
        "steps": run["steps"],
        "best_step": run["best_step"],
        "validation_loss": round(run["best_validation_loss"], 3),
        "trainable": run["trainable_parameters"],
    }


def one_of_each(modalities: pd.Series, count: int) -> list[int]:
    """Return ``count`` row positions that go round the modalities: the first of each, then the second."""
    names = modalities.fillna("unknown").reset_index(drop=True)
    turn = names.groupby(names).cumcount()
    return turn.sort_values(kind="stable").index[:count].tolist()


def examples(prepared: StageFolder, evaluated: StageFolder, count: int) -> pd.DataFrame:
    """Choose test images of all modalities: columns image_id, image, reference, modality."""
    scored = read_table(evaluated.path / "predictions.parquet")
    chosen = scored.iloc[one_of_each(scored["modality"], count)].sort_values("image_id")
    chosen = chosen[["image_id", "reference", "modality"]].reset_index(drop=True)
    images = read_images(prepared, "test", chosen["image_id"].tolist())
    return chosen.assign(image=images)[["image_id", "image", "reference", "modality"]]


def example_captions(chosen: pd.DataFrame, answers: list[dict[str, str]]) -> pd.DataFrame:
    """Put the captions of base and tuned model beside the chosen images' references."""
    texts = pd.DataFrame(answers, index=chosen.index)
    return chosen[["image_id", "reference", "modality"]].join(texts)
