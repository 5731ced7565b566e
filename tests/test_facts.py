"""What each caption names, and which facts agree, was worked out by hand."""

import csv
import math
import re

import numpy as np
import pytest

from tests.conftest import real
from utils import facts, metrics
from utils.sample import texts
from utils.sample.phantoms import random_phantom
from utils.terms import LEXICON, modality_of, named_terms, negated_terms


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
        ("no effusion in the left lung", {"region": {"chest"}, "side": {"left"}}),
        ("A cyst, but no stone", {"finding": {"cyst"}}),
        ("No cyst on the left; a cyst on the right",
         {"finding": {"cyst"}, "side": {"left", "right"}}),
        ("", {}),
    ],
)  # fmt: skip
def test_a_caption_names_the_terms_that_a_reader_finds_in_it(caption, expected):
    assert facets(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [("no effusion or mass", {"effusion", "mass"}), ("A cyst, but no stone", {"stone"}),
     ("No cyst on the left; a cyst on the right", {"cyst"}), ("a cyst", set()), ("", set())],
)  # fmt: skip
def test_a_caption_denies_the_findings_that_it_says_are_not_there(caption, expected):
    assert negated_terms(caption) == expected


def test_every_facet_is_answered_even_by_an_empty_caption():
    assert named_terms("") == dict.fromkeys(LEXICON, frozenset())


def test_changing_an_answer_does_not_change_the_next_one():
    named_terms("a cyst")["finding"] = frozenset({"mass"})
    assert named_terms("a cyst")["finding"] == {"cyst"}


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


def test_the_lexicon_reads_out_of_the_samples_captions_what_was_drawn():
    rng = np.random.default_rng(0)
    for phantom in [random_phantom(rng) for _ in range(300)]:
        text = texts.caption(phantom, rng)
        seen = set() if phantom.finding == "normal" else {phantom.finding, phantom.side}
        expected = {phantom.modality, phantom.region} | seen
        assert set().union(*named_terms(text).values()) == expected, text


def test_facts_agree_when_exactly_the_same_terms_are_named():
    reference = "CT of the chest with a nodule on the left"
    right = facts.fact_agreement(
        [reference] * 6,
        [
            "chest CT, left nodule",
            "chest radiograph, left nodule",
            "CT of the chest and abdomen, left nodule",
            "CT of the chest, left",
            "CT of the chest, no nodule on the left",
            "CT of the chest with a nodule on the right",
        ],
    )
    wrong = [[name for name in right if not row[name]] for _, row in right.iterrows()]
    assert wrong == [
        [],
        ["modality_right", "all_right"],
        ["region_right", "all_right"],
        ["finding_right", "all_right"],
        ["finding_right", "all_right"],
        ["side_right", "all_right"],
    ]


def test_a_known_modality_replaces_the_one_read_from_the_reference():
    captions = ["a nodule", "CT, a nodule", "PET/CT, a nodule", "a nodule", "CT, a nodule"]
    right = facts.fact_agreement(["a nodule"] * 5, captions, ["CT", "CT", "PET/CT", None, float("nan")])
    assert right["modality_right"].tolist() == [False, True, True, True, False]


def test_accuracies_are_the_shares_of_images_whose_facet_is_right():
    found = facts.fact_measures(
        ["chest CT, a cyst", "brain CT", "knee", "hand"],
        ["chest X-ray, a cyst", "brain CT", "a knee", "hand, left"],
    )
    shares = {name: measure.value for name, measure in found.items() if name.endswith("accuracy")}
    assert shares == {
        "modality_accuracy": 3 / 4, "region_accuracy": 1, "finding_accuracy": 1, "side_accuracy": 3 / 4,
    }  # fmt: skip
    assert (found["all_right_share"].value, found["all_right_share"].n) == (2 / 4, 4)
    assert found["all_right_share"].each.tolist() == [0, 1, 1, 0]


