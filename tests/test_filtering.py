"""Every pair is kept or refused for exactly one reason, and the funnel adds up."""

import csv
import hashlib
import json
from collections import Counter

import pandas as pd
import pytest
from PIL import Image, ImageFile

from utils import filtering, rocov2
from utils.filtering import KEPT

GOOD = {"image_id": "a", "split": "train", "source": "a.png", "caption": "CT.", "cuis": [], "mode": "RGB",
        "sha256": "1", "error": None, "repeated": False}  # fmt: skip


def reasons(rows, modes=("RGB",)):
    records = pd.DataFrame([GOOD | {"image_id": str(number)} | row for number, row in enumerate(rows)])
    judged = filtering.apply_rules(records, filtering.rules_for(records, modes))
    assert (judged["keep"] == (judged["reason"] == KEPT)).all()
    return judged["reason"].tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [({}, "kept"), ({"repeated": True}, "ID repeated"), ({"source": None}, "image file missing"), ({"caption": None}, "caption missing"),
     ({"mode": None}, "image unreadable"), ({"mode": "L"}, "mode L"), ({"mode": "I;16"}, "mode I;16")],
)  # fmt: skip
def test_each_rule_gives_its_reason(change, reason):
    assert reasons([change]) == [reason]
    assert reasons([{}, change]) == ["kept", reason]  # None becomes NaN beside other rows


def test_the_first_rule_that_refuses_gives_the_only_reason():
    test_image = {"split": "test", "sha256": "9"}
    wrong = {"repeated": True, "source": None, "caption": None, "mode": None, "sha256": "9"}
    steps = [wrong]
    for name, good in (
        ("repeated", False),
        ("source", "a"),
        ("caption", "CT."),
        ("mode", "L"),
        ("sha256", "1"),
        ("mode", "RGB"),
    ):
        steps.append(steps[-1] | {name: good})
    assert reasons([*steps, test_image]) == [
        "ID repeated", "image file missing", "caption missing", "image unreadable", "copy of a test image",
        "mode L",
        "kept", "kept",
    ]  # fmt: skip


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


def audit(root):
    return filtering.audit(rocov2.open_release(str(root), root)).set_index("image_id")


def test_the_audit_says_what_each_file_says_of_itself(release_folder):
    root = release_folder(train=("RGBA", "I;16"), valid=("L",), test=("RGB",))
    (root / "train_concepts_manual.csv").write_text("ID,CUIs\ntrain_1,C0040405;C0000001\n")
    records = audit(root)
    assert records["mode"].to_dict() == {
        "train_1": "RGBA",
        "train_2": "I;16",
        "valid_1": "L",
        "test_1": "RGB",
    }
    data = (root / "train" / "train_1.png").read_bytes()
    first = records.loc["train_1"]
    assert (first["format"], first["width"], first["height"], first["bytes"]) == ("PNG", 8, 6, len(data))
    assert first["sha256"] == hashlib.sha256(data).hexdigest()
    assert first["modality"] == "CT"
    assert records["modality"].isna().sum() == 3
    assert records["error"].isna().all()


def test_the_audit_decodes_no_pixel(release_folder, monkeypatch):
    root = release_folder()

    def decode(self, *args):
        raise AssertionError("a pixel was decoded")

    monkeypatch.setattr(Image.Image, "load", decode)
    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    assert audit(root)["mode"].tolist() == ["RGB", "L", "RGB", "RGB"]


def test_files_that_cannot_be_read_do_not_stop_the_audit(release_folder):
    root = release_folder(train=("RGB", "RGB", "RGB", "RGB"))
    (root / "train" / "train_1.png").write_bytes(b"")
    (root / "train" / "train_2.png").write_text("<html>")
    (root / "train" / "train_3.png").unlink()
    records = audit(root)
    judged = filtering.apply_rules(records, filtering.rules_for(records, ("RGB",)))
    assert judged["reason"].tolist() == [
        "image unreadable", "image unreadable", "image file missing", "kept", "kept", "kept",
    ]  # fmt: skip
    assert judged["error"].dropna().tolist() == [
        "The file is empty (0 bytes).",
        "The file is not an image (JPEG, PNG, WEBP, TIFF, BMP, GIF are read).",
    ]


