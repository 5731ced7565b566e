"""Cleaning changes spaces and nothing else; cutting keeps the end of the sequence."""

import csv
import random
import re
import unicodedata

import pytest

from tests.conftest import real
from utils.captions import (
    LONG_WORDS,
    RULES,
    clean,
    cut,
    remarks,
    tidy,
    token_ids,
    token_limit,
    tokenise,
    words,
)

NEWLINE = 50118
UNSEEN = "\u00ad\u200b\u2060\u2061\u2062\u2063\u2064\ufeff"


class Words:
    """A tokenizer that numbers words by their length, and that would add a BOS unless told not to."""

    def __call__(self, text, add_special_tokens=True, split_special_tokens=False, return_attention_mask=True):
        if not isinstance(text, str):
            return {"input_ids": [[2] * add_special_tokens + [len(w) for w in one.split()] for one in text]}
        return {"input_ids": [2] * add_special_tokens + [len(word) for word in text.split()]}


@pytest.fixture(scope="module")
def roco():
    """The 12,487 real ROCO captions as they were published."""
    originals = []
    for path in sorted(real("roco_v1_text").glob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            originals += [r["caption"] for r in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    assert len(originals) == 12487
    return originals


@pytest.fixture(scope="module")
def rocov2():
    """The 215 real captions of two ROCOv2 excerpts, longer and rougher than ROCO's."""
    paths = [real("rocov2_excerpt") / "test_captions.csv", *real("radiology_mini").glob("*_captions.csv")]
    originals = []
    for path in sorted(paths):
        with open(path, encoding="utf-8", newline="") as file:
            originals += [row["Caption"] for row in csv.DictReader(file)]
    assert len(originals) == 215
    return originals


@pytest.fixture(scope="module")
def opt(tmp_path_factory):
    """OPT's real tokenizer, loaded as the notebooks load a model's."""
    from transformers import GPT2Tokenizer

    from utils.model import load_tokenizer

    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    folder = str(tmp_path_factory.mktemp("opt"))
    GPT2Tokenizer.from_pretrained(real("opt_tokenizer"), **names).save_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.is_fast
    assert tokenizer("Hello world\n", add_special_tokens=False)["input_ids"] == [31414, 232, NEWLINE]
    return tokenizer


def without_spaces(text):
    """The text as published, without spaces and the characters that nobody sees."""
    text = re.sub(f"[{UNSEEN}\u115f]", "", text)
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text))


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("  CT of the chest. ", "CT of the chest."),
        ("CT\tof\r\nthe\u2009chest\u00a0.", "CT of the chest ."),
        ("Ro\u0308ntgen", "R\u00f6ntgen"),
        (
            "A lesion in the lung.The arrow shows it.Follow-up",
            "A lesion in the lung. The arrow shows it. Follow-up",
        ),
        ("", ""),
    ],
)
def test_spaces_are_single_letters_composed_and_glued_sentences_parted(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    "caption",
    ["a mass of 3.5 cm", "e.g.The arrow", "T2.Axial", "T1w.FLAIR", "the left.right", "No. 5.A", "lung.the",
     "see www.example.org.The page", "https://doi.org/ab.Cd", "HTTP://site.Org", "Dr.Smith", "\u201cspicules\u201d \u2013 2 \u00d7 3 mm",
     "\ufffd 38 \u00b0C", "x < 5 & y", "RGB.Png"],
)  # fmt: skip
def test_what_is_not_surely_glued_stays_as_it_is(caption):
    assert clean(caption) == caption


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("CT scanThe arrow", "CT scan The arrow"),
        ("CT of the abdomenComputed tomography", "CT of the abdomen Computed tomography"),
        ("the left atriumAbbreviations: CS", "the left atrium Abbreviations: CS"),
        ("x-rayArrows pointing", "x-ray Arrows pointing"),
    ],
)
def test_a_title_that_runs_into_the_text_is_parted_from_it(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    "caption",
    ["a MitraClip", "SpaceOAR", "SARS-CoV-2", "99mTc", "5 mmHg", "McRae line", "TomoTherapy", "EndNote",
     "the MultiAxial screw", "on admissionA 9-mm mass", "at vertebraLt", "CTThis", "a breaTheN", "a TeleflexArrow set", "InThe"],
)  # fmt: skip
def test_words_with_a_capital_inside_stay_whole(caption):
    assert clean(caption) == caption


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("Figure 1:MRI", "Figure 1: MRI"),
        ("Figure 12:Liver", "Figure 12: Liver"),
        ("Figure 2:A", "Figure 2: A"),
    ],
)
def test_the_number_of_a_figure_is_parted_from_its_text(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    "caption",
    ["a ratio of 2:1", "Nd:YAG", "Points:S (Sella)", "at 2:00", "Figure 1:2", "C:-600", "stage 3:Lung"],
)
def test_other_colons_stay(caption):
    assert clean(caption) == caption


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("3.1 cm.CT: computed", "3.1 cm. CT: computed"),
        ("the image.A large mass", "the image. A large mass"),
        ("the wrist.PA chest", "the wrist. PA chest"),
        ("tissues.SM=submucosa", "tissues. SM=submucosa"),
        ("the spine.T2-weighted", "the spine. T2-weighted"),
        ("op\u00e9r\u00e9e.\u00c9chographie", "op\u00e9r\u00e9e. \u00c9chographie"),
        ("600 \u00b5m.Note: thin", "600 \u00b5m. Note: thin"),
        ("8 kg.Fig. 1", "8 kg. Fig. 1"),
        ("et al.The lung.CT.Notes end.", "et al. The lung. CT. Notes end."),
    ],
)
def test_a_sentence_that_opens_without_a_space_gets_one(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    "caption",
    ["120 mm.Hg", "10 cm.H2O", "5 mmol.L", "5 mmol.L-1", "37 deg.C", "2 mg.Kg", "20 mSv.Gy", "vitamin.D level",
     "scan.TIF", "scan.Jpeg", "(MRI.tif)", "the lung.A", "Optisort.Com", "a Foo.Bar.baz", "a Foo.Bar/x", "a Foo.Bar_x",
     "U.W.The", "widening.. Heart"],
)  # fmt: skip
def test_units_files_and_initials_stay_whole(caption):
    assert clean(caption) == caption


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("(arrow).The lung", "(arrow). The lung"),
        ("(arrow).B: coronal", "(arrow). B: coronal"),
        ("(LA).LA: left atrium", "(LA). LA: left atrium"),
        ("seen under TEM.The virion", "seen under TEM. The virion"),
        ("enhanced CT.Notes: none", "enhanced CT. Notes: none"),
        ("MRI of patient 2.Axial scan", "MRI of patient 2. Axial scan"),
        ("Figs. 1\u20135.Figs. 6", "Figs. 1\u20135. Figs. 6"),
    ],
)
def test_a_sentence_after_a_bracket_capitals_or_a_number_gets_a_space(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    "caption",
    ["(Nasion),GO", "(arrow).then", "36).(A)", "(arrow)CT", "T-SPOT.TB", "I.R.M du poignet", "C.T scan", "MRI.A scan",
     "R.E.N.A.L. score", "(31.A2)", "level B3.Fifty", "MAG3.Note", "1.5.The", "2.8,Axial", "lesion 2.AB", "day 26Follow-up",
     "18Fluorodeoxyglucose", "pH 7.4", "CO2", "Fig.1", "3.5cm", 'withdrawn."Left"', "M.Sc", "A,B", "(scan).TIF"],
)  # fmt: skip
def test_what_looks_like_a_sentence_and_is_a_code_stays_whole(caption):
    assert clean(caption) == caption


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("the lung.The http://a.org/ab.Cd end.The", "the lung. The http://a.org/ab.Cd end. The"),
        ("seen.See www.a.Org.The page", "seen. See www.a.Org.The page"),
        ("doi 10.1007/sab.The", "doi 10.1007/sab.The"),
        ("ask john.Smith@site.Europe", "ask john.Smith@site.Europe"),
    ],
)
def test_addresses_stay_whole_and_the_text_around_them_is_parted(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    ("caption", "cleaned"),
    [
        ("pneumo\u00adthorax", "pneumothorax"),
        ("a\u200b mass\ufeff of\u2060 SUVmax\u2061 12", "a mass of SUVmax 12"),
        ("\ufeffCT", "CT"),
        ("e\u200b\u0301", "\u00e9"),
        (" \u115fFollow-up", "Follow-up"),
        ("3\x965 mm", "3 5 mm"),
        ("the\x00lung\x7f.\x1b", "the lung ."),
        ("a\u2028b\u3000c\u202fd\x85e", "a b c d e"),
        ("half \ud83d", "half \ufffd"),
        ("\u200b\u00a0", ""),
    ],
)
def test_the_unseen_goes_and_blanks_and_control_characters_become_spaces(caption, cleaned):
    assert clean(caption) == cleaned


