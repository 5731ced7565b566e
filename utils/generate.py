"""``python -m utils.generate JOB.json``: captions of a split by the base and the tuned model.

One loaded model gives both: the adapter is switched off for the base. The split is cut into parts
that do not depend on the number of ranks; each finished part is a file, so a killed run goes on and
ends with the same captions.
"""

import os
import sys
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from utils import model, runtime
from utils.dataset import Layout, PreparedSplit, image_to_pixels, normalise
from utils.images import squash
from utils.stages import read_json, write_json

PART = 64  # images in one part: what a kill can cost


class Captioner:
    """BLIP-2 with its adapter: images in, captions of base and tuned model out.

    Args:
        model_id: the base model that the adapter was trained on.
        adapter: folder of the adapter.
        statistics: size, mean and std of the image processor (``preprocess.json``).
        beams: beams of the search; 1 is greedy. Never sampled: a score must be repeatable.
        max_new_tokens: limit of a caption, without image tokens and prompt.
    """

    def __init__(self, model_id: str, adapter: Path, statistics: dict, beams: int, max_new_tokens: int):
        self.dtype, _ = runtime.compute_dtype()
        self.device = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
        base = model.load_base(model_id, self.dtype, self.device)
        self.tokenizer = model.load_tokenizer(model_id)
        self.layout: Layout = model.layout_of(base.config, self.tokenizer)
        self.model = model.load_adapter(base, adapter)
        self.statistics, self.beams, self.max_new_tokens = statistics, beams, max_new_tokens

    def __call__(self, image: Image.Image) -> dict[str, str]:
        """Caption one RGB image of any size; return {"base": ..., "tuned": ...}."""
        pixels = image_to_pixels(squash(image, self.statistics["size"]))[None]
        return {name: texts[0] for name, (texts, _) in self.both(pixels).items()}

    def both(self, pixels: torch.Tensor) -> dict[str, tuple[list[str], list[float]]]:
        """Caption uint8 pixels (B, 3, H, W) with the base and with the tuned model."""
        with self.model.disable_adapter():
            base = self.captions(pixels)
        return {"base": base, "tuned": self.captions(pixels)}

    @torch.inference_mode()
    def captions(self, pixels: torch.Tensor) -> tuple[list[str], list[float]]:
        """Return captions and their log-probabilities (natural log, sum over tokens and the end)."""
        values = normalise(pixels.to(self.device), self.statistics["mean"], self.statistics["std"])
        prompt = self.layout.prompt(len(pixels)).to(self.device)
        output = self.model.generate(
            pixel_values=values, input_ids=prompt, attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.max_new_tokens, num_beams=self.beams, do_sample=False,
            no_repeat_ngram_size=3 if self.beams > 1 else 0,
            eos_token_id=self.layout.newline_id, pad_token_id=self.layout.pad_id,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        new = output.sequences[:, prompt.shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return [" ".join(text.split()) for text in texts], self.log_probabilities(output, new)

    def log_probabilities(self, output, new: torch.Tensor) -> list[float]:
        """Sum the tokens' log-probabilities up to and with the end of each caption."""
        language_model = self.model.get_base_model().language_model
        scores = language_model.compute_transition_scores(
            output.sequences, output.scores, getattr(output, "beam_indices", None),
            normalize_logits=self.beams == 1,
        )  # fmt: skip
        ended = (new == self.layout.newline_id).cumsum(1)
        # After its end a caption is padded, and the scores of the padding mean nothing.
        alive = (ended - (new == self.layout.newline_id).long()) == 0
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
    captioner = Captioner(settings["model_id"], Path(job["adapter"]), settings, config["beams"], limit)
    (output / "parts").mkdir(exist_ok=True)
    for number in tqdm(todo, desc="captioning", unit="part", file=sys.stdout, disable=rank > 0):
        rows = range(number * PART, min((number + 1) * PART, len(split)))
        write_json(part_path(output, number), caption_part(captioner, split, rows, config["batch_size"]))


if __name__ == "__main__":
    main(sys.argv[1])
