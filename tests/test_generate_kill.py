"""A captioning may be killed at any moment: what has a name is whole, and the next run goes on."""

import pytest

from tests.generate_kills import kill_and_compare
from tests.test_generate import randomised
from utils import model

pytestmark = pytest.mark.slow


def test_a_captioning_killed_four_times_ends_with_the_very_bytes_of_an_unbroken_one(
    prepared_folder, tiny_folder, tmp_path
):
    adapter = tmp_path / "adapter"
    randomised(model.load_base(tiny_folder, "float32"), "connector").save_pretrained(adapter)
    how = {"beams": 2, "batch_size": 1, "max_new_tokens": 8, "min_new_tokens": 1, "no_repeat_ngram": 3}
    job = {"prepared": str(prepared_folder), "adapter": str(adapter), "split": "train", "config": how}
    found = kill_and_compare(job, tmp_path / "work", kills=4, part=1)
    assert found["equal"]
    assert found["damaged"] == []
    assert found["parts"] == 8
    assert max(found["grown"]) > 0  # a kill fell into the work, and not before it
