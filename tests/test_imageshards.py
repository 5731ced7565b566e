"""A shard holds pictures equal to the squashed originals, and says itself what it could not take."""

import io
import os
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessorPil
from transformers.image_utils import PILImageResampling

from utils.dataset import PreparedSplit, normalise
from utils.images import one_channel, open_checked, pixel_hash, squash, to_rgb
from utils.imageshards import rejects_of, schema, write_shard
from utils.parts import Part, finished
from utils.stages import StageError

FEATURES = datasets.Features(
    {"image_id": datasets.Value("string"), "split": datasets.Value("string"), "image": datasets.Image()}
)


def noise(height, width, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def part(tmp_path, encode):
    """The work of one shard: colour, grey in three channels, one that is cut off, deep, grey in one."""
    grey = noise(40, 90).getchannel(0)
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 4096, (50, 60), dtype=np.uint16))
    root = tmp_path / "release"
    root.mkdir()
    for name, image in {
        "colour": noise(60, 30),
        "three": grey.convert("RGB"),
        "deep": deep,
        "one": grey,
    }.items():
        (root / f"{name}.png").write_bytes(encode(image))
    whole = encode(noise(64, 64), "JPEG")
    (root / "half.jpg").write_bytes(whole[: len(whole) // 2])
    names = ("colour.png", "three.png", "half.jpg", "deep.png", "one.png")
    ids = tuple(name.partition(".")[0] for name in names)
    return Part(tmp_path / "images-train-00000.parquet", "train", ids, root, names)


def test_the_schema_is_the_one_that_datasets_writes():
    assert schema().equals(FEATURES.arrow_schema, check_metadata=True)
    assert schema().metadata == FEATURES.arrow_schema.metadata


def test_a_shard_loads_as_pictures_equal_to_the_squashed_originals(part, tmp_path):
    write_shard(part)
    assert finished(part)
    table = datasets.Dataset.from_parquet(str(part.path), cache_dir=str(tmp_path / "cache"))
    assert table.features == FEATURES
    assert table["image_id"][:] == ["colour", "three", "deep", "one"]
    assert table["split"][:] == ["train"] * 4
    assert [image.mode for image in table["image"]] == ["RGB", "L", "L", "L"]
    for image_id, image in zip(table["image_id"], table["image"], strict=True):
        original = to_rgb(part.root / f"{image_id}.png")
        assert (image.format, image.size) == ("PNG", (224, 224))
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(squash(original)))


def test_the_pictures_in_a_shard_have_the_names_of_their_ids(part):
    write_shard(part)
    cells = pq.read_table(part.path)["image"].to_pylist()
    assert [cell["path"] for cell in cells] == ["colour.png", "three.png", "deep.png", "one.png"]


def test_an_image_that_cannot_be_decoded_is_named_in_the_shard_itself_and_not_replaced(part):
    write_shard(part)
    rejects = rejects_of(part.path)
    assert list(rejects) == ["half"]
    assert rejects["half"].startswith("The image is damaged or cut off: ")
    assert "half" not in pd.read_parquet(part.path)["image_id"].tolist()


def test_a_shard_without_one_good_image_is_a_shard_all_the_same(part):
    lost = Part(part.path, "train", ("half",), part.root, ("half.jpg",))
    write_shard(lost)
    assert finished(lost)
    assert pq.read_schema(lost.path).names == ["image_id", "split", "image"]
    assert pq.read_table(lost.path).num_rows == 0
    assert list(rejects_of(lost.path)) == ["half"]


def test_the_same_input_gives_the_same_bytes(part, tmp_path):
    write_shard(part)
    first = part.path.read_bytes()
    part.path.unlink()
    write_shard(part)
    assert part.path.read_bytes() == first


def test_an_image_file_that_is_gone_stops_the_shard_with_a_sentence(part):
    (part.root / "deep.png").unlink()
    with pytest.raises(StageError) as caught:
        write_shard(part)
    assert str(caught.value) == (
        "Image deep has changed since notebook 01. The file cannot be read: No such file or directory. "
        "Attach the same data and run this again: finished shards are kept. Or make stage 01 anew "
        "(FRESH = True, or --only 01,02 --fresh)."
    )
    assert os.listdir(part.path.parent) == ["release"]


@pytest.fixture
def seen(part):
    """The part without the image that is cut off, with the hashes that notebook 01 took."""
    places = [0, 1, 3, 4]
    ids, names = (tuple(values[place] for place in places) for values in (part.image_ids, part.sources))
    hashes = tuple(pixel_hash(one_channel(to_rgb(part.root / name))) for name in names)
    return replace(part, image_ids=ids, sources=names, hashes=hashes)


def test_pictures_that_are_as_notebook_01_saw_them_are_taken(seen):
    write_shard(seen)
    assert len(pq.read_table(seen.path)) == 4


def test_a_picture_that_changed_since_notebook_01_stops_the_shard(seen, encode):
    """A test picture copied over a training picture after notebook 01 went into training unseen."""
    for data in (encode(noise(64, 64)), b"garbage"):
        (seen.root / "three.png").write_bytes(data)
        with pytest.raises(StageError, match=r"^Image three has changed since notebook 01\. "):
            write_shard(seen)
        assert not seen.path.exists()


def test_a_prepared_picture_carries_pixels_alone(part, encode):
    """Colour profile and EXIF data of the file went along into every shard."""
    exif = Image.Exif()
    exif[0x010E] = "the name of a patient"
    (part.root / "colour.png").write_bytes(
        encode(noise(30, 30), exif=exif, icc_profile=b"profile" * 99, dpi=(72, 72))
    )
    write_shard(part)
    data = pq.read_table(part.path)["image"][0].as_py()["bytes"]
    assert b"patient" not in data
    assert Image.open(io.BytesIO(data)).info == {}


def test_a_disk_that_fails_while_pixels_are_read_is_no_damage_of_the_image(part, monkeypatch):
    def fail(self):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(StageError, match=r"Image colour .* The file cannot be read: Input/output error\."):
        write_shard(part)
    assert not part.path.exists()


@pytest.fixture
def from_shard(tmp_path, encode):
    """The same work with a parquet shard of the hub's schema as its source."""
    cells = [{"bytes": encode(noise(30, 30, seed)), "path": None} for seed in range(3)]
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (tmp_path / "data").mkdir()
    pq.write_table(
        pa.table({"image": pa.array([*cells, None], image)}), tmp_path / "data" / "train-0.parquet"
    )
    sources = ("data/train-0.parquet#0", "data/train-0.parquet#2", "data/train-0.parquet#3")
    return Part(tmp_path / "images-train-00000.parquet", "train", ("a", "c", "none"), tmp_path, sources)


def test_images_are_taken_from_rows_of_parquet_shards(from_shard):
    write_shard(from_shard)
    table = pq.read_table(from_shard.path).to_pylist()
    assert [row["image_id"] for row in table] == ["a", "c"]
    for row, seed in zip(table, (0, 2), strict=True):
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert np.array_equal(np.asarray(image), np.asarray(squash(noise(30, 30, seed))))
    assert rejects_of(from_shard.path) == {"none": "The file is empty (0 bytes)."}


@pytest.mark.parametrize("fault", ["gone", "cut off"])
def test_a_parquet_shard_that_is_gone_or_broken_stops_the_work_with_a_sentence(from_shard, fault):
    path = from_shard.root / "data" / "train-0.parquet"
    path.unlink() if fault == "gone" else path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StageError, match=r"train-0\.parquet cannot be read \("):
        write_shard(from_shard)
    assert not from_shard.path.exists()


