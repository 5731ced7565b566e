"""Loading in NF4 and adapting: what is quantised, what trains, what the ids must be."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from utils import model
from utils.dataset import Collator


@pytest.fixture
def base(tiny_folder):
    return model.load_base(tiny_folder, "float32")


@pytest.fixture(scope="module")
def layout(tiny_folder):
    return model.layout_of(model.load_config(tiny_folder), model.load_tokenizer(tiny_folder))


def batch_of(layout, tiny_folder, count=2):
    ids = model.load_tokenizer(tiny_folder)("CT of the chest.", add_special_tokens=False)["input_ids"]
    pixels = torch.zeros(3, 224, 224, dtype=torch.uint8)
    items = [{"pixels": pixels, "input_ids": torch.tensor([*ids, layout.newline_id])}] * count
    batch = Collator(layout)(items)
    generator = torch.Generator().manual_seed(0)
    batch["pixel_values"] = torch.randn(count, 3, 224, 224, generator=generator)
    del batch["pixels"]
    return batch


def test_the_layout_of_the_sample_model_is_blip2s(layout):
    assert (layout.queries, layout.bos_id, layout.pad_id, layout.newline_id) == (16, 2, 1, 202)
    assert layout.image_id == 700


def test_only_the_linears_of_opt_are_in_four_bits(base):
    names = [n for n, m in base.named_modules() if type(m).__name__ == "Linear4bit"]
    # 3 layers of q, k, v, out_proj, fc1, fc2
    assert len(names) == 18
    assert all(n.startswith("language_model.model.decoder.layers.") for n in names)
    weight = base.language_model.model.decoder.layers[0].fc1.weight
    assert weight.quant_type == "nf4"
    assert weight.quant_state.nested, "double quantisation is off"


def test_a_loaded_base_trains_nothing(base):
    assert model.trainable_names(base) == []


@pytest.mark.parametrize(
    ("preset", "tensors"),
    # LoRA A and B of 18 OPT linears, + weight and bias of the projection,
    # + A and B of 2 Q-Former layers x (self, cross) x (query, key, value), + of 3 ViT layers x 4 linears
    [("decoder", 36 + 2), ("connector", 36 + 2 + 24), ("vision", 36 + 2 + 24 + 24)],
)
def test_exactly_the_announced_parameters_receive_a_gradient(base, layout, tiny_folder, preset, tensors):
    adapted = model.add_lora(base, preset, rank=4, alpha=8, dropout=0.0)
    adapted.train()
    adapted(**batch_of(layout, tiny_folder)).loss.backward()
    named = dict(adapted.named_parameters())
    with_gradient = {name for name, parameter in named.items() if parameter.grad is not None}
    assert with_gradient == set(model.trainable_names(adapted))
    assert len(with_gradient) == tensors
    wrong = {"decoder": "qformer|vision", "connector": "vision", "vision": "nowhere"}[preset]
    assert not any(re.search(wrong, name) for name in with_gradient)
    moved = [n for n in with_gradient if "lora_A" not in n and named[n].grad.abs().sum() > 0]
    # B starts at zero, so that A's first gradient is zero by construction; all others must move
    # but the bias of a key, which softmax cancels
    assert len(moved) == len([n for n in with_gradient if "lora_A" not in n])


def test_trainable_parameters_are_fp32_whatever_the_base(tiny_folder):
    adapted = model.add_lora(model.load_base(tiny_folder, "bfloat16"), "connector", 4, 8, 0.0)
    assert {p.dtype for p in adapted.parameters() if p.requires_grad} == {torch.float32}


def test_the_frozen_model_has_no_dropout_in_train_mode(base, layout, tiny_folder):
    """BLIP-2's Q-Former and OPT drop units in train(): the frozen part fed LoRA noise."""
    adapted = model.add_lora(base, "connector", 4, 8, dropout=0.0).train()
    batch = batch_of(layout, tiny_folder)
    with torch.no_grad():
        assert torch.equal(adapted(**batch).logits, adapted(**batch).logits)


def test_loras_own_dropout_stays(base, layout, tiny_folder):
    adapted = model.add_lora(base, "decoder", 4, 8, dropout=0.5).train()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    batch = batch_of(layout, tiny_folder)
    with torch.no_grad():
        assert not torch.equal(adapted(**batch).logits, adapted(**batch).logits)


def test_a_switched_off_adapter_gives_the_base_model_bit_for_bit(tiny_folder, layout):
    batch = batch_of(layout, tiny_folder)
    plain = model.load_base(tiny_folder, "float32")
    with torch.no_grad():
        expected = plain(**batch).logits
        adapted = model.add_lora(plain, "vision", 4, 8, 0.0).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1
        assert not torch.equal(adapted(**batch).logits, expected)
        with adapted.disable_adapter():
            assert torch.equal(adapted(**batch).logits, expected)


def test_stray_trainables_are_refused(base):
    adapted = model.add_lora(base, "decoder", 4, 8, 0.0)
    adapted.get_base_model().query_tokens.requires_grad_(True)
    with pytest.raises(model.ModelError, match="query_tokens"):
        model.check_trainables(adapted, "decoder")


