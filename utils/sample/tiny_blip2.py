"""A BLIP-2 of 1.9 million parameters with the real one's quirks, and its rebuild command.

    python -m utils.sample.tiny_blip2 OUT_FOLDER

draws its training pictures, pretrains (about 17 minutes on one core) and writes the folder that is
shipped as `utils/sample/weights`. It reads plain descriptions of pictures and radiology sentences
without pictures, but never a picture with a radiology caption: that is left to the adapter.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipImageProcessorPil,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from utils.sample import texts
from utils.sample.phantoms import random_phantom

WEIGHTS = Path(__file__).parent / "weights"

QUERIES = 16
BOS, PAD, NEWLINE = 2, 1, 202  # </s>, <pad>, and the byte that ends a caption
BPE_SIZE = 700
IMAGE_TOKEN = BPE_SIZE  # `<image>` comes after the vocabulary, as 50265 does in the real model
VOCABULARY = 704  # embedding rows: a multiple of 64 beyond the tokenizer's length
WIDTH = 128


def build_config():
    """The configuration: 224 px in 28 px patches, widths that NF4's blocks of 64 divide."""
    vision = dict(hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=3,
                  num_attention_heads=4, image_size=224, patch_size=28,
                  initializer_range=.02)  # the default of 1e-10 would start the ViT dead
    qformer = dict(hidden_size=WIDTH, intermediate_size=256, num_hidden_layers=2,
                   num_attention_heads=4, cross_attention_frequency=1, vocab_size=VOCABULARY)
    text = OPTConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, word_embed_proj_dim=WIDTH,
                     ffn_dim=512, num_hidden_layers=3, num_attention_heads=4,
                     max_position_embeddings=512, dropout=.1, attention_dropout=0.,
                     bos_token_id=BOS, pad_token_id=PAD, eos_token_id=NEWLINE)
    return Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text.to_dict(),
                       num_query_tokens=QUERIES, image_token_index=IMAGE_TOKEN,
                       image_text_hidden_size=64, initializer_range=.02)


def random_model(seed=0):
    """An unpretrained model in fp32 and eval mode, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Blip2ForConditionalGeneration(build_config())
        _wake(model)
    config = model.generation_config
    config.bos_token_id, config.pad_token_id, config.eos_token_id = BOS, PAD, NEWLINE
    return model.eval()


def _wake(model):
    """Rescale what starts too small to learn at this width.

    0.02 suits rows of thousands of weights; rows of 128 want 1 / sqrt(128) or so, and positions
    beside patches of unit size would be drowned. The class starts its queries as zeros, and equal
    queries can never learn to differ.
    """
    torch.nn.init.normal_(model.query_tokens, std=1.)
    torch.nn.init.normal_(model.vision_model.embeddings.position_embedding, std=.5)
    for part in (model.vision_model.encoder, model.qformer):
        for layer in part.modules():
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.normal_(layer.weight, std=layer.in_features ** -.5)


def build_tokenizer(seed=0):
    """Train the byte-level BPE on the sample's texts; OPT's special tokens and its BOS in front.

    Raises: RuntimeError if the texts yield another vocabulary than the model's.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BPE_SIZE, special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False)
    core.train_from_iterator(_corpus(seed), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", BOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="</s>", eos_token="</s>", unk_token="</s>",
        pad_token="<pad>", model_max_length=512, clean_up_tokenization_spaces=False)
    if len(tokenizer) != BPE_SIZE or tokenizer.convert_tokens_to_ids("Ċ") != NEWLINE:
        raise RuntimeError(f"the sample's texts gave {len(tokenizer)} tokens, not {BPE_SIZE}")
    return tokenizer


def _corpus(seed):
    rng = np.random.default_rng([seed, 500])
    for _ in range(4000):
        phantom = random_phantom(rng)
        yield texts.caption(phantom, rng)
        yield texts.description(phantom, rng)
    yield from texts.REMARKS


def build_processor():
    """BLIP-2's processor: 224x224 bicubic squash, CLIP's mean and deviation, `<image>` added."""
    # Pillow's bicubic everywhere: torchvision's differs in the last bits
    pixels = BlipImageProcessorPil(size={"height": 224, "width": 224}, resample=3)
    return Blip2Processor(pixels, build_tokenizer(), num_query_tokens=QUERIES)


def main(folder):
    """Rebuild the shipped model in `folder`."""
    from utils.sample.pretrain import pretrain  # here, for pretrain builds on this module

    processor, model = build_processor(), random_model()
    pretrain(model, processor.tokenizer)
    # fp16 keeps the shipped file under 4 MB; the loader chooses its own dtype
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
