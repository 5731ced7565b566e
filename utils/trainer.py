"""Hugging Face's Trainer for captions: bucketed batches, logits where labels are, captions as a measure."""

import time

import numpy as np
import torch
import torch.distributed as dist
from peft.optimizers import create_loraplus_optimizer
from torch.utils.data import DataLoader
from transformers import PrinterCallback

from utils.batches import TrainingBatches, measuring_batches
from utils.checkpoints import SealedTrainer
from utils.config import TrainConfig
from utils.dataset import IGNORE, Layout, normalise
from utils.generate import decode
from utils.metrics import cider, rouge
from utils.results import one_of_each

LORA_PLUS_RATIO = 16  # learning rate of B over that of A: what arXiv 2402.12354 recommends
SHOWN = 4  # validation images whose captions are kept at each evaluation


class CaptionTrainer(SealedTrainer):
    """Trainer whose step is the same for any number of ranks, and whose evaluation also reads captions.

    Args:
        config: the stage's configuration.
        layout: BLIP-2's token layout.
        tokenizer: the model's own.
        settings: ``preprocess.json``: mean, std, token_limit.
        steps: of the run.
        micro_batch: pairs of one forward pass.
        options: of ``SealedTrainer``; the datasets are a ``PreparedSplit`` or a ``FeatureSplit``.
    """

    def __init__(
        self, *, config: TrainConfig, layout: Layout, tokenizer, settings: dict, steps: int, micro_batch: int,
        **options,
    ):  # fmt: skip
        super().__init__(**options)
        self.config, self.layout, self.tokenizer, self.settings = config, layout, tokenizer, settings
        self.batches = TrainingBatches(
            self.train_dataset.lengths, config.global_batch, micro_batch, steps, config.seed
        )
        self.subset = subset_of(len(self.eval_dataset), config.generated)
        self.passes = 0  # forward passes of this rank in the step at hand
        self.samples: list[dict] = []  # captions of the last evaluation
        self.remove_callback(PrinterCallback)  # the run log shows the same in a bar

    # ---- batches ----
    def get_train_dataloader(self) -> DataLoader:
        """Return the micro-batches of the whole run, this rank's share of them."""
        return self.accelerator.prepare(self.loader(self.train_dataset, self.batches))

    def loader(self, pairs, batches) -> DataLoader:
        """Return a loader of the given batches of pairs."""
        return DataLoader(
            pairs, batch_sampler=batches, collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers, pin_memory=torch.cuda.is_available(),
        )  # fmt: skip

    def _prepare_inputs(self, inputs: dict) -> dict:
        """Move a batch to the device; compute logits only behind the image, where the labels are."""
        inputs = super()._prepare_inputs(inputs)
        labels = inputs.pop("labels")[:, self.layout.queries :]
        return {
            "pixel_values": self.seen(inputs), "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"], "labels": labels,
            "logits_to_keep": labels.shape[1], "use_cache": False,
        }  # fmt: skip

    def seen(self, inputs: dict) -> torch.Tensor:
        """Return what the model sees: features as they are, or bytes of pixels, normalised."""
        if "features" in inputs:
            return inputs["features"]
        return normalise(inputs["pixels"], self.settings["mean"], self.settings["std"])

    # ---- steps ----
    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Seed dropout by step and micro-batch, so that it depends on neither ranks nor restarts."""
        accumulated = self.passes % self.args.gradient_accumulation_steps
        number = accumulated * self.args.world_size + self.args.process_index
        seeds = np.random.SeedSequence([self.config.seed, self.state.global_step, number])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        self.passes += 1
        return super().training_step(model, inputs, num_items_in_batch)

    def create_optimizer(self, model=None):
        """Create AdamW; LoRA+ gives the B matrices a larger learning rate."""
        if self.optimizer is None and self.config.variant == "lora+":
            self.optimizer = create_loraplus_optimizer(
                self.model, torch.optim.AdamW, lr=self.args.learning_rate, weight_decay=0.0,
                loraplus_lr_ratio=LORA_PLUS_RATIO,
            )  # fmt: skip
        return super().create_optimizer(model)

    # ---- evaluation ----
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Measure the loss per token of the whole validation split, and score captions of its subset."""
        started = time.perf_counter()
        self.model.eval()
        # Not inference mode: what bitsandbytes casts on the way would be of no use for training afterwards.
        with torch.no_grad(), self.accelerator.autocast():
            metrics = {"eval_loss": self.validation_loss()} | self.caption_scores()
        metrics["eval_seconds"] = round(time.perf_counter() - started, 2)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def validation_loss(self) -> float:
        """Return nats per token over the validation split, all ranks together."""
        batches = measuring_batches(self.eval_dataset.lengths, self.args.per_device_eval_batch_size)
        mine = batches[self.args.process_index :: self.args.world_size]
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for inputs in self.loader(self.eval_dataset, mine) if mine else ():
            inputs = self._prepare_inputs(inputs)
            tokens = (inputs["labels"] != IGNORE).sum()
            total += torch.stack([self.model(**inputs).loss.double() * tokens, tokens.double()])
        if dist.is_initialized():
            dist.all_reduce(total)
        return (total[0] / total[1]).item()

    def caption_scores(self) -> dict[str, float]:
        """Caption the subset, greedily, and score it; keep some captions to be shown."""
        if not self.subset:
            return {}
        captions = self.captions_of(self.subset)
        references = self.eval_dataset.table["caption"].iloc[self.subset].tolist()
        table = self.eval_dataset.table.iloc[self.subset]
        self.samples = [
            {"image_id": table["image_id"].iat[i], "reference": references[i], "caption": captions[i]}
            for i in sorted(one_of_each(table["modality"], SHOWN))
        ]
        return {
            "eval_cider": cider(references, captions)[0],
            "eval_rouge_l": float(rouge(references, captions)["rouge_l"].mean()),
        }

    def captions_of(self, rows: list[int]) -> list[str]:
        """Return the captions of rows of the validation split, in their order, on every rank."""
        mine = rows[self.args.process_index :: self.args.world_size]
        size = self.args.per_device_eval_batch_size
        batches = [mine[start : start + size] for start in range(0, len(mine), size)]
        texts: list[str] = []
        for inputs in self.loader(self.eval_dataset, batches) if batches else ():
            seen = self._prepare_inputs(inputs)["pixel_values"]
            limit = self.settings["token_limit"]
            texts += decode(self.model, self.tokenizer, self.layout, seen, 1, limit)[0]
        shares = [texts]
        if dist.is_initialized():
            shares = [None] * self.args.world_size
            dist.all_gather_object(shares, texts)
        together: list[str] = [""] * len(rows)
        for rank, share in enumerate(shares):
            together[rank :: self.args.world_size] = share
        return together


def subset_of(pairs: int, count: int) -> list[int]:
    """Return ``count`` rows, spread evenly over a split of ``pairs``; fewer where there are fewer."""
    return sorted(set(np.linspace(0, pairs - 1, min(count, pairs), dtype=int).tolist()))


def best_step(history: list[dict], measure: str, among: set[int]) -> tuple[int, float] | None:
    """Return step and value of the best evaluation whose step is ``among``; the first of equals.

    Args:
        history: Trainer's ``log_history``.
        measure: "eval_loss", where less is better, or "eval_cider", where more is.
        among: the steps that count: those whose checkpoints are there.
    """
    measured = [entry for entry in history if measure in entry and entry["step"] in among]
    found = [(entry[measure], entry["step"]) for entry in measured]
    if not found:
        return None
    sign = 1 if measure == "eval_loss" else -1
    value, step = min(found, key=lambda pair: (sign * pair[0], pair[1]))
    return step, value


def worn_out(history: list[dict], measure: str, patience: int) -> bool:
    """Tell whether the last ``patience`` evaluations brought nothing better than one before them."""
    steps = [entry["step"] for entry in history if measure in entry]
    best = best_step(history, measure, set(steps))
    return best is not None and len([step for step in steps if step > best[0]]) >= patience
