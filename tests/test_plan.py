"""The plan: what autograd keeps, byte for byte; what fits a T4; what is refused and with which advice."""

import gc
import json
import re
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from utils import activations as act
from utils import model as models
from utils import plan, plan_command, sizes
from utils.cards import CARDS, H100, T4, Card, card_of
from utils.memory import Adaptation, Load, demand, kept, moments
from utils.runtime import Gpu

BIG = sizes.known_config("Salesforce/blip2-opt-6.7b")
SMALL = sizes.known_config("Salesforce/blip2-opt-2.7b")
ROCO = plan_command.PUBLISHED
TWO_T4 = CARDS["t4x2"]


def made(preset="connector", config=BIG, cards=TWO_T4, lengths=ROCO, ranks=2, **options):
    adaptation = Adaptation(preset, options.pop("rank", 16), options.pop("dora", False))
    return plan.make_plan(
        config, adaptation, lengths, cards, options.pop("global_batch", 32), ranks, 2, **options
    )


# ---- what autograd keeps ----
class Kept:
    """A tensor in autograd's graph; gone when the graph is."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept_bytes(module, forward):
    """Return the bytes of the storages that ``forward`` leaves for the backward pass, parameters apart."""
    own = {p.untyped_storage().data_ptr() for p in [*module.parameters(), *module.buffers()]}
    boxes = []

    def pack(tensor):
        box = Kept(tensor)
        boxes.append(weakref.ref(box))
        return box

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda box: box.tensor):
        output = forward()
    gc.collect()
    storages = [box().tensor.untyped_storage() for box in boxes if box() is not None]
    del output
    return sum({s.data_ptr(): s.nbytes() for s in storages if s.data_ptr() not in own}.values())


class CudaAutocast(TorchFunctionMode):
    """The rules of CUDA's autocast on a CPU, bf16 standing for fp16; dropout keeps bools as CUDA's does."""

    LOW = (F.linear, F.conv2d, F.scaled_dot_product_attention)

    def __init__(self):
        super().__init__()
        self.casts = {}

    def low(self, value):
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if value.is_leaf and value.requires_grad:  # a trained weight is cast once
            return self.casts.setdefault(id(value), value.to(torch.bfloat16))
        return value.to(torch.bfloat16)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.dropout:
            x, p = args[0], kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            return torch.native_dropout(x, p, True)[0] if p > 0 else x
        cast = {F.layer_norm: lambda v: v.float() if isinstance(v, torch.Tensor) else v}.get(func)
        cast = self.low if func in self.LOW else cast
        if cast is not None:
            args, kwargs = [cast(a) for a in args], {k: cast(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def cuda_autocast():
    torch.set_autocast_enabled("cuda", True)  # peft asks whether it is on
    try:
        with CudaAutocast():
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def forward_of(part, inner, batch, tokens, dtype):
    """Return a function that runs one part of BLIP-2 as training does."""
    config = inner.config
    generator = torch.Generator().manual_seed(0)
    if part == "opt":
        embeds = torch.randn(batch, tokens, 128, generator=generator).to(dtype).requires_grad_()
        mask = torch.ones(batch, tokens, dtype=torch.long)
        mask[:, -3:] = 0
        decoder = inner.language_model.model.decoder
        return lambda: decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    if part == "qformer":
        seen = torch.randn(batch, act.patches(config), 128, generator=generator).to(dtype)
        queries = inner.query_tokens.expand(batch, -1, -1)
        return lambda: inner.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
    pixels = torch.randn(batch, 3, 224, 224, generator=generator)
    return lambda: inner.vision_model(pixel_values=pixels).last_hidden_state


def predicted(part, config, lora, batch, tokens):
    if part == "opt":
        layers = config.text_config.num_hidden_layers * act.opt_layer(config, lora, batch, tokens)
        return layers + act.head(config, batch, tokens)
    return (act.qformer_layers if part == "qformer" else act.vision_layers)(config, lora, batch)


def adapted(tiny_folder, part, dtype, rank, dropout, variant="lora"):
    preset = {"opt": "decoder", "qformer": "connector", "vit": "vision"}[part]
    return models.add_lora(models.load_base(tiny_folder, dtype), preset, rank, 8, dropout, variant).train()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["opt", "qformer", "vit"])
@pytest.mark.parametrize(
    ("batch", "tokens", "rank", "dropout"),
    [(2, 24, 4, 0.0), (2, 64, 4, 0.1), (5, 40, 16, 0.0), (3, 32, 8, 0.1)],
)
def test_in_fp32_autograd_keeps_what_the_arithmetic_says(tiny_folder, part, batch, tokens, rank, dropout):
    trained = adapted(tiny_folder, part, "float32", rank, dropout)
    inner = trained.get_base_model()
    lora = act.Lora(rank, dropout > 0, act.Precision.of("float32"))
    measured = kept_bytes(trained, forward_of(part, inner, batch, tokens, torch.float32))
    assert measured == pytest.approx(predicted(part, inner.config, lora, batch, tokens), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["opt", "qformer", "vit"])
@pytest.mark.parametrize(("batch", "dropout"), [(4, 0.0), (8, 0.1)])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_under_autocast_it_keeps_fp32_norms_and_half_width_copies(tiny_folder, part, batch, dropout, dtype):
    """A model in fp16 has its Q-Former in fp32, of whose weights autocast keeps copies; one in bf16 has not."""
    trained = adapted(tiny_folder, part, "bfloat16", 4, dropout)
    inner = trained.get_base_model()
    if dtype == "float16":
        inner.qformer.float()
    lora = act.Lora(4, dropout > 0, act.Precision.of(dtype))
    with cuda_autocast():
        measured = kept_bytes(trained, forward_of(part, inner, batch, 64, torch.bfloat16))
    where = {"opt": "language_model", "qformer": "qformer", "vit": "vision_model"}[part]
    casts = 2 * sum(p.numel() for n, p in trained.named_parameters() if p.requires_grad and where in n)
    assert measured == pytest.approx(predicted(part, inner.config, lora, batch, 64) + casts, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dora_keeps_its_outputs_and_with_dropout_whole_weights(tiny_folder, dropout):
    """With dropout peft computes DoRA's base output itself, from a weight that autograd then holds."""
    trained = adapted(tiny_folder, "opt", "float32", 4, dropout, "dora")
    lora = act.Lora(4, dropout > 0, act.Precision.of("float32"), dora=True)
    inner = trained.get_base_model()
    measured = kept_bytes(trained, forward_of("opt", inner, 4, 64, torch.float32))
    assert measured == pytest.approx(predicted("opt", inner.config, lora, 4, 64), rel=0.02)


