"""The same pairs from every layout, and a sentence where a release is not one."""

import shutil

import datasets
import httpx
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from utils import rocov2
from utils.rocov2 import SourceError, check_source, iter_bytes, open_release

# The same six pairs in every layout below: what the CSVs and the shards say, and how it reads.
CAPTIONS = {"train": ["CT, axial: a \"mass\",\nleft.", None, "Röntgen."], "valid": ["MR."],
            "test": ["ultrasound", "PET "]}  # fmt: skip
CUIS = {"train": ["C0040405;C0024485", "", "C1306645"], "valid": ["C0024485"], "test": ["", ""]}
SHARD_CUIS = {
    "train": [["C0040405", "C0024485"], [], ["C1306645"]],
    "valid": [["C0024485"]],
    "test": [[], []],
}
HUB = {"train": "train", "valid": "validation", "test": "test"}


def ids(split):
    return [f"R_{split}_{number:06d}" for number in range(1, len(CAPTIONS[split]) + 1)]


def picture(image_id):
    return f"bytes of {image_id}".encode()


def quote(caption):
    return '"{}"'.format((caption or "").replace('"', '""'))


def write_folder(root, place="{split}", suffix=".jpg", bom="", newline="\n"):
    for split, captions in CAPTIONS.items():
        folder = root / place.format(split=split)
        folder.mkdir(parents=True)
        for image_id in ids(split):
            (folder / (image_id + suffix)).write_bytes(picture(image_id))
        rows = [f"{i},{quote(c)}" for i, c in zip(ids(split), captions, strict=True)]
        concepts = [f"{i},{c}" for i, c in zip(ids(split), CUIS[split], strict=True)]
        for name, lines in (("captions", ["ID,Caption", *rows]), ("concepts_manual", ["ID,CUIs", *concepts])):
            text = bom + newline.join([*lines, ""])
            (root / f"{split}_{name}.csv").write_bytes(text.encode())
    return root


def write_shards(root, cui_type=None):
    """Write shards in the hub's schema, two for train; a missing value is the text 'nan'."""
    (root / "data").mkdir(parents=True)
    for split, captions in CAPTIONS.items():
        rows = [
            {"image": {"bytes": picture(i), "path": f"{i}.png"}, "image_id": i,
             "caption": "nan" if c is None else c, "cui": cuis if cui_type is None else cui_type(cuis)}
            for i, c, cuis in zip(ids(split), captions, SHARD_CUIS[split], strict=True)
        ]  # fmt: skip
        halves = [rows[:2], rows[2:]] if split == "train" else [rows]
        for number, half in enumerate(halves):
            table = pa.Table.from_pylist(half)
            name = f"{HUB[split]}-{number:05d}-of-{len(halves):05d}.parquet"
            pq.write_table(table, root / "data" / name)
    return root


def pairs_of(root):
    """What a release says, with each image's bytes in place of its source."""
    release = open_release(str(root), root)
    rows = release.pairs.astype(object).where(release.pairs.notna(), None).to_dict("list")
    rows["bytes"] = list(iter_bytes(release.root, rows.pop("source")))
    return rows


EXPECTED = {
    "image_id": [*ids("train"), *ids("valid"), *ids("test")],
    "split": ["train"] * 3 + ["valid"] + ["test"] * 2,
    "caption": ['CT, axial: a "mass",\nleft.', None, "Röntgen.", "MR.", "ultrasound", "PET "],
    "cuis": [["C0040405", "C0024485"], [], ["C1306645"], ["C0024485"], [], []],
    "bytes": [picture(i) for split in CAPTIONS for i in ids(split)],
}


@pytest.mark.parametrize("place", ["{split}", "{split}_images/{split}", "{split}_images"])
def test_folders_as_on_zenodo_and_as_on_kaggle_hold_the_same_pairs(tmp_path, place):
    assert pairs_of(write_folder(tmp_path, place)) == EXPECTED


def test_the_hubs_shards_hold_the_same_pairs(tmp_path):
    assert pairs_of(write_shards(tmp_path)) == EXPECTED


@pytest.mark.parametrize("cui_type", [";".join, str, lambda cuis: ";".join(cuis) or "nan"])
def test_concepts_of_shards_are_read_from_lists_and_from_text(tmp_path, cui_type):
    assert pairs_of(write_shards(tmp_path, cui_type)) == EXPECTED


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".tif", ".webp"])
def test_images_may_have_any_of_the_usual_extensions(tmp_path, suffix):
    assert pairs_of(write_folder(tmp_path, suffix=suffix)) == EXPECTED


