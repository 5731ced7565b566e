"""The evaluation: captions against the public notebooks' way, one image at a time, and what the scores cost.

Captions are the sample's own model's, of phantoms, with a random adapter; the scores are of real captions.
"""

import csv
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext, redirect_stdout
from functools import cache
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image

from tests.bench.lines import Line
from tests.bench.recipes import peak_gib
from tests.bench.scaled import REAL
from utils import concepts, decoding, facts, health, metrics, model, resampling
from utils.captions import clean
from utils.dataset import image_to_pixels, normalise
from utils.generate import Captioner
from utils.sample import phantoms, texts
from utils.sample.tiny_blip2 import build_processor

IMAGES, ROUNDS = 128, 2  # captioned by all ways, in turns
CORES = 2
BATCH = 32  # images, as notebook 04 takes them on a CPU
HOW = {"beams": 5, "max_new_tokens": 28, "min_new_tokens": 1, "no_repeat_ngram": 3}
SPREAD = 0.05  # of the random adapter: its captions differ from the base's, and end
PAIRS, RESAMPLES = 9927, 1000  # ROCOv2's test images
TIE = 1e-4  # of a log-probability a token, up to which rounding decides between two captions
SYSTEMS = ("base", "tuned")


def run(scale: float) -> list[Line]:
    """Caption, and score in a process of its own, whose memory is told."""
    images = max(CORES * BATCH, round(IMAGES * scale))
    with tempfile.TemporaryDirectory() as place, worker() as own:
        write_adapter(Path(place))
        captions = caption_lines(place, images)
        return captions + score_lines(own.submit(score, round(PAIRS * scale), round(RESAMPLES * scale)).result())


def worker() -> ProcessPoolExecutor:
    """Return one process, which starts when it is given something to do."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))


def settings() -> dict:
    """Return what ``preprocess.json`` says of the sample's own model."""
    processor = build_processor().image_processor
    return {"model_id": "sample", "size": 224, "mean": processor.image_mean, "std": processor.image_std}


def write_adapter(folder: Path) -> None:
    """Save a random adapter of the sample's own model."""
    adapted = model.add_lora(model.load_base("sample", "float32"), "connector", 16, 32, 0.0)
    generator = torch.Generator().manual_seed(0)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += SPREAD * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder)


@cache
def loaded(folder: str) -> Captioner:
    """Load base model and adapter, once a process."""
    return Captioner(Path(folder), settings(), **HOW)


@cache
def pictures(count: int) -> torch.Tensor:
    """Draw phantoms; return uint8 pixels (count, 3, 224, 224)."""
    rng = np.random.default_rng(0)
    drawn = (phantoms.draw(phantoms.random_phantom(rng), rng) for _ in range(count))
    return torch.stack([image_to_pixels(Image.fromarray(drawing).convert("RGB")) for drawing in drawn])


def batched(captioner: Captioner, pixels: torch.Tensor) -> dict[str, list[tuple[str, float]]]:
    """Caption as notebook 04 does; return (caption, log-probability a token) of base and tuned model."""
    found = {system: [] for system in SYSTEMS}
    for batch in pixels.split(BATCH):
        for system, captions in captioner.both(batch).items():
            sure = [np.mean(tokens) for tokens in captions.token_logprobs]
            found[system] += zip(captions.texts, sure, strict=True)
    return found


def one_by_one(captioner: Captioner, pixels: torch.Tensor) -> dict[str, list[list[int]]]:
    """Caption as public notebooks do: the whole model for every image and system; return the new tokens."""
    found, layout, prompt = {}, captioner.layout, captioner.layout.prompt(1)
    for system in SYSTEMS:
        with captioner.model.disable_adapter() if system == "base" else nullcontext():
            found[system] = [captioner.model.generate(
                pixel_values=normalise(image[None], captioner.settings["mean"], captioner.settings["std"]),
                input_ids=prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                num_beams=HOW["beams"], max_new_tokens=HOW["max_new_tokens"],
                min_new_tokens=HOW["min_new_tokens"], no_repeat_ngram_size=HOW["no_repeat_ngram"],
                eos_token_id=layout.newline_id, pad_token_id=layout.pad_id,
            )[0, prompt.shape[1] :].tolist() for image in pixels]  # fmt: skip
    return found


def differences(captioner: Captioner, pixels: torch.Tensor, ours: dict, theirs: dict) -> tuple[int, int]:
    """Count the captions that differ: for a reason, and because two were as probable up to rounding."""
    wrong = ties = 0
    for system in SYSTEMS:
        for image, (caption, sure), ids in zip(pixels, ours[system], theirs[system], strict=True):
            text = captioner.tokenizer.decode(ids, skip_special_tokens=True)
            if " ".join(text.split()) != caption:
                tie = abs(probability(captioner, system, image, ids) - sure) < TIE
                wrong, ties = wrong + (not tie), ties + tie
    return wrong, ties


@torch.no_grad()
def probability(captioner: Captioner, system: str, image: torch.Tensor, ids: list[int]) -> float:
    """Return the mean log-probability of the tokens of a caption."""
    values = normalise(image[None], captioner.settings["mean"], captioner.settings["std"])
    with captioner.model.disable_adapter() if system == "base" else nullcontext():
        prefix = captioner.model.get_base_model().get_image_features(pixel_values=values).pooler_output
        found = decoding.log_probabilities(captioner.model, captioner.layout, prefix, torch.tensor([ids]), [len(ids)])
    return float(np.mean(found[0]))


