"""Every expected number here was counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from utils.health import health_measures

REFERENCES = ["ct of the chest", "a cyst", "mr", "a mass"]


def values(references, predictions, cut=None):
    return {name: measure.value for name, measure in health_measures(references, predictions, cut).items()}


def test_health_shows_short_repeated_empty_and_cut_captions():
    assert values(REFERENCES, ["a cyst, a cyst!", "a cyst", "", "a cyst "], pd.Series([True, False, False, True])) == {
        "length_ratio": 8 / 9, "unique_share": 3 / 4, "empty_share": 1 / 4, "mean_words": 8 / 4,
        "repetition": 0, "cut_share": 2 / 4,
    }  # fmt: skip


def test_repetition_counts_the_runs_of_three_words_that_stood_before():
    # "a b a b a b" has the runs aba, bab, aba, bab: two of four repeat; "x y z" has one, new.
    found = health_measures(REFERENCES, ["a b a b a b", "x y z", "x y z", "x y"])["repetition"]
    assert (found.value, found.n) == (2 / 6, 3)


def test_what_has_nothing_to_count_is_undefined():
    found = health_measures([""], ["..."])
    assert math.isnan(found["length_ratio"].value)
    assert math.isnan(found["repetition"].value)
    assert found["repetition"].n == 0
    assert (found["empty_share"].value, found["mean_words"].value) == (1, 0)
    assert "cut_share" not in found


def test_the_words_of_resampled_images_are_counted_as_often_as_drawn():
    found = health_measures(["a b", "a"], ["a b", "a b c d"])
    counts = np.array([[2.0, 0], [0, 2]])
    assert found["length_ratio"].resampled(counts).tolist() == [1, 4]
    assert found["mean_words"].resampled(counts).tolist() == [2, 4]


def test_the_share_of_unique_captions_has_no_replicates():
    unique = health_measures(["a", "b"], ["a", "b"])["unique_share"]
    assert (unique.value, unique.n) == (1, 2)
    assert np.isnan(unique.resampled(np.ones((3, 2)))).tolist() == [True] * 3


@pytest.mark.parametrize("cut", [[True], [True, None], [1, 0]])
def test_ends_that_are_not_known_for_each_caption_are_refused(cut):
    with pytest.raises(ValueError, match=f"`cut` has {len(cut)} values for 2 captions"):
        health_measures(["a", "b"], ["a", "b"], cut)


def test_lists_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="1 references and 2 predictions"):
        health_measures(["a"], ["a", "b"])
