"""Every pair is kept or refused for exactly one reason, and the funnel adds up."""

import csv
import io
import json
from collections import Counter

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.conftest import real
from utils import duplicates, filtering, overview, rocov2
from utils.audit import write_part
from utils.filtering import KEPT
from utils.parts import Part
from utils.stages import StageError

GOOD = {"image_id": "a", "split": "train", "source": "a.png", "caption": "CT.", "cuis": [], "mode": "RGB",
        "sha256": "1", "error": None, "repeated": False}  # fmt: skip


def reasons(rows, modes=("RGB",), least=1, most=None):
    records = pd.DataFrame([GOOD | {"image_id": str(number)} | row for number, row in enumerate(rows)])
    judged = filtering.apply_rules(records, filtering.rules_for(records, modes, least, most))
    assert (judged["keep"] == (judged["reason"] == KEPT)).all()
    return judged["reason"].tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [({}, "kept"), ({"repeated": True}, "ID repeated"), ({"source": None}, "image file missing"), ({"caption": None}, "caption missing"),
     ({"mode": None, "error": "x"}, "image unreadable"), ({"error": "cut off"}, "image damaged"), ({"mode": "L"}, "mode L"), ({"mode": "I;16"}, "mode I;16")],
)  # fmt: skip
def test_each_rule_gives_its_reason(change, reason):
    assert reasons([change]) == [reason]
    assert reasons([{}, change]) == ["kept", reason]  # None becomes NaN beside other rows


def test_the_first_rule_that_refuses_gives_the_only_reason():
    """A pair that breaks every rule is mended step by step, in the order of the rules."""
    test_image = {"split": "test", "sha256": "9", "caption": "Two words."}
    pair = {
        "repeated": True,
        "source": None,
        "caption": None,
        "mode": None,
        "error": "no header",
        "sha256": "9",
    }
    steps = [pair]
    for change in (
        {"repeated": False}, {"source": "a"}, {"caption": "One."}, {"mode": "L", "error": "cut off"},
        {"error": None}, {"sha256": "1"}, {"caption": "Two words."}, {"mode": "RGB"},
    ):  # fmt: skip
        steps.append(steps[-1] | change)
    assert reasons([*steps, test_image], least=2) == [
        "ID repeated", "image file missing", "caption missing", "image unreadable", "image damaged",
        "copy of a test image", "caption under 2 words", "mode L", "kept", "kept",
    ]  # fmt: skip


def test_captions_of_just_as_many_words_as_wanted_stay():
    captions = [
        {"caption": text} for text in ("One.", "Two words.", " Three  plain\nwords. ", "Now it is four.")
    ]
    assert reasons(captions, least=2, most=3) == [
        "caption under 2 words", KEPT, KEPT, "caption over 3 words",
    ]  # fmt: skip
    assert reasons(captions, most=1) == [KEPT, *["caption over 1 words"] * 3]
    assert reasons([{"caption": "word " * 5000}, *captions]) == [KEPT] * 5


def test_the_bounds_of_words_hold_in_every_split():
    pairs = [{"split": split, "caption": "One.", "sha256": split} for split in ("train", "valid", "test")]
    assert reasons(pairs, least=2) == ["caption under 2 words"] * 3


def test_without_modes_every_mode_is_kept():
    assert reasons([{"mode": mode} for mode in ("L", "RGB", "RGBA", "I;16", "1")], None) == [KEPT] * 5
    assert reasons([{"mode": "L"}, {"mode": "RGBA"}], ("L", "RGB")) == [KEPT, "mode RGBA"]


def test_copies_of_test_images_leave_train_and_valid_and_never_test():
    copies = [{"split": split, "sha256": "9"} for split in ("train", "valid", "test", "test")]
    assert reasons(copies) == ["copy of a test image"] * 2 + [KEPT] * 2


def test_copies_inside_train_are_no_leak():
    assert reasons([{"sha256": "5"}, {"sha256": "5"}, {"split": "valid", "sha256": "5"}]) == [KEPT] * 3


def test_pairs_without_a_file_are_no_copies_of_each_other():
    missing = {"source": None, "sha256": None}
    assert reasons([missing, missing | {"split": "test"}]) == ["image file missing"] * 2