def test_a_checkpointed_layer_keeps_its_input_alone(tiny_folder):
    trained = adapted(tiny_folder, "opt", "float32", 4, 0.0)
    inner = trained.get_base_model()
    models.checkpoint_layers(trained, 2)
    lora, config = act.Lora(4, False, act.Precision.of("float32")), inner.config
    measured = kept_bytes(trained, forward_of("opt", inner, 4, 64, torch.float32))
    whole = act.opt_layer(config, lora, 4, 64) + act.head(config, 4, 64)
    # the mask is held by the checkpoint, and was counted with the layer
    assert measured == pytest.approx(whole + 2 * act.checkpointed(config, 4, 64), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["connector", "vision"])
def test_a_whole_forward_pass_keeps_the_parts_of_the_plan_and_the_log_probabilities(tiny_folder, preset):
    trained = models.add_lora(models.load_base(tiny_folder, "float32"), preset, 4, 8, 0.1).train()
    config, adaptation = trained.get_base_model().config, Adaptation(preset, 4, dropout=0.1)
    ids = torch.full((3, 40), 5)
    ids[:, :16] = config.image_token_index
    pixels, labels = torch.randn(3, 3, 224, 224), ids[:, 16:].clone()
    measured = kept_bytes(
        trained,
        lambda: trained(
            pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels,
            logits_to_keep=24, use_cache=False,
        ).loss,
    )  # fmt: skip
    lora = adaptation.lora(act.Precision.of("float32"))
    parts = kept(config, adaptation, lora, Load(3, 40, 0, 1))
    assert measured == pytest.approx(sum(parts.values()) + 4 * 704 * 3 * 24, rel=0.02)


