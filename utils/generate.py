"""``python -m utils.generate JOB.json``: captions of a split by the base and the tuned model.

One loaded model gives both: the adapter is switched off for the base. The split is cut into parts
that do not depend on the number of ranks; each finished part is a file, so a killed run goes on and
ends with the same captions.
"""

import os
import sys
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from tqdm import tqdm

from utils import model, runtime
from utils.base import PLACE
from utils.dataset import Layout, PreparedSplit, image_to_pixels, normalise
from utils.images import squash
from utils.stages import read_json, write_json

PART = 64  # images in one part: what a kill can cost


class Captioner:
    """BLIP-2 with its adapter: images in, captions of base and tuned model out.

    Args:
        adapter: folder of the adapter.
        settings: ``preprocess.json``: the base model that the adapter was trained on, its revision, and
            size, mean and std of its image processor.
        beams: beams of the search; 1 is greedy. Never sampled: a score must be repeatable.
        max_new_tokens: limit of a caption, without image tokens and prompt.
        place: where 4-bit copies of base models are kept; None keeps none.
    """

    def __init__(
        self, adapter: Path, settings: dict, beams: int, max_new_tokens: int, place: Path | None = None
    ):
        self.dtype, _ = runtime.compute_dtype()
        self.device = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
        model_id, revision = settings["model_id"], settings.get("model_revision")
        base = model.load_base(model_id, self.dtype, self.device, revision, place)
        self.tokenizer = model.load_tokenizer(model_id, revision)
        self.layout: Layout = model.layout_of(base.config, self.tokenizer)
        self.model = model.load_adapter(base, adapter)
        self.settings, self.beams, self.max_new_tokens = settings, beams, max_new_tokens

    def __call__(self, image: Image.Image) -> dict[str, str]:
        """Caption one RGB image of any size; return {"base": ..., "tuned": ...}."""
        pixels = image_to_pixels(squash(image, self.settings["size"]))[None]
        return {name: texts[0] for name, (texts, _) in self.both(pixels).items()}

    def both(self, pixels: torch.Tensor) -> dict[str, tuple[list[str], list[float]]]:
        """Caption uint8 pixels (B, 3, H, W) with the base and with the tuned model."""
        with self.model.disable_adapter():
            base = self.captions(pixels)
        return {"base": base, "tuned": self.captions(pixels)}

    def captions(self, pixels: torch.Tensor) -> tuple[list[str], list[float]]:
        """Return captions and their log-probabilities (natural log, sum over tokens and the end)."""
        values = normalise(pixels.to(self.device), self.settings["mean"], self.settings["std"])
        return decode(self.model, self.tokenizer, self.layout, values, self.beams, self.max_new_tokens)


@torch.no_grad()  # inference mode would leave tensors that training cannot use
def decode(
    adapted: PeftModel, tokenizer, layout: Layout, seen: torch.Tensor, beams: int, max_new_tokens: int
) -> tuple[list[str], list[float]]:
    """Caption a batch.

    Args:
        adapted: BLIP-2 with its adapter.
        tokenizer: the model's own.
        layout: BLIP-2's token layout.
        seen: normalised pixels (B, 3, H, W), or features (B, queries, width) where the visual part was
            dropped.
        beams: 1 is greedy.
        max_new_tokens: limit of a caption.

    Returns:
        captions and their log-probabilities (natural log, sum over tokens and the end).
    """
    prompt = layout.prompt(len(seen)).to(seen.device)
    output = adapted.generate(
        pixel_values=seen, input_ids=prompt, attention_mask=torch.ones_like(prompt),
        max_new_tokens=max_new_tokens, num_beams=beams, do_sample=False,
        no_repeat_ngram_size=3 if beams > 1 else 0,
        eos_token_id=layout.newline_id, pad_token_id=layout.pad_id,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    new = output.sequences[:, prompt.shape[1] :]
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    scores = adapted.get_base_model().language_model.compute_transition_scores(
        output.sequences, output.scores, getattr(output, "beam_indices", None), normalize_logits=beams == 1
    )
    return [" ".join(text.split()) for text in texts], log_probabilities(scores, new, layout.newline_id)


def log_probabilities(scores: torch.Tensor, new: torch.Tensor, newline_id: int) -> list[float]:
    """Sum the log-probabilities (B, T) of new tokens (B, T) up to and with the end of each caption."""
    ended = (new == newline_id).cumsum(1)
    # After its end a caption is padded, and the scores of the padding mean nothing.
    alive = (ended - (new == newline_id).long()) == 0
    return scores[:, : new.shape[1]].masked_fill(~alive[:, : scores.shape[1]], 0).sum(1).tolist()


def caption_part(captioner: Captioner, split: PreparedSplit, rows: range, batch_size: int) -> dict:
    """Caption the images ``rows`` of a split, in batches; return the columns of the part."""
    part = {name: [] for name in ("image_id", "base", "base_logprob", "tuned", "tuned_logprob")}
    for start in range(rows.start, rows.stop, batch_size):
        batch = range(start, min(start + batch_size, rows.stop))
        both = captioner.both(torch.stack([split.pixels(i) for i in batch]))
        part["image_id"] += split.table["image_id"].iloc[list(batch)].tolist()
        for name, (texts, logprobs) in both.items():
            part[name] += texts
            part[f"{name}_logprob"] += [round(value, 5) for value in logprobs]
    return part


def part_path(folder: Path, number: int) -> Path:
    """Return the file of part ``number``."""
    return folder / "parts" / f"part-{number:05d}.json"


def main(job_path: str) -> None:
    """Caption this rank's parts of the split, those that are not there yet."""
    runtime.exit_with_launcher()
    job = read_json(Path(job_path))
    prepared, output, config = Path(job["prepared"]), Path(job["output"]), job["config"]
    settings = read_json(prepared / "preprocess.json")
    split = PreparedSplit(prepared, job["split"])
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    numbers = range(rank, -(-len(split) // PART), ranks)
    todo = [number for number in numbers if not part_path(output, number).is_file()]
    if not todo:
        print(f"rank {rank}: all captions are there; nothing to do.")
        return
    limit = config["max_new_tokens"] or settings["token_limit"]
    place = output.parent / PLACE  # beside the stages, where training has left its copy
    captioner = Captioner(Path(job["adapter"]), settings, config["beams"], limit, place)
    (output / "parts").mkdir(exist_ok=True)
    for number in tqdm(todo, desc="captioning", unit="part", file=sys.stdout, disable=rank > 0):
        rows = range(number * PART, min((number + 1) * PART, len(split)))
        write_json(part_path(output, number), caption_part(captioner, split, rows, config["batch_size"]))


if __name__ == "__main__":
    main(sys.argv[1])
