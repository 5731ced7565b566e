"""The evaluation: four systems on the same images, paired intervals, and a file that holds every figure."""

import json

import numpy as np
import pandas as pd
import pytest

from utils import captioned, metrics, scoring
from utils.predictions import PredictionError

TEST = pd.DataFrame({
    "image_id": ["a", "b", "c"], "caption": ["CT of the chest with a nodule.", "MR, left cyst.", "No effusion."],
    "modality": ["CT", None, float("nan")], "cuis": [["C0040405", "C0028259"], ["C0024485"], []],
    "mode": ["RGB", "RGB", "L"], "chroma": [0, 40, None],
})  # fmt: skip
TRAIN = pd.DataFrame({"image_id": ["t1", "t2", "t3"], "caption": ["CT of the chest.", "MR, left cyst.", "CT of the chest."]})
NEAREST = pd.DataFrame({"image_id": ["a", "b", "c"], "train_id": ["t3", "t2", "t1"], "similarity": [0.9, 0.8, 0.7]})
PREDICTIONS = pd.DataFrame({
    "image_id": ["c", "a", "b"], "base": ["a photo", "", "a photo"],
    "tuned": ["Effusion.", "CT of the chest with a nodule.", "MR, right cyst."],
    **{f"{s}_logprob": [-3.0, -1.0, -2.0] for s in ("base", "tuned")},
    **{f"{s}_token_logprobs": [[-1.0, -2.0], [-1.0], [-1.0, -1.0]] for s in ("base", "tuned")},
    "base_cut": [False, False, True], "tuned_cut": [False] * 3,
})  # fmt: skip
NAMES = pd.DataFrame({"CUI": ["C0040405", "C0024485", "C0028259", "C0010709"],
                      "Canonical name": ["X-Ray Computed Tomography", "Magnetic Resonance Imaging", "Nodule", "Cyst"]})  # fmt: skip


def joined(**changes):
    return captioned.join(TEST, PREDICTIONS.assign(**changes), NEAREST, TRAIN)


