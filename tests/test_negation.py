"""What each caption denies was written down by a reader."""

import pytest

from utils.negation import is_negated, negated_spans


def denied(caption):
    return [caption[start:end].strip() for start, end in negated_spans(caption)]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("Chest CT: no effusion.", ["effusion"]),
        ("no evidence of fracture or dislocation", ["fracture or dislocation"]),
        ("without any signs of pneumonia", ["pneumonia"]),
        ("No nodule, effusion, or enlarged node; a hernia", ["nodule, effusion, or enlarged node"]),
        ("No effusion, the heart is enlarged", ["effusion"]),
        ("no stone, but a cyst of 2.5 cm", ["stone"]),
        ("absence of gas in the colon", ["gas"]),
        ("no 2.5 cm mass", ["2.5 cm mass"]),
        ("The lungs are free of nodules", ["nodules"]),
        ("negative for embolism", ["embolism"]),
        ("neither a mass nor a cyst", ["a mass nor a cyst", "a cyst"]),
        ("the scan does not show a fracture", ["a fracture"]),
        ("failed to show the leak", ["the leak"]),
        ("MRI: complete resolution of the abscess", ["the abscess"]),
        ("non-calcified nodule", ["non-calcified"]),
        ("no effusion or evidence of pneumonia", ["effusion or evidence of pneumonia"]),
        ("NO STONE BUT A CYST", ["STONE"]),
    ],
)
def test_a_denial_reaches_to_the_end_of_what_is_denied(caption, expected):
    assert denied(caption) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("An effusion was not seen.", ["An effusion"]),
        ("the stent is patent and the leak is no longer visible", ["the leak"]),
        ("CT shows the haematoma has completely resolved", ["the haematoma"]),
        ("The rim of the mass is absent", ["The rim"]),
        ("on MRI, a fracture was ruled out", ["a fracture"]),
        ("on MRI the mass has resolved", ["on MRI the mass"]),
        ("pneumothorax cannot be seen", ["pneumothorax"]),
        ("a mass, which disappeared", [""]),
    ],
)
def test_a_denial_after_its_subject_reaches_back_to_it(caption, expected):
    assert denied(caption) == expected


@pytest.mark.parametrize(
    "caption",
    [
        "CT without IV contrast shows a mass",
        "A tear cannot be excluded",
        "angiogram to rule out an aneurysm",
        "The calcification was excluded from the count",
        "not only a cyst",
        "a hernia (not shown)",
        "near-complete resolution of the oedema",
        "The mass has largely disappeared",
        "The leak was not seen on earlier scans",
        "noted nodules",
        "",
    ],
)
def test_what_looks_like_a_denial_denies_nothing(caption):
    assert denied(caption) == []


def test_the_place_where_something_is_absent_is_there():
    caption = "no flow in the aneurysm"
    spans = negated_spans(caption)
    assert is_negated(caption.index("flow"), spans)
    assert not is_negated(caption.index("aneurysm"), spans)
