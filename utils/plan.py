"""The memory and time plan: what a run needs before a weight is read, and the micro-batch that suits it.

    lengths = Lengths.of(train.lengths, len(valid), settings["token_limit"])
    plan = make_plan(load_config(model_id), Adaptation("connector", rank=16), lengths, machine(),
                     global_batch=32, ranks=2, epochs=2)
    print(plan.text())
    plan.micro_batch, plan.accumulation, plan.checkpointed_layers, plan.steps, plan.hours

Memory is arithmetic over what autograd keeps (``utils/activations.py``); hours are an estimate from assumed
rates (``utils/cards.py``), until ``measured`` replaces them by the rate of the run itself.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from transformers import Blip2Config

from utils import duration, plan_text
from utils.activations import FP32, Precision
from utils.cards import CARDS, Card, machine
from utils.choice import Lengths, Request
from utils.memory import GIB, Adaptation, weights
from utils.sizes import known_config, sizes

__all__ = ["CARDS", "Adaptation", "Card", "Lengths", "Plan", "PlanError", "machine", "make_plan", "measured"]

CHECKPOINTS = 4  # that a run keeps at a time
EVALUATIONS = 10


class PlanError(RuntimeError):
    """The run cannot fit or cannot be divided; the message says which parameter to change, and to what."""


@dataclass(frozen=True)
class Plan:
    """What a run will take. GiB of a GPU, GB of the disk, hours of the machine.

    Attributes:
        request: what it was made for.
        micro_batch: rows of one forward pass; accumulation: passes of a rank in a step.
        checkpointed_layers: the first layers of OPT that are computed twice.
        parts: name -> GiB at the widest moment of the widest batch; peak is their sum.
        weights: GiB of the frozen model. memory: GiB that there is.
        usual_peak: GiB at the 95th percentile of the captions' lengths.
        steps: of the run.
        times: name -> estimated hours; empty where the card's rates are not known.
        disk: name -> GB.
    """

    request: Request
    micro_batch: int
    accumulation: int
    checkpointed_layers: int
    parts: dict[str, float]
    weights: float
    memory: float
    usual_peak: float
    steps: int
    times: dict[str, float]
    disk: dict[str, float]

    @property
    def peak(self) -> float:
        """GiB of a GPU at the widest moment."""
        return sum(self.parts.values())

    @property
    def hours(self) -> float | None:
        """Estimated hours of the whole run; None where they are not known before it is measured."""
        return sum(self.times.values()) if self.times else None

    def json(self) -> dict:
        """Return the plan as JSON values, without the model's configuration."""
        values = {name: value for name, value in vars(self).items() if name != "request"}
        asked = self.request
        facts = {"card": asdict(asked.card), "lengths": asdict(asked.lengths), **asdict(asked.adaptation)}
        rounded = {name: {k: round(v, 3) for k, v in values[name].items()}
                   for name in ("parts", "times", "disk")}  # fmt: skip
        return values | facts | rounded | {"peak": round(self.peak, 3), "hours": self.hours}

    def text(self, disk_free: float | None = None) -> str:
        """Return the table to print. ``disk_free``: GB, where it is known."""
        return plan_text.table(self, disk_free)


def make_plan(
    config: Blip2Config, adaptation: Adaptation, lengths: Lengths, machine: tuple[Card, ...],
    global_batch: int, ranks: int, epochs: float, micro_batch: int | None = None, dtype: str | None = None,
    evaluations: int = EVALUATIONS,
) -> Plan:  # fmt: skip
    """Choose micro-batch and checkpointed layers and say what the run takes.

    Args:
        config: of BLIP-2 with OPT; no weight is read.
        adaptation: what is trained.
        lengths: pairs and caption lengths.
        machine: the cards, one a rank; the smallest decides. Or the CPU, which ranks share.
        global_batch: pairs of a step.
        ranks: processes, over all machines.
        epochs: passes over the training pairs.
        micro_batch: respected where it is given.
        dtype: to compute in; None takes the card's.
        evaluations: times that the validation loss is measured.

    Raises:
        PlanError: nothing fits, or the batches do not divide.
    """
    card = min(machine, key=lambda card: card.memory_gib)
    dtype = dtype or card.dtype
    request = Request(config, adaptation, lengths, card, global_batch, ranks, micro_batch, dtype)
    check_division(request)
    way = request.choice()
    if way is None:
        raise PlanError(refusal(request))
    steps, (batch, checkpointed) = math.ceil(epochs * lengths.pairs / global_batch), way
    frozen = weights(sizes(config), adaptation, Precision.of(dtype))
    return Plan(
        request, batch, global_batch // ranks // batch, checkpointed, request.parts(*way),
        sum(frozen.values()) / GIB, request.memory, sum(request.parts(*way, lengths.p95).values()), steps,
        hours(request, way, steps, evaluations), disk(request),
    )  # fmt: skip