def test_more_files_than_one_batch_come_in_order(release_folder):
    root = release_folder(train=("L",) * 300)
    values = audit(root).loc["train_1":"train_300", "sha256"]
    expected = [
        hashlib.sha256((root / "train" / f"train_{n}.png").read_bytes()).hexdigest() for n in range(1, 301)
    ]
    assert values.tolist() == expected


def test_examples_show_every_reason_that_can_be_seen(release_folder):
    root = release_folder(train=("RGB", "L", "RGB", "RGB"))
    (root / "train" / "train_3.png").write_bytes(b"broken")
    (root / "train" / "train_4.png").unlink()
    records = audit(root).reset_index()
    records = filtering.apply_rules(records, filtering.rules_for(records, ("RGB",)))
    images, titles = filtering.examples(records, root, each=2)
    assert titles == ["kept: unknown", "kept: unknown", "mode L: unknown"]
    assert [image.mode for image in images] == ["RGB"] * 3


def test_the_stage_lists_records_rejects_and_report(release_folder, tmp_path):
    root = release_folder(train=("RGB", "L"), valid=("RGB", "RGB"), test=("RGBA", "RGB"))
    (root / "valid" / "valid_1.png").write_bytes(b"")
    records = audit(root).reset_index()
    records = filtering.apply_rules(records, filtering.rules_for(records, ("RGB",)))
    figures = filtering.write_stage(tmp_path, records, filtering.funnel(records))
    assert figures == {"train": 1, "valid": 1, "test": 1, "dropped": 3}
    with open(tmp_path / "rejects.csv", newline="") as file:
        assert [(row["image_id"], row["reason"], row["error"]) for row in csv.DictReader(file)] == [
            ("train_2", "mode L", ""), ("valid_1", "image unreadable", "The file is empty (0 bytes)."),
            ("test_1", "mode RGBA", ""),
        ]  # fmt: skip
    assert pd.read_parquet(tmp_path / "records.parquet")["image_id"].tolist() == [
        "train_1",
        "train_2",
        "valid_1",
        "valid_2",
        "test_1",
        "test_2",
    ]
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["funnel"]["train"] == {"kept": 1, "image unreadable": 0, "mode L": 1, "mode RGBA": 0}


def test_an_emptied_split_stops_the_stage_but_leaves_its_lists(release_folder, tmp_path):
    records = audit(release_folder(valid=("L",))).reset_index()
    records = filtering.apply_rules(records, filtering.rules_for(records, ("RGB",)))
    with pytest.raises(ValueError, match="No pair of the valid split is left"):
        filtering.write_stage(tmp_path, records, filtering.funnel(records))
    assert "valid_1" in (tmp_path / "rejects.csv").read_text()


def test_an_id_that_shards_list_twice_is_kept_once():
    """The hub's copy of ROCOv2 says 59,962 training pairs where the release has 59,958."""
    pairs = pd.DataFrame({"image_id": ["a", "a", "b"], "split": "train", "source": None, "caption": "CT.",
                          "cuis": [[], [], []]})  # fmt: skip
    release = rocov2.Release(root=None, pairs=pairs, cui_names={})
    assert filtering.audit(release)["repeated"].tolist() == [False, True, False]


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
def test_the_real_releases_report_equals_a_count_by_hand(real_release, modes):
    records = filtering.audit(rocov2.open_release(str(real_release), real_release))
    counts = filtering.funnel(filtering.apply_rules(records, filtering.rules_for(records, modes)))
    expected = count_by_hand(real_release, modes)
    assert {split: {r: n for r, n in row.items() if n} for split, row in counts.items()} == expected


def test_of_the_real_release_73_rgb_pairs_stay(real_release):
    records = filtering.audit(rocov2.open_release(str(real_release), real_release))
    counts = filtering.funnel(filtering.apply_rules(records, filtering.rules_for(records, ("RGB",))))
    assert {split: row["kept"] for split, row in counts.items()} == {"train": 46, "valid": 14, "test": 13}
    assert counts["train"]["copy of a test image"] == 1