def seconds_of(work, *given) -> tuple[float, object]:
    """Return how long something took, and what it returned."""
    started = time.perf_counter()
    found = work(*given)
    return time.perf_counter() - started, found


def caption_part(way, folder: str, images: int, rows: slice) -> dict[str, list]:
    """Caption some of the pictures on one core."""
    # So small a model gains nothing from a second thread, and waits for it where the cores are busy.
    torch.set_num_threads(1)
    return way(loaded(folder), pictures(images)[rows])


class Ranks:
    """Processes of one core each that caption their shares of the pictures by one way."""

    def __init__(self, way, folder: str, images: int, stack: ExitStack, count: int):
        self.given, self.count = (way, folder, images), count
        self.workers = [stack.enter_context(worker()) for _ in range(count)]

    def __call__(self, images: int) -> dict[str, list]:
        """Caption the first pictures."""
        share = -(-images // self.count)
        parts = [own.submit(caption_part, *self.given, slice(rank * share, min(images, (rank + 1) * share)))
                 for rank, own in enumerate(self.workers)]  # fmt: skip
        found = [part.result() for part in parts]
        return {system: [one for part in found for one in part[system]] for system in SYSTEMS}


def caption_lines(folder: str, images: int) -> list[Line]:
    """Compare the ways, in turns, after pictures that do not count."""
    with ExitStack() as stack:
        ways = [Ranks(batched, folder, images, stack, CORES), Ranks(batched, folder, images, stack, 1),
                Ranks(one_by_one, folder, images, stack, 1)]  # fmt: skip
        for way in ways:
            way(CORES)
        rounds = [[seconds_of(way, images) for way in ways] for _ in range(ROUNDS)]
    ours, alone, theirs = (images / median(one[way][0] for one in rounds) for way in range(3))
    (_, found), _, (_, other) = rounds[0]
    usual = "one image at a time, one core"
    wrong, ties = differences(loaded(folder), pictures(images), found, other)
    words = np.mean([len(text.split()) for system in SYSTEMS for text, _ in found[system]])
    return [
        Line(f"captions by base and tuned model, {CORES} ranks of one core", ours, "images/s", 5, usual, theirs),
        Line("the same, one rank of one core", alone, "images/s", 5, usual, theirs),
        Line(f"of {2 * images} captions, that differ", wrong, "captions", 0, most=True),
        Line(f"of {2 * images} captions, that are ties and differ", ties, "captions", None),
        Line("words a caption", words, "words", None),
    ]


def real_captions() -> tuple[list[str], list[list[str]], str]:
    """Return captions, the ids of their concepts and where they are from; generated ones where none are here."""
    rows = []
    for path in sorted((REAL / "roco_v1_text").glob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            rows += csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    if rows:
        cuis = [[cui for cui in (row["cui"] or "").split(";") if cui] for row in rows]
        return [clean(row["caption"]) for row in rows], cuis, "ROCO's captions"
    rng = np.random.default_rng(0)
    written = [texts.caption(phantoms.random_phantom(rng), rng) for _ in range(PAIRS)]
    return written, [["C0040405"]] * PAIRS, "generated captions: the real ones are not on this machine"


def concept_names(captions: list[str], cuis: list[list[str]]) -> concepts.ConceptNames:
    """Name the concepts by the captions' most frequent words: as much to look for as in ROCOv2's own table."""
    words = Counter(word for caption in captions for word in caption.split() if word.isalpha())
    ids = Counter(cui for own in cuis for cui in own)
    return concepts.ConceptNames(
        {cui: word for (cui, _), (word, _) in zip(ids.most_common(2000), words.most_common(), strict=False)}
    )


def score(pairs: int, resamples: int) -> dict:
    """Score two systems by all metrics but METEOR and BERTScore and draw the intervals; return what it took."""
    captions, cuis, origin = real_captions()
    references, cuis, rng = captions[:pairs], cuis[:pairs], random.Random(0)
    following = references[1:] + references[:1]
    lost = [" ".join(word for word in text.split() if rng.random() < 0.5) for text in references]
    names, measures, spent = concept_names(captions, cuis), {}, []
    for system, said in zip(SYSTEMS, (following, lost), strict=True):
        seconds, measures[system] = seconds_of(all_measures, references, said, cuis, names)
        spent.append(seconds)
    with redirect_stdout(sys.stderr):  # of the bar: what is printed is the table
        drawing, _ = seconds_of(resampling.replicates, measures, resamples, 0)
    return {"pairs": len(references), "origin": origin, "metrics": len(measures["tuned"]), "scoring": max(spent),
            "resamples": resamples, "drawing": drawing, "gib": peak_gib()}  # fmt: skip


def all_measures(
    references: list[str], said: list[str], cuis: list[list[str]], names: concepts.ConceptNames
) -> dict[str, resampling.Measure]:
    """Return what notebook 04 computes of one system without Java and without a model."""
    found = metrics.overlap_measures(references, {"one": said})["one"]
    found |= facts.fact_measures(references, said)
    found |= health.health_measures(references, said, [False] * len(said))
    return found | concepts.concept_measures(references, said, cuis, names)


def score_lines(scored: dict) -> list[Line]:
    """Hold what scoring took against its bars."""
    pairs, resamples = f"{scored['pairs']:,} pairs of {scored['origin']}", f"{scored['resamples']:,}"
    return [
        Line(f"{scored['metrics']} metrics of one system, {pairs}", scored["scoring"], "s", 30, most=True),
        Line(f"{resamples} paired resamples of them, two systems", scored["drawing"], "s", 60, most=True),
        Line("peak memory of the process that scores", scored["gib"], "GiB", 2, most=True),
    ]
