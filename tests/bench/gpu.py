"""Training steps of BLIP2-OPT-6.7B's real shapes on one GPU, its memory capped to a T4's: ours and the usual way.

Weights are random, in NF4; what is measured is arithmetic and memory, not learning, and no data is loaded.
"""

import sys
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import torch

from tests.bench.lines import Line
from tests.bench.random_base import random_base
from tests.bench.systems import (
    EXAMPLE,
    GIB,
    GLOBAL_BATCH,
    NOTEBOOK,
    RANK,
    Measured,
    System,
    measure,
    seconds_of,
)
from utils import duration, plan
from utils.cards import T4
from utils.memory import Adaptation
from utils.model import four_bit_linears
from utils.sizes import known_config

LIMIT = 121  # tokens: the 99th percentile
STEPS = 6  # global batches of 32 that are timed, after one that is not
DTYPE = torch.float16
PAIRS = 4000


def run(scale: float) -> list[Line]:
    """Measure the four systems on this machine's first GPU."""
    if not torch.cuda.is_available():
        print(
            "The bench gpu needs a CUDA GPU and there is none: run it on a machine with one.", file=sys.stderr
        )
        raise SystemExit(2)
    device = torch.device("cuda", 0)
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, T4.memory_gib * GIB / total), device)
    config = known_config("Salesforce/blip2-opt-6.7b")
    with redirect_stdout(StringIO()):
        return lines(config, device, DTYPE, max(1, round(STEPS * scale)))


def lines(config, device: torch.device, dtype: torch.dtype, steps: int) -> list[Line]:
    """Measure the systems one after the other, each on a model of its own."""
    lengths = caption_lengths(PAIRS, LIMIT)
    planned = {preset: plan_of(config, preset, lengths, dtype) for preset in ("decoder", "connector")}
    ours = {preset: system_of(made) for preset, made in planned.items()}
    systems = (NOTEBOOK, EXAMPLE, *ours.values())
    found = {s.name: measure(s, config, lengths, device, dtype, steps) for s in systems}
    told = rate_lines(systems, found)
    for preset, made in planned.items():
        result = found[ours[preset].name]
        told += memory_lines(ours[preset], made, result)
        told += share_lines(ours[preset], config, made, result, device, dtype)
    return told


def caption_lengths(count: int, limit: int) -> list[int]:
    """Draw lengths as ROCO's captions have them in OPT's tokens: median 27, mean 33.6, p95 80, p99 125."""
    drawn = np.random.default_rng(0).lognormal(np.log(27), 0.661, count)
    return np.clip(np.rint(drawn), 4, limit).astype(int).tolist()


def plan_of(config, preset: str, lengths: list[int], dtype: torch.dtype) -> plan.Plan:
    """Return the plan for one T4."""
    adaptation, known = Adaptation(preset, RANK), plan.Lengths.of(lengths, 0, max(lengths))
    name = str(dtype).removeprefix("torch.")
    return plan.make_plan(config, adaptation, known, (T4,), GLOBAL_BATCH, 1, 1, dtype=name)


def system_of(made: plan.Plan) -> System:
    """Return our way to train as the plan wants it."""
    preset = made.request.adaptation.preset
    name = f"({'c' if preset == 'decoder' else 'd'}) ours, {preset}"
    return System(name, preset, made.micro_batch, made.accumulation, True, 0, made.checkpointed_layers)


def rate_lines(systems: tuple[System, ...], found: dict[str, Measured]) -> list[Line]:
    """Compare images a second with (a)."""
    first = found[NOTEBOOK.name].images_per_s
    told = [Line(NOTEBOOK.name, first, "images/s", None)]
    for system in systems[1:]:
        bar = 3 if system.cached else None
        told.append(Line(system.name, found[system.name].images_per_s, "images/s", bar, NOTEBOOK.name, first))
    return told + [Line(f"peak of tensors, {s.name}", found[s.name].peak, "GiB", None) for s in systems[:2]]


def memory_lines(system: System, made: plan.Plan, result: Measured) -> list[Line]:
    """Hold the peak of tensors against the plan's, without what the plan assumes beside them."""
    predicted = sum(size for name, size in made.parts.items() if "assumed" not in name)
    what, rows = f"peak of tensors, {system.name}", f"plan: {made.micro_batch} rows"
    rows += f", {made.checkpointed_layers} layers checkpointed"
    return [
        Line(what, result.peak, "GiB", 1.1, rows, predicted, most=True),
        Line("the same", result.peak, "GiB", 0.9, "plan", predicted),
        Line(f"held by the allocator, {system.name}", result.reserved, "GiB", T4.memory_gib, most=True),
    ]


def share_lines(system: System, config, made: plan.Plan, result: Measured, device, dtype) -> list[Line]:
    """Hold the useful operations a second against plain matrix products, and say where the rest goes."""
    adaptation = made.request.adaptation
    flops = duration.training_flops(config, adaptation, result.columns, 0)
    again = duration.training_flops(config, adaptation, result.columns, system.checkpointed) - flops
    plain = product_rate(config, round(system.micro_batch * result.columns), device, dtype)
    image = 1 / result.images_per_s
    passes = 2 + system.checkpointed / config.text_config.num_hidden_layers
    unfolding = unfold_seconds(config, device, dtype) * passes / system.micro_batch
    shares = {"twice computed": again / plain / image, "dequantising": unfolding / image}
    rest = 1 - flops / plain / image - sum(shares.values())
    shares["rest (elementwise, attention, optimizer, launches)"] = rest
    return [
        Line(f"useful operations, {system.name}", flops * result.images_per_s / 1e12, "TFLOP/s", 0.4,
             "plain matrix products", plain / 1e12),
        *[Line(f"time of {system.name}: {what}", share, "of it", None) for what, share in shares.items()],
    ]  # fmt: skip


def product_rate(config, rows: int, device, dtype) -> float:
    """Return operations a second of the matrix products of one layer of OPT on ``rows`` tokens."""
    width, ffn = config.text_config.hidden_size, config.text_config.ffn_dim
    shapes = [(width, width)] * 4 + [(width, ffn), (ffn, width)]
    pairs = [(torch.randn(rows, i, device=device, dtype=dtype), torch.randn(i, o, device=device, dtype=dtype))
             for i, o in shapes]  # fmt: skip
    seconds = seconds_of(lambda: [left @ right for left, right in pairs], device)
    return sum(2 * rows * i * o for i, o in shapes) / seconds


def unfold_seconds(config, device, dtype) -> float:
    """Return the seconds of dequantising all of OPT's linears once, from one layer's."""
    from bitsandbytes.functional import dequantize_4bit

    small = random_base(replace_layers(config, 1), device, dtype)
    layers = four_bit_linears(small)
    seconds = seconds_of(lambda: [dequantize_4bit(m.weight, m.weight.quant_state) for m in layers], device)
    return seconds * config.text_config.num_hidden_layers


def replace_layers(config, count: int):
    """Return the configuration with ``count`` layers of OPT."""
    values = config.to_dict()
    values["text_config"]["num_hidden_layers"] = count
    return type(config).from_dict(values)
