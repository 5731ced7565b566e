"""Load BLIP-2 with a 4-bit language model, and attach LoRA to the parts that a preset names."""

import os
import re
import warnings
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.utils.checkpoint import checkpoint
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    Blip2Config,
    Blip2ForConditionalGeneration,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.utils.logging import disable_progress_bar

from utils import base
from utils.base import model_path
from utils.dataset import Layout

# Only OPT's linears are quantised. The list replaces transformers' own, so lm_head must stand in it;
# a quantised ViT is documented to break captions.
NOT_QUANTISED = ["vision_model", "qformer", "language_projection", "lm_head"]
# Anchored: the bare names fc1 or q_proj would also hit the ViT.
OPT_LINEARS = r"language_model\.model\.decoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|fc1|fc2)"
QFORMER_LINEARS = r"qformer\.encoder\.layer\.\d+\.(attention|crossattention)\.attention\.(query|key|value)"
VIT_LINEARS = r"vision_model\.encoder\.layers\.\d+\.(self_attn\.(qkv|projection)|mlp\.fc[12])"
PRESET_LINEARS = {
    "decoder": (OPT_LINEARS,),
    "connector": (OPT_LINEARS, QFORMER_LINEARS),
    "vision": (OPT_LINEARS, QFORMER_LINEARS, VIT_LINEARS),
}
PROJECTION = "language_projection"


class ModelError(RuntimeError):
    """The checkpoint is no BLIP-2 OPT, or training it would not train what was announced."""


def load_config(model_id: str, revision: str | None = None) -> Blip2Config:
    """Load the model's configuration, of a hub model at the commit ``revision``.

    Raises:
        ModelError: nothing there, or it is no BLIP-2 with an OPT language model.
    """
    try:
        config = Blip2Config.from_pretrained(model_path(model_id), revision=revision or "main")
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{model_id} gives no BLIP-2 configuration ({str(error).splitlines()[0]}). Set MODEL_ID "
            f"to a BLIP-2 OPT checkpoint such as Salesforce/blip2-opt-2.7b, or turn the internet on."
        ) from error
    if config.text_config.model_type != "opt":
        raise ModelError(
            f"{model_id} has a {config.text_config.model_type} language model; this series trains "
            f"BLIP-2 with OPT. Set MODEL_ID to a blip2-opt checkpoint."
        )
    check_shapes(config, model_id)
    return config


def check_shapes(config: Blip2Config, model_id: str) -> None:
    """Refuse a model whose rows the NF4 blocks of 64 weights do not divide.

    Raises:
        ModelError: says how wide it is.
    """
    width = config.text_config.hidden_size
    if width % 64:
        raise ModelError(
            f"{model_id} has an OPT of width {width}, which NF4's blocks of 64 do not divide. Set MODEL_ID "
            f"to a BLIP-2 OPT checkpoint such as Salesforce/blip2-opt-2.7b."
        )


def load_tokenizer(model_id: str, revision: str | None = None):
    """Load the model's own tokenizer, of a hub model at the commit ``revision``."""
    return AutoTokenizer.from_pretrained(model_path(model_id), revision=revision or "main")


def layout_of(config: Blip2Config, tokenizer) -> Layout:
    """Return BLIP-2's token layout, after checking that model and tokenizer agree on it.

    Raises:
        ModelError: an id differs; training would teach the model to never stop, or to read padding.
    """
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    expected = {
        "<image>": (config.image_token_index, tokenizer.convert_tokens_to_ids("<image>")),
        "beginning": (config.text_config.bos_token_id, tokenizer.bos_token_id),
        "padding": (config.text_config.pad_token_id, tokenizer.pad_token_id),
        "end (newline)": (config.text_config.eos_token_id, newline[-1]),
    }
    wrong = [f"{name}: model {m}, tokenizer {t}" for name, (m, t) in expected.items() if m != t]
    if wrong or len(newline) != 1:
        raise ModelError(
            f"Model and tokenizer disagree about token ids ({'; '.join(wrong)}). Use the tokenizer "
            f"that was saved with the model."
        )
    image, bos, pad, end = (model_id for model_id, _ in expected.values())
    return Layout(image, config.num_query_tokens, bos, pad, end)


