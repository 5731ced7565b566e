"""Fourteen kinds of damage to one checkpoint, and what becomes of the run that goes on from it."""

import shutil
from collections.abc import Callable
from pathlib import Path

from tests.bench.children import Ended

FILES = (
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
    "adapter_model.safetensors",
    "adapter_config.json",
)
OUTCOMES = ("identical", "fell back", "refused", "crashed", "different")


def remove(path: Path) -> None:
    """Take a file away."""
    path.unlink()


def truncate(path: Path) -> None:
    """Cut a file off in its middle."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << 4
    path.write_bytes(data)


def empty(path: Path) -> None:
    """Leave nothing in a folder."""
    shutil.rmtree(path)
    path.mkdir()


# Both rivals' checkpoints hold these files. A configuration that is cut off or flipped is left out: there are
# thirteen more interesting ways to lose a run.
DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    **{f"{name} missing": (name, remove) for name in FILES},
    **{f"{name} truncated": (name, truncate) for name in FILES[:4]},
    **{f"{name} with a flipped bit": (name, flip) for name in FILES[:4]},
    "an empty folder": (".", empty),
}


def outcome(ended: Ended, result: str | None, whole: str) -> str:
    """Name what became of a run that went on after a fault.

    Args:
        ended: how it ended.
        result: a hash of what it gave, where it ended well.
        whole: that of a run without a fault.
    """
    if not ended.well:
        return "refused" if "\nutils.checkpoints.CheckpointError: " in ended.log else "crashed"
    if result != whole:
        return "different"
    return "fell back" if "passed over: " in ended.log else "identical"
