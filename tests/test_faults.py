"""All that can be wrong with an image, in one release: each gets its reason, and none becomes black.

The release goes through the stages 01 and 02 as the notebooks drive them.
"""

import csv
import io
import json
import os
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from utils import filtering, prepare, results, rocov2
from utils.dataset import PreparedSplit

ROOT = os.geteuid() == 0  # for whom every file has read permission
DAMAGED = "The image is damaged or cut off: "
NO_IMAGE = "The file is not an image (JPEG, PNG, WEBP, TIFF, BMP, GIF are read)."
UNREADABLE, BROKEN, KEPT = "image unreadable", "image damaged", "kept"
# name -> mode that the header tells; reason with every mode kept; the beginning of the decoder's sentence
FAULTS = {
    "good.jpg": ("RGB", KEPT, None),
    "empty.jpg": (None, UNREADABLE, "The file is empty (0 bytes)."),
    "cut off.jpg": ("RGB", BROKEN, DAMAGED),
    "cut_off_too.png": ("RGB", BROKEN, DAMAGED),
    "text.jpg": (None, UNREADABLE, NO_IMAGE),
    "a_png.jpg": ("RGB", KEPT, None),
    "cmyk.jpg": ("CMYK", KEPT, None),
    "palette.png": ("P", KEPT, None),
    "one_bit.png": ("1", KEPT, None),
    "grey_alpha.png": ("LA", KEPT, None),
    "transparent.png": ("RGBA", KEPT, None),
    "deep.png": ("I;16", KEPT, None),
    "float.tif": ("F", KEPT, None),
    "turned.jpg": ("RGB", KEPT, None),
    "animated.gif": ("P", KEPT, None),
    "bomb.png": (None, UNREADABLE, "The image has 100 megapixels; at most 40 are read."),
    "folder.jpg": (None, UNREADABLE, "The file cannot be read: Is a directory."),
    "dangling.jpg": (None, UNREADABLE, "The file cannot be read: No such file or directory."),
    # fails as a missing permission does, even for root: a link to itself
    "endless.jpg": (None, UNREADABLE, "The file cannot be read: Too many levels of symbolic links."),
    "forbidden.jpg": ("RGB", KEPT, None) if ROOT else (None, UNREADABLE, "The file cannot be read: Permission denied."),
    "Röntgen Bild №1.jpg": ("RGB", KEPT, None),
    "nothing": (None, "image file missing", None),
}  # fmt: skip
SHADES = {"valid": (100, 80, 90), "test": (200, 80, 90)}  # of the only image of each other split
LOST = [name for name, (_, reason, _) in FAULTS.items() if reason != KEPT]
# name -> (row, column) -> prepared pixel, of pictures that halves of one colour make: exact numbers
PIXELS = {
    "a_png.jpg": {(0, 0): (200, 30, 30), (223, 223): (200, 30, 30)},
    "palette.png": {(112, 10): (255, 0, 0), (112, 213): (10, 20, 30)},
    "one_bit.png": {(112, 10): (255, 255, 255), (112, 213): (0, 0, 0)},
    "grey_alpha.png": {(112, 10): (150, 150, 150), (112, 213): (0, 0, 0)},  # nothing shows: black, not 150
    "transparent.png": {(112, 10): (40, 20, 10), (112, 213): (200, 100, 50)},  # a fifth of it, all of it
    "deep.png": {(112, 10): (0, 0, 0), (112, 80): (51, 51, 51), (112, 213): (255, 255, 255)},
    "float.tif": {(112, 10): (0, 0, 0), (112, 213): (255, 255, 255)},
    "turned.jpg": {(10, 112): (255, 255, 255), (213, 112): (0, 0, 0)},  # lay on its side: left is up
    "animated.gif": {(0, 0): (90, 90, 90), (223, 223): (90, 90, 90)},  # the first frame
}


def bands(*values, dtype=np.uint8, mode=None):
    """Upright stripes of equal width, wide enough to keep their middle through the squash."""
    row = np.concatenate([np.tile(np.array([value], dtype), (80, *[1] * np.ndim(value))) for value in values])
    return Image.fromarray(np.stack([row] * 40), mode)