def test_the_bytes_of_a_layer_of_opt_6_7b_by_hand():
    """A token in fp16 with dropout: 2 norms 4 x 4096 + 8; q, k, v, out_proj, fc1 (1 + 2) x 4096; fc2 (1 + 2) x
    16384; relu 4 x 16384; q, k, v, output 2 x 4096; log-sum-exp 4 x 32; 6 x rank 16 x 2; and a mask of T x T."""
    lora = act.Lora(16, True, act.Precision.of("float16"))
    token = 2 * (4 * 4096 + 8) + 5 * 3 * 4096 + 3 * 16384 + 4 * 16384 + 4 * 2 * 4096 + 128 + 6 * 16 * 2
    assert act.opt_layer(BIG, lora, 1, 160) == 160 * token + 2 * 160 * 160


def test_the_loss_holds_three_fp32_numbers_a_logit_behind_the_image():
    """8 rows of 160 columns, 32 of them the image; log-probabilities, their gradient, the logits' gradient."""
    assert act.logits(BIG, 8, 160) == 3 * 4 * 50_304 * 8 * (160 - 32)


# ---- sizes ----
def test_the_parts_of_blip2_opt_6_7b_are_those_of_the_released_model():
    counted = sizes.sizes(BIG)
    assert counted.parameters == 7_752_869_376
    assert (counted.vision, counted.opt, counted.projection) == (985_952_256, 6_658_605_056, 3_149_824)
    assert counted.qformer == 105_137_664 + 32 * 768  # its queries are counted with it
    assert counted.quantised == 32 * (4 * 4096**2 + 2 * 4096 * 16384)


@pytest.mark.parametrize(
    ("preset", "lora"),
    [("decoder", 37_748_736), ("connector", 37_748_736 + 1_449_984), ("vision", 53_895_168)],
)
def test_the_trained_parameters_are_loras_and_the_projections(preset, lora):
    assert sizes.sizes(BIG).adapter(preset, 16, dora=False) == lora + 3_149_824


@pytest.mark.parametrize("variant", ["lora", "dora"])
def test_the_count_of_trained_parameters_is_pefts(tiny_folder, variant):
    trained = models.add_lora(models.load_base(tiny_folder, "float32"), "vision", 4, 8, 0.0, variant)
    counted = sizes.sizes(models.load_config(tiny_folder)).adapter("vision", 4, variant == "dora")
    assert counted == sum(p.numel() for p in trained.parameters() if p.requires_grad)


def test_nf4_takes_half_a_byte_and_two_layers_of_scales():
    # 4096 x 4096: 8388608 + 262144 scales of a byte + 1024 scales of those + 273 fp32 numbers of tables
    assert sizes.nf4_bytes(4096 * 4096) == 8_388_608 + 262_144 + 4 * 1024 + 4 * 273


def test_nf4_takes_what_bitsandbytes_holds(tiny_folder):
    for layer in models.four_bit_linears(models.load_base(tiny_folder, "float32")):
        state = layer.weight.quant_state
        held = [layer.weight, state.absmax, state.code, state.state2.absmax, state.state2.code, state.offset]
        assert sizes.nf4_bytes(layer.in_features * layer.out_features) == sum(
            t.numel() * t.element_size() for t in held
        )


def test_a_quantised_copys_configuration_counts_the_same_model(tiny_folder):
    config = models.load_config(tiny_folder)
    before = sizes.sizes(config)
    config.quantization_config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert sizes.sizes(config) == before


# ---- the plan ----
@pytest.mark.parametrize(("preset", "gib"), [("connector", 5.73), ("decoder", 3.50)])
def test_the_weights_of_6_7b_are_within_two_percent_of_the_known_size(preset, gib):
    assert made(preset).weights == pytest.approx(gib, rel=0.02)


@pytest.mark.parametrize("preset", ["connector", "decoder"])
@pytest.mark.parametrize("longest", [80, 121])
def test_6_7b_fits_two_t4_with_a_micro_batch_of_eight(preset, longest):
    chosen = made(preset, lengths=replace(ROCO, longest=longest))
    assert chosen.micro_batch >= 8
    assert chosen.peak <= 14.0
    assert chosen.accumulation * chosen.micro_batch * 2 == 32


