"""The tiny BLIP-2: small, loadable in NF4, and as quirky as the real one."""

import json

import numpy as np
import pytest
import torch
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    Blip2ForConditionalGeneration,
)

from utils.sample import pretrain, tiny_blip2
from utils.sample.phantoms import Phantom, draw, picture_side

WEIGHTS = tiny_blip2.WEIGHTS
NF4 = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.float32,
    "llm_int8_skip_modules": ["vision_model", "qformer", "language_projection", "lm_head"],
}


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(WEIGHTS)


@pytest.fixture(scope="module")
def model():
    return Blip2ForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float32).eval()


def picture(finding="nodule", side="right"):
    phantom = Phantom("CT", "chest", finding, side, "large")
    return np.repeat(draw(phantom, np.random.default_rng(4), (300, 260))[..., None], 3, axis=2)


# ---- tokens


def test_special_tokens_have_opts_ids(tokenizer):
    names = ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.convert_tokens_to_ids(names) == [0, 1, 2, 3]
    assert (tokenizer.pad_token, tokenizer.bos_token) == ("<pad>", "</s>")


def test_a_text_starts_with_bos_and_has_no_end_of_its_own(tokenizer):
    ids = tokenizer("CT.\n").input_ids
    assert ids[0] == 2
    assert 2 not in ids[1:]
    assert ids[-1] == 202


def test_the_newline_is_one_token_and_ends_a_caption(tokenizer, model):
    assert tokenizer("\n", add_special_tokens=False).input_ids == [202]
    assert model.config.text_config.eos_token_id == 202
    assert model.generation_config.eos_token_id == 202


