"""What autograd keeps for the backward pass, layer by layer: the arithmetic under the memory plan.

Derived from what the layers of transformers, peft and bitsandbytes save, operation by operation:

- layer_norm saves its input and two numbers a token; autocast runs it in fp32, so input and output are fp32;
- a frozen Linear saves no input; of a 4-bit one (bitsandbytes' MatMul4Bit) not even a dequantised weight;
- a LoRA layer saves what A reads, what B reads, and dropout's mask; A's input is a copy in the compute dtype;
- scaled_dot_product_attention saves queries, keys, values, its output and its mask;
- relu saves its result, gelu its input;
- under autocast bitsandbytes' Linear4bit answers in the dtype it was asked in, fp32 behind a layer_norm;
  a Linear that is not quantised answers in the compute dtype.

A layer that is checkpointed keeps its input alone. ``tests/test_plan.py`` holds these sums against the
tensors that autograd really saved.
"""

from dataclasses import dataclass

from transformers import Blip2Config

STATISTICS = 8  # bytes that layer_norm keeps of a token: mean and reciprocal deviation, fp32
FP32 = 4


@dataclass(frozen=True)
class Precision:
    """How numbers are held while training.

    Attributes:
        element: bytes of a number in the compute dtype: 2 under autocast, 4 on a CPU without.
        mask: bytes of dropout's mask a number: CUDA keeps bools, a CPU a factor in fp32.
        qformer: bytes of a weight of the Q-Former: 4 where the model is in fp16, since transformers keeps
            it in fp32 then (``_keep_in_fp32_modules``), but not where the model is in bf16.
    """

    element: int
    mask: int
    qformer: int

    @property
    def autocast(self) -> bool:
        """Whether fp32 inputs are cast to the compute dtype."""
        return self.element < FP32

    @classmethod
    def of(cls, dtype: str) -> "Precision":
        """Return the precision of training in ``dtype``; fp32 is what a CPU computes in."""
        return {"float32": cls(4, 4, 4), "float16": cls(2, 1, 4), "bfloat16": cls(2, 1, 2)}[dtype]


@dataclass(frozen=True)
class Lora:
    """What LoRA layers keep of a token. ``dropout``: whether there is any; ``dora``: the variant."""

    rank: int
    dropout: bool
    precision: Precision
    dora: bool = False

    def reads(
        self, width: int, layers: int = 1, held: bool = False, copied: bool = True, asked: bool = True
    ) -> int:
        """Return the bytes a token that ``layers`` LoRA layers keep of the same input.

        Args:
            width: of the input.
            layers: that read it.
            held: whether something else keeps this very input.
            copied: whether autocast makes a copy of it in the compute dtype, for each reader its own.
            asked: whether the input's gradient is asked for; else dropout keeps no mask.
        """
        p = self.precision
        middle = layers * self.rank * p.element
        if self.dropout:
            return middle + layers * (p.mask * asked + p.element) * width
        if p.autocast and copied:
            return middle + layers * p.element * width
        return middle + (0 if held else p.element * width)

    def scales(self, width: int, element: int) -> int:
        """Return the bytes a token that DoRA keeps of an output: the base's and LoRA's.

        ``element``: bytes of a number of the base's output; with dropout DoRA computes its own.
        """
        base = self.precision.element if self.dropout else element
        return (base + self.precision.element) * width if self.dora else 0

    def unfolded(self, weights: int) -> int:
        """Return the bytes that DoRA with dropout keeps of a layer's dequantised weights."""
        return self.precision.element * weights if self.dora and self.dropout else 0


def attention(width: int, heads: int, queries: int, keys: int, element: int) -> int:
    """Return the bytes that attention keeps of one image or caption: q, output and log-sum-exp, k and v."""
    return queries * (2 * element * width + FP32 * heads) + keys * 2 * element * width


def opt_layer(config: Blip2Config, lora: Lora, batch: int, tokens: int) -> int:
    """Return the bytes that one decoder layer of OPT keeps, LoRA on all six linears.

    Args:
        config: of BLIP-2.
        lora: the adapters.
        batch: rows.
        tokens: of a row, images and padding counted.
    """
    text, p = config.text_config, lora.precision
    d, f = text.hidden_size, text.ffn_dim
    norms = 2 * (FP32 * d + STATISTICS)
    inputs = lora.reads(d, layers=3) + lora.reads(d, held=True, copied=False)  # q, k, v; out_proj
    inputs += lora.reads(d) + lora.reads(f, held=True)  # fc1; fc2 reads what relu keeps
    outputs = 4 * lora.scales(d, FP32) + lora.scales(f, FP32) + lora.scales(d, FP32)
    token = norms + inputs + outputs + FP32 * f
    row = tokens * token + attention(d, text.num_attention_heads, tokens, tokens, p.element)
    mask = p.element * tokens * tokens
    return batch * (row + mask) + lora.unfolded(4 * d * d + 2 * d * f)


def checkpointed(config: Blip2Config, batch: int, tokens: int) -> int:
    """Return the bytes that a checkpointed layer of OPT keeps: its input, the fp32 residual."""
    return FP32 * config.text_config.hidden_size * batch * tokens


def head(config: Blip2Config, batch: int, tokens: int) -> int:
    """Return the bytes that OPT's last layer_norm keeps; lm_head is frozen and keeps nothing."""
    return batch * tokens * (FP32 * config.text_config.hidden_size + STATISTICS)


