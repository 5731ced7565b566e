"""``python -m utils.generate JOB.json``: captions of a split by the base and the tuned model.

One loaded model gives both: the adapter is switched off for the base. The split is cut into parts
that do not depend on the number of ranks; each finished part is a file, so a killed run goes on and
ends with the same captions.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from peft import PeftModel
from PIL import Image
from tqdm import tqdm

from utils import model, neighbours, runtime
from utils.base import PLACE
from utils.captionparts import SYSTEMS, CaptionParts
from utils.card import public_name
from utils.dataset import Layout, PreparedSplit, image_to_pixels, normalise
from utils.decoding import Captions, Decoding, caption
from utils.files import sha256_file
from utils.images import squash
from utils.model import ModelError
from utils.stages import read_json, short
from utils.visual import see_both

POLL = 0.5  # seconds between two looks at what the other ranks have finished


class Captioner:
    """BLIP-2 with its adapter: images in, captions of base and tuned model out.

    Args:
        adapter: folder of the adapter.
        settings: ``preprocess.json``: the base model that the adapter was trained on, its revision, and
            size, mean and std of its image processor.
        beams: beams of the search; 1 is greedy. Never sampled: a score must be repeatable.
        max_new_tokens: limit of a caption, without image tokens and prompt.
        place: where 4-bit copies of base models are kept; None keeps none.
        constraints: ``min_new_tokens`` and ``no_repeat_ngram``, see :class:`utils.decoding.Decoding`.

    Raises:
        ModelError: the adapter does not fit the base model.
    """

    def __init__(
        self, adapter: Path, settings: dict, beams: int, max_new_tokens: int, place: Path | None = None,
        **constraints: int,
    ):  # fmt: skip
        self.decoding = Decoding(beams, max_new_tokens, **constraints)
        self.dtype, _ = runtime.compute_dtype()
        self.device = int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"
        model_id, revision = settings["model_id"], settings.get("model_revision")
        base = model.load_base(model_id, self.dtype, self.device, revision, place)
        self.tokenizer = model.load_tokenizer(model_id, revision)
        self.layout: Layout = model.layout_of(base.config, self.tokenizer)
        self.model = fitted(base, adapter, model_id)
        self.settings = settings
        self.seconds = dict.fromkeys(("see", *SYSTEMS), 0.0)

    def __call__(self, image: Image.Image) -> dict[str, str]:
        """Caption one RGB image of any size; return {"base": ..., "tuned": ...}."""
        pixels = image_to_pixels(squash(image, self.settings["size"]))[None]
        return {name: captions.texts[0] for name, captions in self.both(pixels).items()}

    def both(self, pixels: torch.Tensor) -> dict[str, Captions]:
        """Caption uint8 pixels (B, 3, H, W) with the base and with the tuned model."""
        values = normalise(pixels.to(self.device), self.settings["mean"], self.settings["std"])
        with self.timed("see"):
            seen = see_both(self.model, values)
        with self.timed("base"), self.model.disable_adapter():
            base = self.captions(seen["base"])
        with self.timed("tuned"):
            return {"base": base, "tuned": self.captions(seen["tuned"])}

    def captions(self, prefix: torch.Tensor) -> Captions:
        """Caption what OPT is shown of a batch, (B, queries, width)."""
        return caption(self.model, self.tokenizer, self.layout, prefix, self.decoding)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the seconds that pass to ``seconds``."""
        started = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize(self.device)  # a GPU answers before it is done
        self.seconds[what] += time.perf_counter() - started


def fitted(base, adapter: Path, model_id: str) -> PeftModel:
    """Put the adapter on its base model.

    Raises:
        ModelError: its weights have other shapes than the base model's layers.
    """
    try:
        return model.load_adapter(base, adapter)
    except RuntimeError as error:
        if isinstance(error, ModelError) or "size mismatch" not in str(error):
            raise
        raise ModelError(
            f"The adapter in {short(adapter)} has other shapes than the layers of {model_id}: it was trained "
            f"on another model. Train it anew with notebook 03, or prepare the images for its own model."
        ) from None


def require_fit(adapter: Path, model_id: str, rank: int | None) -> None:
    """Refuse, before any weight is read, an adapter of another base model or rank.

    Raises:
        ModelError: says what differs, or that there is no adapter.
    """
    path = Path(adapter) / "adapter_config.json"
    if not path.is_file():
        raise ModelError(f"{short(adapter)} holds no adapter_config.json. Run notebook 03 first.")
    found = read_json(path)
    owner, wanted = public_name(str(found["base_model_name_or_path"])), public_name(model_id)
    if owner != wanted:
        raise ModelError(
            f"The adapter was trained on {owner}, and the images were prepared for {wanted}. Run notebook 02 "
            f"with MODEL_ID = {owner!r}, or train an adapter for {wanted} with notebook 03."
        )
    if rank is not None and found["r"] != rank:
        raise ModelError(
            f"The adapter has rank {found['r']}, and its run recorded rank {rank}: its folder was changed. "
            f"Train it anew with notebook 03."
        )


