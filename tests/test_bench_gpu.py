"""The GPU bench's pieces on a CPU, with the sample's tiny BLIP-2: that its code runs, not its figures."""

from dataclasses import replace

import pytest
import torch

from tests.bench import gpu, systems
from tests.bench.random_base import random_base
from utils.dataset import IGNORE
from utils.model import four_bit_linears
from utils.sample.tiny_blip2 import build_config

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
LENGTHS = gpu.caption_lengths(64, 20)
OURS = systems.System("(c) ours", "decoder", 4, 2, ours=True, checkpointed=1)
ALL = [systems.NOTEBOOK, systems.EXAMPLE, OURS, replace(OURS, name="(d) ours", preset="connector")]


def test_without_a_gpu_the_bench_says_so_and_exits_two(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        gpu.run(1.0)
    assert ended.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("system", ALL, ids=lambda system: system.name)
def test_every_system_trains_what_it_adapts(system):
    config = build_config()
    model = systems.prepare(system, config, CPU, torch.float32)
    loop = systems.Loop(system, model, config, CPU, torch.float32)
    before = [p.detach().clone() for p in loop.parameters]
    batches = iter(systems.micro_batches(system, LENGTHS, 3))
    for _ in range(3):
        loop.step([next(batches) for _ in range(system.accumulation)])
    changed = [not torch.equal(old, new) for old, new in zip(before, loop.parameters, strict=True)]
    assert all(changed)


def test_a_system_is_measured_over_as_many_images_as_any_other():
    measured = systems.measure(OURS, build_config(), LENGTHS, CPU, torch.float32, steps=1)
    assert measured.images_per_s > 0
    assert 16 + 1 + 4 <= measured.columns <= 40  # 16 queries, BOS, 4 to 20 tokens, padding to eights


def test_ours_asks_for_logits_behind_the_image_and_labels_captions_alone():
    config = build_config()
    inputs = systems.batch_of(OURS, [3, 5], config, CPU, torch.float32)
    # 16 + 1 + 5 = 22 columns, padded to 24; 8 of them behind the image
    assert inputs["input_ids"].shape == (2, 24)
    assert inputs["logits_to_keep"] == 8
    n = config.text_config.eos_token_id
    assert inputs["labels"].tolist() == [[IGNORE] + [n] * 3 + [IGNORE] * 4, [IGNORE] + [n] * 5 + [IGNORE] * 2]
    assert inputs["pixel_values"].shape == (2, 16, 128)


def test_the_usual_way_labels_padding_and_image_tokens_and_has_logits_everywhere():
    config = build_config()
    inputs = systems.batch_of(systems.NOTEBOOK, [3, 5], config, CPU, torch.float32)
    assert inputs["input_ids"].shape == (2, 22)
    assert torch.equal(inputs["labels"], inputs["input_ids"])
    assert inputs["labels"][0, -2:].tolist() == [config.text_config.pad_token_id] * 2
    assert "logits_to_keep" not in inputs


def test_the_drawn_lengths_are_rocos():
    drawn = sorted(gpu.caption_lengths(20_000, 10_000))
    assert drawn[10_000] == pytest.approx(27, abs=1)
    assert sum(drawn) / 20_000 == pytest.approx(33.6, abs=0.7)
    assert drawn[19_000] == pytest.approx(80, abs=3)


def test_random_weights_are_of_the_real_models_kinds():
    config = build_config()
    base = random_base(config, CPU, torch.float16)
    assert len(four_bit_linears(base)) == 18
    assert base.qformer.layernorm.weight.dtype == torch.float32
    assert base.vision_model.post_layernorm.weight.dtype == torch.float16
    assert base.language_model.lm_head.weight is base.language_model.model.decoder.embed_tokens.weight
    assert not any(p.requires_grad for p in base.parameters())


@pytest.mark.slow
def test_the_lines_hold_ours_against_the_notebook_and_the_plan(monkeypatch):
    monkeypatch.setattr(gpu, "PAIRS", 64)
    monkeypatch.setattr(gpu, "LIMIT", 20)
    told = {line.what: line for line in gpu.lines(build_config(), CPU, torch.float32, steps=1)}
    assert told["(c) ours, decoder"].baseline == "(a) the notebook's recipe"
    assert told["(c) ours, decoder"].bar == 3
    peak = told["peak of tensors, (d) ours, connector"]
    assert (peak.bar, peak.most) == (1.1, True)
    assert told["useful operations, (c) ours, decoder"].bar == 0.4
    assert told["time of (c) ours, decoder: dequantising"].ours > 0


def test_matrix_products_are_counted_as_two_operations_each(monkeypatch):
    monkeypatch.setattr(gpu, "seconds_of", lambda call, device: 1.0)
    # 4 of 128 x 128, one of 128 x 512 and one of 512 x 128, on 10 rows
    assert gpu.product_rate(build_config(), 10, CPU, torch.float32) == 2 * 10 * (4 * 128**2 + 2 * 128 * 512)
