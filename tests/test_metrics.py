"""Every expected number here was worked out by hand from the metric's definition."""

import json
import math
import sys

import numpy as np
import pytest

from utils import metrics
from utils.sample import texts
from utils.sample.phantoms import random_phantom
from utils.terms import LEXICON, modality_of, named_terms

LUNG = "the left lung has a cyst"


def facets(caption):
    return {facet: set(terms) for facet, terms in named_terms(caption).items() if terms}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Axial CT of the chest: a nodule in the right lung.",
         {"modality": {"CT"}, "region": {"chest"}, "finding": {"nodule"}, "side": {"right"}}),
        ("an x-ray of both knees", {"modality": {"X-ray"}, "region": {"knee"}}),
        ("an mri of the brain", {"modality": {"MR"}, "region": {"brain"}}),
        ("Bilateral renal stones", {
            "region": {"abdomen"}, "finding": {"stone"}, "side": {"left", "right"}}),
        ("PET/CT", {"modality": {"PET", "CT"}}),
        ("CT angiography", {"modality": {"CT"}}),
        ("Coronary angiography", {"modality": {"angiography"}}),
        ("X-ray computed tomography", {"modality": {"CT"}}),
        ("Mr Smith and his pet", {}),
        ("the femoral head and the cystic duct", {}),
        ("a ct scan of the abdomen", {"modality": {"CT"}, "region": {"abdomen"}}),
        ("", {}),
    ],
)  # fmt: skip
def test_a_caption_names_the_terms_that_a_reader_finds_in_it(caption, expected):
    assert facets(caption) == expected


def test_every_facet_is_answered_even_by_an_empty_caption():
    assert named_terms("") == dict.fromkeys(LEXICON, frozenset())


@pytest.mark.parametrize(
    ("cuis", "expected"),
    [(["C0040405"], "CT"), (["C0817096", "C1306645"], "X-ray"), (["C1699633"], "PET/CT"),
     (["C0040405", "C0024485"], None), (["nan"], None), ([], None)],
)  # fmt: skip
def test_the_modality_comes_from_the_concepts_when_they_agree(cuis, expected):
    assert modality_of(cuis) == expected


def test_concepts_given_as_one_string_are_refused():
    with pytest.raises(TypeError, match="split them into a list"):
        modality_of("C0040405")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Chest X-ray, day 12.", "chest xray day number"),
        ("3.5 cm", "numbernumber cm"),
        ("", ""),
    ],
)
def test_captions_are_normalised_as_the_official_evaluator_does(caption, expected):
    assert metrics.normalise(caption) == expected


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


def test_rouge_counts_words_in_any_order_and_the_longest_common_subsequence():
    # ROUGE-1: 5 shared of 5 and of 6 words. ROUGE-L: "the left lung", 3 of 5 and of 6.
    score = metrics.rouge([LUNG], ["A cyst, the left lung"]).loc[0]
    assert score["rouge_1"] == pytest.approx(10 / 11)
    assert score["rouge_l"] == pytest.approx(6 / 11)


def test_rouge_does_not_stem():
    assert metrics.rouge(["cyst"], ["cysts"]).loc[0, "rouge_1"] == 0


def test_rouge_reads_normalised_captions():
    assert metrics.rouge(["X-ray, day 3"], ["xray day 14"]).loc[0, "rouge_1"] == 1


def test_cider_averages_weighted_cosines_of_one_to_four_words():
    # Every word is in one of two references, so all weigh log 2. First pair: cosines 1, 1, 0, 0.
    # Second pair: one word of two is right, cosine 1/2, then 0. The library multiplies by 10.
    mean, each = metrics.cider(["left cyst", "right mass"], ["Left cyst.", "right cyst"])
    assert each == pytest.approx([10 * 2 / 4, 10 * 0.5 / 4])
    assert mean == pytest.approx(3.125)


def test_cider_clips_repeated_words():
    # CIDEr-D: "left" twice counts once against the reference, over norms 2w and sqrt(2)w.
    _, each = metrics.cider(["left cyst", "right mass"], ["left left", "right mass"])
    assert each[0] == pytest.approx(10 / (2 * math.sqrt(2)) / 4)


def test_words_that_every_reference_holds_weigh_nothing_in_cider():
    mean, _ = metrics.cider(["ct cyst", "ct mass"], ["ct", "ct"])
    assert mean == 0


@pytest.mark.parametrize("empty", ["", " ", "..."])
def test_two_empty_captions_agree(empty):
    summary, each = metrics.score_captions([empty], [""])
    assert (summary["rouge_1"], summary["rouge_l"], summary["bleu_4"]) == (1, 1, 1)
    assert (summary["cider"], summary["length_ratio"], summary["empty_share"]) == (0, 1, 1)
    assert each.loc[0, "all_right"]


@pytest.mark.parametrize(("reference", "prediction"), [("", "a cyst"), ("a cyst", "")])
def test_an_empty_caption_against_words_scores_nothing(reference, prediction):
    summary, _ = metrics.score_captions([reference], [prediction])
    scores = [summary[name] for name in ("rouge_1", "rouge_l", "bleu_1", "cider")]
    assert scores == pytest.approx([0] * 4)