@pytest.mark.parametrize(
    "caption", ["a\u200db", "a\u200cb", "a\u200eb", "a\ufe0fb", "\ufffd \u2212 \u2018x\u2019 \u00d7"]
)
def test_joiners_directions_and_typographic_signs_stay(caption):
    assert clean(caption) == caption


def test_a_long_text_without_spaces_is_cleaned_in_linear_time():
    """Quadratic time would be minutes here."""
    assert clean("x" * 200_000) == "x" * 200_000
    assert clean("Ab.Cd" * 40_000 + " www.x") == "Ab.Cd" * 40_000 + " www.x"


@pytest.mark.parametrize(
    "word",
    ["left", "right", "RIGHT", "No", "without", "µm", "β-blocker", "T12/L1", "18F-FDG", "H&E", "O₂", "5⅓"],
)
def test_clinical_words_are_unchanged(word):
    assert clean(f"  {word}  ") == unicodedata.normalize("NFC", word)


def test_cleaning_twice_is_cleaning_once():
    once = clean(" the lung.The  heart.A sign.The end")
    assert once == "the lung. The heart. A sign. The end"
    assert clean(once) == once


def test_cleaning_any_mixture_of_parts_twice_is_cleaning_it_once():
    parts = ["The", "A ", "a ", "scan", "CT", "MRI", ".", ":", "Figure ", "1", "T2", "(", ")", " ", "-", "/", "_", "@",
             "Arrows", "png", "Png", "www.", "http://", "10.1234/", "\u00e9", "Hg", "L", "\u200b", "\u0301", "\x00"]  # fmt: skip
    chance = random.Random(7)
    for _ in range(20_000):
        once = clean("".join(chance.choices(parts, k=chance.randint(2, 9))))
        assert clean(once) == once