def chunk(name, data):
    return len(data).to_bytes(4) + name + data + zlib.crc32(name + data).to_bytes(4)


def bomb():
    """A PNG of 300 kB that holds 300 MB of one colour, whole and valid."""
    row = b"\0" + bytes((90, 60, 30)) * 10_000
    data = zlib.compress(row * 10_000, 9)
    header = (10_000).to_bytes(4) * 2 + bytes((8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def cut(data):
    return data[: len(data) // 2]


def contents():
    """Name -> bytes of every file of the list that has any."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    palette = bands(0, 1)
    palette.putpalette([255, 0, 0, 10, 20, 30])
    on_its_side = Image.Exif()
    on_its_side[0x0112] = 6  # a quarter turn clockwise sets it upright
    frames = [Image.new("L", (30, 30), value) for value in (90, 200)]
    upright = bands((0, 0, 0), (255, 255, 255)).transpose(Image.Transpose.ROTATE_90)  # white above
    return {
        "good.jpg": encoded(noise, "JPEG"),
        "empty.jpg": b"",
        "cut off.jpg": cut(encoded(noise.rotate(90), "JPEG")),
        "cut_off_too.png": cut(encoded(noise.rotate(180))),
        "text.jpg": b"404 Not Found\n" * 20,
        "a_png.jpg": encoded(Image.new("RGB", (50, 20), (200, 30, 30))),
        "cmyk.jpg": encoded(Image.new("RGB", (40, 40), (200, 40, 90)).convert("CMYK"), "JPEG"),
        "palette.png": encoded(palette),
        "one_bit.png": encoded(bands(255, 0).convert("1")),
        "grey_alpha.png": encoded(bands((150, 255), (150, 0), mode="LA")),
        "transparent.png": encoded(bands((200, 100, 50, 51), (200, 100, 50, 255), mode="RGBA")),
        "deep.png": encoded(bands(1000, 1200, 2000, dtype=np.uint16)),
        "float.tif": encoded(bands(-1.5, 2.5, dtype=np.float32), "TIFF"),
        "turned.jpg": encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", exif=on_its_side),
        "animated.gif": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "bomb.png": bomb(),
        "forbidden.jpg": encoded(noise.rotate(270), "JPEG"),
        "Röntgen Bild №1.jpg": encoded(noise.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "JPEG"),
    }


def write_captions(root, split, ids):
    with open(root / f"{split}_captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [("ID", "Caption"), *((image_id, f"CT of {image_id}.") for image_id in ids)]
        )


@pytest.fixture(scope="module")
def files():
    return contents()


@pytest.fixture(scope="module")
def release(tmp_path_factory, files):
    """The faults as the training split of a folder; one good image each to validate and to test."""
    root = tmp_path_factory.mktemp("faults") / "release"
    for split, shade in SHADES.items():
        (root / split).mkdir(parents=True)
        Image.new("RGB", (30, 30), shade).save(root / split / f"{split}.png")
        write_captions(root, split, [split])
    (root / "train").mkdir()
    for name, data in files.items():
        (root / "train" / name).write_bytes(data)
    (root / "train" / "folder.jpg").mkdir()
    (root / "train" / "dangling.jpg").symlink_to(root / "gone.jpg")
    (root / "train" / "endless.jpg").symlink_to("endless.jpg")
    (root / "train" / "forbidden.jpg").chmod(0)
    write_captions(root, "train", [Path(name).stem for name in FAULTS])
    return root


def run(root, folder, pixels=True, modes=None):
    """Run stages 01 and 02 as the notebooks do; give what they left."""
    first, second = folder / "01_filter", folder / "02_preprocess"
    for stage in (first, second):
        stage.mkdir(parents=True)
    release = rocov2.open_release(str(root), folder)
    records = filtering.audit(release, first, procs=1, pixels=pixels)
    records = filtering.apply_rules(records, filtering.rules_for(records, modes))
    filtering.write_stage(first, records, {"funnel": filtering.funnel(records)})
    read = results.read_records(SimpleNamespace(path=first))
    rejects = prepare.prepare_images(read, release.store, second, procs=1)
    settled = prepare.settle(read, rejects)
    captions = settled.loc[settled["keep"], ["image_id", "split", "modality"]].assign(
        input_ids=[[0]] * settled["keep"].sum()
    )
    figures = prepare.write_stage(second, captions, settled, rejects, {"token_limit": 1})
    return SimpleNamespace(
        first=first, second=second, records=records, settled=settled, rejects=rejects, figures=figures,
        train=records[records["split"] == "train"].set_index("image_id"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ran(release, tmp_path_factory):
    """Both stages with all modes kept and every pixel read."""
    return run(release, tmp_path_factory.mktemp("ran"))


@pytest.fixture(scope="module")
def unread(release, tmp_path_factory):
    """Both stages with all modes kept, stage 01 reading headers alone."""
    return run(release, tmp_path_factory.mktemp("unread"), pixels=False)


def row(ran, name):
    return ran.train.loc[Path(name).stem]


def rejected(folder):
    with open(folder / "rejects.csv", newline="", encoding="utf-8") as file:
        return {row["image_id"]: (row["reason"], row["error"]) for row in csv.DictReader(file)}


@pytest.mark.parametrize("name", FAULTS)
def test_every_file_has_its_mode_its_one_reason_and_its_sentence(ran, name):
    mode, reason, sentence = FAULTS[name]
    found = row(ran, name)
    assert (found["mode"], found["reason"], found["keep"]) == (mode, reason, reason == KEPT)
    assert found["error"] is None if sentence is None else found["error"].startswith(sentence)


@pytest.mark.skipif(ROOT, reason="root reads every file: run the tests as another user to see this")
def test_a_file_without_read_permission_is_refused_with_the_systems_words(ran):
    assert row(ran, "forbidden.jpg")["error"] == "The file cannot be read: Permission denied."


@pytest.mark.filterwarnings("ignore:Image size")
def test_the_bomb_is_small_and_whole(files):
    assert len(files["bomb.png"]) < 400_000
    header = Image.open(io.BytesIO(files["bomb.png"]))
    assert header.width * header.height * 3 == 300_000_000


def test_the_counts_add_up_to_the_pairs(ran):
    funnel = filtering.funnel(ran.records)
    assert {split: sum(row.values()) for split, row in funnel.items()} == {
        "train": len(FAULTS),
        "valid": 1,
        "test": 1,
    }
    assert {reason: n for reason, n in funnel["train"].items() if n} == {
        KEPT: len(FAULTS) - len(LOST), UNREADABLE: 6 if ROOT else 7, BROKEN: 2, "image file missing": 1,
    }  # fmt: skip


def test_every_dropped_pair_is_in_the_list_with_its_sentence(ran):
    listed = rejected(ran.first)
    assert set(listed) == {Path(name).stem for name in LOST}
    for name in LOST:
        _, reason, sentence = FAULTS[name]
        assert listed[Path(name).stem][0] == reason
        assert listed[Path(name).stem][1].startswith(sentence or "")
        assert bool(listed[Path(name).stem][1]) == (sentence is not None)


def test_what_stage_01_keeps_after_reading_the_pixels_stage_02_prepares(ran):
    assert ran.rejects == {}
    assert rejected(ran.second) == {}
    split = PreparedSplit(ran.second, "train")
    assert split.table["image_id"].tolist() == sorted(Path(n).stem for n in FAULTS if n not in LOST)
    assert json.loads((ran.second / "preprocess.json").read_text())["funnel"] == filtering.funnel(ran.records)


@pytest.mark.parametrize("name", PIXELS)
def test_odd_pictures_are_prepared_to_these_pixels(ran, name):
    split = PreparedSplit(ran.second, "train")
    image = split.image(split.table["image_id"].tolist().index(Path(name).stem))
    assert {place: image.getpixel(place[::-1]) for place in PIXELS[name]} == PIXELS[name]


def test_nothing_is_replaced_by_a_black_picture(ran, unread):
    for folder in (ran.second, unread.second):
        split = PreparedSplit(folder, "train")
        assert [int(split.pixels(i).max()) > 50 for i in range(len(split))] == [True] * len(split)


def test_a_cmyk_picture_keeps_its_colours(ran):
    split = PreparedSplit(ran.second, "train")
    ids = split.table["image_id"].tolist()
    found = split.image(ids.index("cmyk")).getpixel((100, 100))
    assert np.abs(np.subtract(found, (200, 40, 90))).max() <= 2


def test_by_default_the_modes_beside_rgb_are_refused_and_named(ran):
    judged = filtering.apply_rules(ran.records, filtering.rules_for(ran.records, ("RGB",)))
    found = judged[judged["split"] == "train"].set_index("image_id")["reason"].to_dict()
    assert found == {
        Path(name).stem: f"mode {mode}" if reason == KEPT and mode != "RGB" else reason
        for name, (mode, reason, _) in FAULTS.items()
    }
    funnel = filtering.funnel(judged)["train"]
    assert sum(funnel.values()) == len(FAULTS)
    assert [reason for reason in funnel if reason.startswith("mode ")] == [
        "mode 1", "mode CMYK", "mode F", "mode I;16", "mode LA", "mode P", "mode RGBA",
    ]  # fmt: skip


def test_headers_alone_do_not_find_damage_and_stage_02_does(unread):
    assert {name: row(unread, name)["reason"] for name in FAULTS if row(unread, name)["reason"] != KEPT} == {
        name: reason for name, (_, reason, _) in FAULTS.items() if reason not in (KEPT, BROKEN)
    }
    assert unread.train["sha256"].isna().all()
    assert sorted(unread.rejects) == ["cut off", "cut_off_too"]
    listed = rejected(unread.second)
    assert sorted(listed) == ["cut off", "cut_off_too"]
    assert {reason for reason, _ in listed.values()} == {BROKEN}
    assert all(sentence.startswith(DAMAGED) for _, sentence in listed.values())


def test_both_ways_end_in_the_same_reasons_and_the_same_pictures(ran, unread):
    assert unread.settled["reason"].tolist() == ran.settled["reason"].tolist()
    assert unread.settled["error"].fillna("").tolist() == ran.settled["error"].fillna("").tolist()
    first, second = (json.loads((r.second / "preprocess.json").read_text())["funnel"] for r in (ran, unread))
    assert first == second
    assert second["train"][BROKEN] == 2
    assert unread.figures == {**ran.figures, "damaged": 2}
    tables = [
        pd.concat(pd.read_parquet(p) for p in sorted(r.second.glob("images-train-*"))) for r in (ran, unread)
    ]
    assert tables[0]["image"].tolist() == tables[1]["image"].tolist()


def test_the_same_faults_in_parquet_shards_get_the_same_reasons(ran, files, tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    others = {s: {f"{s}.png": encoded(Image.new("RGB", (30, 30), shade))} for s, shade in SHADES.items()}
    for split, named in {"train": files, "validation": others["valid"], "test": others["test"]}.items():
        table = pa.table({
            "image": pa.array([{"bytes": data, "path": name} for name, data in named.items()], image),
            "image_id": [Path(name).stem for name in named],
            "caption": ["CT."] * len(named),
            "cui": [["C0040405"]] * len(named),
        })  # fmt: skip
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")
    (tmp_path / "work").mkdir()
    of_shards = run(root, tmp_path / "work")
    assert of_shards.train.index.tolist() == [Path(name).stem for name in files]
    columns = ["mode", "format", "width", "height", "sha256", "phash", "chroma", "reason", "error"]
    here = of_shards.train.drop(index="forbidden")[columns]  # a shard's bytes have no permissions
    there = ran.train.loc[here.index, columns]
    assert here.to_dict("index") == there.to_dict("index")
