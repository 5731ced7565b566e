"""The error browser without its widgets: which captions match a filter, in which order."""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from utils.evaluation_plots import gallery

PAGE = 10  # captions
UNKNOWN = "unknown"
TEXTS = ["image_id", "reference", "base", "tuned"]
# Name of the error -> column of the tuned captions, and the value there that is one.
ERRORS = {
    "wrong modality": ("tuned_modality_right", False),
    "wrong region": ("tuned_region_right", False),
    "wrong finding": ("tuned_finding_right", False),
    "wrong side": ("tuned_side_right", False),
    "invented concept": ("tuned_invented", True),
    "negation flipped": ("tuned_negation_flip", True),
    "side flipped": ("tuned_side_flip", True),
    "cut at the limit": ("tuned_cut", True),
}
SCORES = {"rouge_l": "ROUGE-L", "rouge_1": "ROUGE-1", "cider": "CIDEr", "chrf": "chrF",
          "concept_f1": "concept F1"}  # fmt: skip


def modalities(scored: pd.DataFrame) -> list[str]:
    """Return the modalities that occur, by name; "unknown" last where images have none."""
    known = sorted(scored["modality"].dropna().unique())
    return known + [UNKNOWN] * bool(scored["modality"].isna().any())


def errors(scored: pd.DataFrame) -> list[str]:
    """Return the kinds of error that ``scored`` can tell: those whose column it has."""
    return [name for name, (column, _) in ERRORS.items() if column in scored]


def orders(scored: pd.DataFrame) -> dict[str, str]:
    """Return name -> column of the scores to sort by, those of the tuned captions first."""
    names = {f"{label} ({system})": f"{system}_{score}"
             for system in ("tuned", "base") for score, label in SCORES.items()}  # fmt: skip
    return {name: column for name, column in names.items() if column in scored}


def select(
    scored: pd.DataFrame,
    modality: str | None = None,
    error: str | None = None,
    text: str = "",
    sort: str = "tuned_rouge_l",
    descending: bool = False,
) -> pd.DataFrame:
    """Return the rows that match all filters, sorted; rows that tie keep their order.

    Args:
        scored: one row an image, as notebook 04 makes it.
        modality: of the image, or "unknown"; None for all.
        error: a key of ``ERRORS``, of the tuned caption; None for all. What does not count (NaN) is none.
        text: found in the id or a caption, whatever its case; not a pattern.
        sort: a column of scores; rows without one come last.
        descending: the highest first.

    Raises:
        ValueError: ``scored`` has no such modality, error or column to sort by.
    """
    check(modality, modalities(scored), "modality")
    check(error, errors(scored), "error")
    check(sort, list(orders(scored).values()), "column to sort by")
    keep = pd.Series(True, scored.index)
    if modality is not None:
        keep &= scored["modality"].fillna(UNKNOWN) == modality
    if error is not None:
        column, wrong = ERRORS[error]
        keep &= scored[column].eq(wrong).astype(bool)
    if text.strip():
        wanted = text.strip().casefold()
        words = scored[TEXTS].map(lambda words: wanted in words.casefold())
        keep &= words.any(axis=1)
    return scored[keep].sort_values(sort, ascending=not descending, kind="stable")


def check(chosen: str | None, known: list[str], what: str) -> None:
    """Refuse a choice that is not there, and name those that are."""
    if chosen is not None and chosen not in known:
        raise ValueError(f"There is no {what} {chosen!r} here: choose one of {', '.join(known) or 'none'}.")


def static(scored: pd.DataFrame, load: Callable[[list[str]], list[Image.Image]], count: int = 6) -> Figure:
    """Draw what the browser shows first, for a saved notebook: the lowest ROUGE-L of the tuned captions.

    Args:
        scored: one row an image, as notebook 04 makes it.
        load: image ids -> their images, in the same order.
        count: of images.
    """
    chosen = select(scored).head(count)
    title = f"Lowest ROUGE-L of the tuned captions: {len(chosen)} of {len(scored):,} images"
    return gallery(load(chosen["image_id"].tolist()), chosen, title)
