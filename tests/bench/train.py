"""Training against two published recipes, on a model with BLIP2-OPT-6.7B's proportions and real caption lengths.

What a figure means on two cores: the arithmetic that is saved. What a GPU saves besides is counted and told.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median

from transformers import Blip2Config

from tests.bench import scaled
from tests.bench.lines import Line
from tests.bench.recipes import NOTEBOOK
from utils.activations import FP32, Precision
from utils.batches import POOL, TrainingBatches
from utils.dataset import Layout
from utils.memory import GIB, Adaptation, weights
from utils.sample.tiny_blip2 import BOS, IMAGE_TOKEN, NEWLINE, PAD
from utils.sizes import known_config, sizes
from utils.stages import REPO, read_json, write_json

STEPS = 10  # of ours, with a global batch of 32
RANK_STEPS = 6  # where ranks are compared
ROUNDS = 2
CORES = 2
REAL_MODEL = "Salesforce/blip2-opt-6.7b"
CONFIG = {
    "preset": "decoder", "variant": "lora", "alpha": 8, "dropout": 0.05, "learning_rate": 2e-4,
    "rank": 4,  # of a width of 512: LoRA's share of the arithmetic stays small, as 16 of 4,096 is
    "epochs": 1, "global_batch": 32, "micro_batch": 8, "evaluations": 1, "generated": 0,
    "select": "eval_loss", "patience": 1, "seed": 0,
}  # fmt: skip
SYSTEMS = {  # name -> recipe and preset, which says what is trained
    "(a) the first notebook's recipe": ("notebook", "decoder"),
    "(b) peft's BLIP-2 example": ("peft", "decoder"),
    "(c) ours, decoder": ("ours", "decoder"),
    "(d) ours, connector": ("ours", "connector"),
}
A, B, C, D = SYSTEMS
BARS = {B: None, C: 1.35, D: 1.1}  # images/s over those of (a)


def run(scale: float) -> list[Line]:
    """Train one pass by every recipe, in turns, each time in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        scaled.write_model(root / "weights", scaled.build_config())
        pairs = {name: CONFIG["global_batch"] * max(2, round(steps * scale))
                 for name, steps in (("pairs", STEPS), ("few", RANK_STEPS))}  # fmt: skip
        for name, count in pairs.items():
            scaled.write_pairs(root / name, root / "weights", count)
        cache = trained(root, "features", "features", "decoder")
        rounds = [{name: trained(root, f"{number}{name[1]}", *system) for name, system in SYSTEMS.items()}
                  for number in range(ROUNDS)]  # fmt: skip
        ranks = [{count: trained(root, f"{number}-{count}", "ours", "connector", ranks=count)
                  for count in (1, 2)} for number in range(ROUNDS)]  # fmt: skip
    useful = {name: rounds[0][name]["useful"] for name in SYSTEMS}
    return [*proportions(pairs["pairs"]), *rate_lines(rounds), *token_lines(useful), *memory_lines(rounds),
            *cache_lines(cache, rounds), rank_line(ranks), *gpu_lines(useful)]  # fmt: skip


def trained(root: Path, name: str, recipe: str, preset: str, ranks: int = 0) -> dict:
    """Train in a process of its own on all cores, or in ``ranks`` of one core each; return the figures.

    Raises:
        RuntimeError: it failed.
    """
    output, threads = root / name, 1 if ranks else CORES
    output.mkdir()
    write_json(output / "order.json", {
        "prepared": str(root / ("few" if ranks else "pairs")), "output": str(output), "recipe": recipe,
        "config": CONFIG | {"preset": preset}, "threads": threads, "pinned": ranks > 0,
    })  # fmt: skip
    launcher = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"] if ranks else []
    command = [sys.executable, "-m", *launcher, "tests.bench.recipes", str(output / "order.json")]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    if subprocess.run(command, cwd=REPO, env=env, stdout=sys.stderr).returncode:
        raise RuntimeError(f"The run {name} of the recipe {recipe} failed; its own error stands above.")
    return read_json(output / "result.json")


def rate(rounds: list[dict], name: str | int) -> float:
    """Return images a second: the median of the rounds."""
    return median(one[name]["images"] / one[name]["seconds"] for one in rounds)


def shares(config: Blip2Config, columns: int) -> dict[str, float]:
    """Return the percentages of the arithmetic of training on a pair; OPT runs forwards and backwards."""
    flops = scaled.forward_flops(config, columns)
    spent = {name: count * (2 if name.startswith("OPT") else 1) for name, count in flops.items()}
    return {name: 100 * count / sum(spent.values()) for name, count in spent.items()}