def test_the_peak_is_the_sum_of_the_printed_parts():
    chosen = made()
    assert sum(chosen.parts.values()) == chosen.peak
    rows = [re.fullmatch(r"  .{34} *([\d.]+) GiB", line) for line in chosen.text().splitlines()]
    sizes_printed = [float(row[1]) for row in rows if row]
    assert len(sizes_printed) == len([size for size in chosen.parts.values() if size >= 0.005])
    assert sum(sizes_printed) == pytest.approx(chosen.peak, abs=0.1)


def test_no_layer_more_than_needed_is_checkpointed():
    asked = made().request
    batch, layers = asked.choice()
    assert layers > 0
    assert asked.fits(batch, layers)
    assert not asked.fits(batch, layers - 1)


def test_a_longer_cut_checkpoints_more_layers_and_keeps_the_micro_batch():
    short, long = (made(lengths=replace(ROCO, longest=longest)) for longest in (80, 121))
    assert short.micro_batch == long.micro_batch == 8
    assert short.checkpointed_layers < long.checkpointed_layers


def test_memory_grows_with_everything_that_grows():
    def peak(adaptation=None, **load):
        load = Load(**{"micro_batch": 8, "tokens": 120, "checkpointed": 4, "ranks": 2} | load)
        return sum(demand(BIG, adaptation or Adaptation("connector", 16), "float16", load).values())

    assert peak(micro_batch=4) < peak() < peak(micro_batch=16)
    assert peak(tokens=112) < peak()
    assert peak(checkpointed=5) < peak()
    assert peak(ranks=1) < peak()
    assert peak(Adaptation("connector", 8)) < peak() < peak(Adaptation("vision", 16))
    assert peak(Adaptation("decoder", 16)) < peak(Adaptation("connector", 16, dropout=0.0)) < peak()


def test_where_all_layers_are_checkpointed_the_widest_moment_is_a_layer():
    adaptation, load = Adaptation("connector", 16), Load(16, 160, 32, 2)
    lora = adaptation.lora(act.Precision.of("float16"))
    found = moments(BIG, adaptation, lora, load, {"OPT's activations": 0, "inputs": 5})
    layer = act.opt_layer(BIG, lora, 16, 160) + act.layer_backward(BIG, lora, 16, 160)
    assert found["in a checkpointed layer"] == 5 + layer


def test_a_given_micro_batch_is_respected():
    assert made(micro_batch=2).micro_batch == 2


def test_steps_and_accumulation_by_hand():
    chosen = made(micro_batch=4, lengths=plan.Lengths(80, 121, 33.6, 1000, 100))
    assert (chosen.steps, chosen.accumulation) == (63, 4)  # 2 x 1000 / 32 = 62.5; 32 / 2 / 4


def test_a_cpu_takes_the_largest_divisor_up_to_sixteen_and_knows_no_hours(tiny_folder):
    cpu = (Card("CPU", 4.0, "float32", None, None),)
    config = models.load_config(tiny_folder)
    batches = [made(config=config, cards=cpu, global_batch=g).micro_batch for g in (24, 32, 40, 64)]
    assert batches == [12, 16, 10, 16]  # of 12, 16, 20 and 32 pairs a rank
    chosen = made(config=config, cards=cpu)
    assert (chosen.checkpointed_layers, chosen.hours, chosen.memory) == (0, None, 2.0)
    assert "hours are not known until the run has measured its rate" in chosen.text()


def test_the_larger_card_needs_no_checkpointing():
    chosen = made(cards=(H100,), ranks=1)
    assert (chosen.micro_batch, chosen.checkpointed_layers) == (32, 0)


def test_the_measured_rate_replaces_the_estimate():
    chosen = made()  # 2334 steps of 32
    assert plan.measured(chosen, images_per_s=10.0) == pytest.approx(2334 * 32 / 10 / 3600)
    assert plan.measured(chosen, images_per_s=10.0, step=2324) == pytest.approx(320 / 10 / 3600)


def test_the_disk_of_6_7b():
    disk = made("decoder").disk
    assert disk["download of the fp32 checkpoint"] == pytest.approx(31.0, abs=0.05)
    assert disk["4-bit copy"] == pytest.approx(6.2, abs=0.1)
    assert disk["visual features"] == pytest.approx((37_330 + 6_672) * 32 * 768 * 2 / 1e9)
    assert "visual features" not in made().disk
    assert "5.0 GB free: TOO LITTLE" in made().text(disk_free=5.0)


