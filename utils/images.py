"""Image bytes -> checked, upright, 8-bit RGB, 224x224; nothing is replaced, every refusal has a reason."""

import hashlib
import os
import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError

Blob = bytes | str | Path | BinaryIO  # an image: its bytes, its file, or a stream of its bytes
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
MAX_PIXELS = 40_000_000
SIZE = 224  # of BLIP-2's image processor: a squash, not a crop
# EXIF orientation -> what turns the picture upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DEEP_MODES = ("I", "F")  # also I;16 and its byte orders
BAND = 256  # rows that are scaled at a time
RLE = 3  # zlib's Z_RLE: a filtered radiograph holds runs and noise, and hardly a longer repeat


class ImageError(ValueError):
    """An image cannot be used; the message is a sentence without a trace of its content."""


class FileError(ImageError):
    """The file of an image cannot be read at all: no fault of the image."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded; ``width`` and ``height`` in pixels."""

    mode: str
    format: str
    width: int
    height: int


def open_checked(blob: Blob) -> Image.Image:
    """Open an image without decoding it. Close it, or load it.

    Raises:
        FileError: the file is not there, is a folder, or may not be read.
        ImageError: empty, of no known format, or too large to decode safely.
    """
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is looser than ours, and a warning on a screen helps nobody.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(blob) if isinstance(blob, bytes) else blob, formats=FORMATS)
    except UnidentifiedImageError:
        what = f"is not an image ({', '.join(FORMATS)} are read)." if length(blob) else "is empty (0 bytes)."
        raise ImageError(f"The file {what}") from None
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        if getattr(error, "errno", None):
            raise FileError(f"The file cannot be read: {error.strerror}.") from error
        raise ImageError(f"The image's header cannot be read: {error}.") from error
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ImageError(
            f"The image has {image.width * image.height / 1e6:.0f} megapixels; at most "
            f"{MAX_PIXELS // 10**6} are read. Make it smaller first."
        )
    return image


def length(blob: Blob) -> int:
    """Return the bytes of a blob."""
    if isinstance(blob, bytes):
        return len(blob)
    return os.stat(blob).st_size if isinstance(blob, str | Path) else blob.seek(0, os.SEEK_END)


def header_of(image: Image.Image) -> Header:
    """Return what an opened image says of itself; nothing is decoded."""
    return Header(image.mode, image.format, image.width, image.height)


def read_header(blob: Blob) -> Header:
    """Read mode, format and size from the header alone.

    Raises:
        ImageError: no readable image.
    """
    with open_checked(blob) as image:
        return header_of(image)


def to_rgb(blob: Blob) -> Image.Image:
    """Decode an image as :func:`decode` does, to mode RGB.

    Raises:
        ImageError: no image, cut off, or too large.
    """
    with open_checked(blob) as image:
        return decode(image).convert("RGB")


def decode(image: Image.Image) -> Image.Image:
    """Decode an opened image to an upright 8-bit image of mode RGB, or L where its file is grey.

    EXIF orientation is applied; 16-bit and float pixels are scaled to 8 bits over their own range
    (Pillow's ``convert`` clips them to white); alpha is laid over black; the first frame is taken.

    Raises:
        FileError: the disk, and not Pillow, gave up reading.
        ImageError: the image is damaged or cut off.
    """
    try:
        image.load()
        image = upright(image)
    except Exception as error:  # a spoilt file makes Pillow's parsers raise almost anything
        if getattr(error, "errno", None):
            raise FileError(f"The file cannot be read: {error.strerror}.") from error
        raise ImageError(f"The image is damaged or cut off: {error}.") from error
    if image.mode.startswith(DEEP_MODES):
        return to_8_bit(np.asarray(image))
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image if image.mode == "RGBA" else image.convert("RGBA")  # a copy would be 160 MB
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; ``exif_transpose`` fails over any other odd tag."""
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def to_8_bit(pixels: np.ndarray) -> Image.Image:
    """Scale pixels (H, W) of any depth linearly from their own minimum and maximum to 0..255.

    What is no number is black; infinities take the end that they lie beyond.
    """
    finite = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    step = 255.0 / (high - low) if high > low else 0.0
    scaled = np.empty(pixels.shape, np.uint8)
    for top in range(0, len(pixels), BAND):  # 40 megapixels as float64 would take half a gigabyte
        rows = pixels[top : top + BAND].astype(np.float64)
        rows = np.nan_to_num(rows, nan=low, posinf=high, neginf=low)
        scaled[top : top + BAND] = np.rint((rows - low) * step)
    return Image.fromarray(scaled)


def squash(image: Image.Image, size: int = SIZE) -> Image.Image:
    """Resize to ``size`` x ``size`` as BLIP-2's own Pillow processor does: bicubic, no crop.

    Each channel is resized by itself: the one of mode L comes out as each of the same picture in RGB.
    """
    return image.resize((size, size), resample=Image.Resampling.BICUBIC)


def one_channel(image: Image.Image) -> Image.Image:
    """Return an RGB image whose channels are all equal as mode L, any other as it is; nothing is lost."""
    if image.mode == "L":
        return image
    green = image.getchannel(1)
    pixels = green.tobytes()
    equal = all(image.getchannel(other).tobytes() == pixels for other in (0, 2))
    return green if equal else image


def chroma(image: Image.Image) -> int:
    """Return how far red or blue is from green (0..255) at the most colourful pixel.

    0 means that the picture is grey, whatever its mode says.
    """
    if one_channel(image).mode == "L":
        return 0
    red, green, blue = image.split()
    return max(ImageChops.difference(green, other).getextrema()[1] for other in (red, blue))


def pixel_hash(image: Image.Image) -> str:
    """Return the sha256 of what an image shows, whatever its file; :func:`one_channel` comes before."""
    size = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()


def to_png(image: Image.Image) -> bytes:
    """Encode losslessly; on radiographs nearly as small as the default settings, and far faster.

    Pixels only: Pillow would carry the file's colour profile and EXIF data along.
    """
    buffer, image = BytesIO(), image.copy()
    image.info = {}
    image.save(buffer, format="PNG", compress_level=1, compress_type=RLE)
    return buffer.getvalue()
