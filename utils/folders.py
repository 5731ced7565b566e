"""Pairs from a folder in the layout of ROCOv2's release: CSV files beside folders of images."""

import csv
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from utils.pairs import CUI_MAPPING, SPLITS, SourceError, missing, split_cuis, texts

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"}
LONGEST_CELL = 2**31 - 1  # characters; csv's own limit is 131,072


def read_csv(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV of the release as text, whatever its line ends, quoting or byte-order mark.

    Raises:
        SourceError: not readable as a UTF-8 CSV, or a column is missing.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file, long_cells():
            rows = [(number, row) for number, row in enumerate(csv.reader(file, strict=True), 1) if row]
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path} cannot be read as a UTF-8 CSV: {error}") from error
    if not rows:
        raise SourceError(f"{path} cannot be read as a UTF-8 CSV: it is empty.")
    names = rows[0][1]
    if len(set(names)) < len(names):
        raise SourceError(f"The first line of {path} names a column twice: {', '.join(names)}.")
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


@contextmanager
def long_cells() -> Iterator[None]:
    """Let csv read cells of any length: one that is never closed is told as such, not by its length."""
    before = csv.field_size_limit(LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def find_csv(root: Path, name: str) -> Path | None:
    """Return the CSV ``name`` at the top of the release or beside Kaggle's image folders."""
    places = (root / name, *(root / f"{split}_images" / name for split in SPLITS))
    return next((path for path in places if path.is_file()), None)


def captions_csv(root: Path, split: str) -> Path:
    """Return the captions file of a split.

    Raises:
        SourceError: the release has none; names the folder below that may have been meant.
    """
    path = find_csv(root, f"{split}_captions.csv")
    if path is None:
        inner = next((p.parent for p in sorted(root.glob(f"*/{split}_captions.csv"))), None)
        raise SourceError(
            f"{root} has no {split}_captions.csv. Give --source (SOURCE) the folder of the release "
            f"that holds {{train,valid,test}}_captions.csv and the images"
            + (f": {inner}, for example." if inner else ".")
        )
    return path


def find_images(root: Path, split: str) -> dict[str, str]:
    """Return image id -> path below ``root`` of one split, whatever the extension.

    Only names are read, in Zenodo's or Kaggle's layout: what is behind a name is told when it is opened.

    Raises:
        SourceError: there are none, or two of one id.
    """
    for folder in (root / split, root / f"{split}_images" / split, root / f"{split}_images"):
        names = image_names(folder)
        if names:
            place = folder.relative_to(root).as_posix()
            found = {os.path.splitext(name)[0]: f"{place}/{name}" for name in names}
            if len(found) < len(names):
                raise SourceError(f"{folder} holds two images of one ID: {two_of_one(names)}. Remove one.")
            return found
    raise SourceError(
        f"{root} has no images of the {split} split: expected {split}/<ID>.jpg or "
        f"{split}_images/{split}/<ID>.jpg."
    )


def image_names(folder: Path) -> list[str]:
    """List the names in a folder that have an image's extension; hidden files are no images."""
    if not folder.is_dir():
        return []
    names = sorted(os.listdir(folder))
    for name in names:
        if not name.isprintable() and "\udc80" <= max(name) <= "\udcff":
            raise SourceError(f"{folder} holds a file whose name is no UTF-8: {name!a}. Rename it.")
    return [n for n in names if os.path.splitext(n)[1].lower() in IMAGE_SUFFIXES and not n.startswith(".")]


def two_of_one(names: list[str]) -> str:
    """Name the first two files, of sorted names, that differ in their extension alone."""
    stems = Counter(os.path.splitext(name)[0] for name in names)
    return " and ".join([name for name in names if stems[os.path.splitext(name)[0]] > 1][:2])


def pairs_from_folder(root: Path) -> pd.DataFrame:
    """Read the pairs of a folder; images without a caption and captions without an image stay in."""
    return pd.concat([folder_split(root, split) for split in SPLITS], ignore_index=True)


def folder_split(root: Path, split: str) -> pd.DataFrame:
    """Read the pairs of one split of a folder; an ID that stands twice gives two rows."""
    path = captions_csv(root, split)
    table = read_csv(path, ("ID", "Caption"))
    images, concepts = find_images(root, split), read_concepts(root, split)
    uncaptioned = sorted(set(images) - set(table["ID"]))
    if len(table) and len(uncaptioned) == len(images):
        raise SourceError(
            f"No ID of {path} is the name of an image: the first ID is {table['ID'].iloc[0]}, the first "
            f"image {next(iter(images.values()))}. Give the file IDs without folder and extension."
        )
    ids = [*table["ID"], *uncaptioned]
    captions = [*table["Caption"], *[None] * len(uncaptioned)]
    return pd.DataFrame({
        "image_id": ids,
        "split": split,
        "source": texts(images.get(i) for i in ids),
        "caption": texts(None if missing(c) else c for c in captions),
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
    path = find_csv(root, CUI_MAPPING)
    if path is None:
        return {}
    table = read_csv(path, ("CUI", "Canonical name"))
    return dict(zip(table["CUI"], table["Canonical name"], strict=True))
