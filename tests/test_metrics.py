"""Every expected number here was worked out by hand from the metric's definition."""

import math
import subprocess
import sys

import numpy as np
import pytest

from utils import metrics

LUNG = "the left lung has a cyst"


def measures(references, predictions):
    return metrics.overlap_measures(references, {"tuned": predictions})["tuned"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Chest X-ray, day 12.", "chest xray day number"),
        ("3.5 cm", "numbernumber cm"),
        ("T2-weighted MRI (1.5T)", "tnumberweighted mri numbernumbert"),
        ("10,000 vs. 64-year-old", "numbernumber vs numberyearold"),
        (" Lesion\n 2×3  mm ", " lesion\n number×number  mm "),
        ("“left” – µm", "“left” – µm"),
        ("", ""),
    ],
)
def test_captions_are_normalised_as_the_official_evaluator_does(caption, expected):
    assert metrics.normalise(caption) == expected


def test_raw_words_keep_case_and_part_punctuation():
    assert metrics.raw_words("CT (3.5 cm), R&amp;L.") == ["CT", "(", "3.5", "cm", ")", ",", "R", "&", "L", "."]


def test_bleu_multiplies_the_precisions_of_one_to_four_words():
    # Words 5/6, pairs 3/5, triples 2/4, quadruples 1/3; equal length, so no brevity penalty.
    scores = metrics.bleu([LUNG], ["The RIGHT lung has a cyst."])
    expected = [5 / 6, (1 / 2) ** (1 / 2), (1 / 4) ** (1 / 3), (1 / 12) ** (1 / 4)]
    assert list(scores) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4"]
    assert list(scores.values()) == pytest.approx(expected, abs=1e-6)


def test_bleu_pools_counts_over_the_corpus_and_punishes_short_captions():
    # (4 + 5) of (4 + 6) words match, 10 words written for 13.
    scores = metrics.bleu(
        ["ct of the chest with a nodule", LUNG],
        ["ct of the chest", "the right lung has a cyst"],
    )
    assert scores["bleu_1"] == pytest.approx(0.9 * math.exp(1 - 13 / 10), abs=1e-6)


def test_bleu_counts_a_repeated_word_as_often_as_the_reference_has_it():
    assert metrics.bleu(["left cyst"], ["left left left"])["bleu_1"] == pytest.approx(1 / 3)


def test_raw_scores_see_the_case_and_the_stop_that_official_scores_do_not():
    # Raw words: Axial CT . against axial CT : 1 of 2 match, 2 written for 3.
    scores = measures(["Axial CT."], ["axial CT"])
    assert scores["bleu_1"].value == pytest.approx(1)
    assert scores["bleu_1_raw"].value == pytest.approx(0.5 * math.exp(1 - 3 / 2))


def test_rouge_counts_words_in_any_order_and_the_longest_common_subsequence():
    # ROUGE-1: 5 shared of 5 and of 6 words. ROUGE-L: "the left lung", 3 of 5 and of 6.
    score = metrics.rouge([LUNG], ["A cyst, the left lung"]).loc[0]
    assert score["rouge_1"] == pytest.approx(10 / 11)
    assert score["rouge_l"] == pytest.approx(6 / 11)


def test_rouge_does_not_stem():
    assert metrics.rouge(["cyst"], ["cysts"]).loc[0, "rouge_1"] == 0


def test_rouge_reads_normalised_captions_and_raw_rouge_the_captions_as_written():
    assert metrics.rouge(["X-ray, day 3"], ["xray day 14"]).loc[0, "rouge_1"] == 1
    scores = measures(["X-ray, day 3"], ["xray day 14"])
    assert (scores["rouge_1"].value, scores["rouge_1_raw"].value) == (1, pytest.approx(2 / 7))


def test_cider_averages_weighted_cosines_of_one_to_four_words():
    # Every word is in one of two references, so all weigh log 2. First pair: cosines 1, 1, 0, 0.
    # Second pair: one word of two is right, cosine 1/2, then 0. The scale is 10.
    mean, each = metrics.cider(["left cyst", "right mass"], ["Left cyst.", "right cyst"])
    assert each == pytest.approx([10 * 2 / 4, 10 * 0.5 / 4])
    assert mean == pytest.approx(3.125)


def test_cider_clips_repeated_words_and_plain_cider_does_not():
    # "left" twice counts once against the reference, over norms 2w and sqrt(2)w.
    scores = measures(["left cyst", "right mass"], ["left left", "right mass"])
    assert scores["cider"].each[0] == pytest.approx(10 / (2 * math.sqrt(2)) / 4)
    assert scores["cider_plain"].each[0] == pytest.approx(10 * 2 / (2 * math.sqrt(2)) / 4)


