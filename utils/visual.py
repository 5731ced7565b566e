"""What base and tuned model see of a batch of images: what the adapter leaves alone is computed once."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from utils.features import SeenBefore

PARTS = ("vision_model", "qformer")


def adapted_parts(adapted: PeftModel) -> set[str]:
    """Return which of ViT and Q-Former hold layers of the adapter."""
    modules = adapted.get_base_model().named_modules()
    return {name.split(".")[0] for name, module in modules if isinstance(module, BaseTunerLayer)} & {*PARTS}


@contextmanager
def seen_before(model, *parts: str) -> Iterator[None]:
    """Let the named parts of a BLIP-2 hand on what comes in place of pixels; they come back at the end."""
    own = {part: getattr(model, part) for part in parts}
    try:
        for part in parts:
            setattr(model, part, SeenBefore())
        yield
    finally:
        for part, module in own.items():
            setattr(model, part, module)


@torch.no_grad()
def see_both(adapted: PeftModel, values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what OPT is shown of each image, by the base and by the tuned model.

    ViT and Q-Former run once where no layer of theirs is adapted, and the ViT where only the Q-Former is.
    The numbers are those of two full passes, so the captions are too. (Batches of another size round sums
    in another order: there, two words that are as probable as each other up to rounding can change places.)

    Args:
        adapted: BLIP-2 with its adapter.
        values: normalised pixels (B, 3, H, W).

    Returns:
        "base" and "tuned", each (B, queries, OPT's width).
    """
    model, changed = adapted.get_base_model(), adapted_parts(adapted)
    with adapted.disable_adapter():
        seen = model.get_image_features(pixel_values=values)
    kept = [part for part in PARTS if part not in changed]
    if "vision_model" in changed:
        kept, given = [], values
    elif "qformer" in changed:
        given = seen.vision_outputs.last_hidden_state
    else:  # in the dtype in which the projection takes it, as BLIP-2 itself does
        given = seen.qformer_outputs[0].to(seen.vision_outputs.last_hidden_state.dtype)
    with seen_before(model, *kept):
        tuned = model.get_image_features(pixel_values=given).pooler_output
    return {"base": seen.pooler_output, "tuned": tuned}
