"""``python -m utils.train JOB.json``: one rank of the LoRA training, or all of it on one device.

JOB.json holds ``prepared`` (the folder of stage 02), ``output`` (the folder of stage 03) and
``config`` (the fields of ``TrainConfig``). Started again, it goes on from the newest checkpoint.
"""

import json
import math
import os
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from utils import checkpoints, model, runtime
from utils.config import TrainConfig
from utils.dataset import Collator, PreparedSplit, normalise
from utils.stages import read_json, write_json

METRIC = "eval_loss"


class CaptionTrainer(Trainer):
    """Trainer whose batches carry uint8 pixels, normalised once they are on the device."""

    def __init__(self, *args, statistics: dict, **kwargs):
        super().__init__(*args, **kwargs)
        self.statistics = statistics

    def _prepare_inputs(self, inputs):
        inputs = super()._prepare_inputs(inputs)
        mean, std = self.statistics["mean"], self.statistics["std"]
        inputs["pixel_values"] = normalise(inputs.pop("pixels"), mean, std)
        return inputs


class RunLog(TrainerCallback):
    """Append what Trainer logs to ``log.jsonl`` and show one bar, on the first rank alone."""

    def __init__(self, path: Path, resumed: int):
        self.path, self.bar = path, None
        self.started = time.perf_counter()
        self.kept = lines_until(resumed, path)

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the bar where training goes on."""
        if state.is_world_process_zero:
            self.path.write_text("".join(f"{line}\n" for line in self.kept))
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training",
                            unit="step", file=sys.stdout, mininterval=2)  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append one line: step, seconds since this start, and Trainer's figures."""
        if self.bar is None:
            return
        line = {"step": state.global_step, "seconds": round(time.perf_counter() - self.started, 1)}
        line |= {k: v for k, v in logs.items() if isinstance(v, int | float)}
        if torch.cuda.is_available():
            line["gpu_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        if METRIC in logs:
            self.bar.write(f"step {state.global_step}: validation loss {logs[METRIC]:.4f}", sys.stdout)

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


def lines_until(step: int, path: Path) -> list[str]:
    """Return the whole lines of a log up to ``step``: what came after is about to happen again.

    A kill may have cut the last line off.
    """
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            logged = json.loads(line)["step"]
        except ValueError:
            break
        kept += [line] if logged <= step else []
    return kept


def rank_device() -> int | str:
    """Return the device of this rank: its own GPU, or the CPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def arguments(config: TrainConfig, folder: Path, pairs: int, procs: int, dtype: str) -> TrainingArguments:
    """Translate the stage's configuration to Trainer's, for ``pairs`` training pairs."""
    steps = math.ceil(config.epochs * math.ceil(pairs / config.global_batch))
    every = max(1, steps // config.evaluations)
    on_cpu, launched = not torch.cuda.is_available(), "LOCAL_RANK" in os.environ
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=config.micro_batch,
        per_device_eval_batch_size=config.micro_batch,
        gradient_accumulation_steps=config.accumulation(procs),
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.05 * steps)),
        max_grad_norm=1.0,
        fp16=dtype == "float16",
        bf16=dtype == "bfloat16",
        seed=config.seed,
        eval_strategy="steps", eval_steps=every, eval_on_start=True, prediction_loss_only=True,
        save_strategy="steps", save_steps=every, save_total_limit=2,
        load_best_model_at_end=True, metric_for_best_model=METRIC, greater_is_better=False,
        restore_callback_states_from_checkpoint=True,  # the patience that was used up
        logging_steps=max(1, steps // 100), logging_nan_inf_filter=False,
        remove_unused_columns=False, label_names=["labels"],
        ddp_find_unused_parameters=False, ddp_backend="gloo" if on_cpu and launched else None,
        use_cpu=on_cpu,
        dataloader_num_workers=0 if on_cpu else 2,
        disable_tqdm=True, report_to="none",
    )  # fmt: skip


def describe(adapted, base_layers: int, config: TrainConfig, args: TrainingArguments, dtype: str) -> dict:
    """Say what is trained on what, for the run log."""
    return {
        "processes": args.world_size,
        "backend": dist.get_backend() if dist.is_initialized() else "none",
        "device": str(args.device),
        "dtype": dtype,
        "quantisation": f"nf4, double, {base_layers} linears of OPT",
        "preset": config.preset,
        "lora": {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout},
        "trainable_parameters": sum(p.numel() for p in adapted.parameters() if p.requires_grad),
        "global_batch": config.global_batch,
        "micro_batch": config.micro_batch,
        "accumulation": args.gradient_accumulation_steps,
        "planned_steps": args.max_steps,
    }


def announce(facts: dict, resume: Path | None) -> None:
    """Print what starts, or what goes on from where."""
    verb = f"CONTINUE from {resume.name}" if resume else "START"
    print(
        f"{verb}: {facts['processes']} processes ({facts['backend']}), NF4 base ({facts['quantisation']}), "
        f"LoRA r={facts['lora']['rank']} preset {facts['preset']}, "
        f"{facts['trainable_parameters']:,} trainable parameters, {facts['planned_steps']} steps "
        f"of {facts['global_batch']} = {facts['micro_batch']} x {facts['processes']} x "
        f"{facts['accumulation']}",
        flush=True,
    )


def build_trainer(config: TrainConfig, prepared: Path, output: Path) -> tuple[CaptionTrainer, dict]:
    """Load data and model and return the trainer and the facts of the run."""
    settings = read_json(prepared / "preprocess.json")
    dtype, _ = runtime.compute_dtype()
    train, valid = (PreparedSplit(prepared, split) for split in ("train", "valid"))
    args = arguments(config, output, len(train), int(os.environ.get("WORLD_SIZE", 1)), dtype)
    base = model.load_base(settings["model_id"], dtype, rank_device())
    layers = len(model.four_bit_linears(base))
    layout = model.layout_of(base.config, model.load_tokenizer(settings["model_id"]))
    set_seed(config.seed)  # LoRA's first weights must be the same on every rank
    adapted = model.add_lora(base, config.preset, config.rank, config.alpha, config.dropout)
    trainer = CaptionTrainer(
        model=adapted, args=args, train_dataset=train, eval_dataset=valid,
        data_collator=Collator(layout), statistics=settings,
        callbacks=[EarlyStoppingCallback(config.patience), checkpoints.SealCheckpoints()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # RunLog shows the same in a bar
    return trainer, describe(adapted, layers, config, args, dtype)


def keep_best(trainer: CaptionTrainer, output: Path, facts: dict, seconds: float) -> None:
    """Copy the best checkpoint's adapter out of the checkpoints and write the run's record."""
    best = output / "checkpoints" / f"checkpoint-{trainer.state.best_global_step}"
    adapter = output / "adapter"
    adapter.mkdir(exist_ok=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copyfile(best / name, adapter / name)
    state = trainer.state
    write_json(output / "run.json", facts | {
        "steps": state.global_step,
        "stopped_early": state.global_step < state.max_steps,
        "best_step": checkpoints.step_of(best),
        "best_validation_loss": round(state.best_metric, 5),
        "seconds": round(seconds, 1),
    })  # fmt: skip


def main(job_path: str) -> None:
    """Train as the job says, unless its run is finished."""
    runtime.exit_with_launcher()
    job = read_json(Path(job_path))
    config, output = TrainConfig(**job["config"]), Path(job["output"])
    if (output / "run.json").is_file():
        print("This training is finished; nothing to do.")
        return
    trainer, facts = build_trainer(config, Path(job["prepared"]), output)
    first = trainer.is_world_process_zero()
    broken = checkpoints.discard_broken(output / "checkpoints") if first else []
    if dist.is_initialized():
        dist.barrier()
    resume = checkpoints.newest(output / "checkpoints")
    # Measured before, and a second time it would count against the patience.
    trainer.args.eval_on_start = resume is None
    trainer.add_callback(RunLog(output / "log.jsonl", checkpoints.step_of(resume) if resume else -1))
    if first:
        announce(facts, resume)
        if broken:
            print(f"Left out because a kill cut them off: {', '.join(broken)}")
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if first:
        keep_best(trainer, output, facts, time.perf_counter() - started)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