def test_cider_punishes_another_length_and_plain_cider_does_not():
    # Two of three words and one of two pairs match; "now" is in no reference and weighs log 2 too.
    scores = measures(["left cyst", "right mass"], ["left cyst now", "right mass"])
    cosines = 2 / math.sqrt(2 * 3) + 1 / math.sqrt(2)
    assert scores["cider_plain"].each[0] == pytest.approx(10 * cosines / 4)
    assert scores["cider"].each[0] == pytest.approx(10 * cosines / 4 * math.exp(-1 / 72))


def test_words_that_every_reference_holds_weigh_nothing_in_cider():
    mean, _ = metrics.cider(["ct cyst", "ct mass"], ["ct", "ct"])
    assert mean == 0


def test_chrf_averages_precision_and_recall_over_the_lengths_that_occur():
    # Letters 2 of 2 and of 3, pairs 1 of 1 and of 2; the reference's triple has no counterpart.
    score = measures(["a b c"], ["ab"])["chrf"]
    precision, recall = 1, (2 / 3 + 1 / 2) / 2
    expected = 5 * precision * recall / (4 * precision + recall)
    assert (score.value, score.each[0]) == (pytest.approx(expected), pytest.approx(expected))


def test_chrf_leaves_out_of_precision_what_the_reference_is_too_short_for():
    # First image: one letter for a triple, so that its pairs and its triple do not count. Second: all right.
    score = measures(["a", "bcd"], ["axy", "bcd"])["chrf"]
    precision, recall = (4 / 6 + 2 / 2 + 1 / 1) / 3, 1
    assert score.value == pytest.approx(5 * precision * recall / (4 * precision + recall))


def test_the_measures_of_a_system_are_named_and_valued_on_every_image():
    scores = measures([LUNG, "a mass"], [LUNG, "a nodule"])
    names = ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider", "cider_plain", "rouge_1", "rouge_l", "chrf"]
    assert list(scores) == names + [f"{name}_raw" for name in names]
    assert {measure.n for measure in scores.values()} == {2}
    assert [name for name in names if scores[name].each is None] == names[:4]
    assert scores["rouge_1"].each.tolist() == [1, 0.5]


def test_systems_are_scored_apart_from_each_other():
    references, other = [LUNG, "ct of the chest"], ["a chest ct", "a cyst"]
    both = metrics.overlap_measures(references, {"base": other, "tuned": references})
    for system, predictions in (("base", other), ("tuned", references)):
        alone = measures(references, predictions)
        assert {name: score.value for name, score in both[system].items()} == pytest.approx(
            {name: score.value for name, score in alone.items()}
        )


@pytest.mark.parametrize("empty", ["", " ", "..."])
def test_two_empty_captions_agree(empty):
    scores = measures([empty], [""])
    assert [scores[name].value for name in ("rouge_1", "rouge_l", "bleu_4", "chrf", "cider", "cider_plain")] == [
        1, 1, 1, 1, 10, 10,
    ]  # fmt: skip
    assert metrics.cider([empty, LUNG], ["", ""])[1].tolist() == [10, 0]


@pytest.mark.parametrize(("reference", "prediction"), [("", "a cyst"), ("a cyst", "")])
def test_an_empty_caption_against_words_scores_nothing(reference, prediction):
    scores = measures([reference], [prediction])
    assert [score.value for score in scores.values()] == pytest.approx([0] * 18, abs=1e-5)


@pytest.mark.slow
def test_scoring_prints_nothing_and_needs_neither_java_nor_torch():
    code = f"""
import sys
from utils import metrics
metrics.overlap_measures([{LUNG!r}], {{"tuned": [{LUNG!r}]}})
assert not {{"torch", "pycocoevalcap", "transformers"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        (["a"], ["a", "b"], "1 references and 2 predictions"),
        ([], [], "no captions to score"),
        (["a", float("nan")], ["a", "b"], "1 of 2 references are not text, but e.g. number 1 is nan"),
        (["a"], [None], "1 of 1 predictions are not text, but e.g. number 0 is None"),
        ("ab", "ab", "references are one string"),
    ],
)
def test_lists_that_do_not_match_are_refused(references, predictions, message):
    for score in (metrics.bleu, metrics.cider, metrics.rouge, measures):
        with pytest.raises(ValueError, match=message):
            score(references, predictions)


def test_columns_of_a_table_and_arrays_are_read_like_lists():
    column = np.array([LUNG, "a mass"], dtype=object)
    assert metrics.bleu(column, column)["bleu_1"] == pytest.approx(1)


def test_the_most_common_caption_ignores_outer_space_and_blanks():
    captions = ["", "", "", "Chest X-ray.", " CT.", "CT. \n", "Chest X-ray. ", "Angiogram."]
    assert metrics.most_common_caption(captions) == "CT."  # of the two with 2, first in order
    with pytest.raises(ValueError, match="no training caption"):
        metrics.most_common_caption([" "])
