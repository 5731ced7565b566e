"""Pretraining of the tiny BLIP-2, in the order of the real one's: language, sight, then both.

Language: OPT reads radiology sentences and plain descriptions. Sight: the ViT and the Q-Former learn
to tell pictures apart by heads that are thrown away, as CLIP's and BLIP-2's own first stages do;
by captions alone a finding of a few patches would not be noticed for thousands of steps. Both: the
whole model describes pictures in plain words.
"""

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from utils.sample import texts
from utils.sample.phantoms import (
    FINDINGS,
    MODALITIES,
    REGIONS,
    SIZES,
    draw,
    picture_side,
    random_phantom,
    random_size,
)

SEED = 20_000  # far from the release's seeds: no picture of it is ever seen here
POOL = 10_000
TEXT_STEPS = 100
SIGHT_STEPS = 2_000
IMAGE_STEPS = 1_300
BATCH = 32
RATE = 2e-3
WARM_UP = 200
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def pretrain(model, tokenizer, steps=(TEXT_STEPS, SIGHT_STEPS, IMAGE_STEPS), pool=POOL, seed=SEED):
    """Teach a random tiny BLIP-2 to describe phantoms in plain words; deterministic by `seed`.

    Dropout stays off (eval mode): a model this small underfits, so it needs none.
    """
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    _learn_language(model, tokenizer, steps[0], rng)
    phantoms, pictures = picture_pool(pool, seed)
    heads = _heads()
    _learn_sight(model, heads, phantoms, pictures, steps[1], rng)
    _learn_pictures(model, heads, tokenizer, (phantoms, pictures), steps[2], rng)


def picture_pool(count, seed, procs=2):
    """Phantoms and their pictures, squashed to uint8 (count, 224, 224) as the processor does."""
    seeds = [(seed, number) for number in range(count)]
    with ProcessPoolExecutor(procs, multiprocessing.get_context("spawn")) as workers:
        drawn = tqdm(workers.map(draw_one, seeds, chunksize=50), total=count, desc="drawing")
        phantoms, pictures = zip(*drawn, strict=True)
    return phantoms, np.stack(pictures)


def draw_one(seed):
    """One phantom and its picture, uint8 (224, 224), from a seed."""
    rng = np.random.default_rng(seed)
    phantom = random_phantom(rng)
    picture = Image.fromarray(draw(phantom, rng, random_size(phantom, rng)))
    return phantom, np.asarray(picture.resize((224, 224), Image.Resampling.BICUBIC))


def _learn_language(model, tokenizer, steps, rng):
    def loss(_):
        half = [texts.radiology_text(rng) for _ in range(BATCH)]
        half += [texts.description(random_phantom(rng), rng) for _ in range(BATCH)]
        return _text_loss(model, tokenizer, half)

    _optimise(model.language_model.parameters(), loss, steps, "language")


def _heads():
    """Linear heads that are thrown away: what each half holds (7 kinds), modality and region."""
    kinds = 1 + len(FINDINGS) * len(SIZES)
    sizes = {"patches": kinds, "left": kinds, "right": kinds,
             "modality": len(MODALITIES), "region": len(REGIONS)}
    return torch.nn.ModuleDict({name: torch.nn.Linear(128, n) for name, n in sizes.items()})


def _targets(phantoms):
    """Class numbers of a batch by head name, each int64 (batch,)."""
    def kind(phantom, half):
        if picture_side(phantom) != half:
            return 0
        return 1 + FINDINGS.index(phantom.finding) * len(SIZES) + SIZES.index(phantom.size)

    return {"left": torch.tensor([kind(p, "left") for p in phantoms]),
            "right": torch.tensor([kind(p, "right") for p in phantoms]),
            "modality": torch.tensor([MODALITIES.index(p.modality) for p in phantoms]),
            "region": torch.tensor([REGIONS.index(p.region) for p in phantoms])}


