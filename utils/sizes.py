"""How large a BLIP-2 and its adapter are: counted on the meta device, without reading a weight."""

import functools
import json
import math
import re
from dataclasses import dataclass

import torch
from transformers import Blip2Config, Blip2ForConditionalGeneration

from utils.activations import FP32
from utils.model import OPT_LINEARS, PRESET_LINEARS, PROJECTION

NF4_BLOCK, ABSMAX_BLOCK = 64, 256  # weights that share a scale; scales that share a scale of their own
# What double quantisation keeps of a linear besides: two code tables (16 and 256 numbers) and an offset.
TABLES = FP32 * (16 + 256 + 1)
KNOWN = {"blip2-opt-2.7b": (2560, 32, 10240), "blip2-opt-6.7b": (4096, 32, 16384)}


@dataclass(frozen=True)
class Linear:
    """A linear layer: its name in the model, the numbers that go in and come out."""

    name: str
    inputs: int
    outputs: int

    @property
    def weights(self) -> int:
        """Its weights, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Sizes:
    """Parameters of each part, and the linears.

    Attributes:
        vision, qformer, projection, opt: parameters of the parts; opt holds the tied embedding once.
        linears: every linear layer.
    """

    vision: int
    qformer: int
    projection: int
    opt: int
    linears: tuple[Linear, ...]

    @property
    def parameters(self) -> int:
        """All parameters of the model."""
        return self.vision + self.qformer + self.projection + self.opt

    def matching(self, pattern: str) -> list[Linear]:
        """List the linears whose whole name matches."""
        return [linear for linear in self.linears if re.fullmatch(pattern, linear.name)]

    @property
    def quantised(self) -> int:
        """Weights that are held in 4 bits."""
        return sum(linear.weights for linear in self.matching(OPT_LINEARS))

    def nf4_bytes(self) -> int:
        """Return the bytes of OPT's linears in NF4, double quantised: 4.127 bits a weight."""
        return sum(nf4_bytes(linear.weights) for linear in self.matching(OPT_LINEARS))

    def adapter(self, preset: str, rank: int, dora: bool) -> int:
        """Return the parameters that train: LoRA's two matrices, DoRA's magnitudes, the projection."""
        targets = [linear for pattern in PRESET_LINEARS[preset] for linear in self.matching(pattern)]
        lora = sum(rank * (t.inputs + t.outputs) + (t.outputs if dora else 0) for t in targets)
        return lora + self.projection


def nf4_bytes(weights: int) -> int:
    """Return the bytes of a linear's weights in NF4 with double quantisation (arXiv 2305.14314)."""
    scales = math.ceil(weights / NF4_BLOCK)
    return math.ceil(weights / 2) + scales + FP32 * math.ceil(scales / ABSMAX_BLOCK) + TABLES


def sizes(config: Blip2Config) -> Sizes:
    """Count the parameters of a BLIP-2 with an OPT language model."""
    # As text: a configuration has no hash, and building 500 layers once is enough.
    return counted(json.dumps(config.to_dict(), sort_keys=True, default=str))


@functools.cache
def counted(config: str) -> Sizes:
    """Build the model of a configuration on the meta device and count."""
    plain = Blip2Config.from_dict(json.loads(config) | {"quantization_config": None})
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(plain)
    linears = tuple(
        Linear(name, module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    parts = (model.vision_model, model.qformer, getattr(model, PROJECTION), model.language_model)
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in parts]
    return Sizes(counts[0], counts[1] + model.query_tokens.numel(), counts[2], counts[3], linears)


def known_config(model_id: str) -> Blip2Config | None:
    """Return the configuration of one of Salesforce's checkpoints without asking the hub, else None.

    The sizes are in their ``config.json``; what they leave out are the defaults of Blip2Config.
    """
    name = model_id.removeprefix("Salesforce/").removesuffix("-coco")
    if name not in KNOWN:
        return None
    width, layers, ffn = KNOWN[name]
    text = {
        "model_type": "opt", "hidden_size": width, "word_embed_proj_dim": width, "ffn_dim": ffn,
        "num_hidden_layers": layers, "num_attention_heads": 32, "vocab_size": 50304,
        "bos_token_id": 2, "pad_token_id": 1, "eos_token_id": 50118,
    }  # fmt: skip
    size = 364 if model_id.endswith("-coco") else 224
    config = Blip2Config(text_config=text, vision_config={"image_size": size}, image_token_index=50265)
    config.name_or_path = model_id
    return config