def test_facts_agree_when_exactly_the_same_terms_are_named():
    reference = "CT of the chest with a nodule on the left"
    right = metrics.fact_agreement(
        [reference] * 5,
        [
            "chest CT, left nodule",
            "chest radiograph, left nodule",
            "CT of the chest and abdomen, left nodule",
            "CT of the chest, left",
            "CT of the chest with a nodule on the right",
        ],
    )
    wrong = [[name for name in right if not row[name]] for _, row in right.iterrows()]
    assert wrong == [
        [],
        ["modality_right", "all_right"],
        ["region_right", "all_right"],
        ["finding_right", "all_right"],
        ["side_right", "all_right"],
    ]


def test_a_known_modality_replaces_the_one_read_from_the_reference():
    captions = ["a nodule", "CT, a nodule", "PET/CT, a nodule", "a nodule", "CT, a nodule"]
    right = metrics.fact_agreement(["a nodule"] * 5, captions, ["CT", "CT", "PET/CT", None, float("nan")])
    assert right["modality_right"].tolist() == [False, True, True, True, False]


def test_health_shows_short_repeated_and_empty_captions():
    health = metrics.caption_health(
        ["ct of the chest", "a cyst", "mr", "a mass"], ["a cyst", "a cyst ", "", "the mass"]
    )
    assert health == {
        "length_ratio": 6 / 9, "unique_share": 3 / 4, "empty_share": 1 / 4, "mean_words": 6 / 4,
    }  # fmt: skip


def test_the_summary_is_json_and_agrees_with_the_rows():
    summary, each = metrics.score_captions([LUNG, "chest X-ray"], [LUNG, "chest CT"], ["CT", "X-ray"])
    assert json.loads(json.dumps(summary)) == summary
    assert set(summary) == {
        "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_l", "cider",
        "modality_accuracy", "region_accuracy", "finding_accuracy", "side_accuracy",
        "all_right_share", "length_ratio", "unique_share", "empty_share", "mean_words", "n",
    }  # fmt: skip
    assert summary["rouge_1"] == pytest.approx((1 + 1 / 2) / 2)
    assert (summary["modality_accuracy"], summary["region_accuracy"]) == (0, 1)
    assert summary["n"] == len(each) == 2
    assert each["rouge_1"].tolist() == [1, 0.5]


def test_scoring_prints_nothing_and_needs_no_java(capsys):
    metrics.score_captions([LUNG], [LUNG])
    assert capsys.readouterr() == ("", "")
    java = {f"pycocoevalcap.{name}" for name in ("tokenizer", "meteor", "spice", "eval")}
    assert java.isdisjoint(sys.modules)


@pytest.mark.parametrize(
    ("references", "predictions", "message"),
    [
        (["a"], ["a", "b"], "1 references and 2 predictions"),
        ([], [], "no captions to score"),
        (["a", float("nan")], ["a", "b"], "reference number 1 is nan"),
        (["a"], [None], "prediction number 0 is None"),
    ],
)
def test_lists_that_do_not_match_are_refused(references, predictions, message):
    for score in (metrics.bleu, metrics.cider, metrics.rouge, metrics.fact_agreement,
                  metrics.caption_health, metrics.score_captions):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            score(references, predictions)


def test_modalities_of_another_length_are_refused():
    with pytest.raises(ValueError, match="1 modalities for 2 captions"):
        metrics.fact_agreement(["a", "b"], ["a", "b"], ["CT"])


def test_the_most_common_caption_ignores_outer_space_and_blanks():
    captions = ["", "", "", "Chest X-ray.", " CT.", "CT. \n", "Chest X-ray. ", "Angiogram."]
    assert metrics.most_common_caption(captions) == "CT."  # of the two with 2, first in order
    with pytest.raises(ValueError, match="no training caption"):
        metrics.most_common_caption([" "])


def test_the_confusion_counts_what_the_captions_name():
    table = metrics.modality_confusion(
        ["CT", "CT", "CT", "PET/CT", None, "MR"],
        ["a CT", "an X-ray", "no word of it", "PET/CT", "CT", "MRI and ultrasound"],
    )
    assert table.index.tolist() == ["CT", "MR", "PET/CT"]
    assert table.loc["CT", ["CT", "X-ray", "none", "several"]].tolist() == [1, 1, 1, 0]
    assert table.loc["MR", "several"] == 1
    assert table.loc["PET/CT", "PET/CT"] == 1
    assert table.to_numpy().sum() == 5


def test_the_lexicon_reads_out_of_the_samples_captions_what_was_drawn():
    rng = np.random.default_rng(0)
    for phantom in [random_phantom(rng) for _ in range(300)]:
        text = texts.caption(phantom, rng)
        seen = set() if phantom.finding == "normal" else {phantom.finding, phantom.side}
        expected = {phantom.modality, phantom.region} | seen
        assert set().union(*named_terms(text).values()) == expected, text