def test_the_funnel_counts_every_pair_once_with_the_same_reasons_in_every_split():
    records = pd.DataFrame({
        "split": ["train"] * 4 + ["test"], "reason": ["mode L", "kept", "caption missing", "mode L", "kept"],
    })  # fmt: skip
    counts = filtering.funnel(records)
    assert counts == {
        "train": {"kept": 1, "caption missing": 1, "mode L": 2},
        "valid": {"kept": 0, "caption missing": 0, "mode L": 0},
        "test": {"kept": 1, "caption missing": 0, "mode L": 0},
    }
    assert [next(iter(row)) for row in counts.values()] == ["kept"] * 3
    assert json.loads(json.dumps(counts)) == counts


def test_a_split_that_nothing_is_left_of_is_named_with_the_commonest_reason():
    counts = {"train": {"kept": 1, "mode L": 5}, "valid": {"kept": 0, "caption missing": 1, "mode L": 3}}
    with pytest.raises(
        ValueError, match=r"No pair of the valid split is left \(most often: mode L\)\. Widen IMAGE_MODES"
    ):
        filtering.require_every_split(counts)
    with pytest.raises(ValueError, match=r"test split is left \(it was empty\)"):
        filtering.require_every_split({"test": {"kept": 0, "mode L": 0}})
    assert filtering.require_every_split({"test": {"kept": 1}}) is None


@pytest.fixture
def audit(monkeypatch, tmp_path):
    """Return a function that audits a release in this process; pools are tested with parts and audit."""

    def write_parts(parts, write, procs, title, hub):
        for part in parts:
            write(part)

    def run(root, **options):
        return filtering.audit(rocov2.open_release(str(root), root), tmp_path / "stage", 1, **options)

    monkeypatch.setattr(filtering, "write_parts", write_parts)
    return run


def judge(records, modes=("RGB",)):
    return filtering.apply_rules(records, filtering.rules_for(records, modes))


def write(folder, records, **more):
    return filtering.write_stage(folder, records, {"funnel": filtering.funnel(records)}, **more)


def test_files_that_cannot_be_read_do_not_stop_the_audit(release_folder, audit):
    root = release_folder(train=("RGB", "RGB", "RGB", "RGB", "RGB"))
    (root / "train" / "train_1.png").write_bytes(b"")
    (root / "train" / "train_2.png").write_text("<html>")
    (root / "train" / "train_3.png").unlink()
    whole = (root / "train" / "train_4.png").read_bytes()
    (root / "train" / "train_4.png").write_bytes(whole[:50])
    judged = judge(audit(root))
    assert judged["reason"].tolist() == [
        "image unreadable", "image unreadable", "image file missing", "image damaged", "kept", "kept", "kept",
    ]  # fmt: skip
    assert judged["error"].dropna().tolist()[:2] == [
        "The file is empty (0 bytes).",
        "The file is not an image (JPEG, PNG, WEBP, TIFF, BMP, GIF are read).",
    ]
    assert judged["error"][3].startswith("The image is damaged or cut off: ")


def test_more_images_than_one_part_come_in_order(release_folder, audit):
    records = audit(release_folder(train=("RGB",) * 510), pixels=False)
    assert records["image_id"].tolist() == [*(f"train_{n}" for n in range(1, 511)), "valid_1", "test_1"]
    assert records["mode"].tolist() == ["RGB"] * 512


def test_a_copy_of_a_test_image_is_found_in_any_file_format(release_folder, audit, encode):
    root = release_folder(train=("L", "L", "L"), valid=("L", "L"), test=("L",))
    picture = Image.effect_noise((40, 30), 90)
    jpeg = encode(picture, "JPEG")
    decoded = Image.open(io.BytesIO(jpeg))
    (root / "test" / "test_1.png").write_bytes(jpeg)  # what a file is, its first bytes say
    (root / "train" / "train_2.png").write_bytes(encode(decoded))
    (root / "train" / "train_3.png").write_bytes(encode(picture))  # as it was before JPEG changed it
    (root / "valid" / "valid_1.png").write_bytes(encode(decoded.convert("RGB"), "BMP"))
    judged = judge(audit(root), None)
    assert judged["format"].tolist() == ["PNG", "PNG", "PNG", "BMP", "PNG", "JPEG"]
    assert judged["reason"].tolist() == [
        KEPT, "copy of a test image", KEPT, "copy of a test image", KEPT, KEPT,
    ]  # fmt: skip


