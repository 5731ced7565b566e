"""What a training run writes and shows while it runs, and what ends it early."""

import json
import math
import sys
import time
from pathlib import Path

import psutil  # comes with accelerate
import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import TrainerCallback

from utils import runtime
from utils.results import read_lines
from utils.trainer import CaptionTrainer, worn_out

TOLD = {"eval_loss": "validation loss", "eval_cider": "CIDEr", "eval_rouge_l": "ROUGE-L"}


class TrainError(RuntimeError):
    """Training cannot go on, or could not start; the message says what to change."""


class RunLog(TrainerCallback):
    """Append what Trainer logs to ``log.jsonl`` and show one bar, on the first rank alone.

    Args:
        path: of the log.
        trainer: whose run it is.
        resumed: the step that the run goes on from, -1 where it starts: later lines are about to happen
            again.
    """

    def __init__(self, path: Path, trainer: CaptionTrainer, resumed: int):
        self.path, self.trainer, self.bar = path, trainer, None
        self.kept = lines_until(resumed, path)
        last = self.kept[-1] if self.kept else {"seconds": 0.0, "session": 0}
        self.before, self.session = last["seconds"], last["session"] + 1
        self.started = self.marked = time.perf_counter()
        self.step = max(resumed, 0)

    def on_train_begin(self, args, state, control, **kwargs):
        """Start the bar where training goes on."""
        self.started = self.marked = time.perf_counter()
        if state.is_world_process_zero:
            self.path.write_text("".join(map(as_line, self.kept)), encoding="utf-8")
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training",
                            unit="step", file=sys.stdout, mininterval=2)  # fmt: skip

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar."""
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Append one line: where the run is, and Trainer's figures."""
        loss = logs.get("loss", logs.get("eval_loss", 0.0))
        if not math.isfinite(loss):
            raise TrainError(
                f"The loss is {loss} at step {state.global_step}. Lower LEARNING_RATE (it is "
                f"{args.learning_rate:g}) and train anew with FRESH = True."
            )
        if self.bar is None or not ("loss" in logs or "eval_loss" in logs):
            return
        # Trainer's epoch is the share of the run that is done: here it means passes over the pairs.
        place = self.place(state.global_step)
        line = place | logs | place
        line |= self.measured(state.global_step) if "loss" in logs else self.read(logs)
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(as_line(line))

    def place(self, step: int) -> dict:
        """Say where the run is: step, seconds over all sessions, session, passes over the pairs."""
        batches = self.trainer.batches
        seconds = round(self.before + time.perf_counter() - self.started, 2)
        passes = round(step * batches.global_batch / len(batches.lengths), 3)
        return {"step": step, "seconds": seconds, "session": self.session, "epoch": passes}

    def measured(self, step: int) -> dict:
        """Return images a second since the last line, and what memory and GPUs do."""
        now = time.perf_counter()
        rate = (step - self.step) * self.trainer.batches.global_batch / (now - self.marked)
        self.step, self.marked = step, now
        return {"images_per_s": round(rate, 2)} | machine_load()

    def read(self, logs: dict) -> dict:
        """Tell an evaluation on the screen, and return the captions that go with it."""
        told = ", ".join(f"{name} {logs[key]:.4f}" for key, name in TOLD.items() if key in logs)
        self.bar.write(f"step {self.trainer.state.global_step}: {told}", sys.stdout)
        self.marked = time.perf_counter()  # an evaluation is no training time
        return {"captions": self.trainer.samples} if self.trainer.samples else {}

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


class Ends(TrainerCallback):
    """Ends a run: at its last step, when it no longer gets better, or when its time is over.

    Args:
        trainer: whose run it is.
        deadline: seconds since the epoch at which no further step is begun; None for no time budget.
    """

    def __init__(self, trainer: CaptionTrainer, deadline: float | None):
        self.trainer, self.deadline, self.why = trainer, deadline, "finished"

    def on_step_end(self, args, state, control, **kwargs):
        """Measure after the last step; stop where the time is over, all ranks at the same step."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = True
        elif self.deadline is not None and agreed(time.time() >= self.deadline, args.device):
            # No evaluation: it would be one that a run without stops does not have.
            control.should_training_stop = control.should_save = True
            self.why = "time budget"

    def on_evaluate(self, args, state, control, **kwargs):
        """Stop where the patience is used up."""
        config = self.trainer.config
        worn = worn_out(state.log_history, config.select, config.patience)
        if worn and state.global_step < state.max_steps:
            control.should_training_stop = control.should_save = True
            self.why = "stopped early"


def agreed(over: bool, device: torch.device) -> bool:
    """Return True on every rank as soon as it is True on one: clocks differ."""
    if not dist.is_initialized():
        return over
    flag = torch.tensor(float(over), device=device)
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def machine_load() -> dict:
    """Return memory in GiB (peak of each GPU, or what this process holds) and the GPUs' utilisation in %."""
    if not torch.cuda.is_available():
        return {"memory_gib": [round(psutil.Process().memory_info().rss / 2**30, 2)]}
    load = runtime.gpu_load()
    return {"memory_gib": [gib for gib, _ in load], "gpu_util": [util for _, util in load]}


def lines_until(step: int, path: Path) -> list[dict]:
    """Return the lines of a log up to ``step``: what came after is about to happen again.

    Raises:
        StageError: a line is damaged; the last may be cut off by a kill.
    """
    lines = read_lines(path) if path.is_file() else []
    return [line for line in lines if line["step"] <= step]


def as_line(entry: dict) -> str:
    """Write an entry of the log; captions keep their letters."""
    return json.dumps(entry, ensure_ascii=False) + "\n"