def test_real_captions_differ_from_their_originals_in_spaces_only(roco, rocov2):
    originals = roco + rocov2
    cleaned = [clean(caption) for caption in originals]
    assert [re.sub(r"\s", "", c) for c in cleaned] == [without_spaces(caption) for caption in originals]
    assert not [caption for caption in cleaned if re.search(r"\s\s|^\s|\s$", caption)]
    assert [clean(caption) for caption in cleaned] == cleaned


def test_parting_a_real_caption_only_ever_inserts_spaces(roco, rocov2):
    for caption in map(tidy, roco + rocov2):
        # Without the spaces that were there before, what is new must be spaces too.
        left = iter(clean(caption))
        assert all(any(new == old for new in left) for old in caption)
        assert clean(caption).replace(" ", "") == caption.replace(" ", "")


def test_each_rule_parts_the_real_captions_that_were_read_and_no_more(roco, rocov2):
    texts = [tidy(caption) for caption in roco]
    counts = {name: sum(bool(rule.search(text)) for text in texts) for name, rule in RULES.items()}
    assert counts == {
        "words": 18, "figure": 7, "sentence": 231, "bracket": 28, "capitals": 7, "figures": 9,
    }  # fmt: skip
    assert sum(clean(text) != text for text in texts) == 294
    assert sum(clean(caption) != tidy(caption) for caption in rocov2) == 5


def test_a_captions_ids_end_in_the_newline_and_have_no_bos():
    assert token_ids("CT of the chest.", Words(), NEWLINE) == [2, 2, 3, 6, NEWLINE]
    assert token_ids("", Words(), NEWLINE) == [NEWLINE]


def test_a_batch_is_its_captions_one_by_one_and_none_is_none():
    captions = ["CT of the chest.", "", "<pad> MR"]
    assert tokenise(captions, Words(), NEWLINE) == [[2, 2, 3, 6, NEWLINE], [NEWLINE], [5, 2, NEWLINE]]
    assert tokenise(tuple(captions), Words(), NEWLINE) == tokenise(captions, Words(), NEWLINE)
    assert tokenise([], Words(), NEWLINE) == []


