"""ROCOv2 from any of its sources as one table of image-caption pairs; image bytes on demand.

Sources: ``sample`` (drawn on the spot), a folder in the release's layout
(``{split}/<ID>.jpg``, or Kaggle's ``{split}_images/{split}/<ID>.jpg``), and parquet shards in the
layout of the hub's copy, from a local folder or from the hub itself.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pandas as pd

from utils.blobs import iter_blobs, shard_of
from utils.folders import captions_csv, pairs_from_folder, read_csv, read_cui_names
from utils.pairs import SPLITS, SourceError
from utils.runtime import scratch
from utils.shards import LocalShards, by_split, find_shards, pairs_from_shards

if TYPE_CHECKING:
    from utils.hub import HubShards

HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
# Pairs of the release, and of those the images of mode RGB. Rückert et al., "ROCOv2: Radiology Objects in
# COntext version 2", Scientific Data 11, 688 (2024); Zenodo 10821435.
PUBLISHED = {"pairs": {"train": 59_958, "valid": 9_904, "test": 9_927},
             "mode RGB": {"train": 37_330, "valid": 6_672, "test": 6_780}}  # fmt: skip
PUBLISHED_IDS = "ROCOv2_2023_"


@dataclass(frozen=True)
class Store:
    """Where the images of a release are.

    Attributes:
        root: the folder that a source (file, or shard#row) is relative to.
        hub: where the shards come from that are not below ``root``; None where all are.
    """

    root: Path
    hub: "HubShards | None" = None

    def blobs(self, sources: Iterable[str]) -> Iterator[str | BinaryIO]:
        """Yield a few images as files or streams, fetching the shards that hold them one at a time."""
        for source in sources:
            shard = shard_of(source)
            if self.hub is not None and not self.hub.fits(shard):
                self.clear()
            if self.hub is not None:
                self.hub.fetch(shard)
            yield from iter_blobs(self.root, [source])

    def clear(self) -> None:
        """Delete the raw shards that were fetched; files of one's own are never touched."""
        for name in self.hub.sizes if self.hub is not None else ():
            self.hub.drop(name)


@dataclass(frozen=True)
class Release:
    """A release of image-caption pairs.

    Attributes:
        store: where the images are.
        pairs: one row a pair, split after split: image_id, split, source (file, or shard#row; None
            without an image), caption (None without one), cuis (list of str).
        cui_names: CUI -> canonical name, empty where the release has no ``cui_mapping.csv``.
    """

    store: Store
    pairs: pd.DataFrame
    cui_names: dict[str, str]

    def concept_table(self) -> pd.DataFrame:
        """Return the concepts' names as a release's ``cui_mapping.csv`` has them."""
        return pd.DataFrame(list(self.cui_names.items()), columns=["CUI", "Canonical name"])


def open_release(source: str, work: Path, procs: int = 2) -> Release:
    """Read the table of pairs of any source; draws the sample when needed, downloads no image.

    Raises:
        SourceError: the source does not exist or is not laid out as ROCOv2.
        HubError: the hub has no such data set, or cannot be reached.
    """
    store = open_store(source, work, procs)
    if store.hub is not None:
        return Release(store, pairs_from_shards(store.hub, by_split(store.hub.sizes)), {})
    shards = find_shards(store.root)
    pairs = pairs_from_shards(LocalShards(store.root), shards) if shards else pairs_from_folder(store.root)
    return Release(store, pairs, read_cui_names(store.root))


def open_store(source: str, work: Path, procs: int, revision: str | None = None) -> Store:
    """Find where the images of ``source`` are, without reading which pairs there are.

    Args:
        source: "sample", a folder, or the name of a hub data set.
        work: the work folder.
        procs: worker processes that draw the sample.
        revision: of the hub data set, as an earlier stage used it; None takes the newest.
    """
    check_source(source)
    if source == "sample":
        from utils.sample.release import write_sample  # drawn only where it is asked for

        return Store(write_sample(work / "sample", procs=procs))
    if Path(source).is_dir():
        return Store(Path(source))
    from utils.hub import HubShards  # the hub's library takes a second to import

    hub = HubShards(source, scratch(work), revision)
    return Store(hub.folder, hub)


def check_source(source: str) -> None:
    """Check what can be checked without reading or downloading: cheap, before any work begins.

    Raises:
        SourceError: neither the sample, nor a folder with a release, nor the name of a hub data set.
    """
    if Path(source).is_dir():
        for split in () if find_shards(Path(source)) else SPLITS:
            read_csv(captions_csv(Path(source), split), ("ID", "Caption"))
    elif source != "sample" and not re.fullmatch(HUB_NAME, source):
        raise SourceError(
            f"There is no folder {source}. Give --source (SOURCE) a folder in ROCOv2's layout, a "
            f"hub data set such as eltorio/ROCOv2-radiology, or sample."
        )
