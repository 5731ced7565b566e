"""A folder in the release's layout: what its CSV files and its images' names say, or what is wrong."""

import csv
import os
import shutil

import pytest

from tests.six_pairs import EXPECTED, pairs_of, refusal, row, write_folder
from utils.audit import look
from utils.folders import find_images, read_csv
from utils.pairs import SourceError, split_cuis
from utils.rocov2 import open_release

LONG = "CT " * 50_000  # 150,000 characters; csv's own limit is 131,072


@pytest.fixture
def folder(tmp_path):
    return write_folder(tmp_path / "release")


@pytest.mark.parametrize("place", ["{split}", "{split}_images/{split}", "{split}_images"])
def test_folders_as_on_zenodo_and_as_on_kaggle_hold_the_same_pairs(tmp_path, place):
    assert pairs_of(write_folder(tmp_path, place)) == EXPECTED


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".tif", ".webp"])
def test_images_may_have_any_of_the_usual_extensions(tmp_path, suffix):
    assert pairs_of(write_folder(tmp_path, suffix=suffix)) == EXPECTED


def test_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path):
    assert pairs_of(write_folder(tmp_path, bom="\ufeff", newline="\r\n")) == EXPECTED


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_inside_its_quotes_a_caption_keeps_its_line_end(folder, end):
    (folder / "valid_captions.csv").write_bytes(f'ID,Caption{end}R_valid_000001,"a{end}b"{end}'.encode())
    assert row(folder, "R_valid_000001")[2] == f"a{end}b"


def test_csv_files_may_lie_beside_kaggles_image_folders(tmp_path):
    write_folder(tmp_path, "{split}_images/{split}")
    for path in tmp_path.glob("*.csv"):
        path.rename(tmp_path / f"{path.name.partition('_')[0]}_images" / path.name)
    assert pairs_of(tmp_path) == EXPECTED


def test_a_caption_without_an_image_stays_in_the_table(folder):
    (folder / "test" / "R_test_000002.jpg").unlink()
    assert row(folder, "R_test_000002") == ["test", None, "PET "]


def test_images_without_a_caption_stay_in_the_table_behind_the_others(folder):
    for name in ("R_valid_000077.jpg", "R_valid_000000.png"):
        (folder / "valid" / name).write_bytes(b"x")
    pairs = open_release(str(folder), folder).pairs.query("split == 'valid'")
    assert pairs.drop(columns="split").values.tolist() == [
        ["R_valid_000001", "valid/R_valid_000001.jpg", "MR.", ["C0024485"]],
        ["R_valid_000000", "valid/R_valid_000000.png", None, []],
        ["R_valid_000077", "valid/R_valid_000077.jpg", None, []],
    ]


def test_an_id_that_stands_twice_gives_two_pairs(folder):
    (folder / "test_captions.csv").write_text("ID,Caption\nR_test_000001,CT.\nR_test_000001,MR.\n")
    pairs = open_release(str(folder), folder).pairs.query("split == 'test'")
    assert pairs[["image_id", "source", "caption"]].values.tolist() == [
        ["R_test_000001", "test/R_test_000001.jpg", "CT."],
        ["R_test_000001", "test/R_test_000001.jpg", "MR."],
        ["R_test_000002", "test/R_test_000002.jpg", None],
    ]


@pytest.mark.parametrize("name", ["Thumbs.db", "README.txt", "._R_valid_000001.jpg", ".hidden.png", "jpg"])
def test_other_files_beside_the_images_are_no_images(folder, name):
    (folder / "valid" / name).touch()
    assert pairs_of(folder) == EXPECTED


def test_a_folder_of_hidden_files_alone_has_no_images(tmp_path):
    write_folder(tmp_path, "{split}_images/{split}")
    for split in ("train", "valid", "test"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "._R_train_000001.jpg").touch()
    assert pairs_of(tmp_path) == EXPECTED


@pytest.mark.parametrize(
    ("place", "why"), [("folder", "Is a directory"), ("link", "No such file or directory")]
)
def test_what_is_behind_an_images_name_is_told_when_it_is_opened(folder, place, why):
    path = folder / "valid" / "R_valid_000001.jpg"
    path.unlink()
    path.mkdir() if place == "folder" else path.symlink_to("nowhere.jpg")
    assert row(folder, "R_valid_000001") == ["valid", "valid/R_valid_000001.jpg", "MR."]
    assert look(path, True)["error"] == f"The file cannot be read: {why}."