def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    # Inside its quotes a caption keeps its line end.
    found = pairs_of(write_folder(tmp_path, bom="\ufeff", newline="\r\n"))
    assert found == EXPECTED


def test_csv_files_may_lie_beside_kaggles_image_folders(tmp_path):
    write_folder(tmp_path, "{split}_images/{split}")
    for path in tmp_path.glob("*.csv"):
        path.rename(tmp_path / f"{path.name.partition('_')[0]}_images" / path.name)
    assert pairs_of(tmp_path) == EXPECTED


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "release")


def row(root, image_id):
    pairs = open_release(str(root), root).pairs.set_index("image_id").loc[image_id]
    return [None if pd.isna(pairs[name]) else pairs[name] for name in ("split", "source", "caption")]


def test_a_caption_without_an_image_stays_in_the_table(folder):
    (folder / "test" / "R_test_000002.jpg").unlink()
    assert row(folder, "R_test_000002") == ["test", None, "PET "]


def test_an_image_without_a_caption_stays_in_the_table(folder):
    (folder / "valid" / "R_valid_000077.jpg").write_bytes(b"x")
    assert row(folder, "R_valid_000077") == ["valid", "valid/R_valid_000077.jpg", None]


def test_other_files_beside_the_images_are_no_images(folder):
    for name in ("Thumbs.db", "README.txt"):
        (folder / "valid" / name).touch()
    assert pairs_of(folder) == EXPECTED


@pytest.mark.parametrize("caption", ["", "  ", "nan"])
def test_a_caption_without_words_is_none(folder, caption):
    (folder / "valid_captions.csv").write_text(f"ID,Caption\nR_valid_000001,{caption}\n")
    assert row(folder, "R_valid_000001")[2] is None


def test_words_that_pandas_takes_for_nothing_stay_words(folder):
    (folder / "valid_captions.csv").write_text("ID,Caption\nR_valid_000001,NA\n")
    assert row(folder, "R_valid_000001")[2] == "NA"


def test_automatic_concepts_are_read_where_there_are_no_manual_ones(folder):
    (folder / "valid_concepts_manual.csv").unlink()
    (folder / "valid_concepts.csv").write_text("ID,CUIs\nR_valid_000001,C0000001;C0000002\n")
    pairs = open_release(str(folder), folder).pairs.set_index("image_id")
    assert pairs.loc["R_valid_000001", "cuis"] == ["C0000001", "C0000002"]


def test_the_names_of_concepts_are_read_where_the_release_has_them(folder):
    assert open_release(str(folder), folder).cui_names == {}
    (folder / "cui_mapping.csv").write_text('CUI,Canonical name\nC0040405,"X-Ray, computed"\n')
    assert open_release(str(folder), folder).cui_names == {"C0040405": "X-Ray, computed"}


def refusal(root):
    with pytest.raises(SourceError) as caught:
        open_release(str(root), root)
    return str(caught.value)


def test_a_missing_column_is_named_with_its_file(folder):
    (folder / "valid_captions.csv").write_text("ID;Caption\nR_valid_000001;MR.\n")
    message = refusal(folder)
    assert f"{folder}/valid_captions.csv has no column ID and no column Caption" in message
    assert "(it has: ID;Caption)" in message


def test_a_missing_column_of_a_shard_is_named_with_its_file(tmp_path):
    write_shards(tmp_path)
    pq.write_table(
        pa.table({"image": ["x"], "text": ["y"]}), tmp_path / "data" / "test-00000-of-00001.parquet"
    )
    assert "test-00000-of-00001.parquet has the columns ['image', 'text']" in refusal(tmp_path)


def test_an_unquoted_comma_is_no_reason_to_shift_the_columns(folder):
    (folder / "valid_captions.csv").write_text("ID,Caption\nR_valid_000001,CT, axial\n")
    assert "valid_captions.csv" in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"ID,Caption\nR_valid_000001,R\xf6ntgen\n", b'ID,Caption\na,"open\n']
)
def test_a_file_that_is_no_utf8_csv_is_named(folder, content):
    (folder / "valid_captions.csv").write_bytes(content)
    assert f"{folder}/valid_captions.csv cannot be read as a UTF-8 CSV" in refusal(folder)


def test_an_id_that_stands_twice_is_named(folder):
    (folder / "test_captions.csv").write_text("ID,Caption\nR_test_000001,CT.\nR_test_000001,MR.\n")
    assert refusal(folder).startswith(f"{folder}/test_captions.csv lists R_test_000001 twice.")


def test_a_missing_captions_file_is_named(folder):
    (folder / "valid_captions.csv").unlink()
    assert f"{folder} has no valid_captions.csv" in refusal(folder)


