"""Sealed checkpoints: a folder counts only with a list of its files' hashes, written last.

Trainer writes straight into ``checkpoint-N``: a kill during saving leaves a folder that
``get_last_checkpoint`` takes for a good one. Here such a folder has no seal, and training goes on
from the newest one that has.
"""

import shutil
from pathlib import Path

import torch.distributed as dist
from transformers import TrainerCallback

from utils.stages import read_json, sha256_file, write_json

SEAL = "sealed.json"


def seal(folder: Path) -> None:
    """Write the hashes of all files of a complete checkpoint."""
    files = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*"))
             if p.is_file() and p.name != SEAL}  # fmt: skip
    write_json(folder / SEAL, files)


def intact(folder: Path) -> bool:
    """Tell whether a checkpoint is sealed and every file is as it was when sealed."""
    try:
        files = read_json(folder / SEAL)
        return all(sha256_file(folder / name) == digest for name, digest in files.items())
    except (OSError, ValueError):
        return False


def step_of(folder: Path) -> int:
    """Return N of ``checkpoint-N``."""
    return int(folder.name.rpartition("-")[2])


def newest(folder: Path) -> Path | None:
    """Return the newest intact checkpoint below ``folder``, or None."""
    found = sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)
    return next((checkpoint for checkpoint in found if intact(checkpoint)), None)


def discard_broken(folder: Path) -> list[str]:
    """Delete checkpoints that are not intact, so that nothing takes them up; return their names."""
    broken = [c for c in sorted(folder.glob("checkpoint-*")) if not intact(c)]
    for checkpoint in broken:
        shutil.rmtree(checkpoint)
    return [checkpoint.name for checkpoint in broken]


class SealCheckpoints(TrainerCallback):
    """Seal each checkpoint after Trainer has saved it."""

    def on_save(self, args, state, control, **kwargs):
        """Wait until every rank has written its random state, then seal on the first."""
        if dist.is_initialized():
            dist.barrier()
        if state.is_world_process_zero:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
