"""Kept pairs become lossless 224x224 shards and token ids; finished shards are never made twice."""

import io
import json
import shutil
from collections import namedtuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from utils import config, filtering, parts, prepare, rocov2
from utils.dataset import Layout
from utils.images import to_png
from utils.imageshards import schema
from utils.rocov2 import Store
from utils.stages import StageError

NEWLINE = 50118


@pytest.fixture
def pairs(release_folder, tmp_path, monkeypatch):
    """Seven pairs in parts of three: their records, their store and the folder of the stage.

    train_2 is not RGB and not kept; train_3 is cut off, which nobody has seen yet.
    """
    root = release_folder(train=("RGB", "L", "RGB", "RGB", "RGB"))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    noise.save(root / "whole.png")
    data = (root / "whole.png").read_bytes()
    (root / "train" / "train_3.png").write_bytes(data[: len(data) // 2])
    monkeypatch.setattr(parts, "ROWS", 3)
    records = rocov2.open_release(str(root), tmp_path).pairs.assign(keep=True, reason="kept", error=None)
    grey = records["image_id"] == "train_2"
    records = records.assign(keep=~grey, reason=records["reason"].where(~grey, "mode L"))
    folder = tmp_path / "02_preprocess"
    folder.mkdir()
    return records, Store(root), folder


def contents(folder):
    return {p.name: pd.read_parquet(p)["image_id"].tolist() for p in sorted(folder.iterdir())}


def test_the_kept_images_are_prepared_and_the_damaged_ones_returned_with_their_reason(pairs, capsys):
    rejects = prepare.prepare_images(*pairs, procs=2)
    assert list(rejects) == ["train_3"]
    assert rejects["train_3"].startswith("The image is damaged or cut off: ")
    assert contents(pairs[2]) == {
        "images-train-00000.parquet": ["train_1", "train_4"], "images-train-00001.parquet": ["train_5"],
        "images-valid-00000.parquet": ["valid_1"], "images-test-00000.parquet": ["test_1"],
    }  # fmt: skip
    assert "preparing images: 100%" in capsys.readouterr().out


def test_images_are_as_large_as_the_model_reads_them(pairs):
    prepare.prepare_images(*pairs, procs=1, size=364)
    stored = pd.read_parquet(pairs[2] / "images-valid-00000.parquet")["image"].iat[0]["bytes"]
    assert Image.open(io.BytesIO(stored)).size == (364, 364)


def test_shards_of_an_earlier_run_are_kept_and_what_they_could_not_take_is_remembered(pairs, monkeypatch):
    first = prepare.prepare_images(*pairs, procs=1)
    before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in pairs[2].iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(parts, "ProcessPoolExecutor", None)  # calling it would fail
        assert prepare.prepare_images(*pairs, procs=1) == first
    (pairs[2] / "images-train-00001.parquet").write_bytes(b"half")
    (pairs[2] / "images-test-00000.parquet").unlink()
    assert prepare.prepare_images(*pairs, procs=1) == first
    after = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in pairs[2].iterdir()}
    assert {name: data for name, (_, data) in after.items()} == {
        name: data for name, (_, data) in before.items()
    }
    for name in ("images-train-00000.parquet", "images-valid-00000.parquet"):
        assert after[name] == before[name]


def test_what_would_not_fit_on_the_disk_is_refused_before_it_begins(pairs, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 2_500_000_000))
    monkeypatch.setattr(prepare, "PNG_BYTES", 1_000_000_000)
    with pytest.raises(StageError) as caught:
        prepare.prepare_images(*pairs, procs=1)
    assert str(caught.value) == (
        f"Preparing 6 images needs about 6,000 MB and 2,500 MB are free in {pairs[2].parent.name}/02_preprocess. "
        f"Free some space, or choose another disk with --work DIR (WORK)."
    )
    assert list(pairs[2].iterdir()) == []
    monkeypatch.setattr(prepare, "PNG_BYTES", 1_000)
    prepare.prepare_images(*pairs, procs=1)
    monkeypatch.setattr(prepare, "PNG_BYTES", 1_000_000_000)
    assert len(prepare.prepare_images(*pairs, procs=1)) == 1  # what is there needs no room


class Letters:
    """A tokenizer of single letters: the id is the letter's code."""

    def __call__(
        self, texts, add_special_tokens=True, split_special_tokens=False, return_attention_mask=True
    ):
        assert not add_special_tokens
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


