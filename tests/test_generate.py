"""Captioning: base and tuned from one model, the log-probability of a caption, parts that resume."""

import pytest
import torch

from utils import generate, model, results
from utils.dataset import Collator, PreparedSplit, normalise
from utils.stages import read_json, write_json


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    adapted = model.add_lora(model.load_base(tiny_folder, "float32"), "connector", 4, 8, 0.0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def statistics(prepared_folder):
    return read_json(prepared_folder / "preprocess.json")


@pytest.fixture(scope="module")
def captioner(adapter, statistics):
    return generate.Captioner(adapter, statistics, beams=1, max_new_tokens=6)


@pytest.fixture(scope="module")
def pixels(prepared_folder):
    split = PreparedSplit(prepared_folder, "test")
    return torch.stack([split.pixels(i) for i in range(3)])


def test_the_base_caption_is_the_one_of_a_model_without_adapter(captioner, tiny_folder, pixels, statistics):
    plain = model.load_base(tiny_folder, "float32")
    values = normalise(pixels, statistics["mean"], statistics["std"])
    prompt = captioner.layout.prompt(3)
    ids = plain.generate(pixel_values=values, input_ids=prompt, attention_mask=torch.ones_like(prompt),
                         max_new_tokens=6, do_sample=False, eos_token_id=202, pad_token_id=1)  # fmt: skip
    expected = captioner.tokenizer.batch_decode(ids[:, 17:], skip_special_tokens=True)
    both = captioner.both(pixels)
    assert both["base"][0] == [" ".join(text.split()) for text in expected]
    assert both["tuned"][0] != both["base"][0]


@pytest.mark.parametrize("beams", [1, 3])
def test_a_log_probability_is_the_sum_over_the_captions_tokens(
    adapter, statistics, pixels, beams, monkeypatch
):
    """Against a plain forward pass over the caption that was generated."""
    captioner = generate.Captioner(adapter, statistics, beams, max_new_tokens=5)
    seen = {}

    def spy(scores, new, newline_id, real=generate.log_probabilities):
        seen["new"] = new
        return real(scores, new, newline_id)

    monkeypatch.setattr(generate, "log_probabilities", spy)
    # the block on repeated trigrams changes scores of a beam search; five tokens of this model
    # may hold one, so it is compared without it
    _, logprobs = captioner.captions(pixels)
    for row, value in enumerate(logprobs):
        ids = seen["new"][row]
        items = [{"pixels": pixels[row], "input_ids": ids}]
        batch = Collator(captioner.layout)(items)
        values = normalise(batch.pop("pixels"), statistics["mean"], statistics["std"])
        batch["attention_mask"][:, : 17 + len(ids)] = 1
        with torch.no_grad():
            logits = captioner.model(pixel_values=values, **batch).logits[0]
        steps = logits[16 : 16 + len(ids)].log_softmax(-1).gather(1, ids[:, None])[:, 0]
        alive = len(ids) if 202 not in ids else ids.tolist().index(202) + 1
        assert value == pytest.approx(steps[:alive].sum().item(), abs=1e-3)


def test_what_follows_the_newline_does_not_count():
    scores = torch.tensor([[-1.0, -2.0, -4.0], [-1.0, -2.0, -4.0]])
    new = torch.tensor([[9, 202, 1], [9, 8, 7]])
    assert generate.log_probabilities(scores, new, 202) == [-3.0, -7.0]


def job_in(folder, prepared, adapter, **changes):
    folder.mkdir()
    settings = {"beams": 1, "batch_size": 2, "max_new_tokens": 4} | changes
    write_json(folder / "job.json", {"prepared": str(prepared), "adapter": str(adapter), "split": "test",
                                     "output": str(folder), "config": settings})  # fmt: skip
    return folder / "job.json"


def test_every_image_is_captioned_once_in_the_order_of_ids(
    prepared_folder, adapter, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(generate, "PART", 2)  # 5 images are 3 parts
    whole = job_in(tmp_path / "whole", prepared_folder, adapter)
    generate.main(whole)
    expected = results.read_predictions(whole.parent)
    assert expected["image_id"].tolist() == [f"test_{i:02d}" for i in range(5)]

    resumed = job_in(tmp_path / "resumed", prepared_folder, adapter)
    for rank in ("0", "1"):  # two ranks, one after the other
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        generate.main(resumed)
    generate.part_path(resumed.parent, 1).unlink()  # as if a kill had lost it
    before = generate.part_path(resumed.parent, 0).stat().st_mtime_ns
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    generate.main(resumed)
    assert generate.part_path(resumed.parent, 0).stat().st_mtime_ns == before
    assert results.read_predictions(resumed.parent).equals(expected)
    generate.main(resumed)
    assert "nothing to do" in capsys.readouterr().out


def test_one_image_of_any_size_gives_both_captions(captioner):
    from PIL import Image

    answer = captioner(Image.new("RGB", (300, 100), (80, 80, 80)))
    assert set(answer) == {"base", "tuned"}
    assert "\n" not in answer["tuned"]