def test_frozen_announced_parameters_are_refused(base):
    """get_peft_model re-freezes whatever was unfrozen before: the projection once stayed as it was."""
    adapted = model.add_lora(base, "decoder", 4, 8, 0.0)
    adapted.base_model.model.language_projection.modules_to_save["default"].requires_grad_(False)
    with pytest.raises(model.ModelError, match="language_projection"):
        model.check_trainables(adapted, "decoder")


def test_an_adapter_is_saved_with_its_projection_and_read_back(base, layout, tiny_folder, tmp_path):
    adapted = model.add_lora(base, "connector", 4, 8, 0.0).eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05
    adapted.save_pretrained(tmp_path)
    batch = batch_of(layout, tiny_folder)
    again = model.load_adapter(model.load_base(tiny_folder, "float32"), tmp_path)
    assert model.trainable_names(again) == []
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, adapted(**batch).logits)


def test_a_folder_without_an_adapter_names_the_notebook(base, tmp_path):
    with pytest.raises(model.ModelError, match="Run notebook 03"):
        model.load_adapter(base, tmp_path)


def altered(tiny_folder, tmp_path, change):
    shutil.copytree(tiny_folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    return str(path.parent)


def test_an_end_of_sequence_other_than_the_newline_is_refused(tiny_folder, tmp_path):
    folder = altered(tiny_folder, tmp_path, lambda v: v["text_config"].update(eos_token_id=2))
    with pytest.raises(model.ModelError, match=r"end \(newline\): model 2, tokenizer 202"):
        model.layout_of(model.load_config(folder), model.load_tokenizer(folder))


def test_a_blip2_without_opt_is_refused(tiny_folder, tmp_path):
    folder = altered(tiny_folder, tmp_path, lambda v: v.update(text_config={"model_type": "t5"}))
    with pytest.raises(model.ModelError, match="t5 language model"):
        model.load_config(folder)


def test_an_opt_that_nf4_cannot_cut_into_blocks_is_refused_before_a_weight_is_read(tiny_folder, tmp_path):
    folder = altered(tiny_folder, tmp_path, lambda v: v["text_config"].update(hidden_size=96))
    with pytest.raises(model.ModelError, match="an OPT of width 96, which NF4's blocks of 64 do not divide"):
        model.load_config(folder)


def test_a_processor_of_another_size_than_the_vit_is_refused(tiny_folder, tmp_path):
    """blip2-opt-6.7b-coco reads 364 pixels: images of 224 would meet positions of another grid."""
    folder = altered(tiny_folder, tmp_path, lambda v: v["vision_config"].update(image_size=364))
    with pytest.raises(model.ModelError, match="its ViT reads 364 x 364 pixels"):
        model.image_statistics(folder)


def test_a_missing_model_is_a_sentence(tmp_path):
    with pytest.raises(model.ModelError, match="Set MODEL_ID"):
        model.load_config(str(tmp_path / "nowhere"))


def test_the_room_for_a_caption_is_what_positions_leave(tiny_folder):
    assert model.caption_room(model.load_config(tiny_folder)) == 512 - 16 - 1


def test_image_statistics_come_from_the_models_own_processor(tiny_folder):
    values = model.image_statistics(tiny_folder)
    assert values["size"] == 224
    assert [round(v, 3) for v in values["mean"]] == [0.481, 0.458, 0.408]


def test_a_quantised_copy_is_loaded_as_it_is(base, layout, tiny_folder, tmp_path):
    base.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json"):
        shutil.copy(Path(tiny_folder) / name, tmp_path)
    batch = batch_of(layout, tiny_folder)
    again = model.load_base(str(tmp_path), "float32")
    assert len(model.four_bit_linears(again)) == 18
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, base(**batch).logits)


class TestRealSizes:
    """The patterns against the real BLIP2-OPT-6.7B, on the meta device: no weight is read."""

    @pytest.fixture(scope="class")
    @classmethod
    def names(cls):
        from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

        text = OPTConfig(hidden_size=4096, ffn_dim=16384, num_hidden_layers=32, num_attention_heads=32,
                         word_embed_proj_dim=4096, vocab_size=50304)  # fmt: skip
        config = Blip2Config(text_config=text.to_dict())
        with torch.device("meta"):
            real = Blip2ForConditionalGeneration(config)
        return [n for n, m in real.named_modules() if isinstance(m, torch.nn.Linear)]

    def count(self, pattern, names):
        return sum(re.fullmatch(pattern, name) is not None for name in names)

    def test_opt_gives_six_linears_a_layer(self, names):
        assert self.count(model.OPT_LINEARS, names) == 32 * 6

    def test_the_qformer_gives_three_a_layer_and_three_more_in_every_second(self, names):
        assert self.count(model.QFORMER_LINEARS, names) == 12 * 3 + 6 * 3

    def test_the_vit_gives_four_a_layer(self, names):
        assert self.count(model.VIT_LINEARS, names) == 39 * 4