def test_the_json_of_a_plan_holds_plain_values():
    told = json.loads(json.dumps(made().json()))
    assert (told["micro_batch"], told["card"]["name"], told["preset"]) == (8, "T4", "connector")


# ---- refusals ----
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"global_batch": 33}, "GLOBAL_BATCH 33 is no multiple of the 2 ranks: set GLOBAL_BATCH to 32 or 34."),
        ({"global_batch": 1}, "set GLOBAL_BATCH to 2 or 2."),
        ({"micro_batch": 5}, "set MICRO_BATCH to one of 1, 2, 4, 8, 16, or None."),
        ({"micro_batch": 16, "preset": "vision"}, "Set MICRO_BATCH to 4 or None."),
        ({"rank": 640}, "Set RANK to 8."),
        ({"lengths": replace(ROCO, longest=1000), "cards": (replace(T4, memory_gib=8.8),)},
         "Set CAPTION_PERCENTILE of notebook 02 to 95."),
        ({"cards": (replace(T4, memory_gib=7.4),)}, 'Set PRESET to "decoder".'),
        ({"cards": (replace(T4, memory_gib=4.5),), "preset": "decoder"},
         "Set MODEL_ID to Salesforce/blip2-opt-2.7b."),
        ({"cards": (replace(T4, memory_gib=1.0),)}, "No parameter makes it fit: use a GPU with more memory."),
    ],
)  # fmt: skip
def test_what_cannot_run_is_refused_with_the_parameter_to_change(change, sentence):
    with pytest.raises(plan.PlanError) as refused:
        made(**change)
    assert str(refused.value).endswith(sentence)


def test_the_advice_of_a_refusal_is_good():
    """Told to take the CPU's micro-batch 1 where 1 had just been refused, a reader has nothing to try."""
    with pytest.raises(plan.PlanError, match="MICRO_BATCH to 4") as refused:
        made("vision", micro_batch=16)
    assert "micro-batch 16 takes" in str(refused.value)
    assert made("vision", micro_batch=4).peak <= 14.0


# ---- cards ----
@pytest.mark.parametrize(
    ("gpu", "name", "memory", "dtype", "tflops"),
    [
        (Gpu("Tesla T4", 7.5, 15.0), "Tesla T4", 14.75, "float16", 24),
        (Gpu("NVIDIA L4", 8.9, 22.5), "NVIDIA L4", 22.12, "bfloat16", 0.45 * 121),
        (Gpu("NVIDIA A100-SXM4-80GB", 8.0, 80.0), "NVIDIA A100-SXM4-80GB", 78.67, "bfloat16", 0.45 * 312),
        (Gpu("Quadro RTX 6000", 7.5, 24.0), "Quadro RTX 6000", 23.6, "float16", None),
    ],
)
def test_a_reported_gpu_is_the_card_it_is(gpu, name, memory, dtype, tflops):
    card = card_of(gpu)
    assert (card.name, card.memory_gib, card.dtype) == (name, memory, dtype)
    assert card.tflops == tflops


def test_a_card_of_unknown_rates_is_planned_for_without_hours():
    unknown = Card("Quadro RTX 6000", 23.6, "float16", None, None)
    chosen = made(cards=(unknown, unknown))
    assert chosen.micro_batch >= 8
    assert chosen.hours is None


# ---- the command ----
def test_the_command_prints_the_plan_for_cards_that_are_not_there(capsys):
    assert plan.main(["t4x2", "--preset", "decoder"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Plan: Salesforce/blip2-opt-6.7b, preset decoder, r=16, float16, 2 x T4")
    assert "ViT " not in out
    assert "an estimate from assumed rates" in out


def test_the_command_reads_lengths_from_a_prepared_stage(capsys, tiny_folder, prepared_folder):
    assert (
        plan.main(["cpu", "--model", tiny_folder, "--prepared", str(prepared_folder), "--epochs", "4"]) == 0
    )
    # 8 pairs x 4 epochs / 32; the limit of 12 tokens
    out = capsys.readouterr().out
    assert "1 steps" in out
    assert "32 columns at the longest caption (12 tokens)" in out


def test_the_command_refuses_in_one_sentence(capsys):
    assert plan.main(["t4x2", "--global-batch", "33"]) == 2
    assert capsys.readouterr().out.count("\n") == 1