RECORDS = pd.DataFrame({
    "image_id": ["c", "a", "b"], "split": ["train", "train", "test"], "caption": [" AB ", "ABCD", "ABCDEF"],
    "modality": ["CT", None, "MR"], "cuis": [["C0040405"], [], []], "mode": ["RGB"] * 3, "chroma": [0, 9, None],
    "keep": [True] * 3,
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


def judged(**columns):
    """Three pairs as stage 01 left them: two kept, one without a caption."""
    records = pd.DataFrame({
        "image_id": ["a", "b", "c"], "split": ["train", "train", "valid"], "source": ["a.png", "b.png", "c.png"],
        "keep": [True, False, True], "reason": ["kept", "caption missing", "kept"],
        "error": pd.Series([None] * 3, dtype=object),
    })  # fmt: skip
    return records.assign(**columns)


def test_a_kept_pair_whose_image_is_damaged_changes_its_one_reason():
    before = judged()
    settled = prepare.settle(before, {"a": "The image is damaged."})
    assert settled["keep"].tolist() == [False, False, True]
    assert settled["reason"].tolist() == ["image damaged", "caption missing", "kept"]
    assert settled["error"].tolist() == ["The image is damaged.", None, None]
    assert before.equals(judged())  # the records of stage 01 stay as they are


def test_where_nothing_is_damaged_nothing_changes():
    assert prepare.settle(judged(), {}).equals(judged())


def test_a_pair_that_was_refused_before_keeps_its_first_reason():
    """An ID that stands twice: its second pair was refused, its first is damaged."""
    twice = judged(image_id=["a", "a", "c"], reason=["kept", "ID repeated", "kept"])
    settled = prepare.settle(twice, {"a": "The image is damaged."})
    assert settled["reason"].tolist() == ["image damaged", "ID repeated", "kept"]


def test_the_funnel_of_both_stages_adds_up_to_all_pairs():
    funnel = filtering.funnel(prepare.settle(judged(), {"a": "The image is damaged."}))
    assert funnel == {
        "train": {"kept": 0, "caption missing": 1, "image damaged": 1},
        "valid": {"kept": 1, "caption missing": 0, "image damaged": 0},
        "test": {"kept": 0, "caption missing": 0, "image damaged": 0},
    }


FOUR = pd.DataFrame({
    "image_id": ["c", "a", "v", "b"], "split": ["train", "train", "valid", "test"],
    "caption": [" AB ", "ABCD", "A", "ABCDEF"], "modality": ["CT", None, "CT", "MR"], "cuis": [[]] * 4,
    "source": ["c.png", "a.png", "v.png", "b.png"], "mode": ["L", "RGB", "RGB", "L"], "chroma": [0] * 4, "keep": [True] * 4, "reason": ["kept"] * 4,
    "error": pd.Series([None] * 4, dtype=object),
})  # fmt: skip
STATISTICS = {"size": 224, "mean": [0.5] * 3, "std": [0.25] * 3}


def write_stage(folder, rejects):
    records = prepare.settle(FOUR, rejects)
    captions, limit = prepare.prepare_captions(records[records["keep"]], Letters(), NEWLINE, 100, 99)
    settings = config.PreprocessConfig("sample", "sample", 100)
    layout = Layout(4, 9, 2, 1, NEWLINE)
    details = prepare.details(settings, ["RGB", "L"], STATISTICS, layout, captions, limit)
    names = pd.DataFrame({"CUI": ["C0040405"], "Canonical name": ["X-Ray, Computed"]})
    return prepare.write_stage(folder, captions, records, rejects, details, names)


def test_the_stage_records_what_later_stages_must_repeat(tmp_path):
    figures = write_stage(tmp_path, {"a": "The image is damaged."})
    assert figures == {"train": 1, "valid": 1, "test": 1, "damaged": 1, "token_limit": 3}
    assert json.loads((tmp_path / "preprocess.json").read_text()) == {
        "model_id": "sample", "source": "sample", "image_modes": ["RGB", "L"], **STATISTICS,
        "resample": "bicubic (Pillow)", "newline_id": NEWLINE, "caption_percentile": 100, "token_limit": 3,
        "cut_captions": {"train": 0, "valid": 0, "test": 1},
        "funnel": {"train": {"kept": 1, "image damaged": 1}, "valid": {"kept": 1, "image damaged": 0},
                   "test": {"kept": 1, "image damaged": 0}},
    }  # fmt: skip
    assert (tmp_path / "rejects.csv").read_text().splitlines() == [
        "image_id,split,source,reason,error", "a,train,a.png,image damaged,The image is damaged.",
    ]  # fmt: skip
    read = pd.read_parquet(tmp_path / "captions.parquet")
    assert set(read.columns) == {"image_id", "split", "modality", "cuis", "mode", "chroma", "raw_caption", "caption",
                                 "n_tokens", "input_ids"}  # fmt: skip
    assert (tmp_path / "cui_mapping.csv").read_text().splitlines() == [
        "CUI,Canonical name", 'C0040405,"X-Ray, Computed"',
    ]  # fmt: skip
    assert read["image_id"].tolist() == ["c", "v", "b"]
    assert [ids.tolist() for ids in read["input_ids"]] == [
        [65, 66, NEWLINE],
        [65, NEWLINE],
        [65, 66, NEWLINE],
    ]


def test_a_pair_that_stage_01_found_damaged_is_not_listed_twice(tmp_path):
    """It is in the funnel and in stage 01's own list; here stands what stage 02 lost."""
    records = FOUR.assign(keep=[False, True, True, True], reason=["image damaged", "kept", "kept", "kept"])
    captions = records[records["keep"]][["image_id", "split"]]
    figures = prepare.write_stage(tmp_path, captions, records, {}, {"token_limit": 3})
    assert figures == {"train": 1, "valid": 1, "test": 1, "damaged": 0, "token_limit": 3}
    assert (tmp_path / "rejects.csv").read_text().splitlines() == ["image_id,split,source,reason,error"]
    funnel = json.loads((tmp_path / "preprocess.json").read_text())["funnel"]
    assert funnel["train"] == {"kept": 1, "image damaged": 1}


def test_a_split_that_nothing_is_left_of_stops_the_stage_but_leaves_its_files(tmp_path):
    with pytest.raises(ValueError, match=r"No pair of the valid split is left \(most often: image damaged\)"):
        write_stage(tmp_path, {"v": "The image is damaged."})
    assert "v,valid,v.png,image damaged,The image is damaged." in (tmp_path / "rejects.csv").read_text()
    assert json.loads((tmp_path / "preprocess.json").read_text())["funnel"]["valid"]["image damaged"] == 1
    assert (tmp_path / "captions.parquet").is_file()


def write_prepared(folder, images):
    """Write a prepared training split: (image id, modality, image)."""
    rows = [{"image_id": i, "split": "train", "image": {"bytes": to_png(image), "path": f"{i}.png"}}
            for i, _, image in images]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema()), folder / "images-train-00000.parquet")
    table = pd.DataFrame({"image_id": [i for i, _, _ in images], "modality": [m for _, m, _ in images]})
    table.to_parquet(folder / "captions.parquet")


