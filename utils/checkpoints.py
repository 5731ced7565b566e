"""Checkpoints that hold: written aside, hashed, brought to the disk, renamed, and only then rotated.

Trainer writes straight into ``checkpoint-N``. A kill during saving leaves a folder that
``get_last_checkpoint`` takes for a good one, a file that is gone is passed over in silence, and a full disk
ends the run. Here a kill costs the steps since the last checkpoint, a full disk costs one checkpoint, and
damage makes the run go on from an older one and say so. Nothing is read but safetensors, JSON and what
``torch.load(weights_only=True)`` takes.
"""

import errno
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from transformers import Trainer

from utils import sealed
from utils.stages import differences

NAME = re.compile(r"checkpoint-(\d+)")
NEWEST = 2  # checkpoints that are kept besides the best: one may turn out damaged
PICKLES = ("*.bin", "*.pkl", "*.pth")
# How torch and safetensors say that nothing more could be written.
FULL = re.compile("PytorchStreamWriter failed|unexpected pos|iostream error|No space left|quota exceeded")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used, or holds what may not be kept; the message says what to do."""


@dataclass(frozen=True)
class Resume:
    """Where training goes on.

    Attributes:
        path: the newest whole checkpoint; None where training starts.
        skipped: each newer one that was passed over, with the reason.
    """

    path: Path | None
    skipped: tuple[str, ...]


class SealedTrainer(Trainer):
    """Trainer whose checkpoints are whole or not there.

    No random state is kept: the subclass seeds every micro-batch, so that a run can go on with another
    number of ranks. Only the first rank writes.

    Args:
        contract: JSON values that a checkpoint must agree with to be gone on from.
        keep: returns the steps whose checkpoints must stay; asked on the first rank after each save.
    """

    def __init__(self, *args, contract: dict, keep: Callable[[], set[int]] = set, **kwargs):
        self.contract, self.keep = contract, keep
        self.saved = False  # whether the last save left a checkpoint
        self._staged = False
        super().__init__(*args, **kwargs)

    def train(self, *args, **kwargs):
        """Train; what an earlier run left half made is deleted first."""
        if self.is_world_process_zero():
            sealed.tidy(Path(self.args.output_dir))
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, model, trial) -> None:
        """Save all that training needs to go on from this step; a full disk costs this checkpoint alone."""
        folder = Path(self.args.output_dir)
        final = folder / f"checkpoint-{self.state.global_step}"
        stage = folder / sealed.STAGE / final.name
        first = self.is_world_process_zero()
        if first:
            sealed.delete(stage.parent)
        # Two agreements: what a rank still writes must not be sealed, and all must know what became of it.
        self.saved = self._on_all_ranks(partial(self._write, model, trial)) and self._on_all_ranks(
            partial(self._seal, stage, final) if first else None
        )
        if first and self.saved:
            rotate(folder, NEWEST, self.keep())
        if first:
            sealed.tidy(folder)
            if not self.saved:
                print(self._explain(final), flush=True)

    def _write(self, model, trial) -> None:
        """Let Trainer write into the stage."""
        self._staged = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._staged = False

    def _seal(self, stage: Path, final: Path) -> None:
        """Turn the stage into a checkpoint.

        Raises:
            CheckpointError: it holds a pickle.
        """
        (stage / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing needs
        if found := pickles(stage):
            raise CheckpointError(
                f"{final.name} would hold the pickle {found[0]}. Save weights as safetensors instead."
            )
        sealed.seal(stage, final, {"step": self.state.global_step, "contract": self.contract})

    def _on_all_ranks(self, work: Callable[[], None] | None) -> bool:
        """Do the work; return whether no rank met a full disk. Any other error is raised.

        A rank whose disk is full must not leave the others waiting, nor go on as if they had failed too.
        """
        full = False
        try:
            if work is not None:
                work()
        except (OSError, RuntimeError, SafetensorError) as error:
            if not is_full(error):
                raise
            full = True
        if dist.is_initialized():
            flag = torch.tensor(float(full), device=self.args.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            full = bool(flag.item())
        return not full

    def _explain(self, final: Path) -> str:
        """Say that a checkpoint is missing, how much room there is, and what comes next."""
        free = shutil.disk_usage(final.parent).free / 1e6
        step, every = self.state.global_step, int(self.state.save_steps)
        later = min((step // every + 1) * every, self.state.max_steps)
        over = self.control.should_training_stop or later <= step
        comes = "It was the last one" if over else f"Training goes on; the next one is tried at step {later}"
        return f"{final.name} could not be written: the disk is full ({free:,.0f} MB free). {comes}."

    def _get_output_dir(self, trial) -> str:
        """Return where checkpoints go: while one is being written, into the stage."""
        folder = super()._get_output_dir(trial)
        return str(Path(folder) / sealed.STAGE) if self._staged else folder

    def _save_rng_state(self, output_dir: str) -> None:
        """Save none: it would tie the run to its number of ranks."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Load none."""