def test_without_pixels_no_copy_and_no_damage_is_found(release_folder, audit):
    root = release_folder(train=("RGB", "RGB"))
    data = (root / "test" / "test_1.png").read_bytes()
    (root / "train" / "train_1.png").write_bytes(data)
    (root / "train" / "train_2.png").write_bytes(data[:50])
    assert judge(audit(root))["reason"].tolist()[:2] == ["copy of a test image", "image damaged"]
    assert judge(audit(root, pixels=False))["reason"].tolist() == [KEPT] * 4


def test_the_stage_writes_records_rejects_report_and_further_tables(release_folder, tmp_path, audit):
    root = release_folder(train=("RGB", "L"), valid=("RGB", "RGB"), test=("RGBA", "RGB"))
    (root / "valid" / "valid_1.png").write_bytes(b"")
    (root / "test_concepts_manual.csv").write_text("ID,CUIs\ntest_2,C0040405;C0000001\n")
    folder = tmp_path / "stage"
    records = judge(audit(root))
    assert (folder / "parts").is_dir()
    figures = write(folder, records, tables={"copies": pd.DataFrame({"image_id": ["x"], "group": [0]})})
    assert figures == {"train": 1, "valid": 1, "test": 1, "dropped": 3}
    assert sorted(path.name for path in folder.iterdir()) == [
        "copies.csv", "records.parquet", "rejects.csv", "report.json",
    ]  # fmt: skip
    with open(folder / "rejects.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["image_id", "split", "source", "reason", "error"],
            ["train_2", "train", "train/train_2.png", "mode L", ""],
            ["valid_1", "valid", "valid/valid_1.png", "image unreadable", "The file is empty (0 bytes)."],
            ["test_1", "test", "test/test_1.png", "mode RGBA", ""],
        ]
    assert (folder / "copies.csv").read_text() == "image_id,group\nx,0\n"
    report = json.loads((folder / "report.json").read_text())
    assert report["funnel"]["train"] == {"kept": 1, "image unreadable": 0, "mode L": 1, "mode RGBA": 0}
    table = pq.read_table(folder / "records.parquet")
    assert table.schema.equals(filtering.RECORDS)
    rows = {row["image_id"]: row for row in table.to_pylist()}
    assert list(rows) == ["train_1", "train_2", "valid_1", "valid_2", "test_1", "test_2"]
    assert {k: v for k, v in rows["test_2"].items() if k not in ("sha256", "phash")} == {
        "image_id": "test_2", "split": "test", "source": "test/test_2.png", "mode": "RGB", "format": "PNG",
        "width": 8, "height": 6, "chroma": 0, "error": None, "repeated": False, "caption": "test 2.",
        "cuis": ["C0040405", "C0000001"], "modality": "CT", "keep": True, "reason": "kept",
    }  # fmt: skip
    unreadable = [
        rows["valid_1"][name] for name in ("mode", "width", "sha256", "phash", "chroma", "modality")
    ]
    assert unreadable == [None] * 6


def test_records_of_headers_alone_have_the_same_columns(release_folder, tmp_path, audit):
    write(tmp_path / "stage", judge(audit(release_folder(), pixels=False), None))
    table = pq.read_table(tmp_path / "stage" / "records.parquet")
    assert table.schema.equals(filtering.RECORDS)
    assert table["chroma"].to_pylist() == [None] * 4
    assert table["width"].to_pylist() == [8] * 4


def test_an_emptied_split_stops_the_stage_but_leaves_its_lists_and_parts(release_folder, tmp_path, audit):
    records = judge(audit(release_folder(valid=("L",))))
    with pytest.raises(ValueError, match="No pair of the valid split is left"):
        write(tmp_path / "stage", records)
    assert "valid_1" in (tmp_path / "stage" / "rejects.csv").read_text()
    assert len(list((tmp_path / "stage" / "parts").iterdir())) == 3


def test_an_id_that_shards_list_twice_is_kept_once(tmp_path):
    """The hub's copy of ROCOv2 says 59,962 training pairs where the release has 59,958."""
    pairs = pd.DataFrame({"image_id": ["a", "a", "b"], "split": "train", "source": None, "caption": "CT.",
                          "cuis": [[], [], []]})  # fmt: skip
    release = rocov2.Release(rocov2.Store(tmp_path), pairs, {})
    assert filtering.audit(release, tmp_path, 1)["repeated"].tolist() == [False, True, False]


