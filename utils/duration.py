"""How long training takes: an estimate from operations counted and a card's assumed rates."""

from transformers import Blip2Config

from utils import activations as act
from utils.activations import Precision
from utils.cards import Card
from utils.dataset import PAD_MULTIPLE
from utils.memory import Adaptation
from utils.sizes import sizes

# A byte that is kept was written once and is read twice; its gradient is written.
TRAFFIC = 4
NF4_BYTES = 33 / 64  # of a weight in NF4, its scales counted
DORA_BYTES = 6 * 4  # of a weight, read and written in fp32 to find the norms of DoRA's columns


def mean_columns(config: Blip2Config, mean_tokens: float) -> float:
    """Return the columns of a usual row: images, BOS, caption, and half of what padding to eights adds."""
    return config.num_query_tokens + 1 + mean_tokens + PAD_MULTIPLE / 2


def opt_flops(config: Blip2Config, columns: float) -> float:
    """Return the operations of OPT's forward pass for one image: linears, logits behind the image."""
    text = config.text_config
    logits = text.vocab_size * text.hidden_size * (columns - config.num_query_tokens)
    return 2 * (sizes(config).quantised * columns + logits)


def visual_flops(config: Blip2Config) -> tuple[float, float]:
    """Return the operations of a forward pass of the ViT, and of the Q-Former, for one image."""
    counted, q = sizes(config), config.qformer_config
    across = 2 * q.hidden_size * q.encoder_hidden_size * act.crossing(config)  # its keys and values
    seen = act.patches(config)
    qformer = (counted.qformer - across) * config.num_query_tokens + across * seen
    return 2 * counted.vision * seen, 2 * qformer


def training_flops(config: Blip2Config, adaptation: Adaptation, columns: float, checkpointed: int) -> float:
    """Return the operations of training on one image.

    A frozen weight takes a forward pass and as much again for the gradient of its input; a trained one a
    third of the kind; a checkpointed layer a second forward pass.
    """
    counted, again = sizes(config), checkpointed / config.text_config.num_hidden_layers
    lora = 2 * counted.adapter(adaptation.preset, adaptation.rank, adaptation.dora) * columns
    vit, qformer = visual_flops(config)
    visual = {"decoder": 0, "connector": vit + 2 * qformer, "vision": 2 * (vit + qformer)}
    opt = opt_flops(config, columns) * (2 + again)
    return opt + lora * (3 + again) + visual[adaptation.preset]


def seconds_an_image(
    config: Blip2Config, adaptation: Adaptation, card: Card, dtype: str, columns: float, micro_batch: int,
    checkpointed: int,
) -> float:  # fmt: skip
    """Return the estimated seconds of training on one image on one card whose rates are known."""
    flops = training_flops(config, adaptation, columns, checkpointed)
    precision = Precision.of(dtype)
    # Every pass over OPT writes its weights out in the compute dtype and reads them again, once a batch.
    passes = 2 + checkpointed / config.text_config.num_hidden_layers
    weight = NF4_BYTES + 2 * precision.element + (DORA_BYTES if adaptation.dora else 0)
    unfold = sizes(config).quantised * weight * passes / micro_batch
    layer = act.opt_layer(config, adaptation.lora(precision), 1, round(columns))
    kept = TRAFFIC * layer * config.text_config.num_hidden_layers
    return flops / (card.tflops * 1e12) + (unfold + kept) / (card.gb_s * 1e9)


def watching_seconds(config: Blip2Config, adaptation: Adaptation, card: Card, columns: float) -> float:
    """Return the estimated seconds of measuring the loss of one image on one card."""
    visual = 0 if adaptation.cached else sum(visual_flops(config))
    return (opt_flops(config, columns) + visual) / (card.tflops * 1e12)


def seeing_seconds(config: Blip2Config, card: Card) -> float:
    """Return the estimated seconds of computing one image's features on one card."""
    return sum(visual_flops(config)) / (card.tflops * 1e12)
