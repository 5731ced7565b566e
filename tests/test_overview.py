"""What the notebooks show of the audited pairs adds up, and can be written down."""

import json

import pandas as pd
import pytest
from PIL import Image

from utils import duplicates, filtering, overview, rocov2
from utils.config import FilterConfig

SPLITS = ["train", "valid", "test"]
ROW = {"image_id": "a", "split": "train", "source": "a.png", "caption": "CT of it.", "mode": "RGB", "chroma": 0,
       "width": 8, "height": 6, "sha256": "x", "phash": "1", "error": None, "modality": None, "keep": True,
       "reason": "kept"}  # fmt: skip


def table(*rows):
    made = pd.DataFrame([ROW | row for row in rows], columns=list(ROW), dtype=object)
    return made.astype({"keep": bool})  # nothing is None, as the audit leaves it, and not NaN


def texts(*pairs):
    return table(*({"split": split, "caption": caption} for split, caption in pairs))


def test_captions_get_their_remarks_by_split():
    report = overview.caption_report(texts(
        ("train", None), ("train", "Nodule."), ("valid", "word " * 100), ("valid", "word " * 101),
        ("test", "3 \ufffdm nodule."), ("test", "\ufffd"), ("test", "plain words"),
    ))  # fmt: skip
    assert report.columns.tolist() == SPLITS
    assert {remark: row.tolist() for remark, row in report.iterrows()} == {
        "missing": [1, 0, 0], "one word": [1, 0, 1], "more than 100 words": [0, 1, 0],
        "replacement character": [0, 0, 2], "repeated": [0, 0, 0],
    }  # fmt: skip


def test_a_caption_that_another_pair_has_is_repeated_in_any_split():
    report = overview.caption_report(texts(
        ("train", "the same"), ("train", "the same"), ("test", "the same"), ("valid", "The same"),
        ("train", None), ("valid", None),
    ))  # fmt: skip
    assert report.loc["repeated"].tolist() == [2, 0, 1]
    assert report.loc["missing"].tolist() == [1, 1, 0]


def test_of_no_captions_there_is_nothing_to_remark():
    assert overview.caption_report(table()).to_numpy().sum() == 0


def test_the_words_of_every_caption_that_is_there_are_counted():
    counts = overview.word_counts(texts(("train", "one  two\nthree"), ("test", None), ("valid", "one")))
    assert counts.to_dict("list") == {"split": ["train", "valid"], "words": [3, 1]}
    assert overview.word_counts(table()).columns.tolist() == ["split", "words"]


def test_grey_and_colour_are_counted_by_mode():
    seen = [("RGB", 0), ("RGB", 1), ("RGB", 255), ("L", 0), ("RGB", None), (None, None)]
    counts = overview.modes_and_colour(table(*({"mode": m, "chroma": c} for m, c in seen)))
    assert counts.columns.tolist() == ["only grey pixels", "colour"]
    assert counts.to_dict("index") == {
        "L": {"only grey pixels": 1, "colour": 0}, "RGB": {"only grey pixels": 1, "colour": 2},
    }  # fmt: skip


@pytest.mark.parametrize("chroma", [0, 9])
def test_a_column_stays_where_nothing_is_in_it(chroma):
    counts = overview.modes_and_colour(table({"chroma": chroma}))
    assert counts.loc["RGB"].tolist() == ([1, 0] if chroma == 0 else [0, 1])


def test_where_no_pixel_was_read_no_mode_has_a_row():
    counts = overview.modes_and_colour(table({"chroma": None}))
    assert (len(counts), counts.columns.tolist()) == (0, ["only grey pixels", "colour"])


def test_modalities_are_listed_with_what_they_lose_to_their_mode():
    found = overview.by_modality(table(
        {"modality": "CT"}, {"modality": "CT", "keep": False, "reason": "mode L"},
        {"modality": "CT", "keep": False, "reason": "mode I;16"},
        {"modality": "CT", "keep": False, "reason": "caption missing"}, {"modality": None},
        {"modality": None, "keep": False, "reason": "ID repeated"}, {"modality": "MR"},
    ))  # fmt: skip
    assert found.index.tolist() == ["CT", "unknown", "MR"]
    assert found.to_dict("list") == {
        "pairs": [4, 2, 1], "kept": [1, 1, 1], "other_mode": [2, 0, 0], "share_kept": [0.25, 0.5, 1.0],
    }  # fmt: skip