def test_every_prepared_real_image_is_what_blip2s_own_processor_makes_of_it(real_release, tmp_path):
    """Not "nearly": before normalisation no pixel differs by one.

    RGBA files come to the processor as our RGB: it would drop their alpha, we lay it over black.
    """
    files = sorted(p for split in ("train", "valid", "test") for p in (real_release / split).iterdir())
    ids, names = tuple(p.stem for p in files), tuple(p.relative_to(real_release).as_posix() for p in files)
    write_shard(Part(tmp_path / "images-train-00000.parquet", "train", ids, real_release, names))
    captions = pd.DataFrame({"image_id": ids, "input_ids": [[0]] * len(ids)})
    captions.to_parquet(tmp_path / "captions.parquet")
    prepared = PreparedSplit(tmp_path, "train")
    assert prepared.table["image_id"].tolist() == sorted(ids)
    assert len(ids) == 122
    processor = BlipImageProcessorPil(size={"height": 224, "width": 224}, resample=PILImageResampling.BICUBIC)
    alphas, furthest = 0, 0.0
    for index, image_id in enumerate(prepared.table["image_id"]):
        path = files[ids.index(image_id)]
        with open_checked(path) as image:
            alpha = image.mode == "RGBA"
            theirs = to_rgb(path) if alpha else image.convert("RGB")
        alphas += alpha
        raw = processor(theirs, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
        pixels = prepared.pixels(index)
        assert np.array_equal(pixels.numpy(), raw), image_id
        full = processor(theirs, return_tensors="np")["pixel_values"][0]
        ours = normalise(pixels[None], processor.image_mean, processor.image_std)[0]
        assert ours.dtype == torch.float32
        furthest = max(furthest, float(np.abs(ours.numpy() - full).max()))
    assert alphas > 0
    assert furthest < 1e-6
