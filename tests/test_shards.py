"""Parquet shards in the hub's schema: what their columns say, or which of them is wrong."""

from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.six_pairs import EXPECTED, pairs_of, read, refusal, row, write_shards
from utils.pairs import SourceError, split_cuis
from utils.rocov2 import open_release
from utils.shards import by_split, pairs_from_shards

TEST = "test-00000-of-00001.parquet"


@pytest.mark.parametrize("place", ["", "data", "some/folder/below"])
def test_the_hubs_shards_hold_the_same_pairs_wherever_they_lie(tmp_path, place):
    assert pairs_of(write_shards(tmp_path, place=place)) == EXPECTED


@pytest.mark.parametrize(
    "cui_type", [";".join, str, lambda cuis: ";".join(cuis) or "nan", lambda cuis: cuis or None]
)
def test_concepts_of_shards_are_read_from_lists_and_from_text(tmp_path, cui_type):
    assert pairs_of(write_shards(tmp_path, cui_type)) == EXPECTED


@pytest.mark.parametrize("nothing", [None, "nan", "", "  "])
def test_a_missing_caption_is_none_however_it_is_written(tmp_path, nothing):
    assert pairs_of(write_shards(tmp_path, nothing=nothing)) == EXPECTED


def test_a_split_without_any_caption_reads_as_none(tmp_path):
    write_shards(tmp_path)
    table = pa.table({"image": [{"bytes": b"x"}], "image_id": ["a"], "caption": [None], "cui": [None]})
    assert table.schema.field("caption").type == pa.null()
    pq.write_table(table, tmp_path / "data" / TEST)
    assert row(tmp_path, "a") == ["test", f"data/{TEST}#0", None]


def test_shards_without_concepts_have_pairs_without_them(tmp_path):
    for path in write_shards(tmp_path).rglob("*.parquet"):
        pq.write_table(pq.read_table(path).drop_columns(["cui"]), path)
    assert pairs_of(tmp_path) == EXPECTED | {"cuis": [[], [], [], [], [], []]}


def test_sources_name_the_shard_below_the_root_and_the_row(tmp_path):
    pairs = open_release(str(write_shards(tmp_path)), tmp_path).pairs
    assert pairs["source"].tolist() == [
        "data/train-00000-of-00002.parquet#0", "data/train-00000-of-00002.parquet#1",
        "data/train-00001-of-00002.parquet#0", "data/validation-00000-of-00001.parquet#0",
        f"data/{TEST}#0", f"data/{TEST}#1",
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
    assert [read(blob) for blob in release.store.blobs(release.pairs["source"])] == [encode("RGB")] * 3


def test_shards_are_told_apart_by_the_beginning_of_their_names():
    names = [
        "data/train-00001-of-00002.parquet", "train-00000-of-00002.parquet", "data/validation-1.parquet",
        "test-1.parquet", "parts/pixels-train-00000.parquet", "data/._train-1.parquet", "train/notes.parquet",
        "train-1.parquet.metadata", "constrain-1.parquet", "train-1/a.parquet",
    ]  # fmt: skip
    assert by_split(iter(names)) == {
        "train": ["data/train-00001-of-00002.parquet", "train-00000-of-00002.parquet"],
        "valid": ["data/validation-1.parquet"],
        "test": ["test-1.parquet"],
    }
    assert by_split(["images-train-00000.parquet", "records.parquet"]) == {}


@pytest.mark.parametrize(
    ("shard", "split", "name"), [("validation", "valid", "validation"), ("test", "test", "test")]
)
def test_a_missing_split_among_shards_is_named(tmp_path, shard, split, name):
    (write_shards(tmp_path) / "data" / f"{shard}-00000-of-00001.parquet").unlink()
    assert refusal(tmp_path) == (
        f"There are parquet shards but none named {name}-*.parquet. Add the shards of the {split} split."
    )


@pytest.mark.parametrize("column", ["image", "image_id", "caption"])
def test_a_missing_column_of_a_shard_is_named_with_its_file(tmp_path, column):
    path = write_shards(tmp_path) / "data" / TEST
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    left = [name for name in ("image", "image_id", "caption", "cui") if name != column]
    assert refusal(tmp_path) == f"data/{TEST} has the columns {left}; it needs image, image_id and caption."


def damage(path, how):
    data = path.read_bytes()
    captions = pq.read_metadata(path).row_group(0).column(3)
    start = captions.dictionary_page_offset
    assert captions.path_in_schema == "caption"
    path.unlink()
    if how == "gone":
        path.symlink_to("nowhere")
    elif how == "folder":
        path.mkdir()
    elif how == "captions":
        path.write_bytes(data[:start] + b"\xff" * 20 + data[start + 20 :])
    else:
        path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "words": b"words " * 9}[how])