def test_the_tokenizer_gets_a_thousand_captions_at_a_time_in_their_order():
    sizes = []

    class Counting(Words):
        def __call__(self, text, **settings):
            sizes.append(len(text))
            return super().__call__(text, **settings)

    captions = ["x" * (i % 7 + 1) for i in range(2001)]
    assert tokenise(captions, Counting(), NEWLINE) == [[i % 7 + 1, NEWLINE] for i in range(2001)]
    assert sizes == [1000, 1000, 1]


def test_a_caption_that_is_no_text_is_named_with_its_place():
    with pytest.raises(ValueError, match=r"Caption 1 is None and no text\. Leave out"):
        tokenise(["CT", None], Words(), NEWLINE)


def test_the_real_tokenizer_gives_a_batch_the_ids_of_its_single_captions(opt, roco):
    captions = [clean(caption) for caption in roco[:1500]]
    captions[3:3] = ["", "<image> </s> <pad> <s> <unk>", "Hello world"]
    ids = tokenise(captions, opt, NEWLINE)
    assert ids == [token_ids(caption, opt, NEWLINE) for caption in captions]
    assert ids[3] == [NEWLINE]
    assert not {0, 1, 2, 3} & set(ids[4])
    assert ids[5] == [31414, 232, NEWLINE]
    assert tokenise([], opt, NEWLINE) == []


def test_every_real_caption_survives_the_real_tokenizer_unchanged(opt, roco, rocov2):
    captions = [clean(caption) for caption in roco + rocov2]
    ids = tokenise(captions, opt, NEWLINE)
    assert {i[-1] for i in ids} == {NEWLINE}
    assert not [i for i in ids if NEWLINE in i[:-1] or {0, 1, 2, 3} & set(i)]
    assert opt.batch_decode([i[:-1] for i in ids], clean_up_tokenization_spaces=False) == captions


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        (None, ("missing",)),
        ("", ("missing",)),
        (" \u00a0\u200b", ("missing",)),
        ("nan", ("missing",)),
        (" nan ", ("missing",)),
        ("CT", ("one word",)),
        ("Nan", ("one word",)),
        ("CT nan", ()),
        ("CT of the chest.", ()),
        ("one " * 100, ()),
        ("one " * 101, ("more than 100 words",)),
        ("\ufffd", ("one word", "replacement character")),
        ("one\ufffd " * 101, ("more than 100 words", "replacement character")),
        ("38 \ufffdC", ("replacement character",)),
    ],
)
def test_remarks_name_what_applies_to_a_caption(caption, expected):
    assert remarks(caption) == expected
    assert LONG_WORDS == 100


@pytest.mark.parametrize(
    ("caption", "count"), [("", 0), ("  ", 0), ("CT", 1), ("CT\u00a0of  the\nchest.", 4), ("T1-w / T2", 3)]
)
def test_words_are_what_white_space_separates(caption, count):
    assert words(caption) == count


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (5, [7, 8, 9, 10, NEWLINE]),
        (6, [7, 8, 9, 10, NEWLINE]),
        (4, [7, 8, 9, NEWLINE]),
        (2, [7, NEWLINE]),
        (1, [NEWLINE]),
    ],
)
def test_a_caption_that_is_cut_keeps_its_end_inside_the_limit(limit, expected):
    ids = [7, 8, 9, 10, NEWLINE]
    assert cut(ids, limit) == expected
    assert ids == [7, 8, 9, 10, NEWLINE]


@pytest.mark.parametrize(
    ("percentile", "room", "limit"),
    [(100, 99, 11), (50, 99, 6), (95, 99, 11), (94, 99, 11), (10, 99, 2), (100, 8, 8), (50, 6, 6)],
)
def test_the_limit_is_the_percentile_rounded_up_but_never_more_than_the_room(percentile, room, limit):
    # Lengths 1..11: the p-th percentile is 1 + p / 10.
    assert token_limit(list(range(1, 12)), percentile, room) == limit


def test_the_limit_is_a_plain_number_for_json():
    assert type(token_limit([3, 4], 99, 64)) is int


def test_the_name_of_a_special_token_in_a_caption_is_text(tiny_folder):
    """A caption that held "<image>" became an image token, and training stopped over one image too many."""
    from utils.model import load_tokenizer

    tokenizer = load_tokenizer(tiny_folder)
    ids = token_ids("<image> </s> <pad> chest", tokenizer, 202)
    assert not {700, 0, 1, 2, 3} & set(ids)
    assert tokenizer.decode(ids[:-1]) == "<image> </s> <pad> chest"