@pytest.fixture(scope="module")
def real_records(tmp_path_factory):
    """What the audit finds in the real release, on two processes."""
    root = real("radiology_mini")
    return filtering.audit(rocov2.open_release(str(root), root), tmp_path_factory.mktemp("stage"), 2)


def count_by_hand(root, modes):
    """Count the real release again with Pillow and csv alone: captions first, then copies, then mode."""
    files = {path.stem: path for path in root.glob("t*/*.*")} | {p.stem: p for p in root.glob("valid/*.*")}
    test_files = {path.read_bytes() for path in root.glob("test/*.*")}
    counts = {}
    for split in ("train", "valid", "test"):
        with open(root / f"{split}_captions.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        counts[split] = Counter()
        for row in rows:
            with Image.open(files[row["ID"]]) as image:
                mode = image.mode
            if not row["Caption"].strip():
                reason = "caption missing"
            elif split != "test" and files[row["ID"]].read_bytes() in test_files:
                reason = "copy of a test image"
            else:
                reason = "kept" if modes is None or mode in modes else f"mode {mode}"
            counts[split][reason] += 1
    return counts


@pytest.mark.parametrize("modes", [("RGB",), ("RGB", "L"), None])
def test_the_real_releases_report_equals_a_count_by_hand(real_release, real_records, modes):
    counts = filtering.funnel(judge(real_records, modes))
    expected = count_by_hand(real_release, modes)
    assert {split: {r: n for r, n in row.items() if n} for split, row in counts.items()} == expected


def test_of_the_real_release_73_rgb_pairs_stay(real_records):
    counts = filtering.funnel(judge(real_records))
    assert {split: row["kept"] for split, row in counts.items()} == {"train": 46, "valid": 14, "test": 13}
    assert counts["train"]["copy of a test image"] == 1


def test_the_real_releases_colours_equal_a_count_by_hand(real_release, real_records):
    """Counted with numpy: of 122 images, 42 have a pixel whose three channels differ."""
    counted = Counter()
    for path in real_release.glob("*/*.*"):
        with Image.open(path) as image:
            red, green, blue, alpha = (np.asarray(channel) for channel in image.convert("RGBA").split())
        colour = ((red != green) | (blue != green)) & (alpha > 0)  # what is transparent is black
        counted[image.mode, "colour" if colour.any() else "only grey pixels"] += 1
    table = overview.modes_and_colour(real_records)
    assert table.to_dict("index") == {
        "L": {"only grey pixels": 30, "colour": 0}, "RGB": {"only grey pixels": 34, "colour": 39},
        "RGBA": {"only grey pixels": 16, "colour": 3},
    }  # fmt: skip
    assert {(m, c): n for m, row in table.iterrows() for c, n in row.items() if n} == counted


def test_the_real_release_has_one_set_of_copies_between_train_and_test(real_records):
    listed = duplicates.copies(real_records)
    assert listed["image_id"].tolist() == ["MINI_train_000026", "MINI_test_000001"]
    counts = duplicates.copy_counts(listed)
    assert [tuple(row) for row in counts[counts["groups"] > 0].to_numpy()] == [("train", "test", 1)]


def test_the_real_release_has_one_pair_of_near_copies(real_records):
    near, counts = duplicates.near_copies(real_records)
    assert near.to_numpy().tolist() == [["MINI_train_000014", "MINI_train_000040", "train", "train", 0]]
    assert counts["pairs"].tolist() == [1, 0, 0, 0, 0, 0]


def test_a_part_that_is_damaged_in_its_middle_is_deleted_and_told(tmp_path):
    """Its footer was whole, so that every further run failed at it again."""
    part = Part(tmp_path / "parts" / "pixels-train-00000.parquet", "train", ("a",), tmp_path, ("a.png",))
    part.path.parent.mkdir()
    write_part(part, pixels=False)
    data = bytearray(part.path.read_bytes())
    data[4:400] = bytes(396)
    part.path.write_bytes(data)
    with pytest.raises(StageError, match=r"was damaged on the disk and is deleted\. Run this again"):
        filtering.read_part(part)
    assert not part.path.exists()