def check_division(request: Request) -> None:
    """Raise :class:`PlanError` unless ranks and micro-batch divide the global batch."""
    batch, ranks = request.global_batch, request.ranks
    if batch % ranks:
        lower = batch // ranks * ranks
        raise PlanError(
            f"GLOBAL_BATCH {batch} is no multiple of the {ranks} ranks: set GLOBAL_BATCH to "
            f"{lower or ranks} or {lower + ranks}."
        )
    if not request.divisors:
        free = replace(request, micro_batch=None).divisors
        raise PlanError(
            f"MICRO_BATCH {request.micro_batch} does not divide the {batch // ranks} pairs of GLOBAL_BATCH "
            f"{batch} that each of {ranks} ranks takes: set MICRO_BATCH to one of "
            f"{', '.join(map(str, free))}, or None."
        )


def alternatives(request: Request) -> Iterator[tuple[str, Request]]:
    """Yield what could be changed, the least harmful first, and the request so changed."""
    adaptation, lengths = request.adaptation, request.lengths
    small = known_config("Salesforce/blip2-opt-2.7b")
    free = replace(request, micro_batch=None)
    narrow = replace(free, adaptation=replace(adaptation, preset="decoder"))
    if request.micro_batch and (best := free.choice()):
        yield f"MICRO_BATCH to {best[0]} or None", free
    if adaptation.dora and adaptation.dropout:
        yield "DROPOUT to 0", replace(free, adaptation=replace(adaptation, dropout=0.0))
    if request.card.is_cpu:
        yield "MICRO_BATCH to 1", replace(request, micro_batch=1)
    if lengths.p95 < lengths.longest:
        cut = replace(free, lengths=replace(lengths, longest=lengths.p95))
        yield "CAPTION_PERCENTILE of notebook 02 to 95", cut
    if adaptation.rank > 8:
        yield "RANK to 8", replace(free, adaptation=replace(adaptation, rank=8))
    if not adaptation.cached:
        yield 'PRESET to "decoder"', narrow
    if sizes(small).parameters < sizes(request.config).parameters:
        yield "MODEL_ID to Salesforce/blip2-opt-2.7b", replace(free, config=small)
        both = 'MODEL_ID to Salesforce/blip2-opt-2.7b and PRESET to "decoder"'
        yield both, replace(narrow, config=small)


def refusal(request: Request) -> str:
    """Say what does not fit, and the first change by which it would."""
    card = request.card
    batch, layers = request.tightest
    peak = sum(request.parts(batch, layers).values())
    advice = next((f"Set {what}." for what, other in alternatives(request) if other.choice()), None)
    every = "with all of OPT's layers checkpointed " if layers else ""
    return (
        f"PRESET {request.adaptation.preset} with RANK {request.adaptation.rank} and micro-batch {batch} "
        f"takes {peak:.1f} GiB {every}where {card.name} has {request.memory:.1f} GiB for a rank. "
        + (advice or "No parameter makes it fit: use a GPU with more memory.")
    )


def hours(request: Request, way: tuple[int, int], steps: int, evaluations: int) -> dict[str, float]:
    """Return the estimated hours of a run's phases on all ranks; none for a card of unknown rates."""
    config, adaptation, card = request.config, request.adaptation, request.card
    if card.tflops is None:
        return {}
    columns = duration.mean_columns(config, request.lengths.mean)
    watched = (evaluations + 1) * request.lengths.valid  # also before the first step
    found = {
        "training": steps * request.global_batch * request.seconds(way),
        "validation loss": watched * duration.watching_seconds(config, adaptation, card, columns),
    }
    if adaptation.cached:
        images = request.lengths.pairs + request.lengths.valid
        found["visual features, once"] = images * duration.seeing_seconds(config, card)
    return {name: seconds / request.ranks / 3600 for name, seconds in found.items()}


def disk(request: Request) -> dict[str, float]:
    """Return the GB that a run writes, and what it downloads."""
    config, adaptation = request.config, request.adaptation
    counted, precision = sizes(config), Precision.of(request.dtype)
    whole = replace(adaptation, preset="connector")
    trained = FP32 * counted.adapter(adaptation.preset, adaptation.rank, adaptation.dora)
    image = config.num_query_tokens * config.qformer_config.hidden_size * precision.element
    images = request.lengths.pairs + request.lengths.valid
    found = {
        "download of the fp32 checkpoint": FP32 * counted.parameters,
        "4-bit copy": sum(weights(counted, whole, precision).values()),
        "visual features": images * image if adaptation.cached else 0,
        f"{CHECKPOINTS} checkpoints": CHECKPOINTS * 3 * trained,  # adapter and AdamW's two moments
        "adapter": trained,
    }
    return {name: size / 1e9 for name, size in found.items() if size}


def measured(plan: Plan, images_per_s: float, step: int = 0) -> float:
    """Return the hours of training that are left after ``step``, at the rate of the run itself.

    ``images_per_s``: training images a second, all ranks together.
    """
    return (plan.steps - step) * plan.request.global_batch / images_per_s / 3600


def main(arguments: list[str]) -> int:
    """Print the plan for a named machine, see ``utils/plan_command.py``; return the exit code."""
    from utils import plan_command  # it makes plans, so that it stands above this file

    return plan_command.run(arguments)
