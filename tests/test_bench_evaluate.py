"""The bench of the evaluation: a rival that captions as it is said to, differences that are counted, bars that hold."""

import numpy as np
import pytest
import torch

from tests.bench import evaluate
from tests.bench.evaluate import batched, differences, one_by_one

SMALL = {"beams": 2, "max_new_tokens": 16, "min_new_tokens": 1, "no_repeat_ngram": 3}


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    evaluate.write_adapter(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "HOW", SMALL)
        return evaluate.Captioner(folder, evaluate.settings(), **SMALL)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(evaluate, "HOW", SMALL)
    monkeypatch.setattr(evaluate, "BATCH", 2)


@pytest.mark.slow
def test_both_ways_give_the_same_captions_and_a_changed_one_is_counted(captioner):
    pixels = evaluate.pictures(3)
    ours, theirs = batched(captioner, pixels), one_by_one(captioner, pixels)
    assert differences(captioner, pixels, ours, theirs) == (0, 0)
    assert [text for text, _ in ours["base"]] != [text for text, _ in ours["tuned"]]
    sure = ours["tuned"][1][1]
    ours["tuned"][1] = ("another caption", sure)  # as probable: a tie
    assert differences(captioner, pixels, ours, theirs) == (0, 1)
    ours["tuned"][1] = ("another caption", sure - 0.01)
    ours["base"][2] = ("another caption", sure + 1)
    assert differences(captioner, pixels, ours, theirs) == (2, 0)


@pytest.mark.slow
def test_the_rival_runs_the_whole_model_for_every_image_and_system(captioner, monkeypatch):
    vision, calls = captioner.model.get_base_model().vision_model, []
    handle = vision.register_forward_hook(lambda *_: calls.append(captioner.model.active_adapters))
    one_by_one(captioner, evaluate.pictures(3))
    assert len(calls) == 6
    calls.clear()
    batched(captioner, evaluate.pictures(3))
    handle.remove()
    assert len(calls) == 2  # batches; base and tuned share it


def test_the_pictures_are_shared_out_whole(monkeypatch):
    class Own:
        def submit(self, work, way, folder, images, rows):
            return type("Part", (), {"result": lambda _: dict.fromkeys(("base", "tuned"), list(range(images))[rows])})()

    monkeypatch.setattr(evaluate, "worker", lambda: None)
    stack = type("Stack", (), {"enter_context": lambda *_: Own()})()
    ranks = evaluate.Ranks(None, "", 5, stack, 2)
    assert ranks(5) == {"base": [0, 1, 2, 3, 4], "tuned": [0, 1, 2, 3, 4]}


@pytest.mark.slow
def test_scoring_takes_every_metric_and_tells_what_it_took(monkeypatch):
    found = evaluate.score(60, 5)
    assert (found["pairs"], found["resamples"]) == (60, 5)
    assert found["metrics"] >= 36
    assert 0 < found["gib"] < 8
    lines = evaluate.score_lines(found | {"scoring": 31, "drawing": 60, "gib": 2.1})
    assert [line.met for line in lines] == [False, True, False]
    assert "60 pairs of " in lines[0].what


def test_the_concepts_are_named_by_the_most_frequent_words():
    names = evaluate.concept_names(["lung lung x1 knee"], [["C1", "C2"], ["C2"]])
    assert names.mapping == {"C2": "lung", "C1": "knee"}


def test_captions_are_written_where_the_real_ones_are_not(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluate, "REAL", tmp_path)
    monkeypatch.setattr(evaluate, "PAIRS", 3)
    captions, cuis, origin = evaluate.real_captions()
    assert (len(captions), len(cuis)) == (3, 3)
    assert origin.startswith("generated captions")
    assert all(captions)


def test_the_pictures_are_those_that_the_model_takes():
    pixels = evaluate.pictures(2)
    assert (pixels.shape, pixels.dtype) == ((2, 3, 224, 224), torch.uint8)
    assert not np.array_equal(pixels[0], pixels[1])
