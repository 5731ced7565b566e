"""Kept pairs -> lossless image shards and token ids; what is finished is never made twice."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from utils.captions import clean, cut, token_limit, tokenise
from utils.config import Config
from utils.dataset import Layout, PreparedSplit
from utils.filtering import KEPT, funnel, require_every_split
from utils.images import SIZE
from utils.imageshards import rejects_of, write_shard
from utils.pairs import CUI_MAPPING, SPLITS
from utils.parts import finished, parts_of, write_parts
from utils.rocov2 import Store
from utils.stages import require_disk, write_json

DAMAGED = "image damaged"
PNG_BYTES = 45_000  # of a 224x224 radiograph; measured on real ones: 36 kB, those of mode RGB 43 kB


def prepare_images(
    records: pd.DataFrame, store: Store, folder: Path, procs: int, size: int = SIZE
) -> dict[str, str]:
    """Write the image shards that are not there yet.

    Args:
        records: every pair with its reason.
        store: where the images are.
        folder: the stage's folder; shards of an interrupted run are kept.
        procs: worker processes.
        size: pixels of a side, as the model's image processor says.

    Returns:
        image id -> reason of every image that could not be prepared, of old and new shards.

    Raises:
        StageError: too little disk, a full disk, a killed worker, or images that are gone.
    """
    parts = parts_of(records[records["keep"]], store.root, folder, "images")
    left = sum(len(part.image_ids) for part in parts if not finished(part))
    require_disk(folder, left * PNG_BYTES * size**2 // SIZE**2, f"Preparing {left:,} images")
    write_parts(parts, partial(write_shard, size=size), procs, "preparing images", store.hub)
    return {image_id: why for part in parts for image_id, why in rejects_of(part.path).items()}


def prepare_captions(
    records: pd.DataFrame, tokenizer, newline_id: int, percentile: float, room: int
) -> tuple[pd.DataFrame, int]:
    """Clean and tokenise the captions.

    Args:
        records: the pairs whose image was prepared.
        tokenizer: the model's own.
        newline_id: BLIP-2 OPT's end of sequence.
        percentile: of the training captions' lengths, the token limit.
        room: the longest caption the model's positions leave room for, in tokens.

    Returns:
        the table of ``captions.parquet`` and the token limit; n_tokens counts before the cut, mode and
        chroma are those of the original file.
    """
    table = records[["image_id", "split", "modality", "cuis", "mode", "chroma"]].copy()
    table["raw_caption"] = records["caption"]
    table["caption"] = records["caption"].map(clean)
    ids = tokenise(table["caption"].tolist(), tokenizer, newline_id)
    table["n_tokens"] = [len(i) for i in ids]
    train = table["split"] == "train"
    limit = token_limit(table.loc[train, "n_tokens"].tolist(), percentile, room)
    table["input_ids"] = [cut(i, limit) for i in ids]
    return table.reset_index(drop=True), limit


def settle(records: pd.DataFrame, rejects: dict[str, str]) -> pd.DataFrame:
    """Give the kept pairs whose image could not be prepared their reason, so that every pair has one.

    Args:
        records: every pair with its reason from stage 01.
        rejects: what :func:`prepare_images` returned.
    """
    lost = records["keep"] & records["image_id"].isin(rejects)
    why = records["image_id"].map(rejects)
    return records.assign(
        keep=records["keep"] & ~lost,
        reason=records["reason"].where(~lost, DAMAGED),
        error=records["error"].where(~lost, why),
    )


def details(
    settings: Config, modes: list[str] | None, statistics: dict, layout: Layout, captions, limit: int
) -> dict:
    """Collect what ``preprocess.json`` records: all that later stages must repeat exactly.

    Args:
        settings: the stage's configuration.
        modes: the image modes that stage 01 kept, None for all.
        statistics: size, mean and std of the model's image processor.
        layout: BLIP-2's token layout.
        captions: the table of ``captions.parquet``.
        limit: the token limit.
    """
    longer = captions["n_tokens"] > limit
    return {
        "model_id": settings.model_id,
        "source": settings.source,
        "image_modes": modes,
        **statistics,
        "resample": "bicubic (Pillow)",
        "newline_id": layout.newline_id,
        "caption_percentile": settings.caption_percentile,
        "token_limit": limit,
        "cut_captions": {s: int((longer & (captions["split"] == s)).sum()) for s in SPLITS},
    }


def write_stage(
    folder: Path, captions: pd.DataFrame, records: pd.DataFrame, rejects: dict, settings: dict,
    names: pd.DataFrame | None = None,
) -> dict[str, int]:  # fmt: skip
    """Write the stage's files beside its shards and return its key figures.

    Args:
        folder: the stage's folder.
        captions: the table of ``captions.parquet``.
        records: what :func:`settle` returned.
        rejects: image id -> reason of every image that could not be prepared.
        settings: what ``preprocess.json`` holds; the funnel of both stages is added to it.
        names: the concepts' names, which notebook 04 reads captions by; None where the source has none.

    Raises:
        ValueError: a split has no pair left.
    """
    captions.to_parquet(folder / "captions.parquet", index=False)
    if names is not None:
        names.to_csv(folder / CUI_MAPPING, index=False)
    lost = records[(records["reason"] == DAMAGED) & records["image_id"].isin(rejects)]
    lost[["image_id", "split", "source", "reason", "error"]].to_csv(folder / "rejects.csv", index=False)
    counts = funnel(records)
    write_json(folder / "preprocess.json", settings | {"funnel": counts})
    require_every_split(counts)
    kept = {split: reasons[KEPT] for split, reasons in counts.items()}
    return kept | {"damaged": len(lost), "token_limit": settings["token_limit"]}


def intensities(folder: Path, count: int = 1000) -> pd.DataFrame:
    """Measure how bright the prepared training images are.

    Args:
        folder: the stage's folder, with its files written.
        count: images, spread evenly over the split.

    Returns:
        one row a modality: images, mean and std of the pixels (0..255), share of black (0) and of white
        (255) pixels, and the share of pixels in each of 32 steps of brightness (columns 0 to 31).
    """
    split = PreparedSplit(folder, "train")
    chosen = np.unique(np.linspace(0, len(split) - 1, min(count, len(split)), dtype=int))
    modalities = split.table["modality"].fillna("unknown").tolist()  # pandas reads None as NaN
    counts: dict[str, np.ndarray] = {}
    images: Counter[str] = Counter()
    for index in chosen:
        modality = modalities[index]
        values = np.bincount(split.pixels(index).numpy().ravel(), minlength=256)
        counts[modality] = counts.get(modality, 0) + values
        images[modality] += 1
    rows = {name: {"images": images[name], **brightness(values)} for name, values in sorted(counts.items())}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("modality")


def brightness(values: np.ndarray) -> dict:
    """Return mean, std, shares of black and white, and 32 steps of a histogram (256,) of pixels."""
    shares, grey = values / values.sum(), np.arange(256)
    mean = float(shares @ grey)
    std = float(np.sqrt(shares @ (grey - mean) ** 2))
    steps = dict(enumerate(shares.reshape(32, 8).sum(axis=1).tolist()))
    return {"mean": mean, "std": std, "black": float(shares[0]), "white": float(shares[255]), **steps}


def extremes(captions: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the ``count`` shortest and the ``count`` longest captions: image_id, n_tokens, caption."""
    ordered = captions.sort_values("n_tokens", kind="stable")
    return pd.concat([ordered.head(count), ordered.tail(count)])[["image_id", "n_tokens", "caption"]]


def disk_used(folder: Path, captions: pd.DataFrame) -> pd.DataFrame:
    """Measure the image shards of each split: images, MB, kB an image."""
    sizes = {s: sum(p.stat().st_size for p in folder.glob(f"images-{s}-*.parquet")) for s in SPLITS}
    images = captions["split"].value_counts().reindex(list(SPLITS))
    table = pd.DataFrame({"images": images, "MB": pd.Series(sizes) / 1e6})
    return table.assign(**{"kB an image": table["MB"] * 1e3 / table["images"]}).round(1)
