"""Images of kept pairs -> one lossless shard that ``datasets`` loads as it is.

Worker processes import this file: it stays light, and so the schema stands here without ``datasets``.
"""

import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from utils.blobs import iter_blobs
from utils.images import (
    SIZE,
    Blob,
    FileError,
    ImageError,
    decode,
    one_channel,
    open_checked,
    pixel_hash,
    squash,
    to_png,
)  # fmt: skip
from utils.parts import Part, save
from utils.stages import StageError

REJECTS = b"rejects"
# What `datasets` reads from the metadata, so that load_dataset("parquet", ...) shows pictures at once.
TYPES = {"image_id": {"dtype": "string", "_type": "Value"}, "split": {"dtype": "string", "_type": "Value"},
         "image": {"_type": "Image"}}  # fmt: skip


@cache
def schema() -> pa.Schema:
    """Return the schema of a shard: image_id, split, image (bytes and path)."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    metadata = {"huggingface": json.dumps({"info": {"features": TYPES}})}
    return pa.schema({"image_id": pa.string(), "split": pa.string(), "image": image}, metadata)


def write_shard(part: Part, size: int = SIZE) -> None:
    """Prepare the images of one part, ``size`` pixels square, and write its shard.

    An image that cannot be decoded is left out and listed in the shard's metadata with its reason: a
    black picture in its place would teach the model a lie.

    Raises:
        StageError: an image that stage 01 saw is gone or is another one now.
    """
    rows, rejects = [], {}
    blobs = iter_blobs(part.root, part.sources)
    hashes = part.hashes or (None,) * len(part.image_ids)
    for image_id, blob, seen in zip(part.image_ids, blobs, hashes, strict=True):
        try:
            png = prepared(blob, seen, size)
        except FileError as error:  # a fault of the disk, not of the image
            raise changed(image_id, str(error)) from error
        except ImageError as error:
            if seen is not None:
                raise changed(image_id, str(error)) from error
            rejects[image_id] = str(error)
            continue
        rows.append({"image_id": image_id, "split": part.split,
                     "image": {"bytes": png, "path": f"{image_id}.png"}})  # fmt: skip
    # The shard itself says what it could not take: a later run reads it there.
    table = pa.Table.from_pylist(rows, schema())
    table = table.replace_schema_metadata({**schema().metadata, REJECTS: json.dumps(rejects).encode()})
    # PNG bytes do not compress again: storing them plainly saves the reader's time.
    save(part, table, compression="none", row_group_size=100)


def prepared(blob: Blob, seen: str | None, size: int) -> bytes:
    """Return an image as lossless PNG bytes of the model's size.

    Args:
        blob: the image.
        seen: the hash of its pixels in stage 01; None where nobody has looked.
        size: pixels of a side.

    Raises:
        FileError: its pixels are not those that stage 01 saw.
        ImageError: it cannot be decoded.
    """
    with open_checked(blob) as image:
        plane = one_channel(decode(image))
    if seen is not None and pixel_hash(plane) != seen:
        raise FileError("It is another picture now.")  # which might be one of the test split
    return to_png(squash(plane, size))


def changed(image_id: str, why: str) -> StageError:
    """Return the error for an image that is not what stage 01 saw."""
    return StageError(
        f"Image {image_id} has changed since notebook 01. {why} Attach the same data and run this again: "
        f"finished shards are kept. Or make stage 01 anew (FRESH = True, or --only 01,02 --fresh)."
    )


def rejects_of(path: Path) -> dict[str, str]:
    """Return image id -> reason of every image that a shard could not take."""
    return json.loads(pq.read_schema(path).metadata[REJECTS])
