"""Which pairs stay, and why not: rules record -> reason, applied in one fixed order, and the funnel."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from utils.audit import COLUMNS, write_part
from utils.captions import words
from utils.pairs import SPLITS, texts
from utils.parts import Part, parts_of, write_parts
from utils.rocov2 import Release
from utils.stages import StageError, short, write_json
from utils.terms import modality_of

KEPT = "kept"
HEADERS = 4  # times as many headers as pictures make a part
Rule = Callable[[dict], str | None]
# The columns of records.parquet: the same types from every source.
RECORDS = pa.schema({
    "image_id": pa.string(), "split": pa.string(), "source": pa.string(), **COLUMNS, "repeated": pa.bool_(),
    "caption": pa.string(), "cuis": pa.list_(pa.string()), "modality": pa.string(),
    "keep": pa.bool_(), "reason": pa.string(),
})  # fmt: skip


def audit(release: Release, folder: Path, procs: int, pixels: bool = True) -> pd.DataFrame:
    """Add to every pair what its image says of itself and, if wanted, shows.

    Args:
        release: the pairs.
        folder: the stage's folder; ``parts/`` in it holds what is finished if this is interrupted.
        procs: worker processes.
        pixels: False reads headers alone, which takes seconds; sha256, phash and chroma stay empty.

    Returns:
        ``release.pairs`` with the columns of :data:`utils.audit.COLUMNS`, repeated (the ID stood there
        before) and modality.
    """
    present = release.pairs[release.pairs["source"].notna()]
    (folder / "parts").mkdir(parents=True, exist_ok=True)
    kind = "pixels" if pixels else "headers"
    times = 1 if pixels or release.store.hub is not None else HEADERS
    parts = parts_of(present, release.store.root, folder / "parts", kind, times)
    write_parts(parts, partial(write_part, pixels=pixels), procs, f"reading {kind}", release.store.hub)
    return describe(release.pairs, parts)


def describe(pairs: pd.DataFrame, parts: list[Part]) -> pd.DataFrame:
    """Join what the parts hold to the pairs that have an image, in the order of the pairs."""
    schema = pa.schema(COLUMNS)
    tables = [schema.empty_table(), *(read_part(part) for part in parts)]
    found = pa.concat_tables(t.replace_schema_metadata() for t in tables).to_pandas()
    # Integers and texts that may be absent: NaN would compare unequal to None in the rules.
    found = found.astype({"width": "Int32", "height": "Int32", "chroma": "Int16"}).astype(object)
    found.index = pairs.index[pairs["source"].notna()]
    records = pairs.join(found)
    records[list(COLUMNS)] = records[list(COLUMNS)].where(records[list(COLUMNS)].notna(), None)
    records["repeated"] = records["image_id"].duplicated()
    records["modality"] = texts(modality_of(cuis) for cuis in records["cuis"])
    return records


def read_part(part: Part) -> pa.Table:
    """Read what was found of the images of one part.

    Raises:
        StageError: its file is damaged; it is deleted, so that the next run makes it again.
    """
    try:
        return pq.read_table(part.path, columns=list(COLUMNS))
    except (OSError, pa.ArrowException) as error:
        part.path.unlink(missing_ok=True)
        raise StageError(
            f"{short(part.path)} was damaged on the disk and is deleted. Run this again: that part is made "
            f"anew."
        ) from error


def repeated_id(record: dict) -> str | None:
    """Refuse a pair whose ID stood there before: captions are found by their ID."""
    return "ID repeated" if record["repeated"] else None


def no_image(record: dict) -> str | None:
    """Refuse a caption whose image is not there."""
    return "image file missing" if record["source"] is None else None


def no_caption(record: dict) -> str | None:
    """Refuse an image without a caption."""
    return "caption missing" if record["caption"] is None else None


def wordless(least: int, most: int | None) -> Rule:
    """Make the rule that keeps captions of ``least`` to ``most`` words; None sets no upper bound."""

    def rule(record: dict) -> str | None:
        count = words(record["caption"])
        if count < least:
            return f"caption under {least} words"
        return f"caption over {most} words" if most is not None and count > most else None

    return rule


def unreadable(record: dict) -> str | None:
    """Refuse a file that cannot be read, or whose header no reader understands."""
    return "image unreadable" if record["mode"] is None else None


def damaged(record: dict) -> str | None:
    """Refuse a file whose header is fine and whose pixels are not."""
    return "image damaged" if record["error"] is not None else None


def copy_of_test(test_hashes: set[str]) -> Rule:
    """Make the rule that keeps the test split out of training: same pixels as one of its images."""

    def rule(record: dict) -> str | None:
        leaks = record["split"] != "test" and record["sha256"] in test_hashes
        return "copy of a test image" if leaks else None

    return rule


def other_mode(modes: tuple[str, ...] | None) -> Rule:
    """Make the rule that keeps the given Pillow modes; None keeps all."""

    def rule(record: dict) -> str | None:
        return None if modes is None or record["mode"] in modes else f"mode {record['mode']}"

    return rule


def rules_for(
    records: pd.DataFrame, modes: tuple[str, ...] | None, least: int = 1, most: int | None = None
) -> tuple[Rule, ...]:
    """Return the rules in their order: what cannot be used comes before what is not wanted.

    Args:
        records: what :func:`audit` returned.
        modes: Pillow modes to keep, None for all.
        least: the fewest words of a caption.
        most: the most words of a caption, None for no bound.
    """
    hashes = set(records.loc[records["split"] == "test", "sha256"].dropna())
    return (repeated_id, no_image, no_caption, unreadable, damaged, copy_of_test(hashes),
            wordless(least, most), other_mode(modes))  # fmt: skip


def apply_rules(records: pd.DataFrame, rules: tuple[Rule, ...]) -> pd.DataFrame:
    """Give every record exactly one reason, that of the first rule that refuses it.

    Returns:
        ``records`` with the columns keep (bool) and reason (str, "kept" where it stays).
    """
    judged = ["split", "source", "caption", "mode", "sha256", "error", "repeated"]
    # NaN for "nothing" would compare unequal to None in the rules.
    columns = [records[name].astype(object).where(records[name].notna(), None) for name in judged]
    rows = (dict(zip(judged, values, strict=True)) for values in zip(*columns, strict=True))
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


def write_stage(
    folder: Path, records: pd.DataFrame, report: dict, tables: dict | None = None
) -> dict[str, int]:
    """Write the stage's files and return its key figures: kept pairs by split, and the dropped.

    Args:
        folder: the stage's folder; its ``parts/`` are not needed any more and go.
        records: every pair with its reason.
        report: what ``report.json`` holds; "funnel" among it.
        tables: name -> table of further CSV files.

    Raises:
        ValueError: a split has no pair left. The files are written all the same, to look into.
    """
    table = pa.Table.from_pandas(records, RECORDS, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(), folder / "records.parquet")
    rejects = records.loc[~records["keep"], ["image_id", "split", "source", "reason", "error"]]
    for name, table in {"rejects": rejects, **(tables or {})}.items():
        table.to_csv(folder / f"{name}.csv", index=False)
    write_json(folder / "report.json", report)
    require_every_split(report["funnel"])
    shutil.rmtree(folder / "parts", ignore_errors=True)
    kept = {split: reasons[KEPT] for split, reasons in report["funnel"].items()}
    return kept | {"dropped": len(rejects)}