@pytest.mark.parametrize("how", ["half", "empty", "words", "captions", "gone", "folder"])
def test_a_damaged_shard_is_named(tmp_path, how):
    damage(write_shards(tmp_path) / "data" / TEST, how)
    message = refusal(tmp_path)
    assert message.startswith(f"data/{TEST} is no whole parquet file (")
    assert message.endswith("). Download it again.")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("cell", "cuis"),
    [("C0000001;C0000002", ["C0000001", "C0000002"]), ("['C0000001', 'C0000002']", ["C0000001", "C0000002"]),
     ("", []), ("nan", []), (None, []), (float("nan"), []), (pd.NA, []), (["C0000001"], ["C0000001"]),
     (np.array(["C0000001"], dtype=object), ["C0000001"])],
)  # fmt: skip
def test_a_cell_of_concepts_is_read_whatever_its_form(cell, cuis):
    assert split_cuis(cell) == cuis


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def schema_of(*texts, **others):
    return pa.schema({"image": IMAGE, **dict.fromkeys(texts, pa.string()), **others})


@pytest.mark.parametrize(
    ("column", "kind"),
    [("image", pa.binary()), ("image", pa.struct({"path": pa.string()})), ("image", pa.null()),
     ("image_id", pa.int64()), ("caption", pa.int32()), ("cui", pa.int64()), ("cui", pa.list_(pa.int8()))],
)  # fmt: skip
def test_a_column_of_another_type_is_named_before_the_long_work(tmp_path, column, kind):
    """Such a column came out as an AttributeError or a KeyError of a worker, or after all images were read."""
    write_shards(tmp_path)
    path = next((tmp_path / "data").glob("test-*"))
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.nulls(len(table), kind)), path)
    with pytest.raises(SourceError, match=f"{path.name} has a column {column} of type"):
        open_release(str(tmp_path), tmp_path)


def test_texts_may_be_stored_as_a_dictionary(tmp_path):
    write_shards(tmp_path)
    path = next((tmp_path / "data").glob("test-*"))
    table = pq.read_table(path)
    place = table.column_names.index("image_id")
    pq.write_table(table.set_column(place, "image_id", table["image_id"].dictionary_encode()), path)
    assert open_release(str(tmp_path), tmp_path).pairs["image_id"].tolist()[-2:] == EXPECTED["image_id"][-2:]


def test_rows_without_an_id_are_counted_in_the_refusal(tmp_path):
    write_shards(tmp_path)
    path = next((tmp_path / "data").glob("test-*"))
    table = pq.read_table(path)
    place = table.column_names.index("image_id")
    pq.write_table(table.set_column(place, "image_id", pa.nulls(len(table), pa.string())), path)
    with pytest.raises(SourceError, match=f"{path.name} has 2 rows without an image_id"):
        open_release(str(tmp_path), tmp_path)


def test_no_column_is_read_that_is_not_needed():
    def read_columns(name, columns):
        read.append((name, columns))
        return pa.table({column: ["x"] for column in columns})

    read = []
    reader = SimpleNamespace(
        schema=lambda name: schema_of("image_id", "caption", "cui", "more"), read_columns=read_columns
    )
    pairs_from_shards(reader, {"train": ["a", "b"], "test": ["c"]})
    assert read == [(name, ["image_id", "caption", "cui"]) for name in ("a", "b", "c")]


@pytest.mark.parametrize(("count", "told"), [(9, False), (10, True)])
def test_many_shards_have_a_bar(capsys, count, told):
    table = pa.table({"image_id": ["a"], "caption": ["b"]})
    reader = SimpleNamespace(
        schema=lambda name: schema_of("image_id", "caption"), read_columns=lambda name, columns: table
    )
    pairs_from_shards(reader, {"train": [str(number) for number in range(count)]})
    assert ("reading captions" in capsys.readouterr().out) == told
