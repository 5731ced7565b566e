"""Scores of real captions equal those of the libraries that define them."""

import csv
import random

import numpy as np
import pytest
import sacrebleu
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from rouge_score.rouge_scorer import RougeScorer

from tests.conftest import real
from utils import metrics

pytestmark = pytest.mark.slow
WORDS = {"": lambda text: metrics.normalise(text).split(), "_raw": metrics.raw_words}


@pytest.fixture(scope="module")
def pairs():
    """2,000 real captions, and the next image's in their place or their own with words lost."""
    with open(real("roco_v1_text") / "test_captions_cc.tsv", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        references = [row["caption"] for row in rows][:2000]
    rng = random.Random(0)
    lost = [" ".join(word for word in text.split() if rng.random() < 0.7) for text in references]
    return references, [lost[i] if i % 3 else references[i - 1] for i in range(2000)]


@pytest.fixture(scope="module")
def scores(pairs):
    return metrics.overlap_measures(pairs[0], {"tuned": pairs[1]})["tuned"]


def coco(texts, words):
    return {i: [" ".join(words(text))] for i, text in enumerate(texts)}


@pytest.mark.parametrize("form", WORDS)
def test_bleu_is_the_coco_caption_code_s(pairs, scores, form):
    expected, _ = Bleu(4).compute_score(*(coco(texts, WORDS[form]) for texts in pairs), verbose=0)
    found = [scores[f"bleu_{order}{form}"].value for order in (1, 2, 3, 4)]
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0.1 < expected[3] < expected[0] < 0.9


@pytest.mark.parametrize("form", WORDS)
def test_cider_d_is_the_coco_caption_code_s_of_every_image(pairs, scores, form):
    mean, each = Cider().compute_score(*(coco(texts, WORDS[form]) for texts in pairs))
    assert scores["cider" + form].value == pytest.approx(mean, abs=1e-9)
    np.testing.assert_allclose(scores["cider" + form].each, each, atol=1e-9)
    assert 1 < mean < 9


def test_raw_bleu_4_is_sacrebleu_s(pairs, scores):
    references, predictions = pairs
    expected = sacrebleu.corpus_bleu(predictions, [references], tokenize="13a").score / 100
    assert scores["bleu_4_raw"].value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("suffix", "form"), [("", metrics.normalise), ("_raw", str)])
def test_chrf_is_sacrebleu_s(pairs, scores, suffix, form):
    references, predictions = ([form(text) for text in texts] for texts in pairs)
    expected = sacrebleu.corpus_chrf(predictions, [references]).score / 100
    assert scores["chrf" + suffix].value == pytest.approx(expected, abs=1e-9)
    each = [sacrebleu.sentence_chrf(predictions[i], [references[i]]).score / 100 for i in range(200)]
    np.testing.assert_allclose(scores["chrf" + suffix].each[:200], each, atol=1e-9)


@pytest.mark.parametrize(("suffix", "form"), [("", metrics.normalise), ("_raw", str)])
def test_rouge_is_rouge_score_s(pairs, scores, suffix, form):
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=False)
    own = [scorer.score(form(of), form(by)) for of, by in zip(*pairs, strict=True)]
    for name, theirs in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
        each = [score[theirs].fmeasure for score in own]
        np.testing.assert_allclose(scores[name + suffix].each, each, atol=1e-9)
        assert scores[name + suffix].value == pytest.approx(np.mean(each), abs=1e-9)