def decode(
    adapted: PeftModel, tokenizer, layout: Layout, seen: torch.Tensor, beams: int, max_new_tokens: int
) -> tuple[list[str], list[float]]:
    """Caption a batch with the model as it stands, in training too.

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
    with torch.no_grad():
        prefix = adapted.get_base_model().get_image_features(pixel_values=seen).pooler_output
    captions = caption(adapted, tokenizer, layout, prefix, Decoding(beams, max_new_tokens))
    return captions.texts, captions.logprobs


def caption_rows(
    captioner: Captioner, split: PreparedSplit, rows: range, batch_size: int, tick: Callable[[int], None]
) -> tuple[dict, dict]:
    """Caption some rows of a split, in batches; return the columns of their part and what it has cost.

    Args:
        captioner: of base and tuned model.
        split: of the images.
        rows: of the split.
        batch_size: images captioned at a time.
        tick: called after each batch with the number of images done.
    """
    captioner.seconds = dict.fromkeys(captioner.seconds, 0.0)
    columns: dict[str, list] = {"image_id": split.table["image_id"].iloc[list(rows)].tolist()}
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for name, found in captioner.both(torch.stack([split.pixels(row) for row in batch])).items():
            for column, values in found.columns(name).items():
                columns.setdefault(column, []).extend(values)
        tick(start + len(batch))
    seconds = {name: round(value, 3) for name, value in captioner.seconds.items()}
    peak = round(memory_gib(captioner.device), 3)
    return columns, {"images": len(rows), "seconds": seconds, "peak_gib": peak}


def memory_gib(device: int | str) -> float:
    """Return the most memory that PyTorch has had of this rank's GPU; on a CPU, what the process holds."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def parts_of(job: dict, settings: dict, split: PreparedSplit, rank: int, ranks: int) -> CaptionParts:
    """Return the parts of a job, which depend on all that its captions depend on."""
    config, adapter = job["config"], Path(job["adapter"])
    made_with = {name: config[name] for name in ("beams", "min_new_tokens", "no_repeat_ngram")}
    made_with |= {"max_new_tokens": config["max_new_tokens"] or settings["token_limit"], "split": split.name}
    made_with |= {name: settings.get(name) for name in ("model_id", "model_revision", "size", "mean", "std")}
    made_with |= {path.name: sha256_file(path) for path in sorted(adapter.glob("adapter_*"))}
    made_with |= {"dtype": runtime.compute_dtype()[0]}
    ids = split.table["image_id"].tolist()
    return CaptionParts(Path(job["output"]), ids, config["batch_size"], made_with, rank, ranks)


def caption_parts(captioner: Captioner, split: PreparedSplit, parts: CaptionParts, batch_size: int) -> None:
    """Caption this rank's parts; the first rank's bar counts the images of all ranks, and waits for them."""
    todo, first = parts.todo(), parts.rank == 0
    with tqdm(total=len(split), initial=parts.images_done(), desc="captioning", unit="image",
              file=sys.stdout, smoothing=0, disable=not first) as bar:  # fmt: skip
        def tick(begun: int) -> None:
            if first:
                bar.update(parts.images_done() + begun - bar.n)

        for number in todo:
            parts.write(number, *caption_rows(captioner, split, parts.rows(number), batch_size, tick))
        # Where another rank fails, the launcher ends this one.
        while first and parts.images_done() < len(split):
            tick(0)
            time.sleep(POLL)
        tick(0)


def main(job_path: str) -> None:
    """Caption this rank's parts of the split, those that are not there yet."""
    runtime.exit_with_launcher()
    job = read_json(Path(job_path))
    prepared, output, config = Path(job["prepared"]), Path(job["output"]), job["config"]
    settings, adapter = read_json(prepared / "preprocess.json"), Path(job["adapter"])
    require_fit(adapter, settings["model_id"], job.get("rank"))
    split = PreparedSplit(prepared, job["split"])
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    parts = parts_of(job, settings, split, rank, ranks)
    parts.remove_others()
    splits = [PreparedSplit(prepared, "train"), split] if job.get("neighbours") else []
    folder, key = neighbours.locate(output.parent, settings)
    if not parts.todo() and not neighbours.missing(splits, folder, key, rank, ranks):
        print(f"rank {rank}: all of its captions are there; nothing to do.")
        return
    place = output.parent / PLACE  # beside the stages, where training has left its copy
    captioner = Captioner(
        adapter, settings, config["beams"], config["max_new_tokens"] or settings["token_limit"], place,
        min_new_tokens=config["min_new_tokens"], no_repeat_ngram=config["no_repeat_ngram"],
    )  # fmt: skip
    with captioner.model.disable_adapter():
        base = captioner.model.get_base_model()
        neighbours.embed(base, splits, settings, config["batch_size"], folder, key, rank, ranks)
    caption_parts(captioner, split, parts, config["batch_size"])


if __name__ == "__main__":
    main(sys.argv[1])