def caption_room(config: Blip2Config) -> int:
    """Return the longest caption, in tokens with its end, that OPT's positions leave room for."""
    return config.text_config.max_position_embeddings - config.num_query_tokens - 1


def image_statistics(model_id: str, revision: str | None = None) -> dict:
    """Return size (pixels), mean and std (per channel) of the model's image processor, and its commit.

    Raises:
        ModelError: its images have another size than the ViT reads.
    """
    path = model_path(model_id)
    values, _ = ImageProcessingMixin.get_image_processor_dict(path, revision=revision or "main")
    side = load_config(model_id, revision).vision_config.image_size
    if (values["size"]["height"], values["size"]["width"]) != (side, side):
        raise ModelError(
            f"The image processor of {model_id} makes {values['size']} of an image, and its ViT reads "
            f"{side} x {side} pixels. Set MODEL_ID to a checkpoint with its own processor."
        )
    return {
        "model_revision": revision,
        "size": values["size"]["height"],
        "mean": values["image_mean"],
        "std": values["image_std"],
    }


def load_base(
    model_id: str, dtype: str, device: int | str = "cpu", revision: str | None = None,
    place: Path | None = None,
) -> Blip2ForConditionalGeneration:  # fmt: skip
    """Load BLIP-2 with OPT's linears in NF4 (double quantisation), everything frozen.

    Args:
        model_id: a BLIP-2 OPT folder or hub id, or "sample".
        dtype: "float16", "bfloat16" or "float32", see ``runtime.compute_dtype``.
        device: the rank's GPU, or "cpu".
        revision: the commit of a hub model.
        place: where 4-bit copies are kept; the first load makes one, later ones read it. None keeps none.

    Raises:
        ModelError: no BLIP-2 OPT is there.
        StageError: the disk has no room for the copy.
    """
    quiet()
    if place is None:
        return frozen(read_weights(model_path(model_id), dtype, device, revision))
    name = base.copy_name(model_id, revision, dtype)
    with base.alone(name, place):
        folder = base.find_copy(name, place)
        if folder is None:
            if not Path(model_path(model_id)).is_dir():
                base.require_download(model_id, revision)
            model = read_weights(model_path(model_id), dtype, device, revision)
            base.keep_copy(model, load_tokenizer(model_id, revision), place / name)
    if folder is not None:
        model = read_weights(str(folder), dtype, device)
    return frozen(model)


def read_weights(
    path: str, dtype: str, device: int | str, revision: str | None = None
) -> Blip2ForConditionalGeneration:
    """Read BLIP-2 from a folder or the hub, quantising OPT's linears where they are not yet."""
    config = load_config(path, revision)
    precision = getattr(torch, dtype)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision, llm_int8_skip_modules=NOT_QUANTISED,
    )  # fmt: skip
    # A copy that was saved quantised carries its own settings; giving others would be ignored.
    quantised = getattr(config, "quantization_config", None) is not None
    # Only safetensors: the hub holds the same 31 GB a second time as .bin, which are pickles besides.
    return Blip2ForConditionalGeneration.from_pretrained(
        path, dtype=precision, device_map={"": device}, use_safetensors=True, revision=revision or "main",
        **({} if quantised else {"quantization_config": nf4}),
    )  # fmt: skip