def test_two_images_of_one_id_are_named(folder):
    for name in ("R_test_000001.png", "R_test_000003.png", "R_test_000002.tif"):
        (folder / "test" / name).touch()
    assert refusal(folder) == (
        f"{folder}/test holds two images of one ID: R_test_000001.jpg and R_test_000001.png. Remove one."
    )


@pytest.mark.parametrize("form", ["{}.jpg", "test/{}", "test/{}.jpg"])
def test_ids_with_an_extension_or_a_folder_are_shown_beside_an_image(folder, form):
    lines = [f"{form.format(f'R_test_00000{n}')},CT.\n" for n in (1, 2)]
    (folder / "test_captions.csv").write_text("".join(["ID,Caption\n", *lines]))
    assert refusal(folder) == (
        f"No ID of {folder}/test_captions.csv is the name of an image: the first ID is "
        f"{form.format('R_test_000001')}, the first image test/R_test_000001.jpg. "
        f"Give the file IDs without folder and extension."
    )


def test_one_id_that_is_an_images_name_is_enough(folder):
    (folder / "test_captions.csv").write_text("ID,Caption\nR_test_000001.jpg,CT.\nR_test_000002,MR.\n")
    assert row(folder, "R_test_000001.jpg") == ["test", None, "CT."]


def test_a_captions_file_without_a_row_leaves_images_without_captions(folder):
    (folder / "test_captions.csv").write_text("ID,Caption\n")
    assert row(folder, "R_test_000001") == ["test", "test/R_test_000001.jpg", None]


@pytest.mark.parametrize("caption", ["", "  ", "nan"])
def test_a_caption_without_words_is_none(folder, caption):
    (folder / "valid_captions.csv").write_text(f"ID,Caption\nR_valid_000001,{caption}\n")
    assert row(folder, "R_valid_000001")[2] is None


def test_words_that_pandas_takes_for_nothing_stay_words(folder):
    (folder / "valid_captions.csv").write_text("ID,Caption\nR_valid_000001,NA\n")
    assert row(folder, "R_valid_000001")[2] == "NA"


@pytest.mark.parametrize("caption", [LONG, f'"{LONG}"'])
def test_a_caption_of_any_length_is_read_and_csvs_own_limit_stays(folder, caption):
    before = csv.field_size_limit(1000)
    try:
        (folder / "valid_captions.csv").write_text(f"ID,Caption\nR_valid_000001,{caption}\n")
        assert row(folder, "R_valid_000001")[2] == LONG
        (folder / "valid_captions.csv").write_text(f'ID,Caption\nR_valid_000001,"{LONG}\n')
        assert "unexpected end of data" in refusal(folder)
        assert csv.field_size_limit() == 1000
    finally:
        csv.field_size_limit(before)


def test_automatic_concepts_are_read_where_there_are_no_manual_ones(folder):
    (folder / "valid_concepts.csv").write_text("ID,CUIs\nR_valid_000001,C0000001;C0000002\n")
    assert pairs_of(folder) == EXPECTED
    (folder / "valid_concepts_manual.csv").unlink()
    pairs = open_release(str(folder), folder).pairs.set_index("image_id")
    assert pairs.loc["R_valid_000001", "cuis"] == ["C0000001", "C0000002"]


def test_without_concepts_every_pair_has_none(folder):
    for path in folder.glob("*_concepts_manual.csv"):
        path.unlink()
    assert pairs_of(folder) == EXPECTED | {"cuis": [[], [], [], [], [], []]}


def test_the_names_of_concepts_are_read_where_the_release_has_them(folder):
    assert open_release(str(folder), folder).cui_names == {}
    (folder / "cui_mapping.csv").write_text('CUI,Canonical name\nC0040405,"X-Ray, computed"\n')
    assert open_release(str(folder), folder).cui_names == {"C0040405": "X-Ray, computed"}


