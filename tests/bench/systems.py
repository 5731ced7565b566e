"""Ways to train BLIP-2 on one GPU, and the measuring of each: images a second, peak memory."""

import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from tests.bench.random_base import random_base
from utils.batches import TrainingBatches
from utils.dataset import Collator, Layout
from utils.features import drop_visual
from utils.model import add_lora, checkpoint_layers

GLOBAL_BATCH, RANK = 32, 16
GIB = 2**30


@dataclass(frozen=True)
class System:
    """A way to train: what is seen, how batches are made, where logits and labels are."""

    name: str
    preset: str
    micro_batch: int
    accumulation: int = 1
    ours: bool = False  # buckets, labels on captions alone, logits behind the image
    empties: int = 0  # empty_cache every so many steps
    checkpointed: int = 0

    @property
    def cached(self) -> bool:
        """Whether features stand in for the image."""
        return self.ours and self.preset == "decoder"


# (a) and (b) adapt what (c) does: the six linears of every layer of OPT, and the projection.
NOTEBOOK = System("(a) the notebook's recipe", "decoder", 4, empties=3)
EXAMPLE = System("(b) PEFT's BLIP-2 example", "decoder", 3)


@dataclass(frozen=True)
class Measured:
    """Images a second; GiB that tensors took, and that the allocator held; columns of an average image."""

    images_per_s: float
    peak: float
    reserved: float
    columns: float


def prepare(system: System, config, device, dtype):
    """Return the adapted model of a system, on the device, in training mode."""
    base = random_base(config, device, dtype)
    if system.cached:
        drop_visual(base)
    trained = add_lora(base, system.preset, RANK, 2 * RANK, 0.05).train()
    checkpoint_layers(trained, system.checkpointed)
    return trained


def layout_of(config) -> Layout:
    """Return BLIP-2's token layout from its configuration alone."""
    text = config.text_config
    return Layout(config.image_token_index, config.num_query_tokens, text.bos_token_id, text.pad_token_id,
                  text.eos_token_id)  # fmt: skip


def micro_batches(system: System, lengths: list[int], steps: int) -> Iterator[list[int]]:
    """Yield the lengths of each micro-batch: in buckets, or in random order."""
    size = system.micro_batch
    if system.ours:
        whole = size * system.accumulation
        for pairs in TrainingBatches(lengths, whole, size, steps, seed=0):
            yield [lengths[pair] for pair in pairs]
        return
    order = np.random.default_rng(0).permutation(lengths)
    for start in range(0, steps * system.accumulation * size, size):
        yield [int(order[(start + i) % len(order)]) for i in range(size)]


def batch_of(system: System, tokens: list[int], config, device, dtype) -> dict[str, torch.Tensor]:
    """Return the model's inputs for captions of the given lengths, on the device."""
    layout = layout_of(config)
    items = [{"input_ids": torch.full((count,), layout.newline_id)} for count in tokens]
    batch = Collator(layout)(items)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    if system.ours:
        inputs["labels"] = batch["labels"][:, layout.queries :]
        inputs["logits_to_keep"] = inputs["labels"].shape[1]
    else:
        width = layout.queries + 1 + max(tokens)  # their processor pads to the longest
        inputs = {k: v[:, :width] if torch.is_tensor(v) else v for k, v in inputs.items()}
        inputs["labels"] = inputs["input_ids"]
    moved = {k: v.to(device) if torch.is_tensor(v) else v for k, v in inputs.items()}
    return moved | {"pixel_values": seen(system, len(tokens), config, device, dtype)}


def seen(system: System, count: int, config, device, dtype) -> torch.Tensor:
    """Return random features or pixels."""
    if system.cached:
        width = config.qformer_config.hidden_size
        return torch.randn(count, config.num_query_tokens, width, device=device, dtype=dtype)
    size = config.vision_config.image_size
    return torch.randn(count, 3, size, size, device=device)


class Loop:
    """Training steps of one system: autocast, scaled gradients, AdamW."""

    def __init__(self, system: System, model, config, device: torch.device, dtype: torch.dtype):
        self.system, self.model, self.config, self.device, self.dtype = system, model, config, device, dtype
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=2e-4)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.steps = 0

    def step(self, batches: list[list[int]]) -> int:
        """Train on the micro-batches of one step; return the columns that were computed."""
        columns = 0
        for tokens in batches:
            inputs = batch_of(self.system, tokens, self.config, self.device, self.dtype)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.model(**inputs).loss / len(batches)
            self.scaler.scale(loss).backward()
            columns += inputs["input_ids"].numel()
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.steps += 1
        if self.system.empties and self.steps % self.system.empties == 0 and self.device.type == "cuda":
            torch.cuda.empty_cache()
        return columns


def measure(system: System, config, lengths: list[int], device, dtype, steps: int) -> Measured:
    """Time a system's steps, then take its peak at the longest captions."""
    release(device)
    loop = Loop(system, prepare(system, config, device, dtype), config, device, dtype)
    images = system.micro_batch * system.accumulation
    count = steps * max(1, GLOBAL_BATCH // images)  # as many images for every system
    batches = iter(micro_batches(system, lengths, count + 1))
    groups = [[next(batches) for _ in range(system.accumulation)] for _ in range(count + 1)]
    loop.step(groups[0])
    finish(device)
    started = time.perf_counter()
    columns = sum(loop.step(group) for group in groups[1:])
    finish(device)
    seconds = time.perf_counter() - started
    loop.step([[max(lengths)] * system.micro_batch] * min(2, system.accumulation))
    finish(device)
    return Measured(count * images / seconds, *peaks(device), columns / (count * images))


def release(device: torch.device) -> None:
    """Let the last system's memory go, and count peaks anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peaks(device: torch.device) -> tuple[float, float]:
    """Return the peak GiB of tensors and of the allocator; a CPU counts neither."""
    if device.type != "cuda":
        return 0.0, 0.0
    return torch.cuda.max_memory_allocated(device) / GIB, torch.cuda.max_memory_reserved(device) / GIB


def seconds_of(call, device, times: int = 5) -> float:
    """Return the seconds of a call, the mean of some after one that warms up."""
    call()
    finish(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    finish(device)
    return (time.perf_counter() - started) / times
