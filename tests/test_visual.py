"""Base and tuned model share what the adapter leaves alone, and see what they would see on their own."""

import pytest
import torch

from tests.test_generate import randomised
from utils import decoding, model, visual
from utils.dataset import normalise
from utils.decoding import Decoding
from utils.sample import phantoms

RUNS = {"decoder": (1, 1), "connector": (1, 2), "vision": (2, 2)}  # preset -> passes of ViT and Q-Former
BASE, TUNED = "base", "tuned"


@pytest.fixture(scope="module", params=list(RUNS))
def preset(request):
    return request.param


@pytest.fixture(scope="module")
def adapted(preset):
    """The sample's own model: it says something of a picture."""
    return randomised(model.load_base("sample", "float32"), preset, 0.02).eval()


@pytest.fixture(scope="module")
def values():
    """Nine phantoms, normalised."""
    import numpy as np

    rng = np.random.default_rng(0)
    drawn = [phantoms.draw(phantoms.Phantom(m, r, "normal"), rng, size=(224, 224))
             for m in phantoms.MODALITIES[:3] for r in phantoms.REGIONS[:3]]  # fmt: skip
    grey = torch.stack([torch.from_numpy(np.asarray(picture, dtype=np.uint8)) for picture in drawn])
    return normalise(grey[:, None].expand(-1, 3, -1, -1), [0.48, 0.46, 0.41], [0.27, 0.26, 0.28])


def apart(adapted, values):
    """What each model sees in a full pass of its own."""
    whole = adapted.get_base_model()
    with torch.no_grad():
        with adapted.disable_adapter():
            base = whole.get_image_features(pixel_values=values).pooler_output
        return {BASE: base, TUNED: whole.get_image_features(pixel_values=values).pooler_output}


def captions(adapted, seen):
    tokenizer = model.load_tokenizer("sample")
    layout = model.layout_of(adapted.get_base_model().config, tokenizer)
    how = Decoding(3, 12, 1, 3)
    with adapted.disable_adapter():
        base = decoding.caption(adapted, tokenizer, layout, seen[BASE], how)
    return {BASE: base, TUNED: decoding.caption(adapted, tokenizer, layout, seen[TUNED], how)}


def test_what_is_shared_is_what_each_model_would_see_on_its_own(adapted, values):
    shared, own = visual.see_both(adapted, values), apart(adapted, values)
    assert torch.equal(shared[BASE], own[BASE])
    assert torch.equal(shared[TUNED], own[TUNED])
    assert not torch.allclose(own[BASE], own[TUNED], atol=1e-3)
    assert captions(adapted, shared) == captions(adapted, own)


def test_what_the_adapter_leaves_alone_runs_once(adapted, preset, values):
    whole, runs = adapted.get_base_model(), {}
    hooks = [getattr(whole, part).register_forward_hook(
                 lambda *_, part=part: runs.update({part: runs.get(part, 0) + 1}))
             for part in visual.PARTS]  # fmt: skip
    visual.see_both(adapted, values[:1])
    for hook in hooks:
        hook.remove()
    assert (runs["vision_model"], runs["qformer"]) == RUNS[preset]


@pytest.mark.slow
def test_a_batch_says_what_single_images_say_but_for_ties(adapted, preset, values):
    """A larger batch rounds sums in another order: only equally probable captions may change places."""
    together, ties = captions(adapted, visual.see_both(adapted, values)), 0
    for row in range(len(values)):
        alone = captions(adapted, visual.see_both(adapted, values[row : row + 1]))
        for name in (BASE, TUNED):
            assert alone[name].logprobs[0] == pytest.approx(together[name].logprobs[row], abs=1e-4)
            ties += alone[name].texts[0] != together[name].texts[row]
    print(f"{preset}: {ties} ties among {2 * len(values)} captions")


def test_the_visual_part_comes_back_even_after_an_error(adapted):
    whole = adapted.get_base_model()
    own = whole.vision_model, whole.qformer

    def fail():
        with visual.seen_before(whole, *visual.PARTS):
            assert whole.vision_model is not own[0]
            raise RuntimeError("lost")

    with pytest.raises(RuntimeError, match="lost"):
        fail()
    assert (whole.vision_model, whole.qformer) == own


def test_half_precision_is_shared_too(preset, values):
    adapted = randomised(model.load_base("sample", "bfloat16"), preset, 0.02)
    for name, parameter in adapted.named_parameters():
        if "language_projection.modules_to_save" in name:
            parameter.data = parameter.data.bfloat16()
    adapted.eval()
    shared, own = visual.see_both(adapted, values[:2]), apart(adapted, values[:2])
    assert torch.equal(shared[BASE], own[BASE])
    assert torch.equal(shared[TUNED], own[TUNED])
