"""Every image says the same of itself, whatever file it is in, and a spoilt one stops nothing."""

import hashlib
import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFile

from utils import audit, filtering, parts, rocov2
from utils.audit import look

PIXELS = ["sha256", "phash", "chroma"]


def noise(width=40, height=30, seed=0, channels=()):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(pixels)


def blobs(size=200, seed=0):
    """A soft picture: 16 x 16 grey squares, far enlarged."""
    return noise(16, 16, seed).resize((size, size), Image.Resampling.BICUBIC)


def file(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def bits(one, other):
    """In how many bits the perceptual hashes of two files differ, counted digit by digit."""
    pairs = zip(look(one, True)["phash"], look(other, True)["phash"], strict=True)
    return sum(bin(int(a, 16) ^ int(b, 16)).count("1") for a, b in pairs)


SAME = {
    "PNG of mode L": lambda grey: file(grey),
    "PNG of mode RGB": lambda grey: file(grey.convert("RGB")),
    "BMP of mode L": lambda grey: file(grey, "BMP"),
    "BMP of mode RGB": lambda grey: file(grey.convert("RGB"), "BMP"),
    "lossless WebP": lambda grey: file(grey.convert("RGB"), "WEBP", lossless=True),
    "TIFF": lambda grey: file(grey, "TIFF"),
    "palette": lambda grey: file(grey.convert("P")),
    "opaque alpha": lambda grey: file(grey.convert("RGBA")),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_pixels_in_any_file_give_the_same_hashes(name):
    grey = noise()
    found = look(SAME[name](grey), True)
    assert found["sha256"] == hashlib.sha256(b"L 40 30 " + grey.tobytes()).hexdigest()
    assert found["phash"] == look(file(grey), True)["phash"]
    assert (found["width"], found["height"], found["chroma"]) == (40, 30, 0)
    assert "error" not in found


def test_colour_pixels_are_hashed_with_all_their_channels():
    colour = noise(channels=(3,))
    expected = hashlib.sha256(b"RGB 40 30 " + colour.tobytes()).hexdigest()
    assert look(file(colour), True)["sha256"] == expected
    assert look(file(colour, "WEBP", lossless=True), True)["sha256"] == expected


def test_one_pixel_or_another_size_gives_another_hash():
    grey = noise()
    pixel = grey.copy()
    pixel.putpixel((39, 29), grey.getpixel((39, 29)) ^ 1)
    tinted = grey.convert("RGB")
    tinted.putpixel((0, 0), (1, 2, 3))
    reshaped = Image.frombytes("L", (30, 40), grey.tobytes())
    found = [look(file(image), True)["sha256"] for image in (grey, pixel, tinted, reshaped)]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("pixels", "chroma"),
    [([(10, 10, 10), (200, 200, 200)], 0), ([(10, 13, 10), (9, 9, 9)], 3), ([(0, 0, 0), (200, 100, 90)], 100),
     ([(100, 90, 200), (60, 80, 80)], 110), ([(255, 0, 0), (1, 1, 1)], 255)],
)  # fmt: skip
def test_chroma_is_how_far_red_or_blue_is_from_green_at_most(pixels, chroma):
    image = Image.new("RGB", (2, 1))
    image.putdata(pixels)
    assert look(file(image), True)["chroma"] == chroma


def test_colour_that_is_transparent_is_not_seen():
    assert look(file(Image.new("RGBA", (9, 9), (255, 0, 0, 0))), True)["chroma"] == 0
    assert look(file(Image.new("RGBA", (9, 9), (255, 0, 0, 255))), True)["chroma"] == 255


def test_a_picture_of_one_grey_has_one_of_two_hashes_in_any_size():
    from utils.duplicates import FLAT

    sizes = [(1, 1), (8, 6), (300, 200), (1, 900)]
    grey = {look(file(Image.new("L", size, v)), True)["phash"] for size in sizes for v in (1, 77, 128, 255)}
    black = {look(file(Image.new("RGB", size)), True)["phash"] for size in sizes}
    assert (black, grey) == ({FLAT[0]}, {FLAT[1]})


def test_a_picture_encoded_or_sized_anew_is_near_and_another_is_far():
    picture = blobs()
    original = file(picture)
    assert bits(original, file(picture, "JPEG", quality=60)) <= 4
    assert bits(original, file(picture.resize((100, 100)))) <= 4
    assert bits(original, file(picture.resize((700, 630)))) <= 4
    assert [bits(original, file(blobs(seed=n))) > 16 for n in range(1, 6)] == [True] * 5


def test_a_radiograph_encoded_or_sized_anew_is_near_and_another_is_far(real_release):
    paths = sorted((real_release / "train").iterdir())[:40:10]
    for path in paths:
        with Image.open(path) as image:
            image = image.convert("RGB")
        assert bits(path, file(image, "JPEG", quality=60)) <= 4
        assert bits(path, file(image.resize((image.width // 2, image.height // 2)))) <= 4
    # Two chests are more alike than other pictures: 12 bits; the others differ in 22 to 32.
    assert min(bits(a, b) for n, a in enumerate(paths) for b in paths[:n]) >= 10


def test_a_damaged_file_keeps_its_header_and_says_what_is_wrong():
    found = look(file(noise())[:-400], True)
    assert {name: found[name] for name in ("mode", "format", "width", "height")} == {
        "mode": "L", "format": "PNG", "width": 40, "height": 30,
    }  # fmt: skip
    assert found["error"].startswith("The image is damaged or cut off: ")
    assert not set(PIXELS) & set(found)


def test_damage_is_not_seen_where_headers_alone_are_read():
    assert look(file(noise())[:-400], False) == {"mode": "L", "format": "PNG", "width": 40, "height": 30}


def test_a_file_of_no_known_format_has_an_error_and_nothing_else(tmp_path):
    (tmp_path / "a.png").write_text("<html>")
    assert look(b"", True) == {"error": "The file is empty (0 bytes)."}
    assert set(look(tmp_path / "a.png", True)) == {"error"}
    assert look(tmp_path / "b.png", True) == {"error": "The file cannot be read: No such file or directory."}


def test_headers_alone_decode_no_pixel(monkeypatch, tmp_path):
    (tmp_path / "a.png").write_bytes(file(noise()))

    def decode(self, *args):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    assert look(tmp_path / "a.png", False)["mode"] == "L"


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """Five images (one damaged, one no image) in three splits, one caption twice, one without an image."""
    root = tmp_path_factory.mktemp("seven")
    colour = noise(channels=(3,))
    whole = {"train/a": file(noise()), "train/b": file(colour), "train/c": file(noise(seed=1))[:-400]}
    whole |= {"valid/d": b"<html>", "test/e": file(noise(9, 9))}
    captions = {"train": ["a", "b", "gone", "c", "a"], "valid": ["d"], "test": ["e"]}
    for split, ids in captions.items():
        (root / split).mkdir()
        lines = "".join(f"{i},{i} text\n" for i in ids)
        (root / f"{split}_captions.csv").write_text(f"ID,Caption\n{lines}")
    for name, data in whole.items():
        (root / f"{name}.png").write_bytes(data)
    (root / "train_concepts_manual.csv").write_text("ID,CUIs\nb,C0040405\n")
    return rocov2.open_release(str(root), root)


@pytest.fixture(scope="module")
def interrupted(seven, tmp_path_factory):
    """The audit on one process, and again on two with one part taken away; and what it had to do anew."""
    folder = tmp_path_factory.mktemp("stage")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "ROWS", 2)
        first = filtering.audit(seven, folder, 1)
        (folder / "parts" / "pixels-train-00001.parquet").unlink()
        before = {path.name: path.stat().st_ino for path in (folder / "parts").iterdir()}
        second = filtering.audit(seven, folder, 2)
    after = {path.name: path.stat().st_ino for path in (folder / "parts").iterdir()}
    return first, second, before, after


def test_the_audit_says_of_every_pair_what_its_image_shows(interrupted):
    records = interrupted[0]
    assert records["image_id"].tolist() == ["a", "b", "gone", "c", "a", "d", "e"]
    assert records["mode"].tolist() == ["L", "RGB", None, "L", "L", None, "L"]
    assert records["format"].tolist() == ["PNG", "PNG", None, "PNG", "PNG", None, "PNG"]
    assert records["width"].tolist() == [40, 40, None, 40, 40, None, 9]
    assert records["height"].tolist() == [30, 30, None, 30, 30, None, 9]
    assert records["sha256"].notna().tolist() == [True, True, False, False, True, False, True]
    assert records["sha256"][0] == look(file(noise()), True)["sha256"] == records["sha256"][4]
    assert records["phash"][1] == look(file(noise(channels=(3,))), True)["phash"]
    assert records["chroma"][0] == 0
    assert records["chroma"][1] > 100
    assert records["error"].notna().tolist() == [False, False, False, True, False, True, False]
    assert records["repeated"].tolist() == [False, False, False, False, True, False, False]
    assert records["modality"].tolist() == [None, "CT", None, None, None, None, None]


def test_what_is_absent_is_none_and_numbers_are_whole(interrupted):
    records = interrupted[0]
    absent = records.loc[2, list(audit.COLUMNS)]
    assert all(value is None for value in absent)
    assert [type(value) for value in records.loc[0, ["width", "height", "chroma"]]] == [int] * 3


def test_the_audit_goes_on_with_the_parts_that_are_finished(interrupted):
    _, _, before, after = interrupted
    assert sorted(after) == [
        "pixels-test-00000.parquet", "pixels-train-00000.parquet", "pixels-train-00001.parquet",
        "pixels-valid-00000.parquet",
    ]  # fmt: skip
    assert {name: after[name] for name in before} == before
    assert len(before) == 3


def test_one_process_and_two_find_the_same(interrupted):
    first, second, *_ = interrupted
    pd.testing.assert_frame_equal(first, second)


def test_headers_alone_leave_out_what_pixels_show(seven, tmp_path):
    records = filtering.audit(seven, tmp_path, 1, pixels=False)
    assert records["mode"].tolist() == ["L", "RGB", None, "L", "L", None, "L"]
    assert all(value is None for name in PIXELS for value in records[name])
    assert records["error"].notna().tolist() == [False, False, False, False, False, True, False]


def test_headers_are_not_taken_for_pixels_of_an_earlier_run(seven, tmp_path, monkeypatch):
    """PIXELS may be switched on without FRESH where the stage was interrupted."""
    made = []
    monkeypatch.setattr(
        filtering, "write_parts", lambda parts, *rest: made.extend(p.path.name for p in parts)
    )
    monkeypatch.setattr(filtering, "describe", lambda pairs, parts: None)
    filtering.audit(seven, tmp_path, 1, pixels=False)
    filtering.audit(seven, tmp_path, 1)
    assert {name.split("-")[0] for name in made} == {"headers", "pixels"}


def test_a_release_without_any_image_is_described_without_a_process(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "Run", lambda *args: pytest.fail("processes were started"))
    pairs = pd.DataFrame({"image_id": ["a", "b"], "split": ["train", "test"], "source": [None, None],
                          "caption": ["CT.", None], "cuis": [["C0040405"], []]})  # fmt: skip
    release = rocov2.Release(rocov2.Store(tmp_path), pairs, {})
    records = filtering.audit(release, tmp_path, 2)
    assert records["image_id"].tolist() == ["a", "b"]
    assert all(value is None for name in audit.COLUMNS for value in records[name])
    assert records["modality"].tolist() == ["CT", None]
