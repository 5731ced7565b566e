"""Files to measure with: radiograph-like pictures of ROCOv2's sizes, and releases made of them."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

SPLITS = ("train", "valid", "test")
# ROCOv2: 6.3 GB of JPEG in 79,789 images, which is 79 kB an image; 38 % of them in mode L.
SIDES = (380, 860)
GREY, COLOUR = 0.38, 0.1
QUALITY = 92


def picture(number: int) -> Image.Image:
    """Draw a picture with soft shapes and speckle, so that it compresses as a radiograph does."""
    rng = np.random.default_rng(number)
    width, height = rng.integers(*SIDES, 2).tolist()
    shapes = Image.fromarray(rng.integers(0, 256, (12, 12), dtype=np.uint8)).resize((width, height), 3)
    speckle = Image.fromarray(rng.integers(96, 160, (height, width), dtype=np.uint8))
    grey = Image.blend(shapes, speckle.filter(ImageFilter.GaussianBlur(0.7)), 0.35)
    kind = rng.random()
    if kind < GREY:
        return grey
    if kind > 1 - COLOUR:
        return Image.merge("RGB", (grey, shapes, grey))
    return grey.convert("RGB")


def jpeg(image: Image.Image) -> bytes:
    """Encode as ROCOv2's release does."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def write_release(root: Path, count: int, drawn: int) -> Path:
    """Write a release of ``count`` training images, a tenth as many in the other splits.

    Args:
        root: a new folder.
        count: training images.
        drawn: different pictures; further names are links to the same files.
    """
    files = [jpeg(picture(number)) for number in range(drawn)]
    for split, size in zip(SPLITS, (count, count // 10, count // 10), strict=True):
        (root / split).mkdir(parents=True)
        names = [f"BENCH_{split}_{number:06d}" for number in range(size)]
        for number, name in enumerate(names):
            path = root / split / f"{name}.jpg"
            first = root / split / f"BENCH_{split}_{number % drawn:06d}.jpg"
            if number < drawn:
                path.write_bytes(files[number])
            else:
                os.link(first, path)
        with open(root / f"{split}_captions.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("ID", "Caption"), *((name, "CT of the chest.") for name in names)])
    return root


def image_files(root: Path) -> list[Path]:
    """List the image files of a release in the order of their names."""
    return sorted(p for split in SPLITS for p in (root / split).iterdir())


def many_names(root: Path, files: list[Path], count: int) -> Path:
    """Write a release of ``count`` training images whose names are links to ``files``, one after the other."""
    (root / "train").mkdir(parents=True)
    names = [f"BENCH_train_{number:06d}{files[number % len(files)].suffix}" for number in range(count)]
    for number, name in enumerate(names):
        os.symlink(files[number % len(files)].resolve(), root / "train" / name)
    for split in SPLITS[1:]:
        (root / split).mkdir()
        os.symlink(files[0].resolve(), root / split / f"BENCH_{split}_000000{files[0].suffix}")
    for split in SPLITS:
        ids = [name.partition(".")[0] for name in names] if split == "train" else [f"BENCH_{split}_000000"]
        with open(root / f"{split}_captions.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("ID", "Caption"), *((name, "CT of the chest.") for name in ids)])
    return root


def write_hub_shards(root: Path, files: list[Path], times: int) -> Path:
    """Write files as the hub's copy holds them, PNG in parquet; the train shard has ``times`` names.

    Only the train shard is large; the other splits hold one image.
    """
    rows = []
    for path in files:
        buffer = io.BytesIO()
        with Image.open(path) as image:
            image.save(buffer, "PNG")
        rows.append({"image": {"bytes": buffer.getvalue(), "path": f"{path.stem}.png"}, "image_id": path.stem,
                     "caption": "CT of the chest.", "cui": []})  # fmt: skip
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    kinds = pa.schema(
        {"image": image, "image_id": pa.string(), "caption": pa.string(), "cui": pa.list_(pa.string())}
    )
    (root / "data").mkdir(parents=True)
    for name, some in (("train", rows), ("validation", rows[:1]), ("test", rows[:1])):
        table = pa.Table.from_pylist(some, kinds)
        pq.write_table(table, root / "data" / f"{name}-00000-of-00001.parquet", row_group_size=100)
    for number in range(1, times):
        os.link(root / "data/train-00000-of-00001.parquet", root / f"data/train-{number:05d}.parquet")
    return root
