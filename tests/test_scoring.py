"""The evaluation's tables: every test image is scored, and what is written can be read."""

import csv
import json

import pandas as pd
import pytest

from utils import scoring

TABLE = pd.DataFrame({"image_id": ["a", "b"], "caption": ["CT of the chest.", "MR, left."], "modality": ["CT", None],
                      "split": ["test", "test"]})  # fmt: skip
PREDICTIONS = pd.DataFrame({
    "image_id": ["b", "a"], "base": ["a photo", "a photo"], "tuned": ["MR, left.", 'CT, "chest"'],
    "base_logprob": [-9.0, -8.0], "tuned_logprob": [-2.0, -1.0],
})  # fmt: skip
JOINED = pd.DataFrame({"image_id": ["a", "b"], "reference": ["CT of the chest.", "MR, left."], "modality": ["CT", None],
                       "base": ["a photo", ""], "tuned": ['CT, "chest"', "MR, left."]})  # fmt: skip


def test_each_prediction_stands_beside_its_own_reference():
    joined = scoring.join_references(PREDICTIONS, TABLE)
    assert joined["image_id"].tolist() == ["a", "b"]
    assert joined["reference"].tolist() == ["CT of the chest.", "MR, left."]
    assert joined["tuned"].tolist() == ['CT, "chest"', "MR, left."]
    assert joined["tuned_logprob"].tolist() == [-1.0, -2.0]
    assert joined["modality"].iloc[0] == "CT"


def test_an_image_without_a_prediction_is_refused():
    with pytest.raises(ValueError, match=r"^1 of 2 images have no caption \(first: b\)"):
        scoring.join_references(PREDICTIONS[PREDICTIONS["image_id"] == "a"], TABLE)


def test_an_empty_prediction_is_a_prediction():
    assert scoring.join_references(PREDICTIONS.assign(tuned=""), TABLE)["tuned"].tolist() == ["", ""]


def test_three_systems_are_scored_on_the_same_images():
    summary, scored = scoring.score_systems(JOINED, "CT of the chest.")
    assert summary.index.tolist() == ["most common caption", "base", "tuned"]
    assert summary["n"].tolist() == [2, 2, 2]
    # The most common caption hits the first image and misses the second wholly; tuned hits the second.
    assert summary.loc["most common caption", "rouge_l"] == pytest.approx(0.5)
    assert summary.loc["base", "rouge_l"] == 0
    assert summary.loc["tuned", "modality_accuracy"] == 1
    assert summary.loc["base", "modality_accuracy"] == 0
    assert scored["tuned_rouge_1"].tolist() == pytest.approx([2 * 2 / (4 + 2), 1])
    assert scored["base_rouge_1"].tolist() == [0, 0]
    assert set(scoring.HEADLINE) <= set(summary.columns)
    assert not [name for name in scored.columns if name.startswith("most common")]


def test_rows_of_any_index_keep_their_own_scores():
    _, scored = scoring.score_systems(JOINED.set_axis([5, 3]), "CT.")
    assert scored.index.tolist() == [5, 3]
    assert scored.loc[3, "tuned_rouge_1"] == 1


def write(folder, joined):
    summary, scored = scoring.score_systems(joined, "CT.")
    return scoring.write_stage(folder, scored, summary, {"split": "test"})


def test_the_submission_is_the_contests_csv(tmp_path):
    write(tmp_path, JOINED)
    assert (tmp_path / "submission.csv").read_text() == 'ID,Caption\na,"CT, ""chest"""\nb,"MR, left."\n'
    with open(tmp_path / "submission.csv", newline="") as file:
        assert list(csv.reader(file)) == [["ID", "Caption"], ["a", 'CT, "chest"'], ["b", "MR, left."]]


@pytest.mark.parametrize("empty", ["reference", "tuned", "both"])
def test_the_scores_are_strict_json_even_when_nothing_was_said(tmp_path, empty):
    joined = JOINED.assign(
        **dict.fromkeys(["reference", "tuned"] if empty == "both" else [empty], ""), modality=None
    )
    write(tmp_path, joined)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    written = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert written["settings"] == {"split": "test"}
    assert list(written["scores"]) == ["most common caption", "base", "tuned"]
    assert set(scoring.HEADLINE) <= set(written["scores"]["tuned"])


def test_the_key_figures_show_base_and_tuned(tmp_path):
    figures = write(tmp_path, JOINED)
    assert figures["images"] == 2
    assert figures["modality"] == "0.00 -> 1.00"
    assert set(figures) == {"images", "cider", "modality", "all_right"}
    assert len(pd.read_parquet(tmp_path / "predictions.parquet")) == 2


def test_the_settings_hold_all_that_a_score_depends_on(tmp_path, finish):
    prepared = finish(tmp_path, "02_preprocess", files={"preprocess.json": '{"model_id": "m", "token_limit": 60}'},
                      counts={"test": 26})  # fmt: skip
    trained = finish(tmp_path, "03_train_lora", files={
        "run.json": '{"preset": "decoder"}', "adapter/adapter_model.safetensors": "abc"})  # fmt: skip
    settings = scoring.settings({"beams": 5}, prepared, trained)
    assert settings["adapter_sha256"].startswith("ba7816bf")  # of "abc", from FIPS 180-2
    wanted = {"split": "test", "images": 26, "model_id": "m", "preset": "decoder", "token_limit": 60,
              "decoding": {"beams": 5, "sampling": False}}  # fmt: skip
    assert settings | wanted == settings
