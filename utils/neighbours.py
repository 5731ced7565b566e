"""The nearest training image of each test image, by what the base model sees: a captioner without words.

Where answering with that image's caption scores as well as the model does, the model has not learned to
describe.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from tqdm import tqdm

from utils import features, runtime
from utils.base import copy_name
from utils.dataset import PreparedSplit
from utils.features import FeatureStore
from utils.stages import StageError

PLACE = "neighbours"  # the folder of the embeddings, below the work folder
CHUNK = 256  # test images compared with all training images at a time


def locate(work: Path, settings: dict) -> tuple[Path, str]:
    """Return the folder of the embeddings, and the key that they must carry.

    Args:
        work: the work folder.
        settings: what ``preprocess.json`` holds.
    """
    copy = copy_name(settings["model_id"], settings.get("model_revision"), runtime.compute_dtype()[0])
    key = features.key_of(copy, settings)
    return Path(work) / PLACE / key, key


def missing(
    splits: list[PreparedSplit], folder: Path, key: str, rank: int = 0, ranks: int = 1
) -> list[tuple[PreparedSplit, Path, range]]:
    """List the shards that a rank has yet to write: split, file and rows of each."""
    store = FeatureStore(folder, key)
    return [(split, *shard) for split in splits for shard in store.missing(split, rank, ranks)]


def embed(
    model, splits: list[PreparedSplit], statistics: dict, batch_size: int, folder: Path, key: str,
    rank: int = 0, ranks: int = 1,
) -> None:  # fmt: skip
    """Write this rank's share of the embeddings that are missing; a kill costs the shard at work.

    An image's embedding is the mean over the queries of what the Q-Former makes of it, with length 1, in
    fp16. Where training has kept the Q-Former's output (preset decoder), it is taken from there.

    Args:
        model: the whole base model, an adapter switched off.
        splits: the splits to have.
        statistics: mean and std of the image processor.
        batch_size: images that the ViT sees at a time.
        folder: of the shards, ``neighbours/<key>`` in a work folder.
        key: what they depend on, see :func:`locate`.
        rank: of this process.
        ranks: processes that share the work.
    """
    store, dtype = FeatureStore(folder, key), model.vision_model.dtype
    todo = missing(splits, folder, key, rank, ranks)
    work = folder.parent.parent  # where training may have left the features of some splits
    kept = {split.name: features.find_features(key, [split], work) for split in splits}
    folder.mkdir(parents=True, exist_ok=True)
    images, total = sum(len(rows) for *_, rows in todo), sum(map(len, splits))
    bar = tqdm(total=images, desc=f"visual features of {total:,} images", unit="image", file=sys.stdout,
               disable=rank > 0 or not todo)  # fmt: skip
    # The context in which features are computed for training, so that they are the same.
    with bar, torch.no_grad(), torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
        for split, path, rows in todo:
            known, stamp = kept[split.name] / path.name, store.stamp(split, rows)
            if store.finished(known, stamp):
                seen = load_file(known)["features"]
            else:
                batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
                parts = [features.see(model, split, batch, statistics) for batch in batches]
                seen = torch.cat(parts).to(dtype)
            vectors = normalize(seen.float().mean(1), dim=1).half()
            store.save(vectors, path, stamp)
            bar.update(len(rows))


def nearest(folder: Path, key: str, train: PreparedSplit, test: PreparedSplit) -> pd.DataFrame:
    """Find the training image that looks most like each test image.

    Args:
        folder: of the embeddings.
        key: that they must carry.
        train: the images to choose from.
        test: the images to choose for.

    Returns:
        one row a test image, in its split's order: image_id, train_id, similarity (cosine, to five decimals;
        of equal ones the first training image is taken).

    Raises:
        StageError: embeddings are missing.
    """
    store = FeatureStore(folder, key)
    known, ids = vectors_of(store, train), train.table["image_id"].to_numpy()
    rows, values = [], []
    for some in np.array_split(vectors_of(store, test), -(-len(test) // CHUNK)):
        # Rounded: the sums of two equal pictures can differ in their last digits by where they stand.
        cosines = np.round(some @ known.T, 5)
        rows.append(cosines.argmax(1))
        values.append(cosines.max(1))
    chosen = np.concatenate(rows)
    return pd.DataFrame({"image_id": test.table["image_id"], "train_id": ids[chosen],
                         "similarity": np.concatenate(values).astype(float).round(5)})  # fmt: skip


def vectors_of(store: FeatureStore, split: PreparedSplit) -> np.ndarray:
    """Read the embeddings of a split: (images, width) in fp32."""
    lost = sum(len(rows) for _, rows in store.missing(split))
    if lost:
        raise StageError(
            f"{lost:,} of {len(split):,} {split.name} images have no visual "
            f"features. Run the captioning cell again: it goes on."
        )
    return torch.cat([load_file(p)["features"] for p, _ in store.shards(split)]).float().numpy()
