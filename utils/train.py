"""``python -m utils.train JOB.json``: one rank of the LoRA training, or all of it on one device.

JOB.json holds ``prepared`` (the folder of stage 02), ``output`` (the folder of stage 03), ``config`` (the
fields of ``TrainConfig``) and may hold ``deadline`` (when the time budget ends, in seconds since the
epoch) and ``report_to``. Started again, it goes on from the newest whole checkpoint. Several ranks:
``torchrun --nproc_per_node 2 -m utils.train JOB.json``.

``python -m utils.train --plan t4x2`` prints the memory and time plan for a machine that need not be there.
"""

import hashlib
import json
import math
import os
import shutil
import sys
from pathlib import Path

import pandas as pd
import torch
import torch.distributed as dist
from transformers import TrainingArguments, set_seed

from utils import base, checkpoints, model, plan, runtime
from utils.card import public_name
from utils.config import TrainConfig
from utils.dataset import Collator, PreparedSplit
from utils.features import FeatureSplit, FeatureStore, drop_visual, find_features, key_of
from utils.results import read_lines
from utils.runlog import Ends, RunLog, TrainError
from utils.stages import read_json, sha256_file, write_json
from utils.trainer import CaptionTrainer, best_step

CODE = 2  # raised whenever the same checkpoint would be trained on differently: batches, seeds, loss
SEEN_AT_ONCE = 16  # images that the ViT takes at a time: its activations are small beside training's
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"


def rank_device() -> int | str:
    """Return the device of this rank: its own GPU, or the CPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def arguments(
    config: TrainConfig, folder: Path, planned: plan.Plan, dtype: str, report_to: str
) -> TrainingArguments:
    """Translate the stage's configuration and its plan to Trainer's."""
    every = math.ceil(planned.steps / config.evaluations)
    on_cpu, launched = not torch.cuda.is_available(), "LOCAL_RANK" in os.environ
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=planned.steps,
        per_device_train_batch_size=planned.micro_batch,
        per_device_eval_batch_size=planned.micro_batch,
        gradient_accumulation_steps=planned.accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.05 * planned.steps)),
        max_grad_norm=1.0,
        fp16=dtype == "float16",
        bf16=dtype == "bfloat16",
        seed=config.seed,
        eval_strategy="steps", eval_steps=every, eval_on_start=True,
        save_strategy="steps", save_steps=every,
        logging_steps=max(1, planned.steps // 100), logging_nan_inf_filter=False,
        remove_unused_columns=False, label_names=["labels"],
        ddp_find_unused_parameters=False, ddp_backend="gloo" if on_cpu and launched else None,
        use_cpu=on_cpu,
        dataloader_num_workers=0 if on_cpu else 2,
        disable_tqdm=True, report_to=report_to,
    )  # fmt: skip


def contract(config: TrainConfig, prepared: Path) -> dict:
    """Return what a checkpoint must agree with to be trained on: code, data and configuration.

    The micro-batch is left out: the step is the same whatever it is.
    """
    images = [(p.name, p.stat().st_size) for p in sorted(prepared.glob("images-*.parquet"))]
    data = [sha256_file(prepared / "captions.parquet"), sha256_file(prepared / "preprocess.json"), images]
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]
    return {"code": CODE, "data": digest} | {k: v for k, v in config.json().items() if k != "micro_batch"}


def plan_for(config: TrainConfig, prepared: Path, ranks: int) -> plan.Plan:
    """Return the plan of a run of ``ranks`` processes on this machine; no weight is read.

    Raises:
        PlanError: it cannot fit; says what to change.
    """
    settings = read_json(prepared / "preprocess.json")
    captions = pd.read_parquet(prepared / "captions.parquet", columns=["split", "input_ids"])
    tokens = captions["input_ids"].map(len)
    train, valid = (tokens[captions["split"] == split].tolist() for split in ("train", "valid"))
    dtype, _ = runtime.compute_dtype()
    return plan.make_plan(
        model.load_config(settings["model_id"], settings.get("model_revision")),
        plan.Adaptation(config.preset, config.rank, dora=config.variant == "dora", dropout=config.dropout),
        plan.Lengths.of(train, len(valid), settings["token_limit"]),
        plan.machine(), config.global_batch, ranks, config.epochs, config.micro_batch, dtype,
        config.evaluations,
    )  # fmt: skip


def adapt(base_model, config: TrainConfig, planned: plan.Plan):
    """Attach the trainable parts and switch checkpointing on where the plan wants it."""
    set_seed(config.seed)  # LoRA's first weights must be the same on every rank
    adapted = model.add_lora(
        base_model, config.preset, config.rank, config.alpha, config.dropout, config.variant
    )
    model.checkpoint_layers(adapted, planned.checkpointed_layers)
    return adapted


def with_features(base_model, splits: list[PreparedSplit], folder: Path, key: str, settings: dict,
                  dtype: str) -> list[FeatureSplit]:  # fmt: skip
    """Compute the splits' visual features, all ranks together, and let the visual part go."""
    store = FeatureStore(folder, key)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    store.compute(base_model, splits, settings, SEEN_AT_ONCE, getattr(torch, dtype), rank, ranks)
    wait()
    drop_visual(base_model)
    return [FeatureSplit(split, store) for split in splits]


