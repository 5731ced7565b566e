"""What every image file says of itself (its header) and shows (its pixels); nothing is judged here.

Worker processes import this file: it stays light.
"""

import imagehash
import pyarrow as pa
from PIL import Image

from utils.blobs import iter_blobs
from utils.images import Blob, ImageError, chroma, decode, header_of, one_channel, open_checked, pixel_hash
from utils.parts import Part, save

# width and height in pixels; sha256, phash and chroma are empty where no pixel was read
COLUMNS = {
    "mode": pa.string(), "format": pa.string(), "width": pa.int32(), "height": pa.int32(),
    "sha256": pa.string(), "phash": pa.string(), "chroma": pa.int16(), "error": pa.string(),
}  # fmt: skip
THUMB = 128  # pixels of the shorter side from which the perceptual hash is taken


def look(blob: Blob, pixels: bool) -> dict:
    """Describe one image.

    Args:
        blob: its file, its bytes, or a stream of them.
        pixels: whether to decode it too.

    Returns:
        the ``COLUMNS`` that could be told; ``error`` says why the others could not.
    """
    found = {}
    try:
        with open_checked(blob) as image:
            found |= vars(header_of(image))
            if pixels:
                found |= look_at_pixels(decode(image))
    except ImageError as error:
        found["error"] = str(error)
    return found


def look_at_pixels(image: Image.Image) -> dict:
    """Describe what a decoded image shows: the same pixels give the same hash, whatever the file."""
    plane = one_channel(image)  # the same picture in mode L and in mode RGB gives the same hash
    return {
        "sha256": pixel_hash(plane),
        "phash": perceptual_hash(plane),
        "chroma": chroma(plane),
    }


def perceptual_hash(image: Image.Image) -> str:
    """Return the 64-bit DCT hash of ``imagehash`` (16 hex digits): near pictures differ in few bits.

    Large images are averaged down by a whole factor first, which is many times faster.
    """
    factor = max(1, min(image.size) // THUMB)
    return str(imagehash.phash(image.convert("L").reduce(factor)))


def write_part(part: Part, pixels: bool) -> None:
    """Look at the images of one part and write what was found."""
    rows = [look(blob, pixels) for blob in iter_blobs(part.root, part.sources)]
    columns = {name: pa.array([row.get(name) for row in rows], kind) for name, kind in COLUMNS.items()}
    save(part, pa.table({"image_id": part.image_ids, **columns}))
