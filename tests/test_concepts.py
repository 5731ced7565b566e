"""Which concepts a caption names was written down by a reader; every share was counted by hand."""

import math

import numpy as np
import pytest

from utils.concepts import ConceptNames, concept_errors, concept_measures

CT, XRAY, ANGIO, PETCT, PET = "C0040405", "C1306645", "C0002978", "C1699633", "C0032743"
NAMES = ConceptNames({
    CT: "X-Ray Computed Tomography", XRAY: "Plain x-ray", ANGIO: "angiogram", PETCT: "PET/CT scan",
    PET: "Positron-Emission Tomography", "nodule": "Nodule", "lung nodule": "Nodule of lung", "lung": "Lung",
    "mass": "Mass", "effusion": "Pleural effusion", "ms": "MS", "pelvis": "PELVIS", "hip": "Hip",
    "t2": "T2 weighted imaging", "lens": "Lens", "another lens": "Lens", "crohn": "Crohn's disease",
    "dexa": "Dual-Energy X-Ray Absorptiometry",
})  # fmt: skip


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A nodule of lung.", {"lung nodule"}),
        ("NODULES in both Lungs", {"nodule", "lung"}),
        ("A nodule. Of lung tissue", {"nodule", "lung"}),
        ("masses of the pelvis and the hips", {"mass", "pelvis", "hip"}),
        ("two lungless nodulations, a chip", set()),
        ("plaques of MS", {"ms"}),
        ("ms", set()),
        ("T2-weighted imaging", {"t2"}),
        ("t2-weighted imaging", set()),
        ("the lens", {"lens", "another lens"}),
        ("Crohn’s disease", {"crohn"}),
        ("dual-energy x-ray absorptiometry", {"dexa", XRAY}),
        ("", set()),
    ],
)
def test_a_caption_names_the_concepts_that_a_reader_finds_in_it(caption, expected):
    assert NAMES.mentions(caption) == (expected, set())


@pytest.mark.parametrize(
    ("caption", "expected"),
    [("axial ct scan", {CT}), ("chest radiograph", {XRAY}), ("CT angiogram", {CT}),
     ("Coronary angiogram", {ANGIO}), ("PET/CT", {PETCT}), ("PET", {PET}), ("no CT was done", {CT}),
     ("no plain x-ray", {XRAY}),     ("X-ray computed tomography", {CT})],
)  # fmt: skip
def test_modalities_are_read_by_the_lexicon(caption, expected):
    assert NAMES.mentions(caption) == (expected, set())


def test_without_a_concept_for_both_its_parts_are_named():
    names = ConceptNames({CT: "X-Ray Computed Tomography", PET: "Positron-Emission Tomography"})
    assert names.mentions("PET/CT")[0] == {CT, PET}


def test_denied_concepts_are_told_apart():
    assert NAMES.mentions("A nodule, but no pleural effusion or mass") == ({"nodule"}, {"effusion", "mass"})
    assert NAMES.mentions("no mass in the lung") == ({"lung"}, {"mass"})
    assert NAMES.mentions("no mass; a mass") == ({"mass"}, {"mass"})


def test_a_concept_without_a_name_is_refused():
    with pytest.raises(ValueError, match="C01 has the name '-', without a word"):
        ConceptNames({"C01": "-"})


# Own and named: {nodule, lung} and {nodule, mass}; {hip} and none; none counts; {lens} and {lens, ...}.
REFERENCES = ["a nodule", "hip", "a mass", "the lens"]
PREDICTIONS = ["a nodule and a mass", "no hip", "a mass", "MS"]
CUIS = [["nodule", "lung", "unnamed"], ["hip"], ["unnamed"], ["ms"]]


def test_precision_and_recall_pool_the_concepts_of_the_images_that_have_any():
    found = concept_measures(REFERENCES, PREDICTIONS, CUIS, NAMES)
    # Right: nodule and ms. Named: nodule, mass, ms. Own: nodule, lung, hip, ms.
    assert {name: found[f"concept_{name}"].value for name in ("precision", "recall", "f1")} == pytest.approx(
        {"precision": 2 / 3, "recall": 2 / 4, "f1": 4 / 7}
    )
    np.testing.assert_allclose(found["concept_f1"].each, [2 / 4, 0, math.nan, 1])
    assert [measure.n for measure in found.values()] == [3, 3, 3, 4]


def test_a_replicate_pools_the_images_as_often_as_they_were_drawn():
    f1 = concept_measures(REFERENCES, PREDICTIONS, CUIS, NAMES)["concept_f1"]
    # First and last image twice; the second alone, which names nothing.
    counts = np.array([[2.0, 0, 0, 2], [0, 4, 0, 0]])
    assert f1.resampled(counts) == pytest.approx([2 * 4 / (6 + 6), 0])


def test_invented_is_what_neither_the_image_nor_the_reference_has():
    invented = concept_measures(
        ["a nodule", "no mass", "lens", "hip"],
        ["a nodule", "a mass", "no mass", "hip, pelvis"],
        [["hip"], ["hip"], ["lens"], ["hip", "pelvis"]],
        NAMES,
    )["invented_share"]
    assert invented.each.tolist() == [0, 1, 0, 0]
    assert invented.value == 1 / 4


def test_a_corpus_without_concepts_agrees():
    found = concept_measures(["a scar"], ["a scar"], [[]], NAMES)
    assert [measure.value for measure in found.values()] == [1, 1, 1, 0]
    assert found["concept_f1"].n == 0


def test_an_image_whose_concepts_are_all_left_out_scores_nothing():
    found = concept_measures(["hip"], ["no hip"], [["hip"]], NAMES)
    assert [measure.value for measure in found.values()] == [0, 0, 0, 0]


def test_errors_are_listed_by_name():
    cuis = [["nodule", "lung", "unnamed"], ["t2", "pelvis", "lung", "hip", "mass"], *CUIS[2:]]
    table = concept_errors(REFERENCES, PREDICTIONS, cuis, NAMES)
    assert table["missed"].tolist() == ["Lung", "Hip, Lung, Mass, PELVIS, T2 weighted imaging", "", ""]
    assert table["invented"].tolist() == ["Mass", "", "", ""]


@pytest.mark.parametrize(
    ("cuis", "message"),
    [([["hip"]], "ids of 1 images for 2 captions"), ([["hip"], "C1;C2"], "number 1, 'C1;C2'"),
     ([None, ["hip"]], "number 0, None")],
)  # fmt: skip
def test_concepts_that_are_not_a_list_for_each_image_are_refused(cuis, message):
    with pytest.raises(ValueError, match=message):
        concept_measures(["a", "b"], ["a", "b"], cuis, NAMES)


def test_lists_that_do_not_match_are_refused():
    for score in (concept_measures, concept_errors):
        with pytest.raises(ValueError, match="1 references and 2 predictions"):
            score(["a"], ["a", "b"], [[]], NAMES)