def is_full(error: Exception) -> bool:
    """Tell whether an error says that a disk is full, or a quota used up."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return FULL.search(str(error)) is not None


def pickles(folder: Path) -> list[str]:
    """List files whose names make a loader unpickle them."""
    return [path.name for pattern in PICKLES for path in sorted(folder.rglob(pattern))]


def step_of(folder: Path) -> int:
    """Return N of ``checkpoint-N``."""
    return int(folder.name.rpartition("-")[2])


def found_in(folder: Path) -> list[Path]:
    """List the checkpoints below ``folder``, whole or not, the newest first."""
    found = [path for path in folder.glob("checkpoint-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def rotate(folder: Path, newest: int, keep: set[int]) -> None:
    """Delete checkpoints that are no longer needed; call it when one was just saved.

    Only whole ones count: a damaged one among the newest would push out the one to go on from. What is not
    whole was passed over, and goes now that there is a newer one.

    Args:
        folder: of the checkpoints.
        newest: how many whole ones stay.
        keep: steps that stay besides.
    """
    found = found_in(folder)
    whole = [path for path in found if trouble(path) is None]
    stay = set(whole[:newest]) | {path for path in whole if step_of(path) in keep}
    for path in found:
        if path not in stay:
            sealed.discard(path)


def resume_point(folder: Path, contract: dict) -> Resume:
    """Choose the checkpoint to go on from: the newest that is whole. All ranks get the first one's answer.

    Args:
        folder: of the checkpoints; need not be there.
        contract: what the run is about to train with.

    Raises:
        CheckpointError: that checkpoint was made with another contract.
    """
    answer: list[Resume | CheckpointError | None] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            answer = [choose(folder, contract)]
        except CheckpointError as error:
            answer = [error]
    if dist.is_initialized():
        dist.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], CheckpointError):
        raise answer[0]
    return answer[0]


def choose(folder: Path, contract: dict) -> Resume:
    """Do what :func:`resume_point` does, on one rank."""
    skipped = []
    for path in found_in(folder):
        reason = trouble(path)
        if reason is None:
            check_contract(path, contract)
            return Resume(path, tuple(skipped))
        skipped.append(f"{path.name}: {reason}")
    return Resume(None, tuple(skipped))


def trouble(checkpoint: Path) -> str | None:
    """Return why a checkpoint is passed over, or None where it is whole."""
    return sealed.trouble(checkpoint) or next(
        (f"holds a pickle: {name}" for name in pickles(checkpoint)), None
    )


def check_contract(checkpoint: Path, contract: dict) -> None:
    """Compare what a checkpoint was made with and what is wanted now.

    Raises:
        CheckpointError: they differ; says in what.
    """
    old, new = sealed.facts(checkpoint).get("contract", {}), json.loads(json.dumps(contract))
    if old != new:
        raise CheckpointError(
            f"{checkpoint.name} was made differently: {differences(old, new)}. Give the old values to go on "
            f"from it, or train anew with FRESH = True."
        )
