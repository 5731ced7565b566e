"""Checks before an evaluation: its stages belong together, and nobody has trained on its test images."""

import hashlib
import sys
from pathlib import Path

import pyarrow.parquet as pq
from tqdm import tqdm

from utils.generate import require_fit
from utils.predictions import listed
from utils.stages import StageError, StageFolder, read_json


def require_same_origin(prepared: StageFolder, trained: StageFolder) -> None:
    """Refuse an adapter that was trained on other data, on another base model, or with another rank.

    Raises:
        StageError: it was trained on another preprocessing.
        ModelError: it is of another base model or rank.
    """
    made_from = trained.manifest["inputs"].get("02_preprocess")
    if made_from != prepared.fingerprint:
        raise StageError(
            f"The adapter was trained on another preprocessing (stage 02 {str(made_from)[:12]}) than the one "
            f"found here ({prepared.fingerprint[:12]}). Train anew (notebook 03 with FRESH = True), or "
            f"attach the stage 02 that belongs to it."
        )
    model_id = read_json(prepared.path / "preprocess.json")["model_id"]
    rank = read_json(trained.path / "run.json")["lora"]["rank"]
    require_fit(trained.path / "adapter", model_id, rank)


def pixel_owners(folder: Path, split: str) -> dict[bytes, str]:
    """Return hash of the stored pixels -> image id; equal prepared pictures are equal files."""
    owners = {}
    paths = sorted(folder.glob(f"images-{split}-*.parquet"))
    for path in tqdm(paths, desc=f"pixels of {split}", unit="shard", file=sys.stdout, delay=2):
        for batch in pq.ParquetFile(path).iter_batches(256, columns=["image_id", "image"]):
            for row in batch.to_pylist():
                owners[hashlib.blake2b(row["image"]["bytes"], digest_size=16).digest()] = row["image_id"]
    return owners


def require_unseen(prepared: StageFolder) -> int:
    """Refuse a test split that holds a picture of the training or validation split.

    Compared are the prepared pictures, so that it holds also where notebook 01 read headers alone.

    Returns:
        how many pictures of training and validation were compared with.

    Raises:
        StageError: lists the pairs.
    """
    test, seen, shared = pixel_owners(prepared.path, "test"), 0, []
    for split in ("train", "valid"):
        others = pixel_owners(prepared.path, split)
        seen += len(others)
        shared += [f"{test[key]} = {others[key]}" for key in test.keys() & others.keys()]
    if shared:
        raise StageError(
            f"{len(shared)} test images were also trained or validated on, with the same pixels: "
            f"{listed(sorted(shared))}. Run notebook 01 with PIXELS = True, which drops such copies (take "
            f"one that is equal only at this size out of the source), and then the later notebooks."
        )
    return seen
