"""Image bytes come out of shards in any order, and no more of a shard is read than is asked for."""

import io
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.six_pairs import read
from utils import blobs
from utils.audit import look
from utils.blobs import iter_blobs, shard_of
from utils.stages import StageError

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
ENDS = (0, 1, 18, 48, 53)  # row groups of 1, 17, 30 and 5 rows: fewer and more than a batch of 16


def write_shard(path, cells, ends=None):
    """Write image cells, bytes or None, in row groups between ``ends``."""
    images = pa.array([{"bytes": cell, "path": None} if cell is not None else None for cell in cells], IMAGE)
    table = pa.table({"image": images, "more": cells})
    with pq.ParquetWriter(path, table.schema, write_batch_size=5) as writer:
        for start, end in pairwise(ends or (0, len(cells))):
            writer.write_table(table[start:end])
    return path


@pytest.fixture
def root(tmp_path):
    """Two shards, a and b, whose row n holds "a n" and "b n", and a file."""
    for name in "ab":
        write_shard(tmp_path / f"{name}.parquet", [f"{name} {n}".encode() for n in range(53)], ENDS)
    (tmp_path / "loose.jpg").write_bytes(b"loose")
    return tmp_path


@pytest.mark.parametrize(
    "rows",
    [
        [0],
        [52],
        [17, 18],
        [15, 16, 17, 47, 48],
        [0, 52],
        list(range(53)),
        list(range(53))[::-1],
        [5, 5, 5],
        [52, 0, 30, 30, 1, 31, 33, 2],
    ],
)
def test_rows_come_in_the_order_asked_for_across_row_groups(root, rows):
    blobs = iter_blobs(root, [f"a.parquet#{row}" for row in rows])
    assert [blob.read() for blob in blobs] == [b"a %d" % row for row in rows]


def test_sources_come_in_the_order_asked_for_over_files_and_shards(root):
    order = ["b.parquet#40", "a.parquet#20", "b.parquet#41", "loose.jpg", "a.parquet#0", "a.parquet#52",
             "b.parquet#0", "loose.jpg", "loose.jpg"]  # fmt: skip
    assert [read(blob) for blob in iter_blobs(root, iter(order))] == [
        b"b 40", b"a 20", b"b 41", b"loose", b"a 0", b"a 52", b"b 0", b"loose", b"loose",
    ]  # fmt: skip


def test_nothing_asked_for_is_nothing(root):
    assert list(iter_blobs(root, [])) == []


def test_files_are_not_opened(tmp_path):
    assert list(iter_blobs(tmp_path, ["not/there.jpg"])) == [f"{tmp_path}/not/there.jpg"]


@pytest.mark.parametrize(
    ("source", "shard"), [("data/a.parquet#12", "data/a.parquet"), ("train/a.jpg", None)]
)
def test_a_source_names_its_shard_or_is_a_file(source, shard):
    assert shard_of(source) == shard


def test_an_image_that_is_absent_reads_as_an_empty_file(tmp_path):
    write_shard(tmp_path / "a.parquet", [b"x", None, b"", b"y"])
    table = pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}], IMAGE)})
    pq.write_table(table, tmp_path / "b.parquet")
    sources = [*(f"a.parquet#{n}" for n in range(4)), "b.parquet#0"]
    assert [blob.read() for blob in iter_blobs(tmp_path, sources)] == [b"x", b"", b"", b"y", b""]


def test_a_stream_is_silent_behind_its_end_as_a_file_is(root):
    stream = next(iter_blobs(root, ["a.parquet#7"]))
    assert stream.seek(100) == 100
    assert stream.read(5) == b""
    assert stream.seek(2) == 2
    assert stream.read() == b"7"


@pytest.mark.parametrize(
    ("format", "left"), [("BMP", 0.5), ("TIFF", 0.5), ("PNG", 0.5), ("JPEG", 0.9), ("GIF", 0.1)]
)
def test_a_cut_off_image_reads_the_same_from_a_shard_and_from_a_file(tmp_path, encode, format, left):
    data = encode(Image.effect_noise((40, 40), 90), format)
    data = data[: int(len(data) * left)]
    (tmp_path / "a").write_bytes(data)
    write_shard(tmp_path / "s.parquet", [data])
    file, row = (look(blob, True) for blob in iter_blobs(tmp_path, ["a", "s.parquet#0"]))
    assert row == file
    assert "error" in row


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A shard of 16 MB of images in row groups of 2, 12 and 2 MB, and of as much in another column."""
    root, noise = tmp_path_factory.mktemp("large"), np.random.default_rng(0)
    write_shard(root / "a.parquet", [noise.bytes(100_000) for _ in range(160)], (0, 20, 140, 160))
    return root


class Counted(io.FileIO):
    """A file that counts the bytes that are read of it."""

    total = 0

    def read(self, size=-1):
        data = super().read(size)
        Counted.total += len(data)
        return data


@pytest.mark.parametrize(
    ("rows", "most"),
    [([0], 2.5), ([20], 4), ([20, 21, 22], 4), ([0, 20, 140], 8), ([140, 0], 5), (range(160), 17)],
)
def test_no_more_of_a_shard_is_read_than_is_asked_for(large, monkeypatch, rows, most):
    counted = SimpleNamespace(ParquetFile=lambda path, **options: pq.ParquetFile(Counted(path), **options))
    monkeypatch.setattr(blobs, "pq", counted)
    monkeypatch.setattr(Counted, "total", 0)
    found = iter_blobs(large, [f"a.parquet#{row}" for row in rows])
    assert [len(blob.read()) for blob in found] == [100_000] * len(rows)
    assert Counted.total < most * 1e6


def test_few_images_of_a_large_row_group_are_in_memory_at_a_time(large):
    before = pa.total_allocated_bytes()
    found = iter_blobs(large, [f"a.parquet#{row}" for row in range(160)])
    assert max(pa.total_allocated_bytes() - before for _ in found) < 7e6


def damage(path, how):
    data = path.read_bytes()
    group = pq.read_metadata(path).row_group(1).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    path.unlink()
    if how == "half":
        path.write_bytes(data[: len(data) // 2])
    elif how == "page":
        path.write_bytes(data[:start] + b"\xff" * 20 + data[start + 20 :])


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("gone", "No such file or directory)"),
        ("half", "Parquet magic bytes not found"),
        ("page", "Couldn't deserialize"),
    ],
)
def test_a_shard_that_cannot_be_read_is_named(root, how, why):
    damage(root / "b.parquet", how)
    with pytest.raises(StageError) as caught:
        list(iter_blobs(root, ["a.parquet#0", "b.parquet#1"]))
    assert str(caught.value).startswith(f"{root.name}/b.parquet cannot be read ({why}")
    assert str(caught.value).endswith("). Download it again.")
    assert "\n" not in str(caught.value)


def test_a_file_with_a_hash_in_its_name_is_a_file():
    """b#1.png was taken for row "1.png" of a shard b."""
    assert [shard_of(name) for name in ("train/b#1.png", "a#2", "data/t#x.parquet#3")] == [
        None, None, "data/t#x.parquet",
    ]  # fmt: skip
