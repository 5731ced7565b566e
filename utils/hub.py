"""The parquet shards of a hub data set, a few on the disk at a time.

Captions are read over the network without the images beside them; a shard whose images are wanted is
fetched whole, checked against the hub's sha256, and dropped again.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from utils.stages import StageError, require_disk, sha256_file, short

BUDGET = 2_000_000_000  # bytes of raw shards on the disk
PAUSES = (1, 4, 16)  # seconds before the hub is asked again; the library itself waits too, about 25 s
PART = ".part-"  # what the folder of a shard that is still coming begins with
ATTACH = "attach the data and give its folder as --source (SOURCE)"
T = TypeVar("T")


class HubError(StageError):
    """The hub does not give a data set or a shard of it; says what to do about it."""


class HubShards:
    """The parquet shards of one commit of a hub data set.

    A shard gets its name below ``folder`` only when it is whole: what lies there is either right or was
    put there by somebody else, so what an earlier process left is hashed before it is trusted.

    Attributes:
        dataset_id: name on the hub.
        folder: a shard that was fetched lies at ``folder/name``.
        revision: commit hash; all shards are of this commit, whatever is pushed later.
        budget: bytes of shards that may lie in ``folder``.
        pauses: seconds to wait before each new attempt after a network error.
        sizes: name -> bytes of each parquet file, sorted by name.
    """

    def __init__(
        self,
        dataset_id: str,
        folder: Path,
        revision: str | None = None,
        budget: int = BUDGET,
        pauses: tuple[float, ...] = PAUSES,
    ):
        """Ask the hub which shards there are; downloads nothing.

        Raises:
            HubError: no such data set, no parquet file in it, or the hub cannot be reached.
        """
        info = ask(dataset_id, revision)
        shards = {s.rfilename: s for s in info.siblings or () if s.rfilename.endswith(".parquet")}
        if not shards:
            raise HubError(f"The hub data set {dataset_id} holds no parquet shards. Give another.")
        if any(shard.lfs is None for shard in shards.values()):
            raise HubError(f"The hub gives no sha256 for the shards of {dataset_id}. Give another data set.")
        self.dataset_id, self.folder, self.revision = dataset_id, Path(folder), info.sha
        self.budget, self.pauses = budget, pauses
        self.sizes = {name: shards[name].size for name in sorted(shards)}
        self._hashes = {name: shard.lfs.sha256 for name, shard in shards.items()}
        self._checked: set[str] = set()  # on the disk, and found to be what the hub has
        self._footers: dict[str, pq.FileMetaData] = {}
        self._files = None
        for leftover in self.folder.glob(f"{PART}*"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)

    def schema(self, name: str) -> pa.Schema:
        """Return the columns of a shard and their types; reads its last bytes over the network.

        Raises:
            HubError: the hub cannot be reached.
            pa.ArrowException: it is no parquet file.
        """
        if name not in self._footers:
            self._footers[name] = self._read(name, pq.read_metadata)
        return self._footers[name].schema.to_arrow_schema()

    def read_columns(self, name: str, columns: list[str]) -> pa.Table:
        """Read some columns of a shard over the network and no byte of the others.

        Raises:
            HubError: the hub cannot be reached.
            pa.ArrowException: it is no parquet file.
        """
        self.schema(name)
        footer = self._footers[name]
        # Buffered before, or every column of every row group is a request of its own.
        return self._read(
            name, lambda file: pq.ParquetFile(file, metadata=footer, pre_buffer=True).read(columns)
        )

    def fetch(self, name: str) -> Path:
        """Return the file of a shard, once it is on the disk with the bytes that the hub has.

        Shards that an earlier process left make room for it, those fetched by this object do not: ask
        :meth:`fits` and :meth:`drop` what is done with.

        Raises:
            HubError: the hub cannot be reached, the shard came damaged twice, or is over the budget.
            StageError: the disk is too small.
        """
        path, size = self.folder / name, self.sizes[name]
        if name in self._checked and path.is_file():
            return path
        if size > self.budget:
            raise HubError(
                f"{name} of {self.dataset_id} has {size / 1e6:,.0f} MB, and at most "
                f"{self.budget / 1e6:,.0f} MB of shards may be on the disk. Give another, or {ATTACH}."
            )
        if not self._whole(name, path):
            self.drop(name)
            self._make_room(size)
            self._download(name)
        self._checked.add(name)
        return path

    def drop(self, name: str) -> None:
        """Delete a shard from the disk, if it is there."""
        self._checked.discard(name)
        (self.folder / name).unlink(missing_ok=True)

    def on_disk(self) -> int:
        """Return the bytes of shards in the folder, whoever fetched them."""
        paths = [self.folder / name for name in self.sizes]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def fits(self, name: str) -> bool:
        """Tell whether the shard is there, or can be fetched beside those that this object fetched."""
        return sum(self.sizes[other] for other in self._checked | {name}) <= self.budget

    def _make_room(self, size: int) -> None:
        """Delete what an earlier process left, where ``size`` bytes more would exceed the budget."""
        if self.on_disk() + size > self.budget:
            for name in set(self.sizes) - self._checked:
                self.drop(name)

    def _whole(self, name: str, path: Path) -> bool:
        """Tell whether a file is there and holds the bytes that the hub has under ``name``."""
        return path.is_file() and sha256_file(path) == self._hashes[name]

    def _download(self, name: str) -> None:
        """Bring a shard onto the disk; only a whole one gets its name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        require_disk(self.folder, self.sizes[name], f"{name} of {self.dataset_id}")
        for use_cache in (True, False):  # the hub library's cache may be what is damaged
            with tempfile.TemporaryDirectory(prefix=PART, dir=self.folder) as part:
                got = self._patiently(name, lambda: self._get(name, Path(part), use_cache))  # noqa: B023
                if self._whole(name, got):
                    os.replace(got, path)
                    return
        raise HubError(
            f"{name} of {self.dataset_id} came damaged twice: its bytes do not have the sha256 that the "
            f"hub gives for it. What is finished is kept: run this again later, or {ATTACH}."
        )

    def _get(self, name: str, part: Path, use_cache: bool) -> Path:
        """Download a shard below ``part``; the library resumes a transfer that was cut."""
        from huggingface_hub import hf_hub_download

        with plain_http():
            got = hf_hub_download(
                self.dataset_id, name, repo_type="dataset", revision=self.revision, local_dir=part,
                cache_dir=None if use_cache else part, tqdm_class=Silent,
            )  # fmt: skip
        return Path(got)

    def _read(self, name: str, work: Callable[..., T]) -> T:
        """Return what ``work`` makes of a shard that is opened over the network."""
        from huggingface_hub import HfFileSystem

        if self._files is None:
            # Not the instance that others share: it would remember for ever what it once did not find.
            self._files = HfFileSystem(skip_instance_cache=True)

        def attempt() -> T:
            path = f"datasets/{self.dataset_id}/{name}"
            # No cache: reading ahead would fetch 5 MB of images with every few kB of captions.
            with self._files.open(path, revision=self.revision, cache_type="none") as file:
                return work(file)

        return self._patiently(name, attempt)

    def _patiently(self, name: str, work: Callable[[], T]) -> T:
        """Return what ``work`` returns, trying again after each of the pauses where that may help.

        Raises:
            HubError: it failed for good.
        """
        import httpx

        pauses = iter(self.pauses)
        while True:
            try:
                return work()
            except (httpx.HTTPError, OSError) as error:
                pause = next(pauses, None)
                if pause is None or not passing(error):
                    raise self._told(name, error) from error
                time.sleep(pause)

    def _told(self, name: str, error: Exception) -> HubError:
        """Return the error as a sentence."""
        if getattr(error, "errno", None):
            return HubError(
                f"{name} of {self.dataset_id} cannot be kept in {short(self.folder)} ({error.strerror}). "
                f"Free some space, or choose another disk with --work DIR (WORK)."
            )
        return HubError(
            f"The hub broke off at {name} of {self.dataset_id} ({type(error).__name__}). What is finished "
            f"is kept: turn the internet on and run this again, or {ATTACH}."
        )


