"""A BLIP-2 of any size with random weights, OPT's linears in NF4, built where it will train."""

import re

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import Blip2Config, Blip2ForConditionalGeneration

from utils.model import OPT_LINEARS, frozen

SPREAD = 0.02


def random_base(
    config: Blip2Config, device: torch.device, dtype: torch.dtype
) -> Blip2ForConditionalGeneration:
    """Build the model on the meta device and fill it on ``device``: the host never holds a weight.

    As transformers loads it: the Q-Former and its queries in fp32 where the rest is in fp16.
    """
    with torch.device("meta"):
        model = Blip2ForConditionalGeneration(config)
    for name, module in list(model.named_modules()):
        if re.fullmatch(OPT_LINEARS, name):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, quantised(module, device, dtype))
    fill(model, device, dtype)
    model.is_loaded_in_4bit = True  # peft asks
    return frozen(model)


def quantised(linear: torch.nn.Linear, device: torch.device, dtype: torch.dtype) -> Linear4bit:
    """Return a random 4-bit layer of the shape of ``linear``."""
    made = Linear4bit(
        linear.in_features, linear.out_features, compute_dtype=dtype, quant_type="nf4", device="meta"
    )
    shape = (linear.out_features, linear.in_features)
    values = torch.empty(shape, device=device, dtype=dtype).normal_(std=SPREAD)
    weight = Params4bit(values, requires_grad=False, compress_statistics=True, quant_type="nf4")
    made.weight = weight.to(device)
    return made


def fill(model: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Give every parameter that is still on the meta device random values; tied ones stay tied."""
    made: dict[int, torch.nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            fp32 = dtype == torch.float16 and f"{path}.{name}".lstrip(".").startswith(
                ("qformer", "query_tokens")
            )
            if id(parameter) not in made:
                values = torch.empty(parameter.shape, device=device, dtype=torch.float32 if fp32 else dtype)
                norm = isinstance(module, torch.nn.LayerNorm) and name == "weight"
                values = values.fill_(1) if norm else values.normal_(std=SPREAD)
                made[id(parameter)] = torch.nn.Parameter(values, requires_grad=False)
            module._parameters[name] = made[id(parameter)]
    assert not [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
