"""ROCOv2 from any of its sources as one table of image-caption pairs; image bytes on demand.

Sources: ``sample`` (drawn on the spot), a folder in the release's layout
(``{split}/<ID>.jpg``, or Kaggle's ``{split}_images/{split}/<ID>.jpg``), and parquet shards in the
layout of the hub's copy, from a local folder or from the hub itself.
"""

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from utils.stages import StageError, require_disk

SPLITS = ("train", "valid", "test")
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"}
HUB_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
HUB_BYTES = 19_000_000_000  # the hub's copy of ROCOv2, PNG


class SourceError(StageError):
    """A source is missing or is not laid out as ROCOv2; says what to do about it."""


@dataclass(frozen=True)
class Release:
    """A release of image-caption pairs.

    Attributes:
        root: the folder that ``pairs.source`` is relative to.
        pairs: one row a pair: image_id, split, source (file, or shard#row; None without an image),
            caption (None without one), cuis (list of str).
        cui_names: CUI -> canonical name, empty where the release has no ``cui_mapping.csv``.
    """

    root: Path
    pairs: pd.DataFrame
    cui_names: dict[str, str]


def open_release(source: str, work: Path, procs: int = 2) -> Release:
    """Read the table of pairs of any source. Draws the sample, or downloads shards, when needed.

    Raises:
        SourceError: the source does not exist or is not laid out as ROCOv2.
    """
    root = locate(source, work, procs)
    shards = find_shards(root)
    pairs = pairs_from_shards(root, shards) if shards else pairs_from_folder(root)
    return Release(root, pairs, read_cui_names(root))


def locate(source: str, work: Path, procs: int) -> Path:
    """Return the local folder that holds ``source``."""
    check_source(source)
    if source == "sample":
        from utils.sample.release import write_sample  # drawn only where it is asked for

        return write_sample(work / "sample", procs=procs)
    if Path(source).is_dir():
        return Path(source)
    return download_shards(source, work)


def check_source(source: str) -> None:
    """Check what can be checked without reading or downloading: cheap, before any work begins.

    Raises:
        SourceError: neither the sample, nor a folder with a release, nor the name of a hub data set.
    """
    if Path(source).is_dir():
        if not find_shards(Path(source)):
            for split in SPLITS:
                read_csv(captions_csv(Path(source), split), ("ID", "Caption"))
    elif source != "sample" and not re.fullmatch(HUB_NAME, source):
        raise SourceError(
            f"There is no folder {source}. Give --source (SOURCE) a folder in ROCOv2's layout, a "
            f"hub data set such as eltorio/ROCOv2-radiology, or sample."
        )


def download_shards(dataset_id: str, work: Path) -> Path:
    """Download the parquet shards of a hub data set into the hub's cache and return their folder.

    Raises:
        SourceError: no such data set, or the hub cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        files = HfApi().list_repo_files(dataset_id, repo_type="dataset")
        if not any(name.endswith(".parquet") for name in files):
            raise SourceError(f"The hub data set {dataset_id} holds no parquet shards. Give another.")
        require_disk(work, HUB_BYTES, f"The download of {dataset_id}")
        return Path(snapshot_download(dataset_id, repo_type="dataset", allow_patterns="*.parquet"))
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx.HTTPError, OSError) as error:
        raise SourceError(
            f"{dataset_id} is no folder here, and the hub gave no such data set "
            f"({type(error).__name__}). Check the name, turn the internet on, or attach the data "
            f"and give its folder as --source (SOURCE)."
        ) from error


def find_shards(root: Path) -> dict[str, list[Path]]:
    """Return the parquet shards of each split below ``root``; empty for a folder of images."""
    found = {s: sorted(root.rglob(f"{name}-*.parquet")) for s, name in HUB_SPLITS.items()}
    if not any(found.values()):
        return {}
    for split, shards in found.items():
        if not shards:
            raise SourceError(
                f"{root} holds parquet shards but none named {HUB_SPLITS[split]}-*.parquet. "
                f"Add the shards of the {split} split."
            )
    return found


def pairs_from_shards(root: Path, shards: dict[str, list[Path]]) -> pd.DataFrame:
    """Read ids, captions and CUIs from shards in the hub's schema, leaving the image bytes on disk."""
    tables = []
    for split, paths in shards.items():
        for path in paths:
            columns = pq.read_schema(path).names
            if not {"image", "image_id", "caption"} <= set(columns):
                raise SourceError(
                    f"{path.name} has the columns {columns}; it needs image, image_id and caption."
                )
            wanted = [c for c in ("image_id", "caption", "cui") if c in columns]
            table = pq.read_table(path, columns=wanted).to_pandas()
            table["split"] = split
            name = path.relative_to(root).as_posix()
            table["source"] = [f"{name}#{row}" for row in range(len(table))]
            tables.append(table)
    pairs = pd.concat(tables, ignore_index=True)
    cuis = pairs["cui"] if "cui" in pairs else pd.Series([None] * len(pairs))
    pairs["cuis"] = [split_cuis(value) for value in cuis]
    pairs["caption"] = [None if missing(c) else c for c in pairs["caption"]]
    return pairs[["image_id", "split", "source", "caption", "cuis"]]


def missing(value) -> bool:
    """Tell whether a cell holds nothing; the hub's copy writes a missing value as the text 'nan'."""
    return value is None or value != value or str(value).strip() in ("", "nan")