def rocov2_ids(*rows):
    made = [
        {"image_id": f"ROCOv2_2023_{split}_{n}", "split": split, "mode": mode}
        for n, (split, mode) in enumerate(rows)
    ]
    return table(*made)


def test_rocov2_is_set_beside_its_published_counts():
    found = overview.compare_published(rocov2_ids(
        ("train", "RGB"), ("train", "L"), ("train", None), ("valid", "RGB"), ("test", "RGB"), ("test", "RGB"),
    ))  # fmt: skip
    assert found.reset_index().to_numpy().tolist() == [
        ["pairs", "train", 3, 59958, -59955], ["pairs", "valid", 1, 9904, -9903], ["pairs", "test", 2, 9927, -9925],
        ["mode RGB", "train", 1, 37330, -37329], ["mode RGB", "valid", 1, 6672, -6671],
        ["mode RGB", "test", 2, 6780, -6778],
    ]  # fmt: skip
    assert found.columns.tolist() == ["here", "published", "difference"]


def test_other_ids_are_not_compared():
    assert overview.compare_published(table({"image_id": "MINI_train_1"})) is None
    mixed = pd.concat([rocov2_ids(("train", "RGB")), table({"image_id": "ROCO_1"})])
    assert overview.compare_published(mixed) is None


def test_pictures_of_different_shapes_are_chosen_from_the_tallest_to_the_widest():
    sizes = [(100, 100), (10, 100), (300, 100), (100, 200), (200, 100)]
    records = table(*({"image_id": str(n), "width": w, "height": h} for n, (w, h) in enumerate(sizes)))
    assert overview.spread(records, 3)["image_id"].tolist() == ["1", "0", "2"]
    assert overview.spread(records, 9)["image_id"].tolist() == ["1", "3", "0", "4", "2"]
    assert overview.spread(records, 1)["image_id"].tolist() == ["1"]
    assert overview.spread(records.head(0), 3).empty


def test_a_title_names_modality_mode_and_size():
    records = table({"modality": "CT", "mode": "L"}, {"width": 1534.0, "height": 1517.0})
    assert overview.titles(records) == ["CT, L, 8×6", "unknown, RGB, 1534×1517"]


@pytest.fixture
def store(tmp_path, encode):
    """A folder of one grey picture each of value 10, 20 and 30, a large one, and one that is cut off."""
    for number in (1, 2, 3):
        (tmp_path / f"{number}.png").write_bytes(encode("RGB", value=10 * number))
    (tmp_path / "large.png").write_bytes(encode("L", value=9, size=(1000, 500)))
    (tmp_path / "cut.png").write_bytes(encode("RGB", size=(100, 100))[:60])
    return rocov2.Store(tmp_path)


def looks(images):
    return [(image.mode, image.size, image.getpixel((0, 0))[0]) for image in images]


def test_a_picture_is_rgb_and_small_and_of_its_own_shape(store):
    pictures = [overview.picture(store, source) for source in ("1.png", "large.png")]
    assert looks(pictures) == [("RGB", (8, 6), 10), ("RGB", (256, 128), 9)]


@pytest.mark.parametrize("source", ["cut.png", "gone.png"])
def test_of_a_file_that_cannot_be_decoded_there_is_a_light_square(store, source):
    assert looks([overview.picture(store, source, 64)]) == [("RGB", (64, 64), 235)]


def test_examples_show_every_reason_that_can_be_seen(store):
    records = table(
        {"source": "1.png"}, {"source": "2.png", "reason": "mode L", "modality": "CT"}, {"source": "3.png"},
        {"source": None, "reason": "image file missing"}, {"source": "1.png"},
        {"source": "cut.png", "reason": "image damaged", "error": "cut off"},
    )  # fmt: skip
    images, titles = overview.examples(records, store, each=2)
    assert titles == ["kept: unknown", "kept: unknown", "mode L: CT"]
    assert looks(images) == [("RGB", (8, 6), value) for value in (10, 30, 20)]


def near_table(*rows):
    return pd.DataFrame(rows, columns=["first", "second", "first_split", "second_split", "bits"])


def test_near_copies_are_shown_beside_each_other(store):
    records = table(
        {"image_id": "M_train_1", "source": "1.png"}, {"image_id": "M_test_2", "source": "2.png", "split": "test"},
        {"image_id": "c", "source": "3.png"},
    )  # fmt: skip
    near = near_table(["M_test_2", "M_train_1", "test", "train", 1], ["c", "M_train_1", "train", "train", 4])
    images, titles = overview.near_pictures(near, records, store, 6)
    # The picture of train 1 stands there once: its second pair is left out.
    assert titles == ["pair 1, 1 bits: test 2", "pair 1, 1 bits: train 1"]
    assert [look[2] for look in looks(images)] == [20, 10]
    assert overview.near_pictures(near.head(0), records, store, 6) == ([], [])


