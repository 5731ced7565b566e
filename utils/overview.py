"""What notebooks 01 and 02 show of the audited pairs: tables and pictures. Nothing is decided here."""

import numpy as np
import pandas as pd
from PIL import Image

from utils.captions import LONG_WORDS, remarks, words
from utils.config import FilterConfig
from utils.duplicates import NEAR
from utils.images import ImageError, to_rgb
from utils.pairs import SPLITS
from utils.rocov2 import PUBLISHED, PUBLISHED_IDS, Release, Store


def compare_published(records: pd.DataFrame) -> pd.DataFrame | None:
    """Set the counts beside ROCOv2's published ones.

    Returns:
        rows pairs and mode RGB of each split, columns here, published, difference; None where the ids
        are not ROCOv2's.
    """
    if not records["image_id"].str.startswith(PUBLISHED_IDS).all():
        return None
    rgb = records[records["mode"] == "RGB"]
    rows = [
        {"what": what, "split": split, "here": int((some["split"] == split).sum()), "published": count}
        for (what, counts), some in zip(PUBLISHED.items(), (records, rgb), strict=True)
        for split, count in counts.items()
    ]
    table = pd.DataFrame(rows).set_index(["what", "split"])
    return table.assign(difference=table["here"] - table["published"])


def modes_and_colour(records: pd.DataFrame) -> pd.DataFrame:
    """Count the decoded images of each mode: those that hold only grey pixels, and those with colour."""
    seen = records[records["chroma"].notna()]
    shown = np.where(seen["chroma"] > 0, "colour", "only grey pixels")
    table = pd.crosstab(seen["mode"], shown).reindex(columns=["only grey pixels", "colour"], fill_value=0)
    return table.rename_axis(index="mode", columns=None)


def by_modality(records: pd.DataFrame) -> pd.DataFrame:
    """Count pairs, those kept, and those lost to their mode alone, by modality."""
    named = records.assign(modality=records["modality"].fillna("unknown"))
    lost = named["reason"].str.startswith("mode ")
    table = named.assign(lost=lost).groupby("modality").agg(
        pairs=("keep", "size"), kept=("keep", "sum"), other_mode=("lost", "sum"), share_kept=("keep", "mean")
    )  # fmt: skip
    return table.sort_values("pairs", ascending=False)


def examples(records: pd.DataFrame, store: Store, each: int) -> tuple[list[Image.Image], list[str]]:
    """Decode a few pictures of every reason, for a look at what stays and what goes.

    Returns:
        images and titles; of a reason without a readable file there is none.
    """
    images, titles = [], []
    readable = records[records["source"].notna() & records["error"].isna()]
    for reason, rows in readable.groupby("reason", sort=False):
        for row in rows.head(each).itertuples():
            images.append(picture(store, row.source))
            titles.append(f"{reason}: {row.modality or 'unknown'}")
    return images, titles


def picture(store: Store, source: str, size: int = 256) -> Image.Image:
    """Decode one image of a release for a look at it; a light grey square where it cannot be decoded."""
    try:
        image = to_rgb(next(iter(store.blobs([source]))))
    except ImageError:
        return Image.new("RGB", (size, size), (235, 235, 235))
    image.thumbnail((size, size))
    return image


def caption_report(records: pd.DataFrame) -> pd.DataFrame:
    """Count what is odd about the captions: one row a remark, one column a split.

    "repeated" counts the captions that another pair, of any split, has word for word.
    """
    told = records[["split", "caption"]].assign(remark=[remarks(c) for c in records["caption"]])
    twice = told["caption"].notna() & told["caption"].duplicated(keep=False)
    repeated = told[twice].assign(remark="repeated")
    rows = pd.concat([told.explode("remark"), repeated])
    names = ["missing", "one word", f"more than {LONG_WORDS} words", "replacement character", "repeated"]
    return pd.crosstab(rows["remark"], rows["split"]).reindex(index=names, columns=list(SPLITS), fill_value=0)