def split_cuis(value) -> list[str]:
    """Return the CUIs of a cell: "C1;C2", the hub's list, or nothing."""
    if isinstance(value, str):
        return [] if missing(value) else re.findall(r"C\d{7}", value)
    return [] if value is None or value is pd.NA or isinstance(value, float) else list(value)


def read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV of the release as text, whatever its line ends, quoting or byte-order mark.

    Raises:
        SourceError: not readable as a UTF-8 CSV, or a column is missing.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = [(number, row) for number, row in enumerate(csv.reader(file, strict=True), 1) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a UTF-8 CSV: {error}") from error
    if not rows:
        raise SourceError(f"{path} cannot be read as a UTF-8 CSV: it is empty.")
    names = rows[0][1]
    for number, row in rows[1:]:
        if len(row) != len(names):
            raise SourceError(
                f"{path}, row {number}, has {len(row)} fields where the first line names {len(names)} "
                f"({row[0]}). Put captions that hold a comma in quotes."
            )
    table = pd.DataFrame([row for _, row in rows[1:]], columns=names, dtype=str)
    absent = [c for c in columns if c not in table.columns]
    if absent:
        raise SourceError(
            f"{path} has no column {' and no column '.join(absent)} (it has: "
            f"{', '.join(table.columns)}). The first line of the file must name {','.join(columns)}."
        )
    return table


def find_csv(root: Path, name: str) -> Path | None:
    """Return the CSV ``name`` at the top of the release or in one of its folders."""
    return next((p for p in (root / name, *sorted(root.glob(f"*/{name}"))) if p.is_file()), None)


def captions_csv(root: Path, split: str) -> Path:
    """Return the captions file of a split.

    Raises:
        SourceError: the release has none.
    """
    path = find_csv(root, f"{split}_captions.csv")
    if path is None:
        raise SourceError(
            f"{root} has no {split}_captions.csv. Give --source (SOURCE) the folder of the release "
            f"that holds {{train,valid,test}}_captions.csv and the images."
        )
    return path


def find_images(root: Path, split: str) -> dict[str, Path]:
    """Return image id -> file of one split, in Zenodo's or Kaggle's layout, whatever the extension."""
    for folder in (root / split, root / f"{split}_images" / split, root / f"{split}_images"):
        files = [p for p in sorted(folder.glob("*")) if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()]
        if files:
            return {p.stem: p for p in files}
    raise SourceError(
        f"{root} has no images of the {split} split: expected {split}/<ID>.jpg or "
        f"{split}_images/{split}/<ID>.jpg."
    )


def pairs_from_folder(root: Path) -> pd.DataFrame:
    """Read the pairs of a folder; images without a caption and captions without an image stay in."""
    return pd.concat([folder_split(root, split) for split in SPLITS], ignore_index=True)


def folder_split(root: Path, split: str) -> pd.DataFrame:
    """Read the pairs of one split of a folder."""
    path = captions_csv(root, split)
    table = read_csv(path, ("ID", "Caption"))
    twice = table["ID"][table["ID"].duplicated()]
    if len(twice):
        raise SourceError(f"{path} lists {twice.iloc[0]} twice. Each ID may stand there once.")
    captions = dict(zip(table["ID"], table["Caption"], strict=True))
    images, concepts = find_images(root, split), read_concepts(root, split)
    ids = [*captions, *sorted(set(images) - set(captions))]
    return pd.DataFrame({
        "image_id": ids,
        "split": split,
        "source": [images[i].relative_to(root).as_posix() if i in images else None for i in ids],
        "caption": [None if missing(captions.get(i)) else captions[i] for i in ids],
        "cuis": [concepts.get(i, []) for i in ids],
    })  # fmt: skip


def read_concepts(root: Path, split: str) -> dict[str, list[str]]:
    """Return image id -> manual concepts (all concepts where there is no manual file)."""
    names = (f"{split}_concepts_manual.csv", f"{split}_concepts.csv")
    path = next((p for name in names if (p := find_csv(root, name))), None)
    if path is None:
        return {}
    table = read_csv(path, ("ID", "CUIs"))
    return {i: split_cuis(cuis) for i, cuis in zip(table["ID"], table["CUIs"], strict=True)}


def read_cui_names(root: Path) -> dict[str, str]:
    """Return CUI -> canonical name from ``cui_mapping.csv``, empty where there is none."""
    path = find_csv(root, "cui_mapping.csv")
    if path is None:
        return {}
    table = read_csv(path, ("CUI", "Canonical name"))
    return dict(zip(table["CUI"], table["Canonical name"], strict=True))


def iter_bytes(root: Path, sources: list[str]) -> Iterator[bytes]:
    """Yield the bytes of each image file, in the order given; each run of a shard is read once."""
    for name, run in groupby(sources, key=lambda source: source.partition("#")[0]):
        rows = [source.partition("#")[2] for source in run]
        if rows == [""] * len(rows):
            for _ in rows:
                yield (root / name).read_bytes()
        else:
            yield from shard_bytes(root / name, [int(row) for row in rows])


def shard_bytes(path: Path, rows: list[int]) -> Iterator[bytes]:
    """Yield the image bytes of ascending ``rows`` of one shard, a batch of rows in memory at a time."""
    wanted, position = iter(rows), 0
    row = next(wanted, None)
    for batch in pq.ParquetFile(path).iter_batches(batch_size=64, columns=["image"]):
        while row is not None and row < position + batch.num_rows:
            cell = batch.column("image")[row - position].as_py()
            yield (cell or {}).get("bytes") or b""  # an absent image reads as an empty file
            row = next(wanted, None)
        position += batch.num_rows
        if row is None:
            return
