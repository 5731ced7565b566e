"""The notebook's tables come from metrics.json alone: its figures, its intervals, and what is missing."""

import json

import pandas as pd
import pytest

from utils import report
from utils.published import COLUMNS, ROWS, SCORES


def figure(value, low=None, high=None, n=4):
    return {"value": value, "low": low, "high": high, "n": n}


WRITTEN = {
    "settings": {"split": "test", "images": 4, "image_modes": ["RGB", "L"], "source": "sample", "model_id": "sample",
                 "token_limit": 28, "bertscore_model": "some/model",
                 "decoding": {"beams": 5, "min_new_tokens": 1, "max_new_tokens": None}},
    "scores": {
        "base": {"bleu_1": figure(0.25, 0.1, 0.4), "cider": figure(0.5, 0.25, 0.75), "unique_share": figure(0.75),
                 "bleu_1_raw": figure(0.2, 0.1, 0.3), "side_flip_share": figure(None, n=0)},
        "tuned": {"bleu_1": figure(0.5, 0.4, 0.6), "cider": figure(1.5, 1.0, 2.0), "unique_share": figure(1.0),
                  "bleu_1_raw": figure(0.4, 0.3, 0.5), "side_flip_share": figure(0.5, 0.0, 1.0, n=2)},
    },
    "tuned_minus": {"base": {"bleu_1": figure(0.25, 0.125, 0.375), "cider": figure(-1.0, -1.5, 0.5)}},
    "not_computed": {"meteor": "METEOR 1.5 needs Java", "bertscore_f1": "not computed: weights not available"},
    "groups": {"modality": {
        "base": {"CT": {"cider": figure(0.5, 0, 1, n=1)}, "MR": {"cider": figure(0.25, 0, 1, n=3)}},
        "tuned": {"CT": {"cider": figure(2.5, 2, 3, n=1)}, "MR": {"cider": figure(1.5, 1, 2, n=3)}}}},
    "confusion": {"CT": {"CT": 1, "none": 0}, "MR": {"CT": 2, "none": 1}},
    "cost": {"base": {"images": 4, "images/s": 2.0}},
    "published": list(ROWS),
}  # fmt: skip


def test_scores_stand_with_their_intervals_a_row_a_metric():
    table = report.scores_table(WRITTEN, ["bleu_1", "cider", "unique_share"])
    assert table.index.tolist() == ["BLEU-1", "CIDEr-D (0 to 10)", "unique captions"]
    assert table.columns.tolist() == ["base", "tuned", "n"]
    assert table["tuned"].tolist() == ["0.500 [0.400, 0.600]", "1.500 [1.000, 2.000]", "1.000"]
    assert table["n"].tolist() == ["4", "4", "4"]


def test_the_whole_table_says_what_was_not_computed_and_why():
    table = report.scores_table(WRITTEN)
    assert table.index.tolist() == ["BLEU-1", "BLEU-1, raw text", "CIDEr-D (0 to 10)", "METEOR 1.5",
                                    "BERTScore F1, no idf (model)", "sides flipped", "unique captions"]  # fmt: skip
    assert table.loc["METEOR 1.5"].tolist() == ["not computed", "not computed", "–"]
    assert table.loc["sides flipped"].tolist() == ["–", "0.500 [0.000, 1.000]", "0 / 2"]
    assert report.reasons(WRITTEN).splitlines() == [
        "METEOR 1.5: METEOR 1.5 needs Java", "BERTScore F1, no idf (model): not computed: weights not available",
    ]  # fmt: skip


def test_a_rounded_nothing_has_no_sign():
    assert report.cell(figure(0.0001, -0.0004, 0.0004)) == "0.000 [0.000, 0.000]"
    assert report.cell(figure(-0.0001, -0.01, 0.02), signed=True) == "+0.000 [-0.010, +0.020]"


def test_a_difference_shows_its_sign():
    table = report.difference_table(WRITTEN, ["bleu_1", "cider", "chrf"])
    assert table["tuned − base"].tolist() == ["+0.250 [+0.125, +0.375]", "-1.000 [-1.500, +0.500]", "–"]


def test_groups_come_with_n_the_largest_first():
    table = report.group_table(WRITTEN, "modality")
    assert table.index.tolist() == ["MR", "CT"]
    assert table["n"].tolist() == [3, 1]
    assert table.loc["CT", "CIDEr-D (0 to 10), tuned"] == "2.500 [2.000, 3.000]"
    long = report.long_groups(WRITTEN, "modality", "cider")
    assert long["group"].tolist() == ["MR", "MR", "CT", "CT"]
    assert long["value"].tolist() == [0.25, 1.5, 0.5, 2.5]


def test_what_figures_draw_is_what_tables_say():
    long = report.long_scores(WRITTEN, ["bleu_1", "unique_share", "meteor"])
    assert long[["system", "label"]].to_numpy().tolist() == [
        ["base", "BLEU-1"], ["base", "unique captions"], ["tuned", "BLEU-1"], ["tuned", "unique captions"],
    ]  # fmt: skip
    assert long["value"].tolist() == [0.25, 0.75, 0.5, 1.0]
    assert long["low"].isna().tolist() == [False, True, False, True]
    assert report.long_differences(WRITTEN, names=["cider", "chrf"])["value"].tolist() == [-1.0]


def test_ours_stand_above_the_published_with_what_each_depends_on():
    table = report.comparison(WRITTEN)
    assert len(table.columns) == len(COLUMNS) - 1
    assert table.index.tolist()[:2] == ["base, sample", "tuned, sample"]
    ours = table.iloc[1]
    assert ours[["split", "n", "image modes", "text normalised by", "decoding"]].tolist() == [
        "test", "4", "RGB, L", "ImageCLEFmedical", "5 beams, 1 to 28 new tokens",
    ]  # fmt: skip
    assert ours[["CIDEr-D (0 to 10)", "BERTScore's model"]].tolist() == ["1.5000", "not computed"]
    assert table["CIDEr-D (0 to 10)"].iloc[3] == "0.0931"  # BLIP-2 OPT-2.7B, as published
    assert table["n"].tolist()[2:4] == ["9,927", "9,927"]
    assert table["BERTScore F1"].tolist()[:3] == ["–", "–", "0.5195"]
    assert len(table) == 2 + len(ROWS)


@pytest.mark.parametrize("name", SCORES)
def test_no_published_score_is_impossible(name):
    """A public notebook printed a CIDEr of 8.44 beside a BLEU of 0."""
    values = [row[name] for row in ROWS if row[name] is not None]
    assert values
    assert all(0 < value < 1 for value in values)


def test_every_published_row_says_split_text_decoding_and_source():
    for row in ROWS:
        assert all(row[name] for name in ("split", "modes", "text", "decoding", "bertscore_model", "source")), row


def test_a_table_is_written_in_markdown():
    assert report.markdown(pd.DataFrame({"a": [1], "b": ["x"]}, index=["row"])).splitlines() == [
        "|  | a | b |", "| --- | --- | --- |", "| row | 1 | x |",
    ]  # fmt: skip


def test_the_confusion_and_the_cost_are_rebuilt_from_the_file():
    again = json.loads(json.dumps(WRITTEN))
    assert report.confusion(again).loc["MR", "CT"] == 2
    assert report.cost_table(again).loc["base", "images/s"] == 2.0
