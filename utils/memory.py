"""What training holds on a GPU, part by part, at its widest moment."""

from dataclasses import dataclass

from transformers import Blip2Config

from utils import activations as act
from utils.activations import FP32, Lora, Precision
from utils.sizes import Sizes, sizes

GIB = 2**30
# Assumptions, not measurements: a CUDA context with cuBLAS; NCCL's buffers; what the allocator loses
# between blocks, as a share of the memory that comes and goes.
CONTEXT, NCCL, FRAGMENTS = 0.35 * GIB, 0.15 * GIB, 0.05


@dataclass(frozen=True)
class Adaptation:
    """What is trained on the base model: the fields of ``TrainConfig`` that change sizes."""

    preset: str
    rank: int
    dora: bool = False
    dropout: float = 0.05

    @property
    def cached(self) -> bool:
        """Whether visual features come from the disk, and ViT and Q-Former are not on the GPU."""
        return self.preset == "decoder"

    def lora(self, precision: Precision) -> Lora:
        """Return the adapters as the arithmetic of activations sees them."""
        return Lora(self.rank, self.dropout > 0, precision, self.dora)


@dataclass(frozen=True)
class Load:
    """One way to run: rows of a micro-batch, columns of the widest, layers of OPT checkpointed, ranks."""

    micro_batch: int
    tokens: int
    checkpointed: int
    ranks: int


def demand(config: Blip2Config, adaptation: Adaptation, dtype: str, load: Load) -> dict[str, float]:
    """Return the bytes of each part at the widest moment; their sum is the peak.

    Args:
        config: of BLIP-2 with OPT.
        adaptation: what is trained.
        dtype: that is computed in.
        load: batch, width, checkpointing.
    """
    counted, precision = sizes(config), Precision.of(dtype)
    held = weights(counted, adaptation, precision) | training(counted, adaptation, precision, load.ranks)
    lora = adaptation.lora(precision)
    keeps = kept(config, adaptation, lora, load)
    logits = act.logits(config, load.micro_batch, load.tokens)
    passing = moments(config, adaptation, lora, load, keeps)
    widest = max(passing, key=passing.__getitem__)
    # Where the loss is the widest moment there is nothing more.
    more = max(0, passing[widest] - sum(keeps.values()) - logits)
    parts = held | keeps | {"logits and their gradient": logits, f"more, {widest}": more}
    return parts | overhead(parts, held, dtype, load.ranks)


def weights(counted: Sizes, adaptation: Adaptation, precision: Precision) -> dict[str, float]:
    """Return the bytes of the frozen model's parts."""
    element = precision.element
    visual = {"ViT": counted.vision * element, "Q-Former": counted.qformer * precision.qformer}
    return ({} if adaptation.cached else visual) | {
        "OPT's linears, NF4": counted.nf4_bytes(),
        "rest of OPT": (counted.opt - counted.quantised) * element,
        "language projection": counted.projection * element,
    }


def training(counted: Sizes, adaptation: Adaptation, precision: Precision, ranks: int) -> dict[str, float]:
    """Return the bytes of what is trained: fp32, whatever is computed in."""
    count = counted.adapter(adaptation.preset, adaptation.rank, adaptation.dora)
    return {
        "LoRA, projection": FP32 * count,
        "their gradients": FP32 * count,
        "AdamW's two moments": 2 * FP32 * count,
        "DDP's buckets": FP32 * count if ranks > 1 else 0,
        "LoRA cast by autocast": precision.element * count if precision.autocast else 0,
    }


def kept(config: Blip2Config, adaptation: Adaptation, lora: Lora, load: Load) -> dict[str, float]:
    """Return the bytes that the whole forward pass keeps for the backward pass."""
    batch, parts = load.micro_batch, {}
    if adaptation.preset == "vision":
        parts["ViT's activations"] = act.vision_layers(config, lora, batch)
    if not adaptation.cached:
        trains = adaptation.preset == "vision"
        parts["Q-Former's activations"] = act.qformer_layers(config, lora, batch, trains)
    layers = config.text_config.num_hidden_layers - load.checkpointed
    opt = layers * act.opt_layer(config, lora, batch, load.tokens) + act.head(config, batch, load.tokens)
    seen = batch * config.num_query_tokens * config.qformer_config.hidden_size * lora.precision.element
    inputs = load.checkpointed * act.checkpointed(config, batch, load.tokens)
    return parts | {"OPT's activations": opt + seen, "checkpointed layers' inputs": inputs}


def moments(
    config: Blip2Config, adaptation: Adaptation, lora: Lora, load: Load, keeps: dict[str, float]
) -> dict[str, float]:
    """Return the bytes of activations at each moment, but the loss, that may be the widest."""
    batch, tokens = load.micro_batch, load.tokens
    step = act.layer_backward(config, lora, batch, tokens)
    everything = sum(keeps.values())
    found = {"in the layers' backward pass": everything - act.head(config, batch, tokens) + step}
    if load.checkpointed:
        visual = everything - keeps["OPT's activations"]
        found["in a checkpointed layer"] = visual + act.opt_layer(config, lora, batch, tokens) + step
    if not adaptation.cached:
        found["in the ViT"] = act.vision_forward(config, lora, batch)
    found["in generating captions"] = key_value_cache(config, batch, tokens)
    return found


def key_value_cache(config: Blip2Config, batch: int, tokens: int) -> int:
    """Return the bytes of keys and values of captions at work: fp32 behind OPT's 4-bit linears."""
    text = config.text_config
    return 2 * FP32 * text.num_hidden_layers * text.hidden_size * batch * tokens


def overhead(parts: dict, held: dict, dtype: str, ranks: int) -> dict[str, float]:
    """Return the bytes that are assumed on top: the CUDA context, the allocator's losses. None on a CPU."""
    if dtype == "float32":
        return {}
    moving = sum(parts.values()) - sum(held.values())
    context = CONTEXT + (NCCL if ranks > 1 else 0)
    return {"CUDA context (assumed)": context, "fragmentation (assumed)": FRAGMENTS * moving}
