"""A run that goes over several sessions: when it has to stop, and taking up what another session left."""

import shutil
import time
from pathlib import Path

from utils import runtime
from utils.config import demand, is_number
from utils.stages import (
    STOPPED,
    StageFolder,
    candidates,
    differences,
    earlier_settings,
    read_manifest,
    require_disk,
    short,
)

KAGGLE_HOURS = 10.5  # of 12: the last measurements, the model card and the upload of the output come after


def deadline(hours: float | None) -> float | None:
    """Return when training has to stop, in seconds since the epoch; None for no time budget.

    Args:
        hours: since this kernel started; None for 10.5 on Kaggle, which ends a session after 12 hours and
            keeps nothing of one that it had to end, and for no budget elsewhere.

    Raises:
        ConfigError: ``hours`` is no number of hours.
    """
    demand(hours is None or is_number(hours, 1e-6), f"HOURS is {hours!r}: give hours above 0, or None.")
    if hours is None and runtime.place() != "kaggle":
        return None
    return kernel_start() + 3600 * (KAGGLE_HOURS if hours is None else hours)


def kernel_start() -> float:
    """Return when this process started, in seconds since the epoch."""
    import psutil  # comes with accelerate

    return psutil.Process().create_time()


def hours_left(end: float | None) -> float | None:
    """Return the hours until a deadline, 0 when it has passed; None for no deadline."""
    return None if end is None else max(0.0, end - time.time()) / 3600


def told(end: float | None) -> str:
    """Say a deadline in words."""
    return "no time budget" if end is None else f"time budget: {hours_left(end):.1f} h from now"


def adopt(
    work: Path, name: str, config: dict, inputs: tuple[StageFolder, ...], roots: tuple[Path, ...]
) -> Path | None:
    """Copy a stage that its time budget stopped in another session, to go on with it here.

    Nothing is copied where the work folder has begun the stage itself.

    Args:
        work: the work folder.
        name: the stage.
        config: its configuration.
        inputs: its input stages.
        roots: the folders below which other sessions' outputs are mounted, read-only.

    Returns:
        the folder that was copied, or None.

    Raises:
        StageError: the disk has no room for the copy.
    """
    own = Path(work) / name
    if own.is_dir() and earlier_settings(own) is not None:
        return None
    wanted = {"config": config, "inputs": {s.manifest["stage"]: s.fingerprint for s in inputs}}
    for folder in candidates(name, Path(work), roots):
        manifest = read_manifest(folder, name)
        if manifest is None or manifest.get("state") != STOPPED:
            continue
        if {key: manifest[key] for key in wanted} != wanted:
            why = differences(manifest["config"], config) or "it was trained on other data"
            print(f"{short(folder)} was stopped by its time budget, but is another run: {why}")
            continue
        size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        require_disk(Path(work), size, f"The copy of {short(folder)}")
        shutil.rmtree(own, ignore_errors=True)
        shutil.copytree(folder, own)
        print(f"took up {short(folder)}, which its time budget stopped")
        return folder
    return None
