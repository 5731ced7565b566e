"""The images of a release as files or streams, one at a time: nothing is decoded here.

A source is a file's path below the root, or ``shard.parquet#row``. Worker processes import this
file: it stays light.
"""

import os
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from io import BytesIO
from itertools import accumulate, groupby
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from utils.stages import StageError, short

BATCH = 1  # rows of a shard in memory at a time; more is slower: memory is taken anew for every batch
SHARD_ROW = re.compile(r"(.*\.parquet)#(\d+)")  # a file of an image may hold a # in its name
BUFFER = 1 << 20  # bytes; without it a whole column chunk, hundreds of MB, is read at once


def shard_of(source: str) -> str | None:
    """Return the name of the shard that holds ``source``; None for a file of its own."""
    found = SHARD_ROW.fullmatch(source)
    return found[1] if found else None


def iter_blobs(root: Path, sources: Iterable[str]) -> Iterator[str | BinaryIO]:
    """Yield each image as the path of its file or, out of a shard, as a stream, in the order given.

    Each run of ascending rows of a shard is read once. A stream lives until the next is asked for.
    """
    for shard, run in groupby(sources, key=shard_of):
        if shard is None:
            yield from (f"{root}/{name}" for name in run)
        else:
            rows = [int(source.rpartition("#")[2]) for source in run]
            yield from shard_streams(root / shard, rows)


def shard_streams(path: Path, rows: list[int]) -> Iterator[BinaryIO]:
    """Yield the images of ``rows`` of one shard; an absent image reads as an empty file.

    Raises:
        StageError: the shard is gone or damaged.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            ends = group_ends(file)
            for ascending in ascending_runs(rows):
                yield from run_streams(file, ends, ascending)
    except (pa.ArrowException, OSError) as error:
        raise StageError(f"{short(path)} cannot be read ({trouble(error)}). Download it again.") from error


def trouble(error: Exception) -> str:
    """Say in a line what is wrong with a shard: pyarrow's own words may hold the machine's folders."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else str(error).strip().partition("\n")[0]


def group_ends(file: pq.ParquetFile) -> list[int]:
    """Return the row behind the last of each row group."""
    return list(accumulate(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)))


def ascending_runs(rows: list[int]) -> Iterator[list[int]]:
    """Cut ``rows`` into runs in which every row is behind the one before."""
    run: list[int] = []
    for row in rows:
        if run and row <= run[-1]:
            yield run
            run = []
        run.append(row)
    if run:
        yield run


def run_streams(file: pq.ParquetFile, ends: list[int], rows: list[int]) -> Iterator[BinaryIO]:
    """Yield the images of ascending ``rows``, reading no row group that holds none of them."""
    for group, some in groupby(rows, key=lambda row: bisect_right(ends, row)):
        position, wanted = ends[group - 1] if group else 0, list(some)
        batches = file.iter_batches(BATCH, row_groups=[group], columns=["image"], use_threads=False)
        for batch in batches:
            cells = batch.column("image").field("bytes")
            while wanted and wanted[0] < position + batch.num_rows:
                cell = cells[wanted.pop(0) - position]
                # Not pyarrow's own stream: it raises behind its end, where a file is silent.
                yield BytesIO(cell.as_py() or b"")
            position += batch.num_rows
            if not wanted:
                break