def wait() -> None:
    """Let every rank come to the same place."""
    if dist.is_initialized():
        dist.barrier()


def build_trainer(job: dict) -> tuple[CaptionTrainer, dict]:
    """Load data and model and return the trainer and the facts of the run."""
    config, prepared, output = TrainConfig(**job["config"]), Path(job["prepared"]), Path(job["output"])
    settings, (dtype, _) = read_json(prepared / "preprocess.json"), runtime.compute_dtype()
    splits = [PreparedSplit(prepared, split) for split in ("train", "valid")]
    planned = plan_for(config, prepared, int(os.environ.get("WORLD_SIZE", 1)))
    args = arguments(config, output, planned, dtype, job.get("report_to", "none"))
    model_id, revision = settings["model_id"], settings.get("model_revision")
    base_model = model.load_base(model_id, dtype, rank_device(), revision, output.parent / base.PLACE)
    layers = len(model.four_bit_linears(base_model))
    tokenizer = model.load_tokenizer(model_id, revision)
    layout = model.layout_of(base_model.config, tokenizer)
    if config.preset == "decoder":
        key = key_of(base.copy_name(model_id, revision, dtype), settings)
        folder = find_features(key, splits, output.parent)
        splits = with_features(base_model, splits, folder, key, settings, dtype)
    adapted = adapt(base_model, config, planned)
    trainer = CaptionTrainer(
        config=config, layout=layout, tokenizer=tokenizer, settings=settings, steps=planned.steps,
        micro_batch=planned.micro_batch, model=adapted, args=args, train_dataset=splits[0],
        eval_dataset=splits[1], data_collator=Collator(layout), contract=contract(config, prepared),
    )  # fmt: skip
    return trainer, describe(trainer, layers, planned, dtype)


def describe(trainer: CaptionTrainer, layers: int, planned: plan.Plan, dtype: str) -> dict:
    """Say what is trained on what, for the run's record."""
    config, args = trainer.config, trainer.args
    return {
        "processes": args.world_size,
        "backend": dist.get_backend() if dist.is_initialized() else "none",
        "device": str(args.device),
        "dtype": dtype,
        "quantisation": f"nf4, double, {layers} linears of OPT",
        "preset": config.preset,
        "variant": config.variant,
        "lora": {"rank": config.rank, "alpha": config.alpha, "dropout": config.dropout},
        "trainable_parameters": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "global_batch": config.global_batch,
        "micro_batch": planned.micro_batch,
        "accumulation": args.gradient_accumulation_steps,
        "checkpointed_layers": planned.checkpointed_layers,
        "planned_steps": args.max_steps,
        "useful_share": round(trainer.batches.useful_share(trainer.layout), 4),
        "plan": planned.json(),
    }


def announce(facts: dict, resume: checkpoints.Resume) -> None:
    """Print what starts, or what goes on from where, and what was passed over."""
    for skipped in resume.skipped:
        print(f"passed over: {skipped}")
    verb = f"CONTINUE from {resume.path.name}" if resume.path else "START"
    print(
        f"{verb}: {facts['processes']} processes ({facts['backend']}), NF4 base ({facts['quantisation']}), "
        f"{facts['variant']} r={facts['lora']['rank']} preset {facts['preset']}, "
        f"{facts['trainable_parameters']:,} trainable parameters, {facts['planned_steps']} steps "
        f"of {facts['global_batch']} = {facts['micro_batch']} x {facts['processes']} x "
        f"{facts['accumulation']}; {facts['useful_share']:.0%} of the computed tokens are no padding",
        flush=True,
    )


