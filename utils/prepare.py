"""Kept pairs -> lossless 224x224 shards and token ids, shard by shard, so that a killed run goes on."""

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.captions import clean, cut, token_ids, token_limit
from utils.config import Config
from utils.dataset import Layout
from utils.images import ImageError, squash, to_png, to_rgb
from utils.rocov2 import SPLITS, iter_bytes
from utils.stages import require_disk, write_json

SHARD_ROWS = 500
REJECTS = b"rejects"
PNG_BYTES = 70_000  # of a 224x224 radiograph, rounded up
# The schema that `datasets` knows, so that load_dataset("parquet", ...) shows pictures at once.
FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("string"),
        "split": datasets.Value("string"),
        "image": datasets.Image(),
    }
)


@dataclass(frozen=True)
class Chunk:
    """The work of one shard: which images, from where, into which file."""

    path: Path
    split: str
    image_ids: tuple[str, ...]
    root: Path
    sources: tuple[str, ...]


def plan_chunks(records: pd.DataFrame, root: Path, folder: Path) -> list[Chunk]:
    """Cut the kept records of every split, in their order, into shards of ``SHARD_ROWS`` images."""
    chunks = []
    for split, rows in records[records["keep"]].groupby("split", sort=False):
        for number, start in enumerate(range(0, len(rows), SHARD_ROWS)):
            part = rows.iloc[start : start + SHARD_ROWS]
            path = folder / f"images-{split}-{number:05d}.parquet"
            chunks.append(Chunk(path, split, tuple(part["image_id"]), root, tuple(part["source"])))
    return chunks


def write_shard(chunk: Chunk) -> int:
    """Prepare the images of one shard and write it; return how many images it was about.

    The shard gets its name only when it is whole. An image that cannot be decoded is left out and
    listed with its reason: a black picture in its place would teach the model a lie.
    """
    rows, rejects = [], {}
    for image_id, data in zip(chunk.image_ids, iter_bytes(chunk.root, chunk.sources), strict=True):
        try:
            png = to_png(squash(to_rgb(data)))
        except ImageError as error:
            rejects[image_id] = str(error)
            continue
        rows.append({"image_id": image_id, "split": chunk.split,
                     "image": {"bytes": png, "path": f"{image_id}.png"}})  # fmt: skip
    temporary = chunk.path.with_suffix(".part")
    # PNG bytes do not compress again: storing them plainly saves the reader's time.
    schema = FEATURES.arrow_schema
    # The shard itself says what it could not take: a later run reads it there.
    schema = schema.with_metadata({**schema.metadata, REJECTS: json.dumps(rejects).encode()})
    table = pa.Table.from_pylist(rows, schema=schema)
    pq.write_table(table, temporary, compression="none", row_group_size=100)
    os.replace(temporary, chunk.path)
    return len(chunk.image_ids)


def write_shards(chunks: list[Chunk], procs: int) -> dict[str, str]:
    """Write the shards that are not there yet, on ``procs`` processes.

    Returns:
        image id -> reason of every image that could not be prepared, of old and new shards.
    """
    todo = [chunk for chunk in chunks if not chunk.path.is_file()]
    total, left = (sum(len(chunk.image_ids) for chunk in part) for part in (chunks, todo))
    if todo:
        require_disk(todo[0].path.parent, left * PNG_BYTES, f"Preparing {left:,} images")
    # Spawned, not forked: a notebook's kernel has threads that do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with (
        tqdm(
            total=total, initial=total - left, desc="preparing images", unit="image", file=sys.stdout
        ) as bar,
        ProcessPoolExecutor(procs, mp_context=context) as pool,
    ):
        try:
            for future in as_completed([pool.submit(write_shard, chunk) for chunk in todo]):
                bar.update(future.result())
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)  # finished shards stay for the next run
            raise
    lists = [json.loads(pq.read_schema(chunk.path).metadata[REJECTS]) for chunk in chunks]
    return {image_id: reason for rejects in lists for image_id, reason in rejects.items()}


def prepare_captions(
    records: pd.DataFrame, tokenizer, newline_id: int, percentile: float, room: int
) -> tuple[pd.DataFrame, int]:
    """Clean and tokenise the captions.

    Args:
        records: the pairs whose image was prepared.
        tokenizer: the model's own.
        newline_id: BLIP-2 OPT's end of sequence.
        percentile: of the training captions' lengths, the token limit.
        room: the longest caption the model's positions leave room for, in tokens.

    Returns:
        the table of ``captions.parquet`` and the token limit; n_tokens counts before the cut.
    """
    table = records[["image_id", "split", "modality", "cuis"]].copy()
    table["raw_caption"] = records["caption"]
    table["caption"] = records["caption"].map(clean)
    ids = [token_ids(caption, tokenizer, newline_id) for caption in table["caption"]]
    table["n_tokens"] = [len(i) for i in ids]
    train = table["split"] == "train"
    limit = token_limit(table.loc[train, "n_tokens"].tolist(), percentile, room)
    table["input_ids"] = [cut(i, limit) for i in ids]
    return table.reset_index(drop=True), limit


def count_rejects(records: pd.DataFrame, rejects: dict[str, str]) -> dict[str, int]:
    """Count the images of each split that could not be decoded."""
    lost = records.loc[records["keep"] & records["image_id"].isin(rejects), "split"].value_counts()
    return {split: int(lost.get(split, 0)) for split in SPLITS}


def details(settings: Config, statistics: dict, layout: Layout, captions, limit: int) -> dict:
    """Collect what ``preprocess.json`` records: all that later stages must repeat exactly.

    Args:
        settings: the stage's configuration.
        statistics: size, mean and std of the model's image processor.
        layout: BLIP-2's token layout.
        captions: the table of ``captions.parquet``.
        limit: the token limit.
    """
    longer = captions["n_tokens"] > limit
    return {
        "model_id": settings.model_id,
        **statistics,
        "resample": "bicubic (Pillow)",
        "newline_id": layout.newline_id,
        "caption_percentile": settings.caption_percentile,
        "token_limit": limit,
        "cut_captions": {s: int((longer & (captions["split"] == s)).sum()) for s in SPLITS},
    }


def write_stage(
    folder: Path, captions: pd.DataFrame, records: pd.DataFrame, rejects: dict, settings: dict
) -> dict[str, int]:
    """Write the stage's files beside its shards and return its key figures."""
    captions.to_parquet(folder / "captions.parquet", index=False)
    damaged = records["keep"] & records["image_id"].isin(rejects)
    lost = records.loc[damaged, ["image_id", "split", "source"]]
    lost = lost.assign(reason="image damaged", detail=lost["image_id"].map(rejects))
    lost.to_csv(folder / "rejects.csv", index=False)
    write_json(folder / "preprocess.json", settings)
    sizes = captions["split"].value_counts()
    kept = {split: int(sizes.get(split, 0)) for split in SPLITS}
    return kept | {"damaged": len(lost), "token_limit": settings["token_limit"]}