def ask(dataset_id: str, revision: str | None):
    """Return what the hub says about a data set and its files: a ``huggingface_hub.DatasetInfo``.

    Raises:
        HubError: no such data set, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(dataset_id, revision=revision, files_metadata=True, timeout=30)
    # ValueError: a name that the library refuses, or a page of words where the hub gives JSON.
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise HubError(
            f"{dataset_id} is no folder here, and the hub gave no such data set "
            f"({type(error).__name__}). Check the name, turn the internet on, or {ATTACH}."
        ) from error


def passing(error: Exception) -> bool:
    """Tell whether an error may be gone at the next attempt: not a full disk, nor a refusal of the hub."""
    # Where a file is not found the library keeps the hub's answer in the error behind the error.
    answers = [getattr(e, "response", None) for e in (error, error.__cause__)]
    status = next((answer.status_code for answer in answers if answer is not None), 503)
    return not getattr(error, "errno", None) and (status in (408, 429) or status >= 500)


@contextmanager
def plain_http() -> Iterator[None]:
    """Keep the hub library from its other way of downloading, xet.

    Xet may keep a second copy of the bytes in a cache of its own, where no budget counts them.
    """
    from huggingface_hub import constants

    before, constants.HF_HUB_DISABLE_XET = constants.HF_HUB_DISABLE_XET, True
    try:
        yield
    finally:
        constants.HF_HUB_DISABLE_XET = before


class Silent(tqdm):
    """A bar that shows nothing: who fetches shards has one."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "disable": True})