def test_a_missing_image_folder_is_named(folder):
    shutil.rmtree(folder / "test")
    assert f"{folder} has no images of the test split: expected test/<ID>.jpg" in refusal(folder)


def test_a_missing_split_among_shards_is_named(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "data" / "validation-00000-of-00001.parquet").unlink()
    assert "none named validation-*.parquet" in refusal(tmp_path)


@pytest.mark.parametrize("source", ["/nowhere/at/all", "just_a_word", "a/b/c", "https://host/a"])
def test_what_is_neither_folder_nor_name_is_refused_at_once(source):
    with pytest.raises(SourceError, match=f"^There is no folder {source}"):
        check_source(source)


@pytest.mark.parametrize("source", ["sample", "eltorio/ROCOv2-radiology"])
def test_names_are_taken_without_asking_the_hub(source, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", None)
    assert check_source(source) is None


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no route"), httpx.ReadTimeout("late"), OSError("offline")]
)
def test_a_hub_that_cannot_be_reached_is_a_sentence(tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", fail)
    with pytest.raises(
        SourceError, match="^no/such is no folder here, and the hub gave no such data set"
    ) as caught:
        open_release("no/such", tmp_path)
    assert type(error).__name__ in str(caught.value)


def test_a_hub_data_set_without_shards_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *args, **options: ["README.md"])
    with pytest.raises(SourceError, match="a/b holds no parquet shards"):
        open_release("a/b", tmp_path)


def test_nothing_is_downloaded_onto_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *args, **options: ["a.parquet"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    monkeypatch.setattr(rocov2, "HUB_BYTES", 10**18)
    with pytest.raises(rocov2.StageError, match=r"The download of a/b needs about 1,000,000,000,000 MB"):
        open_release("a/b", tmp_path)


def test_bytes_come_in_the_order_asked_for_over_files_and_shards(tmp_path):
    write_shards(tmp_path)
    (tmp_path / "loose.jpg").write_bytes(b"loose")
    first, second = (f"data/train-0000{n}-of-00002.parquet" for n in (0, 1))
    order = [f"{second}#0", "loose.jpg", f"{first}#0", f"{first}#1", "data/test-00000-of-00001.parquet#1",
             "loose.jpg", "loose.jpg"]  # fmt: skip
    assert list(iter_bytes(tmp_path, order)) == [
        picture("R_train_000003"), b"loose", picture("R_train_000001"), picture("R_train_000002"),
        picture("R_test_000002"), b"loose", b"loose",
    ]  # fmt: skip


def test_rows_far_into_a_shard_are_found(tmp_path):
    rows = [{"image": {"bytes": str(n).encode(), "path": None}} for n in range(200)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "s.parquet", row_group_size=30)
    assert list(iter_bytes(tmp_path, ["s.parquet#0", "s.parquet#63", "s.parquet#64", "s.parquet#199"])) == [
        b"0", b"63", b"64", b"199",
    ]  # fmt: skip


def test_shards_that_the_datasets_library_wrote_are_read(tmp_path, encode):
    features = datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("string"),
                                  "caption": datasets.Value("string")})  # fmt: skip
    for name in ("train", "validation", "test"):
        row = {"image": {"bytes": encode("RGB"), "path": None}, "image_id": name, "caption": "CT."}
        datasets.Dataset.from_list([row], features=features).to_parquet(
            tmp_path / f"{name}-00000-of-00001.parquet"
        )
    release = open_release(str(tmp_path), tmp_path)
    assert release.pairs["image_id"].tolist() == ["train", "validation", "test"]
    assert release.pairs["cuis"].tolist() == [[], [], []]
    assert list(iter_bytes(tmp_path, release.pairs["source"].tolist())) == [encode("RGB")] * 3


@pytest.mark.parametrize(
    ("cell", "cuis"),
    [("C0000001;C0000002", ["C0000001", "C0000002"]), ("['C0000001', 'C0000002']", ["C0000001", "C0000002"]),
     ("", []), ("nan", []), (None, []), (float("nan"), []), (pd.NA, []), (["C0000001"], ["C0000001"])],
)  # fmt: skip
def test_a_cell_of_concepts_is_read_whatever_its_form(cell, cuis):
    assert rocov2.split_cuis(cell) == cuis


def test_the_real_release_is_read_whole(real_release):
    pairs = open_release(str(real_release), real_release).pairs
    assert pairs["split"].value_counts().to_dict() == {"train": 72, "test": 26, "valid": 24}
    assert pairs["source"].notna().all()
    assert pairs["caption"].isna().sum() == 5
