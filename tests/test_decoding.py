"""A caption's tokens have the probabilities that the model gives them, whatever the search forbade."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from tests.test_generate import randomised
from utils import decoding, model
from utils.dataset import Collator, PreparedSplit, normalise
from utils.decoding import Decoding

VALUES = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def adapted(tiny_folder):
    return randomised(model.load_base(tiny_folder, "float32"), "connector").eval()


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return model.load_tokenizer(tiny_folder)


@pytest.fixture(scope="module")
def layout(adapted, tokenizer):
    return model.layout_of(adapted.get_base_model().config, tokenizer)


@pytest.fixture(scope="module")
def pixels(prepared_folder):
    split = PreparedSplit(prepared_folder, "train")
    return torch.stack([split.pixels(i) for i in range(5)])


@pytest.fixture(scope="module")
def prefix(adapted, pixels):
    values = normalise(pixels, **VALUES)
    with torch.no_grad():
        return adapted.get_base_model().get_image_features(pixel_values=values).pooler_output


@pytest.fixture(scope="module")
def early(adapted, tokenizer, layout, prefix):
    """A layout whose end is a token that the model likes: captions end, at different lengths."""
    found = decoding.search(adapted, layout, prefix, Decoding(1, 8)).tolist()
    return replace(layout, newline_id=list(dict.fromkeys(found[0]))[2])


def by_hand(adapted, layout, pixels, ids):
    """The log-probabilities of a caption's tokens by one plain forward pass over its picture and text."""
    batch = Collator(layout)([{"pixels": pixels, "input_ids": torch.tensor(ids)}])
    values = normalise(batch.pop("pixels"), **VALUES)
    batch["attention_mask"][:, : 17 + len(ids)] = 1
    with torch.no_grad():
        logits = adapted(pixel_values=values, **batch).logits[0]
    return logits[16 : 16 + len(ids)].log_softmax(-1)[range(len(ids)), ids].tolist()


@pytest.mark.parametrize(
    "how", [Decoding(1, 6), Decoding(3, 6), Decoding(1, 6, 1, 2), Decoding(3, 6, 4, 3)], ids=str
)
def test_the_log_probabilities_are_those_of_a_plain_forward_pass(
    adapted, tokenizer, layout, early, pixels, prefix, how
):
    for ends in (layout, early):
        new = decoding.search(adapted, ends, prefix, how).tolist()
        found = decoding.caption(adapted, tokenizer, ends, prefix, how)
        for row, ids in enumerate(new):
            if ends.newline_id in ids:
                ids = ids[: ids.index(ends.newline_id) + 1]
            expected = by_hand(adapted, layout, pixels[row], ids)
            assert found.token_logprobs[row] == pytest.approx(expected, abs=2e-5)
            assert found.logprobs[row] == pytest.approx(sum(expected), abs=1e-4)
            assert found.cut[row] == (ids[-1] != ends.newline_id)


@pytest.mark.parametrize("beams", [1, 3])
def test_the_search_is_the_one_of_transformers_from_the_pictures_themselves(
    adapted, layout, pixels, prefix, beams
):
    prompt = layout.prompt(5)
    whole = adapted.generate(
        pixel_values=normalise(pixels, **VALUES), input_ids=prompt, attention_mask=torch.ones_like(prompt),
        max_new_tokens=8, num_beams=beams, do_sample=False, eos_token_id=202, pad_token_id=1,
    )  # fmt: skip
    assert torch.equal(decoding.search(adapted, layout, prefix, Decoding(beams, 8)), whole[:, 17:])


def test_captions_with_and_without_an_end_occur_in_these_tests(adapted, tokenizer, layout, early, prefix):
    """Else the test above would show little."""
    assert all(decoding.caption(adapted, tokenizer, layout, prefix, Decoding(1, 6)).cut)
    assert not all(decoding.caption(adapted, tokenizer, early, prefix, Decoding(1, 6)).cut)


def test_what_the_search_forbids_does_not_raise_the_probability_of_the_rest(adapted, early, prefix, pixels):
    """The end comes first where it may; forbidden, it leaves the others as probable as they were."""
    first = decoding.search(adapted, early, prefix, Decoding(1, 1))[:, 0].tolist()
    ended = replace(early, newline_id=first[0])
    second = decoding.search(adapted, ended, prefix[:1], Decoding(1, 1, 1))
    assert second.tolist()[0] != [first[0]]
    value = decoding.log_probabilities(adapted, ended, prefix[:1], second, [1])[0][0]
    assert value == pytest.approx(by_hand(adapted, ended, pixels[0], second[0].tolist())[0], abs=1e-5)
    other = by_hand(adapted, ended, pixels[0], [first[0]])[0]
    assert value < other


@pytest.mark.parametrize("beams", [1, 3])
def test_a_caption_does_not_end_before_its_least_number_of_tokens(adapted, early, prefix, beams):
    ended = replace(early, newline_id=decoding.search(adapted, early, prefix, Decoding(1, 1))[0, 0].item())
    free = decoding.search(adapted, ended, prefix[:1], Decoding(1, 6)).tolist()[0]
    assert free == [ended.newline_id]
    held = decoding.search(adapted, ended, prefix[:1], Decoding(beams, 6, 2)).tolist()[0]
    assert ended.newline_id not in held[:2]


@pytest.mark.parametrize("beams", [1, 3])
def test_no_run_of_tokens_comes_twice_in_greedy_search_and_in_beams(adapted, layout, prefix, beams):
    def pairs(no_repeat):
        new = decoding.search(adapted, layout, prefix, Decoding(beams, 20, 0, no_repeat)).tolist()
        return [list(pairwise(row)) for row in new]

    assert any(len(row) > len(set(row)) for row in pairs(0))
    assert all(len(row) == len(set(row)) for row in pairs(2))


def test_the_number_of_captions_scored_at_a_time_changes_nothing(
    adapted, tokenizer, layout, prefix, monkeypatch
):
    whole = decoding.caption(adapted, tokenizer, layout, prefix, Decoding(1, 6))
    monkeypatch.setattr(decoding, "SCORED", 2)
    again = decoding.caption(adapted, tokenizer, layout, prefix, Decoding(1, 6))
    assert again.texts == whole.texts
    for one, other in zip(again.token_logprobs, whole.token_logprobs, strict=True):
        assert one == pytest.approx(other, abs=2e-5)


def test_a_caption_that_names_the_image_token_is_scored_like_any_other(adapted, layout, prefix):
    new = torch.full((5, 3), layout.image_id)
    rows = decoding.log_probabilities(adapted, layout, prefix, new, [3] * 5)
    assert all(value < 0 for row in rows for value in row)


def test_the_columns_of_a_system_carry_its_name():
    found = decoding.Captions(["a b"], [[-0.5, -0.25]], [True])
    assert found.columns("tuned") == {
        "tuned": ["a b"], "tuned_logprob": [-0.75], "tuned_token_logprobs": [[-0.5, -0.25]],
        "tuned_cut": [True],
    }  # fmt: skip


def test_a_least_length_above_the_limit_is_refused():
    with pytest.raises(ValueError, match="No caption has at least 9 and at most 8 tokens: lower MIN_NEW_TOKENS"):
        Decoding(1, 8, 9)
