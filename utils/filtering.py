"""Which pairs stay, and why not: rules record -> reason, applied in one fixed order, and the funnel."""

import hashlib
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pandas as pd
from PIL import Image
from tqdm import tqdm

from utils.images import ImageError, read_header, to_rgb
from utils.rocov2 import SPLITS, Release, iter_bytes
from utils.stages import write_json
from utils.terms import modality_of

KEPT = "kept"
Rule = Callable[[dict], str | None]


def look(data: bytes) -> dict:
    """Describe an image file from its header and its bytes, without decoding a pixel."""
    found = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    try:
        header = read_header(data)
    except ImageError as error:
        return found | {"mode": None, "format": None, "width": 0, "height": 0, "error": str(error)}
    return found | vars(header) | {"error": None}


def audit(release: Release, threads: int = 4) -> pd.DataFrame:
    """Add to every pair what its image file says of itself.

    Returns:
        ``release.pairs`` with mode, format, width, height (pixels), bytes, sha256, error, repeated, modality.
    """
    pairs = release.pairs
    present = pairs["source"].notna()
    files = iter_bytes(release.root, pairs.loc[present, "source"].tolist())
    rows: list[dict] = []
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=int(present.sum()), desc="reading headers", unit="image", file=sys.stdout) as bar,
    ):
        while batch := list(islice(files, 256)):  # a batch of bytes in memory, not the whole release
            rows += pool.map(look, batch)
            bar.update(len(batch))
    looked = pd.DataFrame(rows, index=pairs.index[present])
    records = pairs.join(looked)
    records["repeated"] = records["image_id"].duplicated()
    records["modality"] = [modality_of(cuis) for cuis in records["cuis"]]
    return records


def repeated_id(record: dict) -> str | None:
    """Refuse a pair whose ID stood there before: captions are found by their ID."""
    return "ID repeated" if record["repeated"] else None


def no_image(record: dict) -> str | None:
    """Refuse a caption whose image is not there."""
    return "image file missing" if record["source"] is None else None


def no_caption(record: dict) -> str | None:
    """Refuse an image without a caption."""
    return "caption missing" if record["caption"] is None else None


def unreadable(record: dict) -> str | None:
    """Refuse a file whose header no reader understands."""
    return "image unreadable" if record["mode"] is None else None


def copy_of_test(test_hashes: set[str]) -> Rule:
    """Make the rule that keeps the test split out of training: same bytes as one of its images."""

    def rule(record: dict) -> str | None:
        leaks = record["split"] != "test" and record["sha256"] in test_hashes
        return "copy of a test image" if leaks else None

    return rule


def other_mode(modes: tuple[str, ...] | None) -> Rule:
    """Make the rule that keeps the given Pillow modes; None keeps all."""

    def rule(record: dict) -> str | None:
        return None if modes is None or record["mode"] in modes else f"mode {record['mode']}"

    return rule


def rules_for(records: pd.DataFrame, modes: tuple[str, ...] | None) -> tuple[Rule, ...]:
    """Return the rules in their order: what cannot be used comes before what is not wanted."""
    hashes = set(records.loc[records["split"] == "test", "sha256"].dropna())
    return repeated_id, no_image, no_caption, unreadable, copy_of_test(hashes), other_mode(modes)


def apply_rules(records: pd.DataFrame, rules: tuple[Rule, ...]) -> pd.DataFrame:
    """Give every record exactly one reason, that of the first rule that refuses it.

    Returns:
        ``records`` with the columns keep (bool) and reason (str, "kept" where it stays).
    """
    # NaN for "nothing" would compare unequal to None in the rules.
    rows = records.astype(object).where(records.notna(), None).to_dict("records")
    reasons = [next((r for rule in rules if (r := rule(row))), KEPT) for row in rows]
    return records.assign(keep=[r == KEPT for r in reasons], reason=reasons)


def funnel(records: pd.DataFrame) -> dict[str, dict[str, int]]:
    """Count pairs by split and reason, the kept first, each reason in every split."""
    reasons = [KEPT, *sorted(set(records["reason"]) - {KEPT})]
    table = pd.crosstab(records["split"], records["reason"])
    table = table.reindex(index=list(SPLITS), columns=reasons, fill_value=0)
    return {split: {r: int(table.loc[split, r]) for r in reasons} for split in SPLITS}


def require_every_split(counts: dict[str, dict[str, int]]) -> None:
    """Refuse to go on with a split that nothing is left of.

    Raises:
        ValueError: names the split and the most common reason.
    """
    for split, reasons in counts.items():
        if reasons[KEPT] == 0:
            lost = {r: n for r, n in reasons.items() if r != KEPT and n}
            why = f"most often: {max(lost, key=lost.get)}" if lost else "it was empty"
            raise ValueError(
                f"No pair of the {split} split is left ({why}). Widen IMAGE_MODES or check the data."
            )


def examples(records: pd.DataFrame, root: Path, each: int) -> tuple[list[Image.Image], list[str]]:
    """Decode a few pictures of every reason, for a look at what stays and what goes.

    Returns:
        images and titles; reasons whose files cannot be decoded show none.
    """
    images, titles = [], []
    for reason, rows in records[records["source"].notna()].groupby("reason", sort=False):
        shown = 0
        for row in rows.itertuples():
            try:
                image = to_rgb(next(iter_bytes(root, [row.source])))
            except ImageError:
                continue  # looked at here, not used: the stage lists every file that fails
            images.append(image)
            titles.append(f"{reason}: {row.modality or 'unknown'}")
            shown += 1
            if shown == each:
                break
    return images, titles


def write_stage(folder: Path, records: pd.DataFrame, counts: dict) -> dict[str, int]:
    """Write the stage's files and return its key figures: kept pairs by split, and the dropped.

    Raises:
        ValueError: a split has no pair left. The files are written all the same, to look into.
    """
    records.to_parquet(folder / "records.parquet", index=False)
    rejects = records.loc[~records["keep"], ["image_id", "split", "source", "reason", "error"]]
    rejects.to_csv(folder / "rejects.csv", index=False)
    write_json(folder / "report.json", {"funnel": counts})
    require_every_split(counts)
    kept = {split: reasons[KEPT] for split, reasons in counts.items()}
    return kept | {"dropped": len(rejects)}
