"""Kept pairs become lossless 224x224 shards and token ids; finished shards are never made twice."""

import io
import json
import os

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils import config, filtering, prepare, rocov2
from utils.dataset import Layout
from utils.images import squash, to_rgb
from utils.prepare import Chunk, write_shard

NEWLINE = 50118


def judged(root, modes=None):
    records = filtering.audit(rocov2.open_release(str(root), root))
    return filtering.apply_rules(records, filtering.rules_for(records, modes))


def cut_off(path):
    """Keep a file's header and lose its end, as a broken download does."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])


@pytest.fixture
def chunk(release_folder, tmp_path):
    """The work of one shard: three images, the second of which is cut off."""
    root = release_folder(train=("RGBA", "RGB", "I;16"))
    cut_off(root / "train" / "train_2.png")
    ids = ("train_1", "train_2", "train_3")
    return Chunk(
        tmp_path / "images-train-00000.parquet", "train", ids, root, tuple(f"train/{i}.png" for i in ids)
    )


def test_a_shard_loads_as_pictures_equal_to_the_squashed_originals(chunk, tmp_path):
    assert write_shard(chunk) == 3
    table = datasets.Dataset.from_parquet(str(chunk.path), cache_dir=str(tmp_path / "cache"))
    assert table.features == datasets.Features(
        {"image_id": datasets.Value("string"), "split": datasets.Value("string"), "image": datasets.Image()}
    )
    assert table["image_id"][:] == ["train_1", "train_3"]
    assert table["split"][:] == ["train", "train"]
    for image_id, image in zip(table["image_id"], table["image"], strict=True):
        original = (chunk.root / "train" / f"{image_id}.png").read_bytes()
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (224, 224))
        assert (np.asarray(image) == np.asarray(squash(to_rgb(original)))).all()


def test_a_damaged_image_is_listed_with_its_reason_and_not_replaced(chunk):
    write_shard(chunk)
    rejects = prepare.write_shards([chunk], procs=1)  # nothing left to do: the shard says it itself
    assert list(rejects) == ["train_2"]
    assert rejects["train_2"].startswith("The image is damaged or cut off: ")
    assert len(pd.read_parquet(chunk.path)) == 2


def test_a_shard_gets_its_name_last(chunk, monkeypatch):
    def killed(source, target):
        if str(target).endswith(".parquet"):
            raise KeyboardInterrupt
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shard(chunk)
    assert not chunk.path.exists()


def test_shards_that_are_there_are_kept_and_parts_are_not_taken_for_them(chunk, capfd):
    write_shard(chunk)
    first, before = chunk.path.read_bytes(), chunk.path.stat().st_mtime_ns
    other = Chunk(chunk.path.with_name("images-train-00001.parquet"), "train", ("train_1", "train_2"), chunk.root,
                  ("train/train_1.png", "train/train_2.png"))  # fmt: skip
    other.path.with_suffix(".part").write_bytes(first[:100])
    rejects = prepare.write_shards([chunk, other], procs=1)
    assert (chunk.path.read_bytes(), chunk.path.stat().st_mtime_ns) == (first, before)
    assert pd.read_parquet(other.path)["image_id"].tolist() == ["train_1"]
    assert list(rejects) == ["train_2"]
    assert sorted(p.name for p in chunk.path.parent.glob("images-*")) == [
        "images-train-00000.parquet", "images-train-00001.parquet",
    ]  # fmt: skip
    assert "5/5" in "".join(capfd.readouterr())  # the bar counts what was there before


def test_a_missing_file_stops_the_shard(chunk):
    (chunk.root / "train" / "train_3.png").unlink()
    with pytest.raises(FileNotFoundError):
        write_shard(chunk)
    assert not chunk.path.exists()


def test_kept_records_are_cut_into_shards_in_their_order(release_folder, tmp_path, monkeypatch):
    root = release_folder(train=("RGB", "L", "RGB", "RGB", "RGB"), valid=("RGB",), test=("RGB", "RGB"))
    monkeypatch.setattr(prepare, "SHARD_ROWS", 3)
    chunks = prepare.plan_chunks(judged(root, ("RGB",)), root, tmp_path)
    assert [(c.path.name, c.split, c.image_ids, c.sources) for c in chunks] == [
        ("images-train-00000.parquet", "train", ("train_1", "train_3", "train_4"),
         ("train/train_1.png", "train/train_3.png", "train/train_4.png")),
        ("images-train-00001.parquet", "train", ("train_5",), ("train/train_5.png",)),
        ("images-valid-00000.parquet", "valid", ("valid_1",), ("valid/valid_1.png",)),
        ("images-test-00000.parquet", "test", ("test_1", "test_2"), ("test/test_1.png", "test/test_2.png")),
    ]  # fmt: skip


class Letters:
    """A tokenizer of single letters: the id is the letter's code."""

    def __call__(self, text, add_special_tokens=True, split_special_tokens=False):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


