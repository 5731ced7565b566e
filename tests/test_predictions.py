"""Captions that do not fit their images are refused, with the ids; the submission keeps the official rules."""

import pandas as pd
import pytest

from utils import predictions
from utils.folders import SourceError
from utils.predictions import PredictionError

IDS = ["a", "b", "c"]


def series(*values):
    return pd.Series(values, dtype=object)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", "b", "b", "c"], "1 ids have more than one caption: b. Keep one"),
        (["a", "b", "c", "x", "y"], "2 ids are not in the test split: x, y."),
        (["b"], "2 test images have no caption: a, c. Run the captioning again"),
        ([*IDS, *(f"x{i}" for i in range(9))], "9 ids are not in the test split: x0, x1, x2, x3, x4 ..."),
    ],
)
def test_ids_that_are_repeated_unknown_or_missing_are_refused(given, message):
    with pytest.raises(PredictionError) as caught:
        predictions.check_ids(series(*given), IDS)
    assert str(caught.value).startswith(message)


def test_ids_may_come_in_any_order():
    predictions.check_ids(series("c", "a", "b"), IDS)


@pytest.mark.parametrize("value", [None, float("nan"), 3, ["CT"]])
def test_a_caption_that_is_no_text_is_refused(value):
    with pytest.raises(PredictionError, match="1 captions are no texts: b"):
        predictions.check_texts(series(*IDS), series("CT", value, "MR"), empty=True)


def test_an_empty_caption_is_refused_unless_a_model_made_it():
    with pytest.raises(PredictionError, match=r"2 captions are empty: a, c\. Set MIN_NEW_TOKENS"):
        predictions.check_texts(series(*IDS), series("", "CT", " \t"))
    predictions.check_texts(series(*IDS), series("", "CT", " \t"), empty=True)


def test_what_is_submitted_reads_back_as_it_was_said(tmp_path):
    captions = series('CT, "chest"', "MR; naïve", "left, right")
    told = predictions.write_submission(tmp_path / "s.csv", series(*IDS), captions)
    assert told == "3 captions, checked by the rules of the ImageCLEFmedical Caption task"
    assert (tmp_path / "s.csv").read_text(encoding="utf-8").splitlines()[:2] == ["ID,Caption", 'a,"CT, ""chest"""']
    read = predictions.read_submission(tmp_path / "s.csv", IDS)
    assert read["Caption"].tolist() == captions.tolist()


def test_an_empty_caption_costs_the_submission_alone(tmp_path):
    (tmp_path / "s.csv").write_text("an older one")
    told = predictions.write_submission(tmp_path / "s.csv", series(*IDS), series("CT", "", "MR"))
    assert told.startswith("not written: 1 captions are empty: b.")
    assert not (tmp_path / "s.csv").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,Caption\nb,B\na,A\nc,C\n", "2 ids are not in the order of the split: b, a."),
        ("ID,Caption\na,A\n\nb,B\nc,C\n", "1 lines of s.csv are blank: 3."),
        ("ID,Caption,Score\na,A,1\nb,B,1\nc,C,1\n", "s.csv has the columns ['ID', 'Caption', 'Score']"),
        ("ID,Caption\na,A\nb,B\n", "1 test images have no caption: c."),
    ],
)
def test_a_submission_against_the_rules_is_refused(tmp_path, text, message):
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(PredictionError) as caught:
        predictions.read_submission(tmp_path / "s.csv", IDS)
    assert str(caught.value).startswith(message)


def test_a_submission_that_is_no_csv_of_two_columns_is_refused(tmp_path):
    (tmp_path / "s.csv").write_text("ID;Caption\na;A\n")
    with pytest.raises(SourceError, match="Caption"):
        predictions.read_submission(tmp_path / "s.csv", IDS)
