"""The same adapter trained twice: by this project, and by the stock Trainer as its examples use it.

Both have the same model, LoRA, pairs and steps, and save a checkpoint after every step. This is what the
fork server of the bench of faults imports once, so that a run takes one second and not ten.
"""

from pathlib import Path

import bitsandbytes.nn  # noqa: F401  imported here, and not first in every child
import numpy as np
import pandas as pd
import peft.tuners.lora.bnb  # noqa: F401
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from transformers import Trainer, TrainingArguments, set_seed
from transformers.models.blip_2 import modeling_blip_2  # noqa: F401
from transformers.models.opt import modeling_opt  # noqa: F401
from transformers.trainer_utils import get_last_checkpoint

from tests.bench.children import PREPARED, STEPS
from utils import model, train
from utils.captions import token_ids
from utils.dataset import Collator, PreparedSplit, normalise
from utils.files import read_json, write_json
from utils.images import to_png
from utils.imageshards import schema
from utils.sample.tiny_blip2 import NEWLINE, build_processor, random_model

PAIRS = {"train": 8, "valid": 4}  # four a step: Trainer's epochs end where the run does
SETTINGS = {
    "preset": "decoder", "variant": "lora", "rank": 1, "alpha": 8, "dropout": 0.1, "learning_rate": 0.01,
    "epochs": STEPS // 2, "global_batch": 4, "micro_batch": 2, "evaluations": STEPS, "generated": 0,
    "select": "eval_loss", "patience": STEPS, "seed": 0,
}  # fmt: skip
WORDS = ("chest", "brain", "knee", "left hand", "abdomen", "pelvis", "right foot", "spine")


def prepare(folder: Path) -> None:
    """Write a random tiny BLIP-2 and a prepared stage of grey noise with captions of different lengths."""
    weights = folder / "weights"
    random_model(0).save_pretrained(weights)
    build_processor().save_pretrained(weights)
    tokenizer, rng, rows = model.load_tokenizer(str(weights)), np.random.default_rng(0), []
    for split, count in PAIRS.items():
        images = []
        for i, part in enumerate(WORDS[:count]):
            name, caption = f"{split}_{i}", f"X-ray of the {part}{' without a finding' * (i % 3)}."
            png = to_png(Image.fromarray(rng.integers(0, 256, (224, 224), dtype=np.uint8)))
            images.append({"image_id": name, "split": split, "image": {"bytes": png, "path": name}})
            rows.append({"image_id": name, "split": split, "modality": "X-ray", "cuis": [],
                         "caption": caption, "raw_caption": caption,
                         "input_ids": token_ids(caption, tokenizer, NEWLINE)})  # fmt: skip
        pq.write_table(pa.Table.from_pylist(images, schema()), folder / f"images-{split}-00000.parquet")
    captions = pd.DataFrame(rows)
    captions.assign(n_tokens=captions["input_ids"].map(len)).to_parquet(folder / "captions.parquet")
    write_json(folder / "preprocess.json", {"model_id": str(weights), "token_limit": 40, "size": 224,
                                            "resample": 3, "mean": [0.5] * 3, "std": [0.5] * 3})  # fmt: skip


def ours(output: Path, deadline: float | None = None, **changes) -> None:
    """Train, or go on, as notebook 03 does on one process."""
    output.mkdir(parents=True, exist_ok=True)
    job = {"prepared": str(output.parent / PREPARED), "output": str(output), "config": SETTINGS | changes,
           "deadline": deadline}  # fmt: skip
    write_json(output / "job.json", job)
    train.main(str(output / "job.json"))


class StockCollator(Collator):
    """The same batches, with the pixels as the model itself takes them."""

    def __call__(self, items: list[dict]) -> dict:
        """Return a batch whose pixels are normalised."""
        batch = super().__call__(items)
        return {"pixel_values": normalise(batch.pop("pixels"), [0.5] * 3, [0.5] * 3), **batch}


def stock(output: Path) -> None:
    """Train, or go on from what ``get_last_checkpoint`` names, with Trainer alone."""
    prepared, checkpoints = output.parent / PREPARED, output / "checkpoints"
    settings = read_json(prepared / "preprocess.json")
    base = model.load_base(settings["model_id"], "float32")
    layout = model.layout_of(base.config, model.load_tokenizer(settings["model_id"]))
    set_seed(0)
    adapted = model.add_lora(base, *(SETTINGS[name] for name in ("preset", "rank", "alpha", "dropout")))
    args = TrainingArguments(
        output_dir=str(checkpoints), max_steps=STEPS, per_device_train_batch_size=2,
        per_device_eval_batch_size=2, gradient_accumulation_steps=2, learning_rate=0.01, seed=0,
        lr_scheduler_type="cosine", warmup_steps=1, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, logging_steps=1, remove_unused_columns=False,
        label_names=["labels"], prediction_loss_only=True, use_cpu=True, disable_tqdm=True, report_to="none",
    )  # fmt: skip
    trainer = Trainer(
        model=adapted, args=args, data_collator=StockCollator(layout),
        train_dataset=PreparedSplit(prepared, "train"), eval_dataset=PreparedSplit(prepared, "valid"),
    )  # fmt: skip
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    trainer.train(resume_from_checkpoint=last)
    trainer.save_model(str(output / "adapter"))


RIVALS = {"prepare": prepare, "ours": ours, "stock": stock}