def frozen(model: Blip2ForConditionalGeneration) -> Blip2ForConditionalGeneration:
    """Make a base model one that gives the same answer every time and trains nothing."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in four_bit_linears(model):
        # On CPUs with AVX512-BF16 a layer that ran in eval mode is repacked and cannot train again.
        module.support_avx512bf16_for_cpu = False
    silence_dropout(model)
    return model.eval()


def quiet() -> None:
    """Silence what a reader can do nothing about, and bars that are over before they are seen."""
    # peft asks transformers in the old way.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    if not torch.cuda.is_available() or int(os.environ.get("RANK", 0)) > 0:
        disable_progress_bar()


def four_bit_linears(model: torch.nn.Module) -> list[torch.nn.Module]:
    """List the layers that hold 4-bit weights."""
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def silence_dropout(model: torch.nn.Module) -> None:
    """Turn off dropout in the frozen model, which ``train()`` would wake: noise nobody learns from.

    LoRA's own dropout is added afterwards and stays.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def add_lora(
    model: Blip2ForConditionalGeneration, preset: str, rank: int, alpha: int, dropout: float,
    variant: str = "lora",
) -> PeftModel:  # fmt: skip
    """Attach trainable LoRA layers and a trainable copy of the language projection.

    Args:
        model: a base model.
        preset: "decoder", "connector" or "vision".
        rank: of the two thin matrices.
        alpha: alpha / rank scales what they add; alpha / sqrt(rank) for "rslora".
        dropout: of what goes into them.
        variant: "lora" (arXiv 2106.09685), "rslora" (2312.03732), "dora" (2402.09353) or "lora+"
            (2402.12354), which differs from "lora" in its learning rates alone.

    Raises:
        ModelError: what would train is not what the preset announces.
    """
    lora = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, task_type=None,  # a task would rewire generate
        use_rslora=variant == "rslora", use_dora=variant == "dora",
        target_modules="|".join(f"({linears})" for linears in PRESET_LINEARS[preset]),
        modules_to_save=[PROJECTION],
    )  # fmt: skip
    adapted = get_peft_model(model, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            # The projection's copy comes in fp16, which the gradient scaler refuses.
            parameter.data = parameter.data.float()
    check_trainables(adapted, preset)
    return adapted


def checkpoint_layers(model: PeftModel, count: int) -> None:
    """Recompute the first ``count`` of OPT's layers in the backward pass instead of keeping what they made.

    Layer by layer, where Transformers has one switch for all of them: so much memory is freed as is needed,
    and no more is computed twice.
    """
    layers = model.get_base_model().language_model.model.decoder.layers
    for layer in layers[:count]:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)


def trainable_names(model: torch.nn.Module) -> list[str]:
    """Return the names of the parameters that require a gradient."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def announced(name: str, preset: str) -> bool:
    """Tell whether a preset announces the parameter ``name`` of the adapted model as trainable."""
    linears = "|".join(f"({linear})" for linear in PRESET_LINEARS[preset])
    lora = rf"base_model\.model\.({linears})\.lora_([AB]|magnitude_vector)\.default\.weight"
    projection = rf"base_model\.model\.{PROJECTION}\.modules_to_save\.default\.(weight|bias)"
    return re.fullmatch(f"({lora})|({projection})", name) is not None


def check_trainables(model: PeftModel, preset: str) -> None:
    """Compare what requires a gradient with what the preset announces.

    Raises:
        ModelError: names the first parameter that should not, or the part of which nothing does.
    """
    names = trainable_names(model)
    stray = [name for name in names if not announced(name, preset)]
    idle = [name for name, p in model.named_parameters() if announced(name, preset) and not p.requires_grad]
    parts = [linears.split("\\.")[0] for linears in PRESET_LINEARS[preset]] + [PROJECTION]
    empty = [part for part in parts if not any(part in name for name in names)]
    if stray or idle or empty:
        raise ModelError(
            f"Preset {preset} would not train what it announces: beyond it {stray[:1]}, frozen "
            f"{idle[:1]}, nothing in {empty}. Check that MODEL_ID is a BLIP-2 OPT checkpoint."
        )


def load_adapter(model: Blip2ForConditionalGeneration, folder: Path) -> PeftModel:
    """Put a trained adapter on a base model, for generation: nothing requires a gradient.

    Raises:
        ModelError: the folder holds no safetensors adapter.
    """
    if not (Path(folder) / "adapter_model.safetensors").is_file():
        raise ModelError(f"{folder} holds no adapter_model.safetensors. Run notebook 03 first.")
    adapted = PeftModel.from_pretrained(model, folder, is_trainable=False)
    for name, parameter in adapted.named_parameters():
        if f"{PROJECTION}.modules_to_save" in name:
            # Outside autocast the projection must have the type of what flows into it.
            parameter.data = parameter.data.to(model.language_projection.original_module.weight.dtype)
    return adapted.eval()
