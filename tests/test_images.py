"""Pictures of every kind become upright 8-bit RGB, or are refused with a reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from transformers import BlipImageProcessorPil
from transformers.image_utils import PILImageResampling

from utils.images import (
    FileError,
    ImageError,
    chroma,
    one_channel,
    read_header,
    squash,
    to_8_bit,
    to_png,
    to_rgb,
)


def pixels(image):
    """The pixels as nested lists, one number for a grey triple, to compare with what is typed."""
    rows = np.asarray(image).tolist()
    return [[p[0] if len(set(p)) == 1 else tuple(p) for p in row] for row in rows]


def grey(rows, dtype=np.uint8):
    return Image.fromarray(np.array(rows, dtype=dtype))


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def empty_png(width, height):
    """A PNG that says how large it is, and holds no pixel."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("read", [read_header, to_rgb])
@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "The file is empty (0 bytes)."),
     (b"<html>not found</html>", "The file is not an image (JPEG, PNG, WEBP, TIFF, BMP, GIF are read)."),
     (b"\xff\xd8\xff", "The file is not an image (")],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_reason(read, data, reason, tmp_path):
    with pytest.raises(ImageError) as caught:
        read(data)
    assert str(caught.value).startswith(reason)
    (tmp_path / "x.jpg").write_bytes(data)
    with pytest.raises(ImageError) as of_file:
        read(tmp_path / "x.jpg")
    assert str(of_file.value) == str(caught.value)


@pytest.mark.parametrize("read", [read_header, to_rgb])
@pytest.mark.parametrize(
    ("width", "height", "megapixels"), [(8200, 5000, 41), (40_001, 1001, 40), (13_000, 13_000, 169)]
)
def test_an_image_too_large_is_refused_before_it_is_decoded(read, width, height, megapixels):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=f"has {megapixels} megapixels; at most 40 are read"):
            read(empty_png(width, height))


def test_an_image_that_pillow_calls_a_bomb_is_refused_like_any_other():
    with pytest.raises(ImageError, match="header cannot be read"):
        read_header(empty_png(60_000, 60_000))


def test_forty_megapixels_are_read():
    assert read_header(empty_png(8000, 5000)).width == 8000


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_an_image_that_is_cut_off_is_refused(encode, format):
    data = encode(noise(64, 64), format)
    assert read_header(data[: len(data) // 2]).width == 64
    with pytest.raises(ImageError, match=r"^The image is damaged or cut off: "):
        to_rgb(data[: len(data) // 2])


def test_the_header_says_mode_format_and_size_whatever_the_name(encode):
    # Only bytes come in: a file named .jpg that is a PNG is a PNG.
    header = read_header(encode("LA", size=(8, 6)))
    assert (header.mode, header.format, header.width, header.height) == ("LA", "PNG", 8, 6)
    assert read_header(encode("L", "JPEG")).format == "JPEG"


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
def test_every_format_is_read_to_rgb_of_its_own_size(encode, format):
    image = to_rgb(encode("L", format, value=128, size=(8, 6)))
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(image).astype(int) - 128).max() <= 1


def test_sixteen_bits_are_scaled_to_their_own_range_not_clipped(encode):
    # 1000..1510 in 16 bits: (v - 1000) / 2. Clipping would give white everywhere.
    image = grey([[1000, 1102, 1204], [1306, 1408, 1510]], np.uint16)
    for format in ("PNG", "TIFF"):
        data = encode(image, format)
        assert read_header(data).mode == "I;16"
        assert pixels(to_rgb(data)) == [[0, 51, 102], [153, 204, 255]]


def test_big_endian_sixteen_bits_and_thirty_two_bits_are_scaled(encode):
    values = [[0, 257], [514, 65535]]
    expected = [[0, 1], [2, 255]]
    big = encode(grey(values, ">u2"), "TIFF")
    wide = encode(grey(values, np.int32), "TIFF")
    assert [read_header(big).mode, read_header(wide).mode] == ["I;16B", "I"]
    assert pixels(to_rgb(big)) == pixels(to_rgb(wide)) == expected


def test_float_pixels_are_scaled_and_what_is_no_number_is_black(encode):
    data = encode(grey([[-1.0, 0.0], [float("nan"), 1.55]], np.float32), "TIFF")
    assert read_header(data).mode == "F"
    assert pixels(to_rgb(data)) == [[0, 100], [0, 255]]


def test_infinite_pixels_take_the_end_that_they_lie_beyond(encode):
    values = [[float("-inf"), 10.0], [float("inf"), 20.0]]
    assert pixels(to_rgb(encode(grey(values, np.float32), "TIFF"))) == [[0, 0], [255, 255]]
    nowhere = [[float("nan"), float("inf")]]
    assert pixels(to_rgb(encode(grey(nowhere, np.float32), "TIFF"))) == [[0, 0]]


def test_rows_beyond_the_first_band_are_scaled_alike(encode):
    values = np.arange(1024, dtype=np.uint16).reshape(1024, 1)  # four bands of 256 rows
    assert np.asarray(to_rgb(encode(grey(values, np.uint16))))[:, 0, 0].tolist() == [
        round(v * 255 / 1023) for v in range(1024)
    ]


def test_a_constant_deep_image_is_black_and_no_division_by_zero(encode):
    with np.errstate(all="raise"):
        assert pixels(to_rgb(encode(grey([[700, 700]], np.uint16)))) == [[0, 0]]


def test_scaling_rounds_to_the_nearest_grey():
    # 255 / 4 = 63.75, 127.5, 191.25; halves go to the even number.
    assert np.asarray(to_8_bit(np.array([[0, 1, 2, 3, 4]]))).tolist() == [[0, 64, 128, 191, 255]]


def test_alpha_lies_over_black(encode):
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(255, 100, 0, 255), (200, 100, 50, 51), (255, 255, 255, 0)])
    assert pixels(to_rgb(encode(rgba))) == [[(255, 100, 0), (40, 20, 10), 0]]


def test_grey_with_alpha_lies_over_black(encode):
    image = Image.new("LA", (2, 1))
    image.putdata([(200, 255), (200, 0)])
    assert pixels(to_rgb(encode(image))) == [[200, 0]]


def test_a_palette_with_a_transparent_colour_lies_over_black(encode):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 10, 20, 30])
    image.putdata([0, 1])
    assert pixels(to_rgb(encode(image))) == [[(255, 0, 0), (10, 20, 30)]]
    assert pixels(to_rgb(encode(image, transparency=0))) == [[0, (10, 20, 30)]]


