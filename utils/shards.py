"""Pairs from parquet shards in the schema of the hub's copy of ROCOv2: image, image_id, caption, cui."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.blobs import trouble
from utils.pairs import SourceError, missing, split_cuis, texts

if TYPE_CHECKING:
    from utils.hub import HubShards

HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}


def by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of the parquet shards of each split, in their order; empty without any.

    Raises:
        SourceError: there are shards, but none of one split.
    """
    names = list(names)
    found = {s: sorted(n for n in names if re.search(rf"(^|/){hub}-[^/]*\.parquet$", n))
             for s, hub in HUB_SPLITS.items()}  # fmt: skip
    if not any(found.values()):
        return {}
    for split, shards in found.items():
        if not shards:
            raise SourceError(
                f"There are parquet shards but none named {HUB_SPLITS[split]}-*.parquet. "
                f"Add the shards of the {split} split."
            )
    return found


def find_shards(root: Path) -> dict[str, list[str]]:
    """Return the parquet shards of each split below ``root``; empty for a folder of images."""
    return by_split(path.relative_to(root).as_posix() for path in root.rglob("*.parquet"))


class LocalShards:
    """Parquet shards in a folder, read as :class:`utils.hub.HubShards` reads the hub's."""

    def __init__(self, folder: Path):
        self.folder = folder

    def schema(self, name: str) -> pa.Schema:
        """Return the columns of a shard and their types."""
        return pq.read_schema(self.folder / name)

    def read_columns(self, name: str, columns: list[str]) -> pa.Table:
        """Read some columns of a shard."""
        return pq.read_table(self.folder / name, columns=columns)


def pairs_from_shards(reader: "LocalShards | HubShards", shards: dict[str, list[str]]) -> pd.DataFrame:
    """Read ids, captions and CUIs from shards in the hub's schema; the images stay where they are."""
    names = [(split, name) for split, some in shards.items() for name in some]
    bar = tqdm(names, desc="reading captions", unit="shard", file=sys.stdout, disable=len(names) < 10)
    pairs = pd.concat([shard_table(reader, split, name) for split, name in bar], ignore_index=True)
    pairs["cuis"] = [split_cuis(value) for value in pairs["cui"]]
    pairs["caption"] = texts(None if missing(c) else c for c in pairs["caption"])
    return pairs[["image_id", "split", "source", "caption", "cuis"]]


def shard_table(reader: "LocalShards | HubShards", split: str, name: str) -> pd.DataFrame:
    """Read the pairs of one shard: image_id, caption, cui, split, source.

    Raises:
        SourceError: it is no parquet file, or a column is missing.
    """
    wanted = ["image_id", "caption", "cui"]
    try:
        columns = reader.schema(name).names
        if not {"image", "image_id", "caption"} <= set(columns):
            raise SourceError(f"{name} has the columns {columns}; it needs image, image_id and caption.")
        table = reader.read_columns(name, [c for c in wanted if c in columns])
    except (pa.ArrowException, OSError) as error:
        raise SourceError(
            f"{name} is no whole parquet file ({trouble(error)}). Download it again."
        ) from error
    require_types(name, reader.schema(name), table)
    table = table.to_pandas().astype(object).reindex(columns=wanted)
    return table.assign(split=split, source=texts(f"{name}#{row}" for row in range(len(table))))


def require_types(name: str, schema: pa.Schema, table: pa.Table) -> None:
    """Check the columns of a shard before the long work begins.

    Raises:
        SourceError: a column is of a type that cannot be read, or an image_id is missing.
    """
    kinds = {field.name: field.type for field in schema}
    image = kinds["image"]
    bytes_in = pa.types.is_struct(image) and any(f.name == "bytes" and is_bytes(f.type) for f in image)
    cui = kinds.get("cui", pa.null())
    good = {
        "image": bytes_in,
        "image_id": is_text(kinds["image_id"]),
        "caption": is_text(kinds["caption"]),
        "cui": is_text(cui) or is_text(getattr(cui, "value_type", None)),
    }
    for column, fits in good.items():
        if not fits:
            raise SourceError(
                f"{name} has a column {column} of type {kinds[column]}; it needs image (a struct with "
                f"bytes), image_id and caption (texts) and, where it is there, cui (texts or lists of texts)."
            )
    if table.column("image_id").null_count:
        raise SourceError(f"{name} has {table.column('image_id').null_count} rows without an image_id.")


def is_text(kind: pa.DataType | None) -> bool:
    """Tell whether a column of this type holds texts, or nothing at all."""
    if kind is not None and pa.types.is_dictionary(kind):
        kind = kind.value_type
    return str(kind) in ("string", "large_string", "string_view", "null")


def is_bytes(kind: pa.DataType) -> bool:
    """Tell whether a column of this type holds bytes."""
    return str(kind) in ("binary", "large_binary", "binary_view")
