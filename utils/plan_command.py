"""``python -m utils.train --plan MACHINE``: the plan for a machine that need not be there."""

import argparse
from pathlib import Path

from utils import plan
from utils.cards import CARDS
from utils.model import ModelError, check_shapes, load_config
from utils.runtime import HUB_MODEL
from utils.sizes import known_config

# ROCOv2's RGB pairs, and the lengths of 12,487 ROCO captions in OPT's tokens, cut at their 99th percentile.
PUBLISHED = plan.Lengths(p95=80, longest=121, mean=33.6, pairs=37_330, valid=6_672)


def parser() -> argparse.ArgumentParser:
    """Return the command's options."""
    made = argparse.ArgumentParser(prog="python -m utils.train --plan", description=__doc__)
    made.add_argument("machine", choices=sorted(CARDS), help="the cards to plan for")
    made.add_argument("--model", default=HUB_MODEL, help="hub id or folder of a BLIP-2 OPT")
    made.add_argument("--preset", default="connector", choices=("decoder", "connector", "vision"))
    made.add_argument("--rank", type=int, default=16)
    made.add_argument("--dropout", type=float, default=0.05)
    made.add_argument("--dora", action="store_true")
    made.add_argument("--global-batch", type=int, default=32)
    made.add_argument("--micro-batch", type=int, help="left out: the plan chooses")
    made.add_argument("--epochs", type=float, default=2)
    made.add_argument("--ranks", type=int, help="left out: one for each card")
    made.add_argument("--prepared", type=Path, help="a finished stage 02, for its lengths and pairs")
    return made


def run(arguments: list[str]) -> int:
    """Print the plan for a named machine; return 0, or 2 where it is refused."""
    options = parser().parse_args(arguments)
    cards = CARDS[options.machine]
    adaptation = plan.Adaptation(options.preset, options.rank, options.dora, options.dropout)
    try:
        made = plan.make_plan(
            config_of(options.model), adaptation, lengths_of(options.prepared), cards, options.global_batch,
            options.ranks or len(cards), options.epochs, options.micro_batch,
        )  # fmt: skip
    except (plan.PlanError, ModelError) as error:
        print(error)
        return 2
    print(made.text())
    return 0


def config_of(model_id: str):
    """Return a model's configuration; of Salesforce's checkpoints without asking the hub."""
    config = known_config(model_id)
    if config is None:
        return load_config(model_id)
    check_shapes(config, model_id)
    return config


def lengths_of(prepared: Path | None) -> plan.Lengths:
    """Return the lengths and pairs of a finished stage 02, or the published ones."""
    if prepared is None:
        return PUBLISHED
    from utils.dataset import PreparedSplit
    from utils.stages import read_json

    limit = read_json(prepared / "preprocess.json")["token_limit"]
    train, valid = (PreparedSplit(prepared, split) for split in ("train", "valid"))
    return plan.Lengths.of(train.lengths, len(valid), limit)