def halves(left, right, mode="L"):
    image = Image.new(mode, (224, 224), left)
    image.paste(right, (112, 0, 224, 224))
    return image


def test_the_brightness_of_every_modality_is_measured_exactly(tmp_path):
    write_prepared(tmp_path, [
        ("a", "CT", halves(0, 0)), ("b", "MR", halves(100, 200)), ("c", "CT", halves(255, 255)),
        ("d", None, halves((0, 128, 255), (0, 128, 255), "RGB")),
    ])  # fmt: skip
    table = prepare.intensities(tmp_path)
    assert table.index.tolist() == ["CT", "MR", "unknown"]
    assert table["images"].to_dict() == {"CT": 2, "MR": 1, "unknown": 1}
    assert table["mean"].to_dict() == pytest.approx({"CT": 127.5, "MR": 150, "unknown": 383 / 3})
    assert table.loc[["CT", "MR"], "std"].to_dict() == pytest.approx({"CT": 127.5, "MR": 50})
    assert table["black"].to_dict() == pytest.approx({"CT": 0.5, "MR": 0, "unknown": 1 / 3})
    assert table["white"].to_dict() == pytest.approx({"CT": 0.5, "MR": 0, "unknown": 1 / 3})
    steps = table[list(range(32))]
    assert {name: {k: v for k, v in row.items() if v} for name, row in steps.iterrows()} == {
        "CT": pytest.approx({0: 0.5, 31: 0.5}), "MR": pytest.approx({12: 0.5, 25: 0.5}),
        "unknown": pytest.approx({0: 1 / 3, 16: 1 / 3, 31: 1 / 3}),
    }  # fmt: skip


def test_where_no_modality_is_known_all_are_measured_as_unknown(tmp_path):
    write_prepared(tmp_path, [("a", None, halves(7, 7)), ("b", None, halves(9, 9))])
    table = prepare.intensities(tmp_path)
    assert table[["images", "mean"]].to_dict("index") == {"unknown": {"images": 2, "mean": 8}}


def test_a_few_images_are_spread_evenly_over_the_split(tmp_path):
    write_prepared(tmp_path, [(f"{n}", "CT", halves(10 * n, 10 * n)) for n in range(5)])
    assert prepare.intensities(tmp_path, 3).loc["CT", ["images", "mean"]].tolist() == [3, 20]
    steps = prepare.intensities(tmp_path, 2).loc["CT", list(range(32))]
    assert [step for step, share in steps.items() if share] == [0, 5]  # 0 and 40: the first and the last


def test_the_shortest_and_the_longest_captions_are_shown():
    captions = pd.DataFrame({
        "image_id": list("abcde"), "n_tokens": [5, 2, 9, 2, 7], "caption": list("ABCDE"), "split": ["train"] * 5,
    })  # fmt: skip
    table = prepare.extremes(captions, 2)
    assert table.columns.tolist() == ["image_id", "n_tokens", "caption"]
    assert table["image_id"].tolist() == ["b", "d", "e", "c"]


def test_the_disk_that_each_split_uses_is_measured_in_its_image_shards_alone(tmp_path):
    for name, size in {"images-train-00000": 3_000_000, "images-train-00001": 1_240_000,
                       "images-valid-00000": 80_000, "images-test-00000": 450_000, "captions": 99}.items():  # fmt: skip
        (tmp_path / f"{name}.parquet").write_bytes(bytes(size))
    captions = pd.DataFrame({"split": ["train"] * 100 + ["valid"] * 2 + ["test"] * 8})
    assert prepare.disk_used(tmp_path, captions).to_dict("index") == {
        "train": {"images": 100, "MB": 4.2, "kB an image": 42.4},
        "valid": {"images": 2, "MB": 0.1, "kB an image": 40.0},
        "test": {"images": 8, "MB": 0.4, "kB an image": 56.2},
    }