def bests(trainer: CaptionTrainer) -> dict[str, dict]:
    """Return step and value of the best checkpoint by each measure that was taken."""
    there = {checkpoints.step_of(p) for p in Path(trainer.args.output_dir).glob("checkpoint-*")}
    found = {m: best_step(trainer.state.log_history, m, there) for m in ("eval_loss", "eval_cider")}
    return {m: {"step": best[0], "value": round(best[1], 5)} for m, best in found.items() if best}


def keep_adapter(trainer: CaptionTrainer, output: Path) -> int:
    """Link the selected checkpoint's adapter out of the checkpoints; return its step.

    A run that its time budget ended before the first evaluation has only its newest checkpoint.

    Raises:
        TrainError: no checkpoint could be written, or the selected one has been damaged since.
    """
    folder = Path(trainer.args.output_dir)
    there = [checkpoints.step_of(path) for path in checkpoints.found_in(folder)]
    if not there:
        raise TrainError("No checkpoint could be written: the disk is full. Free some space and train again.")
    best = bests(trainer).get(trainer.config.select)
    step = best["step"] if best else max(there)
    chosen = folder / f"checkpoint-{step}"
    if damage := checkpoints.trouble(chosen):
        raise TrainError(
            f"{chosen.name}, the best, cannot be used: {damage}. Delete the folder 03_train_lora/checkpoints/"
            f"{chosen.name} and run this again: the best of the others is kept instead."
        )
    adapter = output / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / WEIGHTS).unlink(missing_ok=True)
    try:
        os.link(chosen / WEIGHTS, adapter / WEIGHTS)  # takes no room: sealed files never change
    except OSError:
        shutil.copyfile(chosen / WEIGHTS, adapter / WEIGHTS)
    settings = read_json(chosen / SETTINGS)
    # There it names the folder of the 4-bit copy, which means nothing on another machine.
    settings |= {"base_model_name_or_path": public_name(trainer.settings["model_id"]),
                 "revision": trainer.settings.get("model_revision")}  # fmt: skip
    write_json(adapter / SETTINGS, settings)
    return step


def write_record(trainer: CaptionTrainer, facts: dict, output: Path, ended: str, log: RunLog) -> None:
    """Write ``run.json``: what was run, how it ended, what was best."""
    step, best = keep_adapter(trainer, output), bests(trainer)
    loss = next((e["eval_loss"] for e in trainer.state.log_history
                 if "eval_loss" in e and e["step"] == step), None)  # fmt: skip
    rates = [line["images_per_s"] for line in read_lines(log.path) if "images_per_s" in line]
    write_json(output / "run.json", facts | {
        "steps": trainer.state.global_step,
        "ended": ended,
        "stopped_early": ended == "stopped early",
        "best": best,
        "selected": trainer.config.select,
        "best_step": step,
        "best_validation_loss": None if loss is None else round(loss, 5),
        "sessions": log.session,
        "seconds": log.place(trainer.state.global_step)["seconds"],
        "images_per_s": round(sorted(rates)[len(rates) // 2], 2) if rates else None,
    })  # fmt: skip


def is_finished(output: Path) -> bool:
    """Tell whether a run has ended for good: one that its time budget stopped goes on."""
    record = output / "run.json"
    return record.is_file() and read_json(record)["ended"] != "time budget"


def main(job_path: str) -> None:
    """Train as the job says, unless its run is finished."""
    runtime.exit_with_launcher()
    job = read_json(Path(job_path))
    output = Path(job["output"])
    if is_finished(output):
        print("This training is finished; nothing to do.")
        return
    trainer, facts = build_trainer(job)
    first = trainer.is_world_process_zero()
    resume = checkpoints.resume_point(output / "checkpoints", trainer.contract)
    trainer.keep = lambda: {best["step"] for best in bests(trainer).values()}
    # Measured before, and a second time it would count against the patience.
    trainer.args.eval_on_start = resume.path is None
    log = RunLog(output / "log.jsonl", trainer, checkpoints.step_of(resume.path) if resume.path else -1)
    ends = Ends(trainer, job.get("deadline"))
    for callback in (log, ends):
        trainer.add_callback(callback)
    if first:
        announce(facts, resume)
    trainer.train(resume_from_checkpoint=str(resume.path) if resume.path else None)
    if first:
        write_record(trainer, facts, output, ends.why, log)
        print(f"{ends.why} at step {trainer.state.global_step} of {facts['planned_steps']}", flush=True)
    wait()
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--plan"]:
        sys.exit(plan.main(sys.argv[2:]))
    main(sys.argv[1])