def test_rgb_and_grey_with_a_transparent_colour_lie_over_black(encode):
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    assert pixels(to_rgb(encode(image, transparency=(9, 8, 7)))) == [[0, (1, 2, 3)]]
    assert pixels(to_rgb(encode(grey([[9, 5]]), transparency=9))) == [[0, 5]]


def test_one_bit_is_black_and_white(encode):
    assert pixels(to_rgb(encode(Image.fromarray(np.array([[True, False]]))))) == [[255, 0]]


def test_cmyk_becomes_rgb(encode):
    data = encode(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF")
    assert read_header(data).mode == "CMYK"
    assert pixels(to_rgb(data)) == [[(255, 0, 0)]]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [[10, 20, 30], [40, 50, 60]]), (2, [[30, 20, 10], [60, 50, 40]]), (3, [[60, 50, 40], [30, 20, 10]]),
        (4, [[40, 50, 60], [10, 20, 30]]), (5, [[10, 40], [20, 50], [30, 60]]), (6, [[40, 10], [50, 20], [60, 30]]),
        (7, [[60, 30], [50, 20], [40, 10]]), (8, [[30, 60], [20, 50], [10, 40]]), (9, [[10, 20, 30], [40, 50, 60]]),
    ],
)  # fmt: skip
def test_the_cameras_orientation_is_applied(encode, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert pixels(to_rgb(encode(grey([[10, 20, 30], [40, 50, 60]]), exif=exif))) == upright


# struct.error or TypeError over the entry that has another type than its tag.
def test_a_picture_is_turned_whatever_else_its_exif_holds(encode):
    entries = (
        b"\x01\x11\x00\x02\x00\x00\x00\x06\x00\x00\x00\x26\x01\x12\x00\x03\x00\x00\x00\x01\x00\x06\x00\x00"
    )
    exif = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x02" + entries + b"\x00\x00\x00\x00maker\x00"
    assert to_rgb(encode("L", "JPEG", size=(8, 6), exif=exif)).size == (6, 8)


def test_a_tiff_whose_offset_is_a_fraction_is_refused(encode):
    data = encode("L", "TIFF")
    assert data.count(b"\x11\x01\x04\x00") == 1  # where the pixels lie, a whole number
    with pytest.raises(ImageError):
        to_rgb(data.replace(b"\x11\x01\x04\x00", b"\x11\x01\x05\x00"))


def test_of_an_animation_the_first_frame_is_taken(encode):
    frames = [grey([[value] * 4] * 4) for value in (10, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert pixels(to_rgb(data)) == [[10] * 4] * 4


@pytest.mark.parametrize("size", [(300, 200), (100, 517), (224, 224), (1, 1)])
def test_the_squash_is_that_of_blip2s_own_processor_bit_for_bit(size):
    image = noise(*size)
    processor = BlipImageProcessorPil(size={"height": 224, "width": 224}, resample=PILImageResampling.BICUBIC)
    theirs = processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    ours = np.asarray(squash(image)).transpose(2, 0, 1)
    assert ours.shape == (3, 224, 224)
    assert (ours == theirs).all()


def test_the_squash_distorts_and_never_crops_or_flips():
    wide = np.zeros((100, 400, 3), np.uint8)
    wide[:, :40] = 255  # a marker at the left edge
    squashed = np.asarray(squash(Image.fromarray(wide)))
    assert squashed[:, :20].min() > 240
    assert squashed[:, 30:].max() == 0


def test_the_stored_png_is_lossless():
    image = noise(224, 224)
    data = to_png(image)
    assert read_header(data).format == "PNG"
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(image)).all()


def test_a_grey_picture_is_stored_with_one_channel_and_comes_back_with_three():
    image = noise(64, 64).getchannel(0).convert("RGB")
    stored = to_png(one_channel(image))
    assert read_header(stored).mode == "L"
    assert (np.asarray(to_rgb(stored)) == np.asarray(image)).all()


def test_one_coloured_pixel_is_enough_to_store_three_channels():
    for channel in range(3):
        image = Image.new("RGB", (4, 4), (7, 7, 7))
        image.putpixel((2, 1), tuple(7 + (c == channel) for c in range(3)))
        assert one_channel(image) is image
        assert chroma(image) == 1


def test_a_file_and_its_bytes_are_the_same_picture(encode, tmp_path):
    (tmp_path / "a.png").write_bytes(encode("LA", value=90))
    path = tmp_path / "a.png"
    assert read_header(path) == read_header(path.read_bytes())
    assert (np.asarray(to_rgb(path)) == np.asarray(to_rgb(path.read_bytes()))).all()


def test_a_file_that_cannot_be_read_says_why(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone")
    for name, reason in (("folder.jpg", "Is a directory"), ("link.jpg", "No such file or directory")):
        with pytest.raises(FileError, match=f"^The file cannot be read: {reason}.$"):
            to_rgb(tmp_path / name)
