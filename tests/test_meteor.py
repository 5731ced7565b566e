"""METEOR: its formula by hand, its sums against the Java program's own, and what is said where it cannot run."""

import csv
import shutil

import numpy as np
import pytest

from tests.conftest import real
from utils import meteor
from utils.availability import MetricUnavailable

# Answers of the program: lengths 2, function words 2, then 4 stages of content and function words of
# both sides, chunks, matched words 2.
CYST = "6 6 3 3  2 2 3 3  0 0 0 0  0 0 0 0  0 0 0 0  2 5 5"  # "the left lung has a cyst", right for left
SAME = "2 2 1 1  1 1 1 1  0 0 0 0  0 0 0 0  0 0 0 0  1 2 2"
MISS = "1 3 0 1  0 0 0 0  0 0 0 0  0 0 0 0  0 0 0 0  0 0 0"
NONE = "0 0 0 0  0 0 0 0  0 0 0 0  0 0 0 0  0 0 0 0  0 0 0"
# of 5 and of 4 words: 1 by stem, 2 as synonyms, and 1 function word as a paraphrase; in 2 chunks
STAGES = "5 4 2 1  0 0 0 0  1 1 0 0  2 2 0 0  0 0 1 1  2 4 4"


def measure(monkeypatch, *answers):
    monkeypatch.setattr(meteor, "ask", lambda questions: list(answers)[: len(list(questions))])
    return meteor.meteor_measure(["a"] * len(answers), ["b"] * len(answers))


def test_a_pair_is_scored_from_weighed_matches_and_the_number_of_chunks(monkeypatch):
    # content words weigh .75, function words .25: 2.25 of 3 on both sides; 2 chunks of 5 words
    assert measure(monkeypatch, CYST).value == pytest.approx(0.75 * (1 - 0.6 * 0.4**0.2))


def test_the_stages_weigh_one_then_six_eight_and_six_tenths(monkeypatch):
    matched = 0.75 * (0.6 + 2 * 0.8) + 0.25 * 0.6
    precision, recall = matched / (0.75 * 3 + 0.25 * 2), matched / (0.75 * 3 + 0.25 * 1)
    mean = precision * recall / (0.85 * precision + 0.15 * recall)
    assert measure(monkeypatch, STAGES).value == pytest.approx(mean * (1 - 0.6 * (2 / 4) ** 0.2))


def test_each_pair_has_its_score_and_two_empty_captions_the_full_one(monkeypatch):
    each = measure(monkeypatch, SAME, MISS, NONE).each
    assert each.tolist() == [1, 0, 1]
    assert measure(monkeypatch, NONE, NONE).value == 1


def test_a_corpus_is_valued_by_its_sums_without_the_chunks_of_perfect_matches(monkeypatch):
    # 2.25 of 3 and 1 of 1 make 3.25 of 4; the two chunks are those of the first pair, of 5 + 2 words
    found = measure(monkeypatch, CYST, SAME, NONE)
    assert found.value == pytest.approx(3.25 / 4 * (1 - 0.6 * (2 / 7) ** 0.2))
    assert found.n == 3
    twice = 5.5 / 7 * (1 - 0.6 * (4 / 12) ** 0.2)
    assert found.resampled(np.array([[1.0, 1, 1], [2, 1, 0], [0, 3, 0]])) == pytest.approx([found.value, twice, 1])


def test_captions_are_asked_for_normalised_and_in_one_line(monkeypatch):
    asked = []
    monkeypatch.setattr(meteor, "ask", lambda questions: asked.extend(questions) or [NONE] * 2)
    meteor.meteor_measure(["CT,\nday 12 ||| x", ""], ["...", "A\u2028b"])
    assert asked == ["SCORE ||| ct day number x ||| ", "SCORE |||  ||| a b"]


def test_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="1 references and 2 predictions"):
        meteor.meteor_measure(["a"], ["a", "b"])


def java(folder, monkeypatch, script):
    """Put a program of the name in the only folder where one is looked for."""
    program = folder / "java"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))


def test_without_java_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MetricUnavailable, match="^METEOR 1.5 needs Java, which is not installed: install"):
        meteor.meteor_measure(["a"], ["a"])


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo could not reserve >&2\necho enough space >&2\nexit 1", "failed: could not reserve enough space$"),
        ("exit 1", "failed: no message$"),
        ("cat > /dev/null\necho 1.0 2.0", "failed: 1 answers to 1 pairs, the last one '1.0 2.0'"),
        ("cat > /dev/null", "failed: 0 answers to 1 pairs, the last one 'missing'"),
        ("exec sleep 60", "gave no answer in 0.3 seconds"),
    ],
)
def test_a_java_that_fails_makes_the_metric_unavailable_and_never_waits(tmp_path, monkeypatch, script, message):
    java(tmp_path, monkeypatch, script)
    monkeypatch.setattr(meteor, "TIME_LIMIT", 0.3 if "sleep" in script else 60)
    with pytest.raises(MetricUnavailable, match=message):
        meteor.meteor_measure(["a"], ["a"])


def needs_java():
    if shutil.which("java") is None:
        pytest.skip("there is no Java on this machine")


@pytest.mark.slow
def test_the_program_itself_counts_as_typed_here():
    needs_java()
    found = meteor.match_counts(
        ["the left lung has a cyst", "the lung", "three of them", "", "a large nodule", "zürich lésion"],
        ["The right lung has a cyst.", "The lung", "x", "", "a big nodules", "Zürich lésion"],
    )
    typed = [line.split() for line in (CYST, SAME, MISS, NONE)]
    typed[1][20] = 0  # a perfect match's chunk
    assert found[:4].tolist() == [[float(number) for number in row] for row in typed]
    # "a" is equal and a function word, "nodules" of one stem, "big" a synonym
    assert found[4, 4:20].tolist() == [0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert found[5, 21:].tolist() == [2, 2]  # outside of ASCII too


@pytest.mark.slow
def test_the_corpus_score_is_the_one_that_the_program_gives(monkeypatch):
    needs_java()
    with open(real("roco_v1_text") / "test_captions_cc.tsv", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        references = [next(rows)["caption"] for _ in range(100)]
    # half of the words and some of the next caption's; every tenth caption whole; two empty ones
    predictions = [" ".join([*a.split()[::2], *b.split()[:5]])
                   for a, b in zip(references, references[1:] + references[:1], strict=True)]  # fmt: skip
    predictions[::10], predictions[5] = references[::10], ""
    answers = []
    monkeypatch.setattr(meteor, "ask", lambda asked, real=meteor.ask: answers.extend(real(asked)) or answers)
    found = meteor.meteor_measure(references, predictions)
    monkeypatch.undo()
    *each, corpus = map(float, meteor.ask(["EVAL ||| " + " ||| ".join(answers)]))
    assert found.each == pytest.approx(each, abs=1e-9)
    assert found.value == pytest.approx(corpus, abs=1e-9)
    assert 0.1 < corpus < 0.9