def _sight_loss(heads, seen, asked, targets):
    """Cross-entropy of the heads on each half of the ViT's patches and on the mean query.

    Args: seen, the ViT's output (batch, 65, 128); asked, the Q-Former's (batch, 16, 128).
    """
    grid = seen[:, 1:].unflatten(1, (8, 8))  # without the class token: (batch, row, column, width)
    entropy = torch.nn.functional.cross_entropy
    loss = sum(entropy(heads[name](asked.mean(1)), wanted) for name, wanted in targets.items())
    for half, columns in (("left", slice(0, 4)), ("right", slice(4, 8))):
        loss = loss + entropy(heads["patches"](grid[:, :, columns].mean((1, 2))), targets[half])
    return loss


def _learn_sight(model, heads, phantoms, pictures, steps, rng):
    def loss(_):
        chosen = rng.integers(0, len(phantoms), 2 * BATCH)
        seen = model.vision_model(_pixels(pictures[chosen])).last_hidden_state
        queries = model.query_tokens.expand(len(chosen), -1, -1)
        asked = model.qformer(query_embeds=queries, encoder_hidden_states=seen).last_hidden_state
        return _sight_loss(heads, seen, asked, _targets([phantoms[i] for i in chosen]))

    seeing = [*model.vision_model.parameters(), *model.qformer.parameters(), model.query_tokens]
    _optimise([*seeing, *heads.parameters()], loss, steps, "sight")


def _learn_pictures(model, heads, tokenizer, pool, steps, rng):
    phantoms, pictures = pool

    def loss(step):
        chosen = rng.integers(0, len(phantoms), BATCH)
        said = [texts.description(phantoms[i], rng) for i in chosen]
        out = _describe(model, tokenizer, _pixels(pictures[chosen]), said)
        total = out.loss + .1 * _sight_loss(heads, out.vision_outputs.last_hidden_state,
                                            out.qformer_outputs.last_hidden_state,
                                            _targets([phantoms[i] for i in chosen]))
        if step % 4 == 0:  # or it forgets the words that the adapter will need
            total = total + .5 * _text_loss(model, tokenizer,
                                            [texts.radiology_text(rng) for _ in range(BATCH)])
        return total

    _optimise([*model.parameters(), *heads.parameters()], loss, steps, "pictures")


def _optimise(parameters, loss_of_step, steps, name):
    parameters = [p for p in parameters if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=(.9, .98), weight_decay=.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: min(
        (step + 1) / WARM_UP, .5 + .5 * math.cos(math.pi * step / steps)))
    bar = tqdm(range(steps), desc=name, mininterval=5)
    for step in bar:
        loss = loss_of_step(step)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.)
        optimiser.step()
        schedule.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


def _tokens(tokenizer, sentences):
    # the newline is what ends a caption, so it belongs to what is learned
    batch = tokenizer([s + "\n" for s in sentences], padding=True, return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    return batch.input_ids, batch.attention_mask, labels


def _text_loss(model, tokenizer, sentences):
    ids, mask, labels = _tokens(tokenizer, sentences)
    return model.language_model(input_ids=ids, attention_mask=mask, labels=labels).loss


def _pixels(pictures):
    """uint8 (batch, 224, 224) -> float32 (batch, 3, 224, 224), normalised as CLIP's."""
    grey = torch.from_numpy(pictures)[:, None].float() / 255
    return (grey - MEAN[:, None, None]) / STD[:, None, None]


def _describe(model, tokenizer, pixels, sentences):
    ids, mask, labels = _tokens(tokenizer, sentences)
    labels[:, 0] = -100  # BOS stands behind the image tokens and is given, not learned
    front = torch.full((len(ids), model.config.num_query_tokens), model.config.image_token_index)
    return model(pixel_values=pixels, input_ids=torch.cat([front, ids], 1),
                 attention_mask=torch.cat([torch.ones_like(front), mask], 1),
                 labels=torch.cat([torch.full_like(front, -100), labels], 1))
