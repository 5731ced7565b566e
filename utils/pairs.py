"""What every source of pairs has in common: the splits, and how a cell of its tables is read."""

import re

import pandas as pd

from utils.stages import StageError

SPLITS = ("train", "valid", "test")
CUI_MAPPING = "cui_mapping.csv"  # of a release, and of the stages that hand it on


class SourceError(StageError):
    """A source is missing or is not laid out as ROCOv2; says what to do about it."""


def missing(value) -> bool:
    """Tell whether a cell holds nothing; the hub's copy writes a missing value as the text 'nan'."""
    return value is None or value != value or str(value).strip() in ("", "nan")


def texts(values) -> pd.Series:
    """Return texts as a column in which nothing is None; pandas would make it NaN, which has no words."""
    return pd.Series(list(values), dtype=object)


def split_cuis(value) -> list[str]:
    """Return the CUIs of a cell: "C1;C2", the hub's list, or nothing."""
    if isinstance(value, str):
        return [] if missing(value) else re.findall(r"C\d{7}", value)
    return [] if value is None or value is pd.NA or isinstance(value, float) else list(value)