def proportions(pairs: int) -> list[Line]:
    """Tell how the scaled model spends its arithmetic, beside the real one."""
    lengths = scaled.caption_lengths(pairs)
    columns = round(scaled.QUERIES + 1 + mean(lengths))
    ours, theirs = (shares(config, columns) for config in (scaled.build_config(), known_config(REAL_MODEL)))
    return [
        Line(f"pairs; caption lengths of {scaled.origin()}", pairs, "pairs", None),
        *(Line(f"share of a pair's arithmetic, {name}", ours[name], "%", None, "BLIP2-OPT-6.7B", theirs[name])
          for name in ours),
    ]  # fmt: skip


def rate_lines(rounds: list[dict]) -> list[Line]:
    """Compare the rates with that of (a)."""
    usual = rate(rounds, A)
    emptying = median(one[A]["emptying"] for one in rounds)
    return [
        Line(A, usual, "images/s", None),
        Line("the same, a cache emptying (not on the clock)", emptying, "s", None),
        *(Line(name, rate(rounds, name), "images/s", bar, "(a)", usual) for name, bar in BARS.items()),
    ]  # fmt: skip


def token_lines(useful: dict[str, float]) -> list[Line]:
    """Tell how many of the tokens that OPT computes are no padding."""
    bars = {A: None, B: None, C: 0.92, D: 0.92}
    batch, pool = CONFIG["global_batch"], scaled.caption_lengths(POOL * CONFIG["global_batch"])
    layout = Layout(IMAGE_TOKEN, scaled.QUERIES, BOS, PAD, NEWLINE)
    whole = TrainingBatches(pool, batch, CONFIG["micro_batch"], POOL, 0).useful_share(layout)
    return [
        *(Line(f"useful of all computed tokens, {name[:3]}", share, "", bars[name]) for name, share in useful.items()),
        Line(f"the same of ours, in a run of {POOL} steps and more", whole, "", None),
    ]  # fmt: skip


def memory_lines(rounds: list[dict]) -> list[Line]:
    """Compare the memory of the processes, most of which the libraries take."""
    gib = {name: median(one[name]["gib"] for one in rounds) for name in SYSTEMS}
    return [
        Line(f"peak memory of the process, {name[:3]}", held, "GiB", None, "(a)", gib[A])
        for name, held in gib.items()
    ]


def cache_lines(cache: dict, rounds: list[dict]) -> list[Line]:
    """Tell what the features of (c) cost once, and when they have paid for themselves."""
    cost = cache["seconds"] / cache["images"]
    saved = 1 / rate(rounds, D) - 1 / rate(rounds, C)
    return [
        Line("features of (c), once", 1000 * cost, "ms/image", None),
        Line("paid for, against (d), after", cost / saved, "passes", None),
    ]  # fmt: skip


def rank_line(ranks: list[dict]) -> Line:
    """Compare two ranks of one core with one."""
    what = "(d) on two ranks of one core, same global batch"
    return Line(what, rate(ranks, 2), "images/s", 1.7, "one rank of one core", rate(ranks, 1))


def gpu_lines(useful: dict[str, float]) -> list[Line]:
    """Count what a GPU saves besides, for BLIP2-OPT-6.7B in fp16: two cores do not show it."""
    real = known_config(REAL_MODEL)
    held = {preset: sum(weights(sizes(real), Adaptation(preset, 16), Precision.of("float16")).values()) / GIB
            for preset in ("decoder", "connector")}  # fmt: skip
    tokens = scaled.QUERIES + 1 + mean(scaled.caption_lengths(1000))
    columns = {name: tokens / useful[name] for name in (A, C)}
    logits = FP32 * real.text_config.vocab_size / 1e6
    return [
        Line("on a GPU besides: weights, (c) without ViT and Q-Former", held["decoder"], "GiB", None,
             "(a)", held["connector"]),
        Line("on a GPU besides: fp32 logits, (c) behind the image only", logits * (columns[C] - scaled.QUERIES),
             "MB/pair", None, "(a)", logits * columns[A]),
        Line("on a GPU besides: unpackings of the 4-bit weights, (c)", 2 / CONFIG["micro_batch"], "a pair", None,
             "(a)", 2 / NOTEBOOK.batch),
    ]  # fmt: skip
