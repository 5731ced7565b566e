"""Captions to be scored: one for every image of the split, each a text; the official submission file."""

from pathlib import Path

import pandas as pd

from utils.folders import read_csv

SHOWN = 5  # offending ids that a message lists


class PredictionError(ValueError):
    """Captions do not fit the images that they are for; the message lists ids and says what to do."""


def listed(ids) -> str:
    """Write the first few ids."""
    ids = [str(i) for i in ids]
    return ", ".join(ids[:SHOWN]) + (" ..." if len(ids) > SHOWN else "")


def demand_none(ids, what: str, advice: str) -> None:
    """Raise :class:`PredictionError` where there are offending ids."""
    ids = list(ids)
    if ids:
        raise PredictionError(f"{len(ids):,} {what}: {listed(ids)}. {advice}")


def check_ids(ids: pd.Series, expected: list[str]) -> None:
    """Refuse ids that are not those of the split, each once; their order is free.

    Raises:
        PredictionError: an id is repeated, unknown or missing.
    """
    repeated = ids[ids.duplicated()].unique()
    demand_none(repeated, "ids have more than one caption", "Keep one caption an image.")
    known, given = set(expected), set(ids)
    unknown = [i for i in ids if i not in known]
    demand_none(unknown, "ids are not in the test split", "Caption the images of notebook 02's test split.")
    missing = [i for i in expected if i not in given]
    demand_none(missing, "test images have no caption", "Run the captioning again: it goes on.")


def check_texts(ids: pd.Series, captions: pd.Series, empty: bool = False) -> None:
    """Refuse captions that are no texts, or say nothing.

    Args:
        ids: of the images.
        captions: one an image.
        empty: whether a caption may be empty, as one that a model made may be: it scores 0.

    Raises:
        PredictionError: lists the ids.
    """
    wrong = [not isinstance(c, str) for c in captions]
    demand_none(ids[wrong], "captions are no texts", "Write each as text.")
    blank = [] if empty else ids[[not c.strip() for c in captions]]
    demand_none(blank, "captions are empty", "Set MIN_NEW_TOKENS above 1, or caption these images anew.")


def read_submission(path: Path, expected: list[str]) -> pd.DataFrame:
    """Read a submission file by the rules of the ImageCLEFmedical Caption task.

    A UTF-8 CSV without blank lines, header ``ID,Caption``, every image of the split once, in its order, no
    caption empty (github.com/taubsity/clef-caption-evaluation).

    Args:
        path: of the file.
        expected: the ids of the split, in their order.

    Raises:
        SourceError: no UTF-8 CSV with these columns.
        PredictionError: a rule is broken; says which, and for which images.
    """
    table = read_csv(path, ("ID", "Caption"))
    if list(table.columns) != ["ID", "Caption"]:
        raise PredictionError(f"{path.name} has the columns {list(table.columns)}; it needs ID and Caption.")
    lines = path.read_text(encoding="utf-8-sig").split("\n")[:-1]
    blank = [number for number, line in enumerate(lines, 1) if not line.strip()]
    demand_none(blank, f"lines of {path.name} are blank", "Take them out.")
    check_ids(table["ID"], expected)
    check_texts(table["ID"], table["Caption"])
    moved = [given for given, wanted in zip(table["ID"], expected, strict=True) if given != wanted]
    demand_none(moved, "ids are not in the order of the split", "Sort the rows by ID.")
    return table


def write_submission(path: Path, ids: pd.Series, captions: pd.Series) -> str:
    """Write the submission file and read it back by the rules; return what was done, in words.

    An empty caption is against the rules. It is no reason to lose the rest of an evaluation: the file is
    then not written, and the answer says why.
    """
    table = pd.DataFrame({"ID": ids, "Caption": captions})
    path.unlink(missing_ok=True)
    try:
        check_texts(table["ID"], table["Caption"])
    except PredictionError as error:
        return f"not written: {error}"
    table.to_csv(path, index=False, lineterminator="\n")
    read_submission(path, ids.tolist())
    return f"{len(table):,} captions, checked by the rules of the ImageCLEFmedical Caption task"
