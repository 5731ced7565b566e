"""Long work over many images, cut into parts: several processes, one bar, and nothing done twice.

Every part becomes one parquet file, which gets its name only when it is whole and on the disk. A run
that was killed, at any moment, goes on with the parts that are not there. Worker processes import this
file: it stays light.
"""

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.blobs import shard_of
from utils.stages import StageError, short

if TYPE_CHECKING:
    import pandas as pd

    from utils.hub import HubShards

ROWS = 500  # images of a part: a minute's work is never lost
KEY = b"radiglow.part"
QUEUE = 2  # parts a process that are handed out at a time


@dataclass(frozen=True)
class Part:
    """A run of images that becomes one file: which images, from where, into which file.

    ``hashes``: of their pixels as an earlier stage saw them; none where no stage has looked.
    """

    path: Path
    split: str
    image_ids: tuple[str, ...]
    root: Path
    sources: tuple[str, ...]
    hashes: tuple[str | None, ...] = ()

    @property
    def key(self) -> bytes:
        """What the file must carry to be this part: a hash of its split and ids."""
        return hashlib.sha256(json.dumps([self.split, *self.image_ids]).encode()).hexdigest().encode()

    @property
    def shards(self) -> set[str]:
        """The names of the parquet shards that hold its images, none for files."""
        return {name for source in self.sources if (name := shard_of(source))}


def parts_of(records: "pd.DataFrame", root: Path, folder: Path, stem: str, times: int = 1) -> list[Part]:
    """Cut the records of every split, in their order, into parts of ``times`` x ``ROWS`` images.

    Args:
        records: columns image_id, split, source, and sha256 where a stage has looked at the pixels.
        root: what ``source`` is relative to.
        folder: where the files of the parts go, ``{stem}-{split}-{number}.parquet``.
        stem: what their names begin with.
        times: more than 1 for work so quick that the writing of a part would be felt.
    """
    parts, size = [], times * ROWS
    for split, rows in records.groupby("split", sort=False):
        for number, start in enumerate(range(0, len(rows), size)):
            some = rows.iloc[start : start + size]
            path = folder / f"{stem}-{split}-{number:05d}.parquet"
            hashes = tuple(h if isinstance(h, str) else None for h in some.get("sha256", ()))
            parts.append(Part(path, split, tuple(some["image_id"]), root, tuple(some["source"]), hashes))
    return parts


def save(part: Part, table: pa.Table, **options) -> None:
    """Write the file of a part: whole and on the disk before it gets its name.

    Args:
        part: what the table was made of.
        table: its metadata is kept, and the part's key is added.
        options: of pyarrow's ``write_table``.
    """
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), KEY: part.key})
    # A process id in the name: a process of a killed run may still be at the same part.
    temporary = part.path.with_name(f".{part.path.name}.{os.getpid()}.tmp")
    try:
        pq.write_table(table, temporary, **options)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, part.path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def finished(part: Part) -> bool:
    """Tell whether the file of a part is there, whole and about the same images."""
    try:
        metadata = pq.read_schema(part.path).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return metadata.get(KEY) == part.key


def write_parts(
    parts: list[Part], write: Callable[[Part], None], procs: int, title: str, hub: "HubShards | None" = None
) -> None:
    """Write the parts that are not finished, on ``procs`` processes.

    Args:
        parts: all parts of the work; finished ones are counted in the bar and left alone.
        write: a function that can be pickled and calls :func:`save` for its part.
        procs: worker processes.
        title: of the bar.
        hub: where the shards of the parts come from when they are not on the disk; they are fetched in
            order, and dropped when no part needs them any more.

    Raises:
        StageError: the disk is full or a worker was killed; finished parts are kept.
    """
    for folder in {part.path.parent for part in parts}:
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
    todo = [part for part in parts if not finished(part)]
    if hub is not None:  # shards may lie there from a run that was killed
        drop_all_but({name for part in todo for name in part.shards}, hub)
    total, left = (sum(len(part.image_ids) for part in some) for some in (parts, todo))
    with tqdm(total=total, initial=total - left, desc=title, unit="image", file=sys.stdout) as bar:
        if todo:
            try:
                Run(write, bar, hub, todo).on(procs)
            except Exception as error:
                told = explained(error, parts)
                if told is None:
                    raise  # as it is: it carries the worker's own traceback
                raise told from error


class Run:
    """The parts of one run: those at work, and the shards that are still needed."""

    def __init__(self, write: Callable, bar: tqdm, hub: "HubShards | None", todo: list[Part]):
        self.write, self.bar, self.hub, self.todo = write, bar, hub, todo
        self.needed = Counter(name for part in todo for name in part.shards)
        self.running: dict[Future, Part] = {}

    def on(self, procs: int) -> None:
        """Work through the parts on ``procs`` processes."""
        # Spawned, not forked: a notebook's kernel has threads that do not survive a fork.
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(procs, context, initializer=live_with, initargs=(os.getpid(),))
        try:
            for part in self.todo:
                while len(self.running) >= QUEUE * procs:
                    self.collect()
                self.fetch(part)
                with without_interrupts():
                    self.running[pool.submit(self.write, part)] = part
            while self.running:
                self.collect()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # parts at work are finished and kept

    def fetch(self, part: Part) -> None:
        """Bring the shards of a part onto the disk, once there is room for them."""
        if self.hub is None:
            return
        for name in sorted(part.shards):
            while self.running and not self.hub.fits(name):
                self.collect()
            if not self.hub.fits(name):  # what was fetched for a look at some pictures is in the way
                drop_all_but(part.shards, self.hub)
            self.bar.set_postfix_str(f"fetching {name}")
            self.hub.fetch(name)
            self.bar.set_postfix_str("")

    def collect(self) -> None:
        """Wait for a part and let go of the shards that nobody needs any more."""
        done, _ = wait(self.running, return_when=FIRST_COMPLETED)
        for future in done:
            part = self.running.pop(future)
            future.result()
            self.bar.update(len(part.image_ids))
            self.needed.subtract(part.shards)
            for name in part.shards:
                if self.hub is not None and self.needed[name] == 0:
                    self.hub.drop(name)


def drop_all_but(names: set[str], hub: "HubShards") -> None:
    """Delete the raw shards on the disk that are not among ``names``."""
    for name in hub.sizes:
        if name not in names:
            hub.drop(name)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back while a worker may be started: it cannot ignore it before it has begun.

    Processes inherit what is held back.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def live_with(parent: int) -> None:
    """Set up a worker: it leaves Ctrl-C to its parent, and ends when its parent is gone.

    A kernel that is killed takes nothing with it: its workers would wait for ever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(70)

    threading.Thread(target=watch, daemon=True).start()


def explained(error: Exception, parts: list[Part]) -> StageError | None:
    """Return the error as a sentence where it is the machine's and not the image's, else None."""
    # Parts that were at work beside the one that failed have been finished meanwhile.
    done = sum(len(part.image_ids) for part in parts if finished(part))
    total, folder = sum(len(part.image_ids) for part in parts), parts[0].path.parent
    kept = f"{done:,} of {total:,} images are done and kept: run this again to go on."
    if isinstance(error, BrokenProcessPool):
        return StageError(
            f"A worker process was killed, most often because memory ran out. {kept} Close other "
            f"programs first."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StageError(f"The disk of {short(folder)} is full. Free some space. {kept}")
    return None