RECORDS = pd.DataFrame({
    "image_id": ["c", "a", "b"], "split": ["train", "train", "test"], "caption": [" AB ", "ABCD", "ABCDEF"],
    "modality": ["CT", None, "MR"], "cuis": [["C0040405"], [], []], "mode": ["RGB"] * 3, "keep": [True] * 3,
}, index=[7, 3, 5])  # fmt: skip


def test_captions_are_cleaned_tokenised_and_cut_at_the_limit_of_train():
    table, limit = prepare.prepare_captions(RECORDS, Letters(), NEWLINE, percentile=100, room=99)
    assert limit == 5  # "ABCD" and the newline; the longer test caption does not count
    assert table["image_id"].tolist() == ["c", "a", "b"]
    assert table["raw_caption"].tolist() == [" AB ", "ABCD", "ABCDEF"]
    assert table["caption"].tolist() == ["AB", "ABCD", "ABCDEF"]
    assert table["n_tokens"].tolist() == [3, 5, 7]
    assert table["input_ids"].tolist() == [
        [65, 66, NEWLINE], [65, 66, 67, 68, NEWLINE], [65, 66, 67, 68, NEWLINE],
    ]  # fmt: skip
    assert table["modality"].tolist()[::2] == ["CT", "MR"]
    assert table["cuis"].tolist() == [["C0040405"], [], []]
    assert table.index.tolist() == [0, 1, 2]


def test_the_models_room_comes_before_the_percentile():
    table, limit = prepare.prepare_captions(RECORDS, Letters(), NEWLINE, percentile=100, room=3)
    assert limit == 3
    assert table["input_ids"].tolist() == [[65, 66, NEWLINE]] * 3


def test_the_stage_records_what_later_stages_must_repeat(tmp_path):
    records = RECORDS.assign(source=["c.png", "a.png", "b.png"])
    captions, limit = prepare.prepare_captions(records.iloc[[0, 2]], Letters(), NEWLINE, 100, 99)
    settings = config.PreprocessConfig("sample", "sample", 100)
    statistics = {"size": 224, "mean": [0.5] * 3, "std": [0.25] * 3}
    details = prepare.details(settings, statistics, Layout(4, 9, 2, 1, NEWLINE), captions, limit)
    figures = prepare.write_stage(tmp_path, captions, records, {"a": "The image is damaged."}, details)
    assert figures == {"train": 1, "valid": 0, "test": 1, "damaged": 1, "token_limit": 3}
    assert json.loads((tmp_path / "preprocess.json").read_text()) == {
        "model_id": "sample", "size": 224, "mean": [0.5] * 3, "std": [0.25] * 3,
        "resample": "bicubic (Pillow)", "newline_id": NEWLINE, "caption_percentile": 100, "token_limit": 3,
        "cut_captions": {"train": 0, "valid": 0, "test": 1},
    }  # fmt: skip
    assert (tmp_path / "rejects.csv").read_text().splitlines() == [
        "image_id,split,source,reason,detail", "a,train,a.png,image damaged,The image is damaged.",
    ]  # fmt: skip
    read = pd.read_parquet(tmp_path / "captions.parquet")
    assert set(read.columns) == {
        "image_id",
        "split",
        "modality",
        "cuis",
        "raw_caption",
        "caption",
        "n_tokens",
        "input_ids",
    }
    assert [ids.tolist() for ids in read["input_ids"]] == [[65, 66, NEWLINE]] * 2


def test_rejects_are_counted_by_split():
    assert prepare.count_rejects(RECORDS, {"a": "", "c": "", "gone": ""}) == {
        "train": 2,
        "valid": 0,
        "test": 0,
    }
