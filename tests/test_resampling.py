"""The bootstrap: a replicate is the metric of the list that was drawn."""

import math

import numpy as np
import pytest
from pycocoevalcap.cider.cider import Cider

from utils import metrics, resampling
from utils.resampling import interval, mean_of, ratio_of, replicates

REFERENCES = [
    "Axial CT of the chest, with a nodule in the left lung.",
    "Axial CT of the abdomen, with a cyst in the liver (arrow).",
    "Chest X-ray of the same patient.",
    "Chest X-ray on day 12: a nodule in the left lung.",
    "Coronal MRI of the knee.",
    "A cyst.",
    "",
]
PREDICTIONS = [
    "Axial CT of the chest showing a mass in the left lung.",
    "CT of the abdomen, CT of the liver.",
    "Chest X-ray.",
    "Chest X-ray on day 3: a nodule in the right lung.",
    "Sagittal MRI of the knee of the same patient",
    "",
    "A cyst.",
]
COUNTS = np.array([[1, 1, 1, 1, 1, 1, 1], [3, 0, 2, 0, 0, 1, 1], [0, 2, 0, 4, 1, 0, 0], [0, 0, 0, 0, 0, 0, 7]])


def drawn(texts, counts):
    return [text for text, count in zip(texts, counts, strict=True) for _ in range(count)]


def test_every_replicate_is_the_metric_of_the_list_so_drawn():
    scores = metrics.overlap_measures(REFERENCES, {"tuned": PREDICTIONS})["tuned"]
    for row, counts in enumerate(COUNTS):
        lists = drawn(REFERENCES, counts), {"tuned": drawn(PREDICTIONS, counts)}
        for name, score in metrics.overlap_measures(*lists)["tuned"].items():
            assert scores[name].resampled(COUNTS)[row] == pytest.approx(score.value, abs=1e-12), name


def test_every_replicate_of_cider_is_the_coco_code_s_on_the_list_so_drawn():
    scores = metrics.overlap_measures(REFERENCES, {"tuned": PREDICTIONS})["tuned"]
    for row, counts in enumerate(COUNTS[:3]):
        references, predictions = (
            {i: [metrics.normalise(text)] for i, text in enumerate(drawn(texts, counts))}
            for texts in (REFERENCES, PREDICTIONS)
        )
        expected = Cider().compute_score(references, predictions)[0]
        assert scores["cider"].resampled(COUNTS)[row] == pytest.approx(expected, abs=1e-9)


def test_cider_keeps_nothing_of_the_draws_before():
    fresh = [metrics.overlap_measures(REFERENCES, {"tuned": PREDICTIONS})["tuned"]["cider"] for _ in range(5)]
    expected = [score.resampled(row[None])[0] for score, row in zip(fresh[1:], COUNTS, strict=True)]
    found = [fresh[0].resampled(row[None])[0] for row in COUNTS]
    assert found == pytest.approx(expected, abs=1e-12)
    assert fresh[0].value == pytest.approx(expected[0], abs=1e-12)  # COUNTS[0] is every image once


def test_a_mean_is_taken_over_the_images_that_count():
    mean = mean_of(np.array([1.0, np.nan, 4.0]), np.array([True, False, True]))
    assert (mean.value, mean.n) == (2.5, 2)
    np.testing.assert_array_equal(mean.each, [1, np.nan, 4])
    np.testing.assert_array_equal(mean.resampled(np.array([[2, 1, 1], [0, 3, 0]])), [2, np.nan])


def test_a_counted_image_without_a_value_is_refused():
    with pytest.raises(ValueError, match="1 of 2 images that count have no value \\(first: number 1\\)"):
        mean_of(np.array([1.0, np.nan]))


def test_a_ratio_divides_sums_and_is_undefined_over_nothing():
    ratio = ratio_of(np.array([3, 1]), np.array([2, 0]), n=2)
    assert ratio.value == 2
    np.testing.assert_array_equal(ratio.resampled(np.array([[2, 0], [0, 2]])), [1.5, np.nan])


def test_the_interval_of_a_mean_is_the_known_one():
    values = np.random.default_rng(1).normal(size=400)
    drawn = replicates({"tuned": {"score": mean_of(values)}}, 4000, seed=0)["tuned"]["score"]
    low, high = interval(drawn)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert [low, high] == pytest.approx([values.mean() - half, values.mean() + half], abs=0.1 * half)


def test_all_systems_are_valued_on_the_same_draws():
    values = np.arange(20.0)
    drawn = replicates({"base": {"score": mean_of(values)}, "tuned": {"score": mean_of(values + 1)}}, 50, seed=0)
    assert drawn["tuned"]["score"] - drawn["base"]["score"] == pytest.approx(np.ones(50))
    assert len(set(drawn["base"]["score"])) > 20


def test_replicates_depend_on_the_seed_alone(monkeypatch):
    measures = {"tuned": {"score": mean_of(np.arange(20.0) ** 2)}}
    first, other = (replicates(measures, 50, seed)["tuned"]["score"] for seed in (3, 4))
    monkeypatch.setattr(resampling, "CHUNK", 7)
    assert replicates(measures, 50, 3)["tuned"]["score"].tolist() == first.tolist() != other.tolist()


def test_measures_of_different_images_are_not_resampled_together():
    measures = {"base": {"score": mean_of(np.ones(3))}, "tuned": {"score": mean_of(np.ones(2))}}
    with pytest.raises(ValueError, match="3 \\(score of 'base'\\), 2 \\(score of 'tuned'\\)"):
        replicates(measures, 10, seed=0)


def test_undefined_replicates_are_left_out_of_the_interval():
    assert interval(np.array([*range(101), np.nan, np.nan]), level=0.9) == pytest.approx((5, 95))
    assert interval(np.array([np.nan, np.nan])) is None