@pytest.fixture(autouse=True, scope="module")
def no_java():
    """As on a machine without it: the program takes seconds to start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.meteor.shutil.which", lambda name: None)
        yield


@pytest.fixture(scope="module")
def scores(no_java):
    """Measures with concepts, without BERTScore and METEOR."""
    return scoring.measures_of(joined(), scoring.concept_names(NAMES), "not computed: BERTSCORE is None")


def test_what_every_system_says_stands_beside_its_own_reference():
    table = joined()
    assert table["image_id"].tolist() == ["a", "b", "c"]
    assert table["tuned"].tolist() == ["CT of the chest with a nodule.", "MR, right cyst.", "Effusion."]
    assert table["nearest"].tolist() == ["CT of the chest.", "MR, left cyst.", "CT of the chest."]
    assert table["common"].tolist() == ["CT of the chest."] * 3
    assert table["modality"].tolist() == ["CT", None, None]
    assert table["colour"].tolist() == ["RGB, grey pixels", "RGB, colour", "L"]
    assert table["tuned_logprob"].tolist() == [-1.0, -2.0, -3.0]


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (PREDICTIONS[:2], "1 test images have no caption: b"),
        (pd.concat([PREDICTIONS, PREDICTIONS[:1]]), "1 ids have more than one caption: c"),
        (PREDICTIONS.assign(image_id=["c", "a", "x"]), "1 ids are not in the test split: x"),
        (PREDICTIONS.assign(tuned=["A", None, "B"]), "1 captions are no texts: a"),
    ],
)
def test_predictions_that_are_not_one_text_an_image_are_refused(predictions, message):
    with pytest.raises(PredictionError, match=message):
        captioned.join(TEST, predictions, NEAREST, TRAIN)


def test_an_empty_caption_of_a_model_is_scored_and_not_refused():
    assert joined()["base"].tolist()[0] == ""


def test_all_systems_are_scored_by_the_same_metrics_on_the_same_images(scores):
    measures, missing = scores
    assert list(measures) == ["most common caption", "nearest image", "base", "tuned"]
    assert measures["nearest image"]["rouge_l"].each.tolist()[1] == 1
    assert measures["tuned"]["modality_accuracy"].value == 1
    assert measures["tuned"]["side_flip_share"].value == 1  # of the one that names a side
    assert measures["tuned"]["negation_flip_share"].each.tolist() == [0, 0, 1]
    assert measures["base"]["empty_share"].value == pytest.approx(1 / 3)
    assert missing["meteor"].startswith("not computed: METEOR 1.5 needs Java, which is not installed")
    assert missing["bertscore_f1"] == missing["bertscore_f1_idf"] == "not computed: BERTSCORE is None"


def test_without_concept_names_the_row_says_what_to_do():
    measures, missing = scoring.measures_of(joined(), None, "not computed: BERTSCORE is None")
    assert "concept_f1" not in measures["tuned"]
    assert missing["concept_f1"] == "not computed: the source has no cui_mapping.csv; set CUI_MAPPING to ROCOv2's"


def test_a_figure_has_its_interval_and_undefined_is_none():
    drawn = np.arange(101) / 100
    assert scoring.figure("rouge_l", 0.4, drawn, 7) == {
        "value": 0.4, "low": pytest.approx(0.025), "high": pytest.approx(0.975), "n": 7,
    }  # fmt: skip
    assert scoring.figure("chrf", 0.5, np.empty(0), 7)["low"] is None
    undefined = {"value": None, "low": None, "high": None}
    assert scoring.figure("side_flip_share", np.nan, np.array([np.nan]), 3) == undefined | {"n": 3}
    assert scoring.figure("concept_f1", 1.0, drawn, 0) == undefined | {"n": 0}


def test_ciders_interval_lies_around_its_value():
    """Its replicates lie beside it, and a share centred in the same way ended above 1."""
    drawn = np.arange(101) / 100
    assert scoring.figure("cider_raw", 3.5, drawn, 7)["low"] == pytest.approx(3.025)
    assert scoring.figure("all_right_share", 0.9, drawn, 7)["high"] <= 1


def test_the_difference_is_paired():
    """Two systems that are equally wrong on each image differ by nothing, however wide their intervals."""
    table = joined(base=PREDICTIONS["tuned"])
    measures, missing = scoring.measures_of(table, None, "none")
    found = scoring.evaluate(table, measures, missing, 50, seed=1)
    assert found["tuned_minus"]["base"]["rouge_l"] == {"value": 0.0, "low": 0.0, "high": 0.0, "n": 3}
    assert found["scores"]["tuned"]["rouge_l"]["high"] > found["scores"]["tuned"]["rouge_l"]["low"]


def test_metrics_json_is_strict_json_with_groups_and_published_rows(scores):
    found = scoring.evaluate(joined(), *scores, 20, seed=0)

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    again = json.loads(json.dumps(found), parse_constant=refuse)
    assert again == found
    assert list(again["groups"]["modality"]["tuned"]) == ["CT", "unknown"]
    assert again["groups"]["modality"]["tuned"]["unknown"]["rouge_l"]["n"] == 2
    assert again["groups"]["colour"]["base"]["L"]["rouge_l"]["value"] == 0
    assert again["most_common_caption"] == "CT of the chest."
    assert again["tuned_minus"]["base"]["side_flip_share"]["n"] == 0  # base names no side: nothing to compare
    assert again["confusion"]["CT"]["CT"] == 1
    assert len(again["published"]) == 7


def test_the_mean_over_groups_is_the_whole(scores):
    found = scoring.evaluate(joined(), *scores, 0, seed=0)
    for by in scoring.GROUPS:
        groups = found["groups"][by]["tuned"].values()
        total = sum(figures["rouge_l"]["value"] * figures["rouge_l"]["n"] for figures in groups)
        assert total / 3 == pytest.approx(found["scores"]["tuned"]["rouge_l"]["value"])


def test_without_resamples_there_are_values_and_no_intervals(scores):
    found = scoring.evaluate(joined(), *scores, 0, seed=0)["scores"]["tuned"]["bleu_1"]
    expected = metrics.bleu(TEST["caption"].tolist(), joined()["tuned"].tolist())["bleu_1"]
    assert found == {"value": pytest.approx(expected), "low": None, "high": None, "n": 3}


def test_each_caption_keeps_its_own_scores_and_errors(scores):
    scored = captioned.per_caption(joined().set_axis([7, 3, 5]), scores[0], scoring.concept_names(NAMES))
    assert scored.index.tolist() == [7, 3, 5]
    assert scored["tuned_all_right"].tolist() == [True, False, False]
    assert scored["tuned_side_flip"].tolist()[1] == 1
    assert scored["base_side_flip"].isna().all()  # it names no side
    assert scored["tuned_invented"].tolist() == [False, False, False]
    assert scored["base_missed_concepts"].tolist()[1] == "Magnetic Resonance Imaging"
    assert scored["tuned_concept_f1"].tolist()[0] == 1
    assert not [name for name in scored if name.startswith(("common_", "nearest_"))]


def test_the_captions_to_read_are_the_best_the_worst_and_some_by_chance():
    table = pd.DataFrame({"image_id": list("abcdef"), "tuned_cider": [3, 1, 9, 5, 0, 2]})
    found = captioned.chosen(table, 2, seed=0)
    assert [rows["image_id"].tolist() for rows in found.values()][:2] == [["c", "d"], ["e", "b"]]
    assert found["Random"].equals(captioned.chosen(table, 2, seed=0)["Random"])
    assert len(captioned.chosen(table, 50, seed=0)["Random"]) == 6


def test_the_settings_hold_all_that_a_score_depends_on(tmp_path, finish):
    prepared = finish(tmp_path, "02_preprocess", files={"preprocess.json": json.dumps(
        {"model_id": "m", "token_limit": 60, "source": "sample", "image_modes": ["RGB"], "model_revision": None})},
        counts={"test": 26})  # fmt: skip
    trained = finish(tmp_path, "03_train_lora", files={
        "run.json": '{"preset": "decoder"}', "adapter/adapter_model.safetensors": "abc"})  # fmt: skip
    settings = scoring.settings({"beams": 5, "bertscore": "auto"}, prepared, trained)
    assert settings["adapter_sha256"].startswith("ba7816bf")  # of "abc", from FIPS 180-2
    wanted = {"split": "test", "images": 26, "source": "sample", "image_modes": ["RGB"], "model_id": "m",
              "preset": "decoder", "token_limit": 60, "bertscore_model": "microsoft/deberta-xlarge-mnli",
              "decoding": {"beams": 5, "bertscore": "auto", "sampling": False}}  # fmt: skip
    assert settings | wanted == settings
