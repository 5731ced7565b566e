"""Which pairs are trained on together: every pair as often as asked for, of like length, on any ranks."""

from collections import Counter

import pytest

from utils.batches import POOL, TrainingBatches, measuring_batches
from utils.dataset import Layout

LAYOUT = Layout(image_id=90, queries=3, bos_id=2, pad_id=1, newline_id=50)


def batches_of(lengths, steps, global_batch=4, micro_batch=2, seed=0):
    return TrainingBatches(lengths, global_batch, micro_batch, steps, seed)


def test_a_pass_shows_every_pair_once_before_any_a_second_time():
    made = batches_of(lengths=[5] * 10, steps=5)  # 20 places for 10 pairs
    assert Counter(pair for batch in made for pair in batch) == dict.fromkeys(range(10), 2)


def test_the_last_batch_is_filled_up_from_the_next_pass():
    seen = Counter(pair for batch in batches_of(lengths=[5] * 10, steps=3) for pair in batch)
    assert sorted(seen.values()) == [1] * 8 + [2] * 2


def test_a_global_batch_is_sorted_by_length_and_cut_into_micro_batches():
    lengths = [9, 1, 5, 3]
    assert list(batches_of(lengths, steps=1)) == [[1, 3], [2, 0]]


def test_pairs_of_like_length_are_trained_on_together():
    lengths = [number % 20 for number in range(400)]
    for batch in batches_of(lengths, steps=100, global_batch=4).global_batches():
        # 200 pairs in a pool are 10 of each length: a batch of 4 spans two at the most
        assert max(lengths[p] for p in batch) - min(lengths[p] for p in batch) <= 1


def test_the_batches_of_a_pool_come_in_no_order_of_length():
    lengths = list(range(200))
    firsts = [batch[0] for batch in batches_of(lengths, steps=50).global_batches()]
    assert firsts != sorted(firsts)
    assert sorted(firsts) == list(range(0, 200, 4))


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_the_micro_batch_changes_no_step(micro):
    whole = list(batches_of(list(range(50)), steps=30).global_batches())
    flat = [p for batch in batches_of(list(range(50)), steps=30, micro_batch=micro) for p in batch]
    assert flat == [p for batch in whole for p in batch]


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    first, again, other = (list(batches_of(list(range(50)), 20, seed=s)) for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_longer_run_begins_with_the_batches_of_a_shorter_one_pool_by_pool():
    """A run that is stopped and planned anew for more epochs would be refused; whole pools agree."""
    lengths = list(range(97))
    short = list(batches_of(lengths, steps=POOL).global_batches())
    assert list(batches_of(lengths, steps=2 * POOL).global_batches())[:POOL] == short


def test_the_length_is_the_number_of_micro_batches():
    assert len(batches_of([3] * 9, steps=7, global_batch=8, micro_batch=2)) == 28


def test_the_useful_share_counts_what_is_no_padding():
    # widths: 3 images + BOS + 4 = 8 columns for both rows; useful 4 + 4 and 4 + 2 of 16
    assert batches_of([4, 2], steps=1, global_batch=2).useful_share(LAYOUT) == (8 + 6) / 16


def test_a_split_is_measured_whole_with_the_longest_first():
    assert measuring_batches([4, 9, 1, 7, 2], 2) == [[1, 3], [0, 4], [2]]
