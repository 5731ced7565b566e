"""A stand-in for the whole of ROCOv2: as many pairs, modes and layouts; the pictures are small."""

import csv
import io
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from utils.imageshards import schema
from utils.rocov2 import PUBLISHED
from utils.shards import HUB_SPLITS

SIDE = 32
SHARD = 2000  # pairs
CUIS = ("C1306645", "C0040405", "C0024485", "C0041618", "C0002978")
EMPTY = 211  # every so many-th caption is missing


def counts(scale: float) -> dict[str, dict[str, int]]:
    """Return pairs, and those of mode RGB, of each split at a scale."""
    return {
        what: {split: max(1, int(n * scale)) for split, n in some.items()} for what, some in PUBLISHED.items()
    }


def jpeg(number: int, rgb: bool) -> bytes:
    """Draw a picture of its own for each number: eight by eight greys, drawn out."""
    greys = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
    image = Image.fromarray(greys).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    image.convert("RGB" if rgb else "L").save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def rows_of(split: str, scale: float) -> list[dict]:
    """List the pairs of a split: id, seed, whether RGB, caption, CUI."""
    total, rgb = counts(scale)["pairs"][split], counts(scale)["mode RGB"][split]
    first = {"train": 0, "valid": 10**6, "test": 2 * 10**6}[split]
    return [
        {"id": f"ROCOv2_2023_{split}_{number + 1:06d}", "seed": first + number,
         "rgb": number * rgb // total < (number + 1) * rgb // total,  # spread evenly
         "caption": "" if number % EMPTY == EMPTY - 1 else f"Axial image {number} of the chest, {split}.",
         "cui": CUIS[number % len(CUIS)]}
        for number in range(total)
    ]  # fmt: skip


def write_part(
    zenodo: Path, kaggle: Path, hub: Path, split: str, number: int, of: int, rows: list[dict]
) -> None:
    """Write some pairs in all three layouts."""
    images = []
    for row in rows:
        data, name = jpeg(row["seed"], row["rgb"]), f"{row['id']}.jpg"
        (zenodo / split / name).write_bytes(data)
        os.link(zenodo / split / name, kaggle / f"{split}_images" / split / name)
        images.append({"image": {"bytes": data, "path": name}, "image_id": row["id"],
                       "caption": row["caption"] or "nan", "cui": [row["cui"]]})  # fmt: skip
    fields = [schema().field("image"), pa.field("image_id", pa.string()), pa.field("caption", pa.string()),
              pa.field("cui", pa.list_(pa.string()))]  # fmt: skip
    table = pa.Table.from_pylist(images, pa.schema(fields))
    pq.write_table(
        table, hub / "data" / f"{HUB_SPLITS[split]}-{number:05d}-of-{of:05d}.parquet", row_group_size=500
    )


def write(root: Path, scale: float) -> dict[str, Path]:
    """Write the stand-in below ``root`` and return the folder of each layout."""
    places = {name: root / name for name in ("zenodo", "kaggle", "hub")}
    (places["hub"] / "data").mkdir(parents=True)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        jobs = []
        for split in HUB_SPLITS:
            (places["zenodo"] / split).mkdir(parents=True)
            (places["kaggle"] / f"{split}_images" / split).mkdir(parents=True)
            rows = rows_of(split, scale)
            starts = range(0, len(rows), SHARD)
            jobs += [pool.submit(write_part, *places.values(), split, n, len(starts), rows[s : s + SHARD])
                     for n, s in enumerate(starts)]  # fmt: skip
            for folder in (places["zenodo"], places["kaggle"]):
                write_tables(folder, split, rows)
        for job in jobs:
            job.result()
    return places


def write_tables(folder: Path, split: str, rows: list[dict]) -> None:
    """Write the captions and the concepts of a split, with the line ends of the release."""
    tables = {"captions": [("ID", "Caption"), *((r["id"], r["caption"]) for r in rows)],
              "concepts_manual": [("ID", "CUIs"), *((r["id"], r["cui"]) for r in rows)]}  # fmt: skip
    for name, lines in tables.items():
        with open(folder / f"{split}_{name}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\r\n").writerows(lines)