def test_an_id_of_two_splits_is_shown_with_the_image_of_the_split_that_is_meant(store):
    records = table(
        {"image_id": "a", "source": None, "phash": None}, {"image_id": "a", "split": "valid", "source": "2.png"},
        {"image_id": "a", "split": "test", "source": "3.png"}, {"image_id": "b", "source": "1.png"},
    )  # fmt: skip
    for split, value in (("test", 30), ("valid", 20)):
        near = near_table(["a", "b", split, "train", 2])
        assert [look[2] for look in looks(overview.near_pictures(near, records, store, 6)[0])] == [value, 10]


def test_pairs_are_chosen_from_the_nearest_to_the_farthest():
    near = near_table(*([f"a{n}", f"b{n}", "train", "test", n] for n in range(5)))
    chosen = overview.chosen_pairs(near, 3)
    assert [bits for _, bits in chosen] == [0, 2, 4]
    assert chosen[1][0] == (("train", "a2"), ("test", "b2"))


class Hub:
    """A hub data set of which only the commit is asked."""

    revision = "0123abc"


def report_of(records, hub=None, **changes):
    settings = FilterConfig(
        **{"source": "sample", "image_modes": ("RGB",), "min_words": 1, "max_words": None, "pixels": True}
        | changes
    )
    release = rocov2.Release(rocov2.Store(None, hub), records, {})
    copied = duplicates.copy_counts(duplicates.copies(records))
    _, near = duplicates.near_copies(records)
    captions = overview.caption_report(records)
    return overview.report(settings, release, records, filtering.funnel(records), captions, copied, near)


def test_the_report_holds_every_count_as_json():
    records = pd.concat([rocov2_ids(("train", "RGB"), ("train", "L"), ("train", None), ("test", "RGB"))] * 2)
    letters = ["a", "b", None, "a", "d", "e", None, "f"]
    records["sha256"], records["repeated"] = letters, False
    records["phash"] = [None if s is None else f"{ord(s) << 32:016x}" for s in letters]
    report = report_of(records.reset_index(drop=True))
    assert json.loads(json.dumps(report)) == report
    assert list(report) == [
        "funnel", "pixels", "revision", "modes", "captions", "copies", "near_copies", "published",
    ]  # fmt: skip
    assert report["funnel"] == {"train": {"kept": 6}, "valid": {"kept": 0}, "test": {"kept": 2}}
    assert (report["pixels"], report["revision"]) == (True, None)
    assert report["modes"] == {
        "L": {"train": 2, "valid": 0, "test": 0}, "RGB": {"train": 2, "valid": 0, "test": 2},
    }  # fmt: skip
    assert list(report["modes"]["L"]) == SPLITS
    assert report["captions"]["repeated"] == {"train": 6, "valid": 0, "test": 2}
    assert [row["groups"] for row in report["copies"]] == [0, 0, 1, 0, 0, 0]
    assert report["copies"][2] == {"split": "train", "other split": "test", "groups": 1}
    # The codes of the letters a, b, d, e (in train) and f (in test) differ in at most 3 bits.
    assert report["near_copies"]["bits"] == 4
    assert [row["pairs"] for row in report["near_copies"]["pairs"]] == [6, 0, 4, 0, 0, 0]
    assert report["published"][3] == {
        "what": "mode RGB", "split": "train", "here": 2, "published": 37330, "difference": -37328,
    }  # fmt: skip


def test_the_report_names_the_commit_of_a_hub_data_set_and_whether_pixels_were_read():
    records = table({"chroma": None, "sha256": None, "phash": None})
    report = report_of(records.assign(repeated=False), Hub(), pixels=False)
    assert json.loads(json.dumps(report)) == report
    assert (report["revision"], report["pixels"], report["published"]) == ("0123abc", False, None)


def test_pictures_in_the_grid_of_a_notebook_are_drawn_from_the_real_release(real_release):
    store = rocov2.Store(real_release)
    image = overview.picture(store, "train/MINI_train_000003.png")
    with Image.open(real_release / "train" / "MINI_train_000003.png") as original:
        assert original.size == (586, 492)
    assert (image.mode, image.size) == ("RGB", (256, 215))
