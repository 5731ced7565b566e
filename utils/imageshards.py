"""Images of kept pairs -> one lossless 224x224 shard that ``datasets`` loads as it is.

Worker processes import this file: it stays light, and so the schema stands here without ``datasets``.
"""

import json
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from utils.blobs import iter_blobs
from utils.images import FileError, ImageError, decode, one_channel, open_checked, squash, to_png
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


def write_shard(part: Part) -> None:
    """Prepare the images of one part and write its shard.

    An image that cannot be decoded is left out and listed in the shard's metadata with its reason: a
    black picture in its place would teach the model a lie.

    Raises:
        StageError: a file that stage 01 saw is gone: a fault of the disk, not of the image.
    """
    rows, rejects = [], {}
    for image_id, blob in zip(part.image_ids, iter_blobs(part.root, part.sources), strict=True):
        try:
            with open_checked(blob) as image:
                small = squash(one_channel(decode(image)))
        except FileError as error:
            raise StageError(
                f"Image {image_id} was there in notebook 01 and cannot be read now. {error} Attach the data "
                f"again and run this again: finished shards are kept. Or make stage 01 anew (FRESH = True)."
            ) from error
        except ImageError as error:
            rejects[image_id] = str(error)
            continue
        rows.append({"image_id": image_id, "split": part.split,
                     "image": {"bytes": to_png(small), "path": f"{image_id}.png"}})  # fmt: skip
    # The shard itself says what it could not take: a later run reads it there.
    table = pa.Table.from_pylist(rows, schema())
    table = table.replace_schema_metadata({**schema().metadata, REJECTS: json.dumps(rejects).encode()})
    # PNG bytes do not compress again: storing them plainly saves the reader's time.
    save(part, table, compression="none", row_group_size=100)


def rejects_of(path: Path) -> dict[str, str]:
    """Return image id -> reason of every image that a shard could not take."""
    return json.loads(pq.read_schema(path).metadata[REJECTS])