def logits(config: Blip2Config, batch: int, tokens: int) -> int:
    """Return the bytes of the logits behind the image when their gradient is computed.

    Three numbers of fp32 each: the log-probabilities, their gradient, the gradient of the logits.
    """
    return 3 * FP32 * config.text_config.vocab_size * batch * (tokens - config.num_query_tokens)


def layer_backward(config: Blip2Config, lora: Lora, batch: int, tokens: int) -> int:
    """Return the bytes of passing in the backward pass through a layer of OPT.

    At its widest in fc2: the gradients of its input from the base, from LoRA before and behind dropout;
    the residual's; a dequantised weight. DoRA multiplies B by A by way of a unit matrix.
    """
    text, element = config.text_config, lora.precision.element
    d, f = text.hidden_size, text.ffn_dim
    dora = (FP32 + element) * f * f + 4 * FP32 * d * f if lora.dora else 0
    return batch * tokens * FP32 * (3 * f + 4 * d) + element * d * f + dora


def qformer_layers(config: Blip2Config, lora: Lora, batch: int, vision_trains: bool = False) -> int:
    """Return the bytes that the Q-Former keeps, LoRA on query, key and value of both attentions.

    Args:
        config: of BLIP-2.
        lora: the adapters.
        batch: images.
        vision_trains: whether the gradient of what the ViT sees is asked for.
    """
    q, p, n = config.qformer_config, lora.precision, config.num_query_tokens
    ffn = n * (FP32 * q.hidden_size + STATISTICS + p.element * q.intermediate_size)  # layer_norm, gelu
    layers = q.num_hidden_layers * (qformer_self(config, lora) + ffn)
    # The queries are frozen: of the first layer's inputs no gradient is asked for.
    layers -= n * (lora.reads(q.hidden_size, 3) - lora.reads(q.hidden_size, 3, asked=False))
    across = crossing(config) * qformer_cross(config, lora, vision_trains)
    if not p.autocast and not lora.dropout:  # then all layers read the one image
        across -= (crossing(config) - 1) * patches(config) * FP32 * q.encoder_hidden_size
    return batch * (layers + across) + qformer_casts(config, lora, vision_trains)


def crossing(config: Blip2Config) -> int:
    """Return how many of the Q-Former's layers look at the image."""
    q = config.qformer_config
    return -(-q.num_hidden_layers // q.cross_attention_frequency)


def qformer_self(config: Blip2Config, lora: Lora) -> int:
    """Return the bytes of one self-attention of the Q-Former for one image."""
    q, element = config.qformer_config, lora.precision.element
    e, n = q.hidden_size, config.num_query_tokens
    token = lora.reads(e, layers=3) + lora.scales(3 * e, element) + FP32 * e + STATISTICS
    return n * token + attention(e, q.num_attention_heads, n, n, element)


def qformer_cross(config: Blip2Config, lora: Lora, vision_trains: bool) -> int:
    """Return the bytes of one cross-attention of the Q-Former for one image."""
    q, element = config.qformer_config, lora.precision.element
    e, n, seen = q.hidden_size, config.num_query_tokens, patches(config)
    image = lora.reads(q.encoder_hidden_size, layers=2, asked=vision_trains) + lora.scales(2 * e, element)
    query = lora.reads(e) + lora.scales(e, element) + FP32 * e + STATISTICS
    return seen * image + n * query + attention(e, q.num_attention_heads, n, seen, element)


def qformer_casts(config: Blip2Config, lora: Lora, vision_trains: bool) -> int:
    """Return the bytes of the Q-Former's frozen fp32 weights that autocast keeps a copy of, for backward."""
    if lora.precision.qformer == lora.precision.element:
        return 0
    q = config.qformer_config
    e = q.hidden_size
    weights = q.num_hidden_layers * (4 * e * e + 2 * e * q.intermediate_size) - 3 * e * e
    weights += crossing(config) * (2 * e * e + (2 * e * q.encoder_hidden_size if vision_trains else 0))
    return lora.precision.element * weights


def vision_layers(config: Blip2Config, lora: Lora, batch: int) -> int:
    """Return the bytes that the ViT keeps, LoRA on its four linears."""
    v, element = config.vision_config, lora.precision.element
    d, i = v.hidden_size, v.intermediate_size
    # Behind a linear the residual is in the compute dtype: layer_norm keeps a copy of it in fp32.
    norms = 2 * (FP32 * d + STATISTICS)
    inputs = 2 * lora.reads(d) + lora.reads(d, held=True) + lora.reads(i)  # qkv, fc1; projection; fc2
    outputs = lora.scales(5 * d, element) + lora.scales(i, element)
    token = norms + inputs + outputs + element * i  # gelu
    row = patches(config) * token
    row += attention(d, v.num_attention_heads, patches(config), patches(config), element)
    # Before the first LoRA no gradient is asked for. Behind the last layer stands a layer_norm.
    first = FP32 * d + STATISTICS + lora.reads(d) - lora.reads(d, asked=False)
    last = FP32 * d + STATISTICS
    return batch * (v.num_hidden_layers * row + patches(config) * (last - first))


def vision_forward(config: Blip2Config, lora: Lora, batch: int) -> int:
    """Return the bytes of the ViT's widest moment without gradients: the MLP of one layer."""
    v, element = config.vision_config, lora.precision.element
    token = (2 * element + FP32) * v.hidden_size + 2 * element * v.intermediate_size
    pixels = 3 * v.image_size**2 * (FP32 + element)
    return batch * (patches(config) * token + pixels)


def patches(config: Blip2Config) -> int:
    """Return the tokens that the ViT makes of an image: its patches and the class token."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2 + 1
