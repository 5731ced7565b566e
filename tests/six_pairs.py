"""The same six pairs in every layout: what the CSVs and the shards say, and how it reads."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from utils.rocov2 import SourceError, open_release

CAPTIONS = {"train": ["CT, axial: a \"mass\",\nleft.", None, "Röntgen."], "valid": ["MR."],
            "test": ["ultrasound", "PET "]}  # fmt: skip
CUIS = {"train": ["C0040405;C0024485", "", "C1306645"], "valid": ["C0024485"], "test": ["", ""]}
SHARD_CUIS = {
    "train": [["C0040405", "C0024485"], [], ["C1306645"]],
    "valid": [["C0024485"]],
    "test": [[], []],
}
HUB = {"train": "train", "valid": "validation", "test": "test"}


def ids(split):
    return [f"R_{split}_{number:06d}" for number in range(1, len(CAPTIONS[split]) + 1)]


def picture(image_id):
    return f"bytes of {image_id}".encode()


def quote(caption):
    return '"{}"'.format((caption or "").replace('"', '""'))


def write_folder(root, place="{split}", suffix=".jpg", bom="", newline="\n"):
    for split, captions in CAPTIONS.items():
        folder = root / place.format(split=split)
        folder.mkdir(parents=True)
        for image_id in ids(split):
            (folder / (image_id + suffix)).write_bytes(picture(image_id))
        rows = [f"{i},{quote(c)}" for i, c in zip(ids(split), captions, strict=True)]
        concepts = [f"{i},{c}" for i, c in zip(ids(split), CUIS[split], strict=True)]
        for name, lines in (("captions", ["ID,Caption", *rows]), ("concepts_manual", ["ID,CUIs", *concepts])):
            text = bom + newline.join([*lines, ""])
            (root / f"{split}_{name}.csv").write_bytes(text.encode())
    return root


def write_shards(root, cui_type=None, place="data", nothing="nan"):
    """Write shards in the hub's schema, two for train; its copy writes a missing value as text."""
    (root / place).mkdir(parents=True, exist_ok=True)
    for split, captions in CAPTIONS.items():
        rows = [
            {"image": {"bytes": picture(i), "path": f"{i}.png"}, "image_id": i,
             "caption": nothing if c is None else c, "cui": cuis if cui_type is None else cui_type(cuis)}
            for i, c, cuis in zip(ids(split), captions, SHARD_CUIS[split], strict=True)
        ]  # fmt: skip
        halves = [rows[:2], rows[2:]] if split == "train" else [rows]
        for number, half in enumerate(halves):
            name = f"{HUB[split]}-{number:05d}-of-{len(halves):05d}.parquet"
            pq.write_table(pa.Table.from_pylist(half), root / place / name)
    return root


def read(blob):
    """The bytes of a blob: the path of a file, or a stream."""
    return Path(blob).read_bytes() if isinstance(blob, str) else blob.read()


def pairs_of(root):
    """What a release says, with each image's bytes in place of its source."""
    release = open_release(str(root), root)
    rows = release.pairs.to_dict("list")
    rows["bytes"] = [read(blob) for blob in release.store.blobs(rows.pop("source"))]
    return rows


def row(root, image_id):
    pair = open_release(str(root), root).pairs.set_index("image_id").loc[image_id]
    return [pair[name] for name in ("split", "source", "caption")]


def refusal(root):
    with pytest.raises(SourceError) as caught:
        open_release(str(root), root)
    return str(caught.value)


EXPECTED = {
    "image_id": [*ids("train"), *ids("valid"), *ids("test")],
    "split": ["train"] * 3 + ["valid"] + ["test"] * 2,
    "caption": ['CT, axial: a "mass",\nleft.', None, "Röntgen.", "MR.", "ultrasound", "PET "],
    "cuis": [["C0040405", "C0024485"], [], ["C1306645"], ["C0024485"], [], []],
    "bytes": [picture(i) for split in CAPTIONS for i in ids(split)],
}
