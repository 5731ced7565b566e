"""``python -m tests.bench.recipes ORDER.json``: train by one recipe in this process and leave its figures.

ORDER.json is the JOB.json of ``utils.train`` with three fields more: ``recipe`` (a key of ``RECIPES``),
``threads`` (of each rank) and ``pinned`` (whether each rank keeps to as many cores). The figures come to
``result.json`` in the order's ``output``. What several runs share stands beside it: the 4-bit base model, features.
"""

import gc
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence

from utils import base, model, train
from utils.dataset import Layout, PreparedSplit, normalise
from utils.results import read_lines
from utils.stages import read_json, write_json

DTYPE, CLIP = "float32", 1.0


@dataclass(frozen=True)
class Habits:
    """How a published recipe trains.

    Attributes:
        batch: pairs of a step, in random order.
        masked: whether the model is told where the padding is.
        clip: whether gradients are clipped.
        emptying: steps from one emptying of the cache to the next; 0 for never.
    """

    batch: int
    masked: bool
    clip: bool
    emptying: int


NOTEBOOK = Habits(batch=4, masked=True, clip=True, emptying=3)
# peft's examples/int8_training/fine_tune_blip2_int8.py; without the captions that it prints every tenth step.
PEFT = Habits(batch=2, masked=False, clip=False, emptying=0)


class UsualBatches:
    """One pass over the pairs as the usual notebooks batch them, and what its tokens were.

    Args:
        split: the pairs.
        settings: ``preprocess.json``: mean, std.
        layout: BLIP-2's token layout.
        habits: of the recipe.
    """

    def __init__(self, split: PreparedSplit, settings: dict, layout: Layout, habits: Habits):
        self.split, self.settings, self.layout, self.habits = split, settings, layout, habits
        self.useful = self.computed = 0

    def __iter__(self) -> Iterator[dict]:
        self.useful = self.computed = 0
        order = np.random.default_rng(0).permutation(len(self.split)).tolist()
        for start in range(0, len(order), self.habits.batch):
            yield self.batch(order[start : start + self.habits.batch])

    def batch(self, pairs: list[int]) -> dict[str, torch.Tensor]:
        """Pad to the longest, and take all of it for labels: images, BOS, captions, padding."""
        items, head = [self.split[pair] for pair in pairs], self.layout.prompt(1)[0]
        rows = [torch.cat([head, item["input_ids"]]) for item in items]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.layout.pad_id)
        self.useful += sum(map(len, rows))
        self.computed += ids.numel()
        pixels = torch.stack([item["pixels"] for item in items])
        seen = normalise(pixels, self.settings["mean"], self.settings["std"])
        mask = {"attention_mask": (ids != self.layout.pad_id).long()} if self.habits.masked else {}
        return {"pixel_values": seen, "input_ids": ids, "labels": ids, **mask}