def test_sides_agree_or_flip_where_the_reference_names_one():
    references = ["left", "left", "left", "bilateral", "left lung", "lung"]
    predictions = ["left", "right", "left and right", "right and left", "lung", "right"]
    found = facts.fact_measures(references, predictions)
    agree, flip = found["laterality_agreement"], found["side_flip_share"]
    nan = math.nan
    np.testing.assert_array_equal(agree.each, [1, 0, 0, 1, 0, nan])
    np.testing.assert_array_equal(flip.each, [0, 1, nan, nan, nan, nan])
    assert (agree.value, agree.n, flip.value, flip.n) == (2 / 5, 5, 1 / 2, 2)


def test_a_finding_flips_when_one_text_affirms_what_the_other_denies():
    references = ["no cyst", "a cyst, no mass", "a cyst", "no cyst", "cyst; no cyst", "cyst; no cyst", "a cyst", "a cyst"]
    predictions = ["a cyst", "a cyst, a mass", "a cyst", "no cyst", "a cyst", "no cyst", "cyst; no cyst", "a stone"]
    flip = facts.fact_measures(references, predictions)["negation_flip_share"]
    np.testing.assert_array_equal(flip.each, [1, 1, 0, 0, 0, 0, 0, math.nan])
    assert (flip.value, flip.n) == (2 / 7, 7)


def test_a_share_of_no_image_is_undefined():
    found = facts.fact_measures(["lung"], ["lung"])
    for name in ("laterality_agreement", "side_flip_share", "negation_flip_share"):
        assert math.isnan(found[name].value)
        assert found[name].n == 0


def test_the_confusion_counts_what_the_captions_name():
    table = facts.modality_confusion(
        ["CT", "CT", "CT", "PET/CT", None, "MR"],
        ["a CT", "an X-ray", "no word of it", "PET/CT", "CT", "MRI and ultrasound"],
    )
    assert table.index.tolist() == ["CT", "MR", "PET/CT"]
    assert table.loc["CT", ["CT", "X-ray", "none", "several"]].tolist() == [1, 1, 1, 0]
    assert table.loc["MR", "several"] == 1
    assert table.loc["PET/CT", "PET/CT"] == 1
    assert table.to_numpy().sum() == 5


def test_lists_that_do_not_match_are_refused():
    for score in (facts.fact_agreement, facts.fact_measures):
        with pytest.raises(ValueError, match="1 references and 2 predictions"):
            score(["a"], ["a", "b"])
        with pytest.raises(ValueError, match="1 modalities for 2 captions"):
            score(["a", "b"], ["a", "b"], ["CT"])


def real_captions():
    captions = []
    for path in sorted(real("roco_v1_text").glob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            captions += [row["caption"].strip() for row in rows]
    return captions


def test_bleu_hardly_notices_that_every_side_is_wrong():
    side = re.compile(r"\b(left|right)\b")
    references = [text for text in real_captions()
                  if len(side.findall(text)) == 1 and not re.search("(?i)bilateral|Left|Right", side.sub("", text))]
    references = references[:200]
    predictions = [side.sub(lambda m: {"left": "right", "right": "left"}[m[0]], text) for text in references]
    found = facts.fact_measures(references, predictions)
    assert len(references) == found["side_flip_share"].n == 200
    assert (found["laterality_agreement"].value, found["side_flip_share"].value) == (0, 1)
    assert metrics.bleu(references, predictions)["bleu_4"] > 0.87


def test_bleu_hardly_notices_that_every_denied_finding_is_affirmed():
    no = re.compile(r"(?i)\b(?:no|without)(?: any)?(?: (?:evidence|signs?) of)? (?=(?:\w+ )?(?:effusion|fracture"
                    r"|mass|tumou?r|lesion|metasta\w+|aneurysm|thromb\w+|nodule|calcification|stone)s?\b)")
    trigger = re.compile(r"(?i)\b(?:no|not|without|nor|neither|absence)\b")
    references = [text for text in real_captions() if no.search(text) and len(trigger.findall(text)) == 1]
    predictions = [no.sub("", text) for text in references]
    found = facts.fact_measures(references, predictions)
    assert found["negation_flip_share"].n == len(references) > 40
    # The others affirm the same finding elsewhere in the caption.
    assert found["negation_flip_share"].value > 0.9
    assert found["finding_accuracy"].value < 0.1
    assert metrics.bleu(references, predictions)["bleu_4"] > 0.86
