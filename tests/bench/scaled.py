"""A BLIP-2 whose parts share the arithmetic as those of BLIP2-OPT-6.7B do, and pairs to train it on."""

import csv
from functools import cache
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import Blip2Config, Blip2ForConditionalGeneration, GPT2TokenizerFast, OPTConfig

from utils.captions import clean, tokenise
from utils.images import to_png
from utils.imageshards import schema
from utils.sample.tiny_blip2 import BOS, IMAGE_TOKEN, NEWLINE, PAD, build_processor
from utils.stages import write_json

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
OPT_NEWLINE = 50118
QUERIES, SIDE = 32, 224
VOCABULARY = 1792  # gives the head its share of OPT; the tokenizer itself has fewer entries
FREE = IMAGE_TOKEN + 1  # from here on an id means nothing else
VALID = 16  # pairs
CUT = 99  # percentile at which notebook 02 cuts captions
# OPT tokens of a ROCO caption, for a machine without the captions: median, mean, 99th percentile.
MEDIAN, MEAN, LONGEST = 27, 33.6, 121


def build_config(opt: int = 9, wide: int = 512, vit: int = 5, narrow: int = 256) -> Blip2Config:
    """Return the configuration of ``opt`` layers of OPT, ``wide``, behind a ViT of ``vit``, ``narrow``."""
    vision = {"hidden_size": narrow, "intermediate_size": 4 * narrow, "num_hidden_layers": vit,
              "num_attention_heads": narrow // 64, "image_size": SIDE, "patch_size": 14,
              "initializer_range": 0.02}  # fmt: skip
    qformer = {"hidden_size": narrow // 2, "intermediate_size": 2 * narrow, "num_hidden_layers": 2,
               "num_attention_heads": narrow // 128, "cross_attention_frequency": 2,
               "encoder_hidden_size": narrow, "vocab_size": VOCABULARY}  # fmt: skip
    text = OPTConfig(vocab_size=VOCABULARY, hidden_size=wide, word_embed_proj_dim=wide, ffn_dim=4 * wide,
                     num_hidden_layers=opt, num_attention_heads=wide // 64, max_position_embeddings=512,
                     bos_token_id=BOS, pad_token_id=PAD, eos_token_id=NEWLINE)  # fmt: skip
    return Blip2Config(vision_config=vision, qformer_config=qformer, text_config=text.to_dict(),
                       num_query_tokens=QUERIES, image_token_index=IMAGE_TOKEN)  # fmt: skip


def forward_flops(config: Blip2Config, columns: int) -> dict[str, int]:
    """Count the operations of each part's forward pass for one pair of ``columns`` tokens; no weight is made."""
    with torch.device("meta"), torch.no_grad():
        model = Blip2ForConditionalGeneration(config).eval()
        pixels = torch.zeros(1, 3, SIDE, SIDE)
        seen = model.vision_model(pixels).last_hidden_state
        tokens = torch.zeros(1, columns, config.text_config.hidden_size)
        calls = {
            "ViT": lambda: model.vision_model(pixels),
            "Q-Former": lambda: model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=seen),
            "OPT's layers": lambda: model.language_model.model(inputs_embeds=tokens),
            "OPT's head": lambda: model.language_model.lm_head(tokens),
        }
        return {name: counted(call) for name, call in calls.items()}


def counted(call) -> int:
    """Return the operations of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def caption_lengths(count: int) -> list[int]:
    """Return ``count`` lengths in tokens, as often as captions have them: evenly spaced quantiles, cut.

    Evenly spaced and not drawn, so that a few hundred pairs have the distribution of 12,487.
    """
    quantiles = (np.arange(count) + 0.5) / count
    if not has_captions():
        spread = (2 * np.log(MEAN / MEDIAN)) ** 0.5  # of a log-normal with that median and mean
        normal = [NormalDist().inv_cdf(q) for q in quantiles]
        return np.clip(np.rint(MEDIAN * np.exp(spread * np.array(normal))), 2, LONGEST).astype(int).tolist()
    lengths = real_lengths()
    most = int(np.ceil(np.percentile(lengths, CUT)))
    return np.minimum(np.quantile(lengths, quantiles, method="nearest"), most).astype(int).tolist()


def has_captions() -> bool:
    """Tell whether the real captions and OPT's tokenizer are on this machine."""
    return (REAL / "roco_v1_text").is_dir() and (REAL / "opt_tokenizer").is_dir()


def origin() -> str:
    """Say where the lengths come from."""
    if not has_captions():
        return f"a log-normal of median {MEDIAN} and mean {MEAN} tokens: the captions are not on this machine"
    return f"{len(real_lengths()):,} ROCO captions in OPT's tokens"


@cache
def real_lengths() -> tuple[int, ...]:
    """Return the length of every ROCO caption in OPT's tokens, its newline counted."""
    captions = []
    for path in sorted((REAL / "roco_v1_text").glob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            captions += [clean(row["caption"]) for row in table]
    tokenizer = GPT2TokenizerFast.from_pretrained(REAL / "opt_tokenizer")
    return tuple(len(ids) for ids in tokenise(captions, tokenizer, OPT_NEWLINE))


def write_model(folder: Path, config: Blip2Config) -> None:
    """Save a random model of a configuration, with the sample's processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Blip2ForConditionalGeneration(config)
    model.save_pretrained(folder)
    build_processor().save_pretrained(folder)


def write_pairs(folder: Path, weights: Path, pairs: int) -> None:
    """Write a prepared stage: ``pairs`` to train on, of noise and captions of the real lengths."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for split, count in (("train", pairs), ("valid", VALID)):
        images = []
        for number, length in enumerate(rng.permutation(caption_lengths(count)).tolist()):
            name, noise = f"{split}_{number:05d}", rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
            png = to_png(Image.fromarray(noise))
            images.append({"image_id": name, "split": split, "image": {"bytes": png, "path": name}})
            ids = [*rng.integers(FREE, VOCABULARY, length - 1).tolist(), NEWLINE]
            rows.append({"image_id": name, "split": split, "modality": "CT", "cuis": [], "caption": name,
                         "raw_caption": name, "input_ids": ids, "n_tokens": length})  # fmt: skip
        pq.write_table(pa.Table.from_pylist(images, schema()), folder / f"images-{split}-00000.parquet")
    captions = pd.DataFrame(rows)
    captions.to_parquet(folder / "captions.parquet")
    write_json(folder / "preprocess.json", {
        "model_id": str(weights), "model_revision": None, "token_limit": int(captions["n_tokens"].max()),
        "size": SIDE, "resample": "bicubic (Pillow)", "mean": [0.5] * 3, "std": [0.5] * 3,
    })  # fmt: skip
