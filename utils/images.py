"""Image bytes -> checked, upright, 8-bit RGB, 224x224; nothing is replaced, every refusal has a reason."""

import warnings
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

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


class ImageError(ValueError):
    """An image cannot be used; the message is a sentence without a trace of its content."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself before it is decoded; ``width`` and ``height`` in pixels."""

    mode: str
    format: str
    width: int
    height: int


def open_checked(data: bytes) -> Image.Image:
    """Open image bytes without decoding them.

    Raises:
        ImageError: empty, of no known format, or too large to decode safely.
    """
    if len(data) == 0:
        raise ImageError("The file is empty (0 bytes).")
    try:
        with warnings.catch_warnings():
            # Pillow's own limit is looser than ours, and a warning on a screen helps nobody.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError(f"The file is not an image ({', '.join(FORMATS)} are read).") from None
    except (Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"The image's header cannot be read: {error}.") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(
            f"The image has {image.width * image.height / 1e6:.0f} megapixels; at most "
            f"{MAX_PIXELS // 10**6} are read. Make it smaller first."
        )
    return image


def read_header(data: bytes) -> Header:
    """Read mode, format and size from the header alone.

    Raises:
        ImageError: the bytes are no readable image.
    """
    image = open_checked(data)
    return Header(image.mode, image.format, image.width, image.height)


def to_rgb(data: bytes) -> Image.Image:
    """Decode image bytes to an upright 8-bit RGB image.

    EXIF orientation is applied; 16-bit and float pixels are scaled to 8 bits over their own range
    (Pillow's ``convert`` clips them to white); alpha is laid over black; the first frame is taken.

    Raises:
        ImageError: the bytes are no image, are cut off, or are too large.
    """
    image = open_checked(data)
    try:
        image.load()
        image = upright(image)
    except Exception as error:  # a spoilt file makes Pillow's parsers raise almost anything
        raise ImageError(f"The image is damaged or cut off: {error}.") from error
    if image.mode.startswith(DEEP_MODES):
        return to_8_bit(np.asarray(image)).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, image).convert("RGB")
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; ``exif_transpose`` fails over any other odd tag."""
    turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    return image if turn is None else image.transpose(turn)


def to_8_bit(pixels: np.ndarray) -> Image.Image:
    """Scale pixels (H, W) of any depth linearly from their own minimum and maximum to 0..255."""
    values = np.nan_to_num(pixels.astype(np.float64))
    low, high = values.min(), values.max()
    scaled = (values - low) * (255.0 / (high - low)) if high > low else np.zeros_like(values)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def squash(image: Image.Image, size: int = SIZE) -> Image.Image:
    """Resize to ``size`` x ``size`` as BLIP-2's own Pillow processor does: bicubic, no crop."""
    return image.resize((size, size), resample=Image.Resampling.BICUBIC)


def to_png(image: Image.Image) -> bytes:
    """Encode losslessly; level 1 is nearly as small on radiographs as the default, and far faster."""
    buffer = BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