@pytest.mark.parametrize(
    "text",
    [
        "Axial CT of the chest.",
        "  outer \t spaces ",
        "2\ufffd3 cm",
        "T2–weighted, “arrow” (37 °C)",
        "胸部",
        "\x00\x7f",
        "day 26Follow-up",
        "".join(map(chr, range(1, 1200))),
    ],
)
def test_any_text_survives_the_way_to_tokens_and_back(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_image_tokens_stand_before_bos_one_for_each_query(processor, model):
    ids = processor(images=picture(), text=["a"], return_tensors="pt").input_ids[0].tolist()
    assert ids[:17] == [700] * 16 + [2]
    assert model.config.image_token_index == 700
    assert model.query_tokens.shape == (1, 16, 128)


def test_the_embedding_has_spare_rows_behind_the_image_token(tokenizer, model):
    assert len(tokenizer) == 701
    assert model.get_input_embeddings().weight.shape == (704, 128)


def test_the_shipped_tokenizer_is_the_one_that_the_sample_trains(tokenizer):
    built = tiny_blip2.build_processor()
    assert built.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert built.tokenizer("CT of\n").input_ids == tokenizer("CT of\n").input_ids
    assert built.num_query_tokens == 16


def test_the_processor_squashes_with_pillow(processor):
    pixels = processor(images=picture(), text=["a"], return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, 224, 224)
    config = json.loads((WEIGHTS / "processor_config.json").read_text())["image_processor"]
    assert (config["size"], config["resample"]) == ({"height": 224, "width": 224}, 3)


# ---- weights


def test_the_shipped_folder_is_small_and_stores_tied_embeddings_once(model):
    files = {path.name: path.stat().st_size for path in WEIGHTS.iterdir()}
    assert files["model.safetensors"] < 4_000_000
    assert sum(files.values()) < 4_300_000
    parameters = sum(p.numel() for p in model.parameters())
    assert files["model.safetensors"] == pytest.approx(2 * parameters, rel=0.02)
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight


def test_a_random_model_is_the_same_for_the_same_seed():
    first, again, other = (tiny_blip2.random_model(seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["query_tokens"], other["query_tokens"])


def test_a_random_model_has_the_shape_of_the_shipped_one(model):
    random, shipped = tiny_blip2.random_model().state_dict(), model.state_dict()
    assert {n: t.shape for n, t in random.items()} == {n: t.shape for n, t in shipped.items()}


@pytest.mark.parametrize("which", ["random", "shipped"])
def test_the_vit_is_alive_and_sees_a_difference(model, processor, which):
    """Blip2VisionConfig's default initializer_range of 1e-10 gives a ViT that sees nothing."""
    subject = tiny_blip2.random_model() if which == "random" else model
    pictures = [picture("nodule", "right"), picture("cyst", "left")]
    pixels = processor(images=pictures, text=["a", "a"], return_tensors="pt").pixel_values
    with torch.no_grad():
        seen = subject.vision_model(pixels).last_hidden_state
    assert seen.shape == (2, 65, 128)
    assert seen.std() > 0.01
    assert (seen[0] - seen[1]).std() > 0.001


def test_queries_start_different_from_one_another():
    queries = tiny_blip2.random_model().query_tokens[0]
    assert torch.pdist(queries).min() > 0.01


@pytest.mark.parametrize("part", ["vision_config", "qformer_config", "text_config"])
def test_the_shipped_configuration_is_the_one_that_the_code_builds(model, part):
    built, shipped = tiny_blip2.build_config().to_dict()[part], model.config.to_dict()[part]
    for name in ("dtype", "_name_or_path"):
        built.pop(name, None)
    assert built == {name: shipped[name] for name in built}


def test_dropouts_and_positions_are_the_real_models(model):
    config = model.config
    assert config.text_config.dropout == 0.1
    assert config.qformer_config.hidden_dropout_prob == 0.1
    assert config.text_config.max_position_embeddings == 512


# ---- NF4


def test_nf4_quantises_the_language_model_alone():
    quantised = Blip2ForConditionalGeneration.from_pretrained(
        WEIGHTS, quantization_config=BitsAndBytesConfig(**NF4), dtype=torch.float32
    )
    names = {name for name, module in quantised.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(names) == 18  # three layers of q, k, v, out, fc1, fc2
    assert all(".language_model." in f".{name}" and "lm_head" not in name for name in names)


def test_the_qformer_stays_fp32_when_the_rest_is_fp16():
    half = Blip2ForConditionalGeneration.from_pretrained(WEIGHTS, dtype=torch.float16)
    assert half.qformer.layernorm.weight.dtype == torch.float32
    assert half.vision_model.embeddings.class_embedding.dtype == torch.float16


# ---- what it has learned, and what it has not


def test_the_shipped_model_describes_unseen_pictures_in_plain_words_and_stops(model, processor):
    """Of 60 phantoms that it has never seen, few findings and fewer sides are told wrong."""
    words = {"nodule": "ball", "cyst": "ring", "calcification": "crumbs"}
    pool = [pair for pair in (pretrain.draw_one((777, i)) for i in range(80)) if pair[0].side][:60]
    images = [np.repeat(pixels[..., None], 3, axis=2) for _, pixels in pool]
    inputs = processor(images=images, text=[""] * 60, return_tensors="pt")
    with torch.no_grad():
        ids = model.generate(**inputs, max_new_tokens=60, do_sample=False)[:, 17:]
    said = processor.batch_decode(ids, skip_special_tokens=True)
    assert (ids == 202).any(dim=1).all()
    assert sum(words[phantom.finding] in text for (phantom, _), text in zip(pool, said, strict=True)) >= 50
    assert sum(picture_side(phantom) in text for (phantom, _), text in zip(pool, said, strict=True)) >= 56
    assert not any(term in text for text in said for term in ("CT", "chest", "nodule", "lung"))


def test_pretraining_moves_every_weight_and_is_the_same_twice(monkeypatch):
    monkeypatch.setattr(pretrain, "BATCH", 4)
    tokenizer, trained = tiny_blip2.build_tokenizer(), []
    phantoms, pictures = zip(*(pretrain.draw_one((9, i)) for i in range(6)), strict=True)
    monkeypatch.setattr(pretrain, "picture_pool", lambda *_: (phantoms, np.stack(pictures)))
    for _ in range(2):
        model = tiny_blip2.random_model()
        pretrain.pretrain(model, tokenizer, steps=(2, 2, 2))
        trained.append(model.state_dict())
    start = tiny_blip2.random_model().state_dict()
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in start)
    assert all(not torch.equal(trained[0][n], start[n]) for n in start if "k_proj.bias" not in n)