class UsualStep:
    """A step of the usual loop: one batch, logits everywhere, AdamW."""

    def __init__(self, adapted: torch.nn.Module, rate: float, clip: bool):
        self.adapted, self.clip = adapted, clip
        self.trained = [p for p in adapted.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=rate)

    def __call__(self, inputs: dict) -> float:
        """Train on a batch and return its loss."""
        loss = self.adapted(**inputs).loss
        loss.backward()
        if self.clip:
            clip_grad_norm_(self.trained, CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def load(order: dict):
    """Return the base model of an order, and the token layout."""
    weights = read_json(Path(order["prepared"]) / "preprocess.json")["model_id"]
    frozen = model.load_base(weights, DTYPE, place=Path(order["output"]).parent / base.PLACE)
    return frozen, model.layout_of(frozen.config, model.load_tokenizer(weights))


def usual(order: dict, habits: Habits) -> dict:
    """Train one pass by a published recipe; the same base model and LoRA layers as ours.

    Emptying the cache is not on the clock: it takes as long beside this small model as beside BLIP2-OPT-6.7B,
    whose steps are longer.
    """
    (frozen, layout), prepared, config = load(order), Path(order["prepared"]), order["config"]
    settings = read_json(prepared / "preprocess.json")
    pairs = UsualBatches(PreparedSplit(prepared, "train"), settings, layout, habits)
    adapted = model.add_lora(frozen, *(config[name] for name in ("preset", "rank", "alpha", "dropout")))
    step = UsualStep(adapted.train(), config["learning_rate"], habits.clip)
    step(pairs.batch(longest(pairs.split.lengths, habits.batch)))
    emptying, started = [], time.perf_counter()
    for number, inputs in enumerate(pairs, 1):
        step(inputs)
        if habits.emptying and number % habits.emptying == 0:
            emptying.append(empty())
    seconds = time.perf_counter() - started - sum(emptying)
    return {"images": len(pairs.split), "seconds": seconds, "useful": pairs.useful / pairs.computed,
            "emptying": sum(emptying) / max(1, len(emptying))}  # fmt: skip


def empty() -> float:
    """Empty what can be emptied; return the seconds that it took."""
    started = time.perf_counter()
    gc.collect()
    torch.cuda.empty_cache()
    return time.perf_counter() - started


def ours(order: dict) -> dict:
    """Train one pass as notebook 03 does; its own log tells the seconds."""
    output, batch = Path(order["output"]), order["config"]["global_batch"]
    warm_up(order)
    gc.collect()  # what it built must not count as the run's memory
    train.main(str(output / "order.json"))
    rates = [line["images_per_s"] for line in read_lines(output / "log.jsonl") if "images_per_s" in line]
    seconds = sum(batch / rate for rate in rates)
    useful = read_json(output / "run.json")["useful_share"]
    return {"images": batch * len(rates), "seconds": seconds, "useful": useful}


def warm_up(order: dict) -> None:
    """Compute the gradients of the longest micro-batch once."""
    trainer, _ = train.build_trainer(order)
    pairs = trainer.train_dataset
    items = [pairs[row] for row in longest(pairs.lengths, trainer.batches.batch_size)]
    inputs = trainer._prepare_inputs(trainer.data_collator(items))
    trainer.model.train()(**inputs).loss.backward()


def longest(lengths: list[int], count: int) -> list[int]:
    """Return the pairs with the longest captions.

    A recipe trains on them before the clock starts: the system hands out memory slowly, and only once.
    """
    return sorted(range(len(lengths)), key=lambda pair: -lengths[pair])[:count]


def features(order: dict) -> dict:
    """Compute the features of every image, as the first run of the preset ``decoder`` does, and stop there."""
    figures = {}

    def timed(*args, real=train.with_features):
        started = time.perf_counter()
        splits = real(*args)
        figures.update(images=sum(map(len, splits)), seconds=time.perf_counter() - started)
        return splits

    with patch.object(train, "with_features", timed):
        train.build_trainer(order)
    return figures


RECIPES = {"notebook": partial(usual, habits=NOTEBOOK), "peft": partial(usual, habits=PEFT), "ours": ours,
           "features": features}  # fmt: skip


def peak_gib() -> float:
    """Return the most memory, in GiB, that this process has held; not what the one that started it held."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 2**20


def pin(rank: int, threads: int) -> None:
    """Keep this process to its own ``threads`` cores."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[rank * threads : (rank + 1) * threads])


def main(path: str) -> None:
    """Do what an order says; the first rank writes the figures."""
    order, rank = read_json(Path(path)), int(os.environ.get("RANK", 0))
    if order["pinned"]:
        pin(rank, order["threads"])
    torch.set_num_threads(order["threads"])
    figures = RECIPES[order["recipe"]](order)
    if rank == 0:
        write_json(Path(order["output"]) / "result.json", figures | {"gib": peak_gib()})


if __name__ == "__main__":
    main(sys.argv[1])
