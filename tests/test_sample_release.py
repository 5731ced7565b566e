"""The sample's release: what the key says must be what the files are."""

import csv
import io
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from utils.sample import release

COUNTS = {"train": 40, "valid": 12, "test": 14}


def table(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return release.write_sample(tmp_path_factory.mktemp("sample") / "small", COUNTS, procs=1)


@pytest.fixture(scope="module")
def key(sample):
    return table(sample / "key.csv")


def image_path(sample, row):
    return sample / row["split"] / (row["ID"] + (".png" if row["mode"] in ("RGBA", "I;16") else ".jpg"))


def test_the_commonest_caption_is_a_short_one_and_most_are_rare():
    captions = Counter(row.caption for row in release.plan(release.COUNTS, 0))
    (commonest, count), *_ = captions.most_common(1)
    assert commonest == "Chest X-ray."
    assert 0.01 <= count / 3600 <= 0.02
    assert 0.6 < len(captions) / 3600 < 0.95


def test_the_kinds_of_dirt_are_as_many_as_counted_by_hand():
    rows = release.plan({"train": 3000, "valid": 300, "test": 300}, seed=0)
    assert Counter((row.split, row.image_defect) for row in rows if row.image_defect) == {
        ("train", "rgba"): 18,
        ("train", "sixteen_bit"): 18,
        ("train", "truncated"): 12,
        ("train", "wrong_extension"): 12,
        ("train", "duplicate"): 12,
        ("valid", "rgba"): 2,
        ("valid", "sixteen_bit"): 2,
        ("valid", "truncated"): 1,
        ("valid", "wrong_extension"): 1,
        ("test", "rgba"): 2,
        ("test", "sixteen_bit"): 2,
        ("test", "truncated"): 1,
        ("test", "wrong_extension"): 1,
    }
    assert Counter((row.split, row.caption_dirt) for row in rows if row.caption_dirt) == {
        ("train", "empty"): 9,
        ("train", "spaces"): 18,
        ("train", "glued"): 15,
        ("train", "one_word"): 12,
        ("train", "long"): 9,
        ("train", "replacement"): 9,
        ("valid", "empty"): 1,
        ("valid", "spaces"): 2,
        ("valid", "glued"): 2,
        ("valid", "one_word"): 1,
        ("valid", "long"): 1,
        ("valid", "replacement"): 1,
        ("test", "empty"): 1,
        ("test", "spaces"): 2,
        ("test", "glued"): 2,
        ("test", "one_word"): 1,
        ("test", "long"): 1,
        ("test", "replacement"): 1,
    }


def test_the_key_agrees_with_what_pillow_says_of_each_file(sample, key):
    assert Counter(row["split"] for row in key) == COUNTS
    for row in key:
        with Image.open(image_path(sample, row)) as image:
            assert (image.mode, image.format) == (row["mode"], row["format"]), row
            assert min(image.size) >= 150
            if row["image_defect"] == "truncated":
                with pytest.raises(OSError, match="truncated"):
                    image.load()
            else:
                image.load()
            if row["mode"] == "I;16":
                assert 2048 < np.asarray(image).max() < 4096  # twelve bits, as scanners give


def test_the_folder_holds_the_keys_files_and_no_other(sample, key):
    files = {path for split in COUNTS for path in (sample / split).iterdir()}
    assert files == {image_path(sample, row) for row in key}


def test_a_wrong_extension_is_a_png_under_a_jpg_name(sample, key):
    rows = [row for row in key if row["image_defect"] == "wrong_extension"]
    assert len(rows) == 3
    for row in rows:
        assert (sample / row["split"] / f"{row['ID']}.jpg").read_bytes()[:4] == b"\x89PNG"


def test_a_leaked_picture_is_the_same_file_in_train_and_test(sample, key):
    (copy,) = [row for row in key if row["duplicate_of"]]
    assert (copy["split"], copy["image_defect"]) == ("train", "duplicate")
    original = next(row for row in key if row["ID"] == copy["duplicate_of"])
    assert original["split"] == "test"
    assert image_path(sample, copy).read_bytes() == image_path(sample, original).read_bytes()


def test_ids_look_like_rocov2s_and_have_gaps():
    rows = [row for row in release.plan(release.COUNTS, 0) if row.split == "train"]
    assert all(re.fullmatch(r"SAMPLE_train_\d{6}", row.ID) for row in rows)
    assert len({row.ID for row in rows}) == 3000 < int(rows[-1].ID[-6:])


def test_caption_tables_are_rocov2s_with_the_dirt_that_the_key_names(sample, key):
    dirt = {}
    for split, count in COUNTS.items():
        raw = (sample / f"{split}_captions.csv").read_bytes()
        assert raw.startswith(b"ID,Caption\r\n")
        assert raw.count(b"\r\n") == count + 1
        captions = {row["ID"]: row["Caption"] for row in table(sample / f"{split}_captions.csv")}
        mine = [row for row in key if row["split"] == split]
        assert list(captions) == [row["ID"] for row in mine]
        dirt |= {(split, row["caption_dirt"]): captions[row["ID"]] for row in mine}
    for split in COUNTS:
        assert dirt[split, "empty"] == ""
        assert dirt[split, "spaces"] != dirt[split, "spaces"].strip()
        assert re.search(r"\.The patient", dirt[split, "glued"])
        assert len(dirt[split, "one_word"].split()) == 1
        assert 80 <= len(dirt[split, "long"].split()) <= 200
        assert "\ufffd" in dirt[split, "replacement"]


def test_concepts_name_the_modality_and_every_one_is_mapped(sample, key):
    names = {row["CUI"]: row["Canonical name"] for row in table(sample / "cui_mapping.csv")}
    wanted = {
        "X-ray": "C1306645",
        "CT": "C0040405",
        "MR": "C0024485",
        "ultrasound": "C0041618",
        "angiography": "C0002978",
    }
    concepts = {
        row["ID"]: row["CUIs"].split(";")
        for split in COUNTS
        for row in table(sample / f"{split}_concepts_manual.csv")
    }
    for row in key:
        assert concepts[row["ID"]][0] == wanted[row["modality"]]
        assert set(concepts[row["ID"]]) <= set(names)


def test_the_same_seed_gives_the_same_bytes_from_one_process_or_two(sample, tmp_path):
    again = release.write_sample(tmp_path / "again", COUNTS, procs=2)
    files = [path.relative_to(sample) for path in sample.rglob("*") if path.is_file()]
    assert len(files) == sum(COUNTS.values()) + 9
    for name in files:
        assert (again / name).read_bytes() == (sample / name).read_bytes(), name


def test_another_seed_gives_other_pictures():
    first, second = (release.plan(COUNTS, seed)[0] for seed in (0, 1))
    assert release.image_bytes(first) != release.image_bytes(second)


def test_a_finished_sample_is_found_and_an_unfinished_or_other_one_is_written(tmp_path):
    counts = dict.fromkeys(release.SPLITS, 12)
    folder = release.write_sample(tmp_path / "sample", counts, procs=1)
    before = (folder / "key.csv").stat().st_mtime_ns
    assert release.write_sample(folder, counts, procs=1) == folder
    assert (folder / "key.csv").stat().st_mtime_ns == before
    (folder / "key.csv").unlink()
    release.write_sample(folder, counts, procs=1)
    assert len(table(folder / "key.csv")) == 36
    release.write_sample(folder, counts, seed=1, procs=1)
    assert table(folder / "key.csv") != []
    assert not (tmp_path / "sample.part").exists()


def test_a_folder_of_somebody_elses_is_never_replaced(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="something else"):
        release.write_sample(tmp_path, COUNTS)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("counts", [{"train": 40}, {"train": 40, "valid": 11, "test": 12}])
def test_counts_without_room_for_the_dirt_are_refused(tmp_path, counts):
    with pytest.raises(ValueError, match="at least 12"):
        release.write_sample(tmp_path / "sample", counts)


def test_doppler_pictures_are_the_only_coloured_ones():
    coloured = []
    for row in release.plan(COUNTS, 0)[:60]:
        if row.image_defect != "truncated":
            image = Image.open(io.BytesIO(release.image_bytes(row)))
            if image.mode == "RGB" and np.ptp(np.asarray(image, int), axis=2).max() > 100:
                coloured.append(row.phantom.modality)
    assert set(coloured) == {"ultrasound"}