def near_pictures(
    near: pd.DataFrame, records: pd.DataFrame, store: Store, count: int
) -> tuple[list[Image.Image], list[str]]:
    """Decode some pairs of near copies, one picture beside the other.

    Args:
        near: what :func:`utils.duplicates.near_copies` returned.
        records: what the ids are looked up in.
        store: where the images are.
        count: pairs, spread from the nearest to the farthest; no picture stands there twice.

    Returns:
        images and titles, at most twice ``count`` of them.
    """
    seen = records[records["phash"].notna()]  # an ID may stand in two splits, and have its image in one
    sources = seen.drop_duplicates(["split", "image_id"]).set_index(["split", "image_id"])["source"]
    images, names = [], []
    for number, (pair, bits) in enumerate(chosen_pairs(near, count), 1):
        for split, image_id in pair:
            images.append(picture(store, sources[split, image_id]))
            names.append(f"pair {number}, {bits} bits: {split} {image_id.rpartition('_')[2]}")
    return images, names


def chosen_pairs(near: pd.DataFrame, count: int) -> list[tuple[tuple, int]]:
    """Choose ``count`` near pairs, (split, id) twice and their bits, in which no image comes twice."""
    used, pairs = set(), []
    for row in near.itertuples():
        pair = (row.first_split, row.first), (row.second_split, row.second)
        if used.isdisjoint(pair):
            used.update(pair)
            pairs.append((pair, row.bits))
    places = np.unique(np.linspace(0, len(pairs) - 1, min(count, len(pairs)), dtype=int))
    return [pairs[place] for place in places]


def word_counts(records: pd.DataFrame) -> pd.DataFrame:
    """Count the words of every caption that is there: columns split and words."""
    there = records[records["caption"].notna()]
    return pd.DataFrame({"split": there["split"], "words": there["caption"].map(words).astype(int)})


def spread(records: pd.DataFrame, count: int) -> pd.DataFrame:
    """Choose ``count`` records of different shapes: from the tallest to the widest picture."""
    ordered = records.assign(ratio=records["width"] / records["height"]).sort_values("ratio", kind="stable")
    return ordered.iloc[np.unique(np.linspace(0, len(ordered) - 1, min(count, len(ordered)), dtype=int))]


def titles(records: pd.DataFrame) -> list[str]:
    """Return a short title for each record: its modality, mode and size in pixels."""
    return [
        f"{r.modality or 'unknown'}, {r.mode}, {r.width:.0f}×{r.height:.0f}" for r in records.itertuples()
    ]


def report(
    settings: FilterConfig, release: Release, records: pd.DataFrame, counts: dict, captions: pd.DataFrame,
    copies: pd.DataFrame, near: pd.DataFrame,
) -> dict:  # fmt: skip
    """Collect what ``report.json`` records.

    Args:
        settings: the stage's configuration.
        release: where the pairs came from.
        records: every pair with its reason.
        counts: the funnel, split -> reason -> pairs.
        captions: what :func:`caption_report` returned.
        copies: the number of sets of copies by the splits they touch.
        near: the number of near copies by their two splits.
    """
    hub, published = release.store.hub, compare_published(records)
    modes = pd.crosstab(records["mode"], records["split"]).reindex(columns=list(SPLITS), fill_value=0)
    return {
        "funnel": counts,
        "pixels": settings.pixels,
        "revision": hub.revision if hub is not None else None,
        "modes": {mode: {split: int(n) for split, n in row.items()} for mode, row in modes.iterrows()},
        "captions": {
            remark: {split: int(n) for split, n in row.items()} for remark, row in captions.iterrows()
        },
        "copies": copies.to_dict("records"),
        "near_copies": {"bits": NEAR, "pairs": near.to_dict("records")},
        "published": None if published is None else published.reset_index().to_dict("records"),
    }