@pytest.mark.parametrize(
    ("cell", "cuis"),
    [("C0000001;C0000002", ["C0000001", "C0000002"]), ("", []), ("nan", []), (" ", [])],
)  # fmt: skip
def test_a_cell_of_concepts_is_read(cell, cuis):
    assert split_cuis(cell) == cuis


def test_a_missing_column_is_named_with_its_file(folder):
    (folder / "valid_captions.csv").write_text("ID;Caption\nR_valid_000001;MR.\n")
    message = refusal(folder)
    assert message.startswith(f"{folder}/valid_captions.csv has no column ID and no column Caption")
    assert "(it has: ID;Caption)" in message


@pytest.mark.parametrize(
    ("name", "columns"), [("valid_concepts_manual.csv", "ID,CUIs"), ("cui_mapping.csv", "CUI,Canonical name")]
)
def test_the_other_files_need_their_columns_too(folder, name, columns):
    (folder / name).write_text("a,b\n1,2\n")
    assert refusal(folder).startswith(f"{folder}/{name} has no column {columns.split(',')[0]}")
    assert refusal(folder).endswith(f"The first line of the file must name {columns}.")


@pytest.mark.parametrize(("line", "count"), [("R_valid_000001,CT, axial", 3), ("R_valid_000001", 1)])
def test_a_row_with_other_fields_than_the_first_line_is_shown(folder, line, count):
    (folder / "valid_captions.csv").write_text(f'ID,Caption\nR_valid_000009,"a\nb"\n\n{line}\n')
    assert refusal(folder) == (
        f"{folder}/valid_captions.csv, row 4, has {count} fields where the first line names 2 (R_valid_000001). "
        f"Put captions that hold a comma in quotes."
    )


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"ID,Caption\nR_valid_000001,R\xf6ntgen\n", b'ID,Caption\na,"open\n']
)
def test_a_file_that_is_no_utf8_csv_is_named(folder, content):
    (folder / "valid_captions.csv").write_bytes(content)
    assert refusal(folder).startswith(f"{folder}/valid_captions.csv cannot be read as a UTF-8 CSV")


def test_cells_stay_text_and_empty_lines_are_no_rows(tmp_path):
    (tmp_path / "a.csv").write_text("ID,n\n\n007,1.0\n,NA\n\n")
    assert read_csv(tmp_path / "a.csv", ("n", "ID")).values.tolist() == [["007", "1.0"], ["", "NA"]]


def test_a_missing_captions_file_is_named(folder):
    (folder / "valid_captions.csv").unlink()
    assert refusal(folder) == (
        f"{folder} has no valid_captions.csv. Give --source (SOURCE) the folder of the release that holds "
        f"{{train,valid,test}}_captions.csv and the images."
    )


def test_a_missing_image_folder_is_named(folder):
    shutil.rmtree(folder / "test")
    assert refusal(folder).startswith(f"{folder} has no images of the test split: expected test/<ID>.jpg")


def test_images_of_a_split_are_found_in_the_first_place_that_has_some(tmp_path):
    for place in ("test_images/test", "test_images"):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / place / "a.b.jpg").touch()
    assert find_images(tmp_path, "test") == {"a.b": "test_images/test/a.b.jpg"}
    with pytest.raises(SourceError, match="has no images of the train split"):
        find_images(tmp_path, "train")


def test_the_real_release_is_read_whole(real_release):
    pairs = open_release(str(real_release), real_release).pairs
    assert pairs["split"].value_counts().to_dict() == {"train": 72, "test": 26, "valid": 24}
    assert pairs["source"].notna().all()
    assert pairs["caption"].isna().sum() == 5


def test_a_column_that_is_named_twice_is_told(folder):
    (folder / "valid_captions.csv").write_text("ID,ID,Caption\na,a,CT.\n")
    assert refusal(folder).endswith("valid_captions.csv names a column twice: ID, ID, Caption.")


def test_a_file_name_that_is_no_utf8_is_told(folder):
    """One such name ended the run as a UnicodeEncodeError that named nothing."""
    with open(os.fsencode(folder / "train") + b"/bad\xff.png", "wb"):
        pass
    assert "a file whose name is no UTF-8: 'bad\\udcff.png'. Rename it." in refusal(folder)
