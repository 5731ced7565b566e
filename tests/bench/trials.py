"""One run each: killed, damaged, on a full disk, stopped by its time budget; and what became of it."""

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.bench.children import LEFT, STEPS, Ended, Order, run_child
from tests.bench.damage import DAMAGES, outcome
from utils.files import read_json

SIDE_BY_SIDE = 2
STOPPED = 8  # the step whose checkpoint is damaged
STOPS, TRIES = 3, 5  # of a chain; how often it is begun
SPARSE = {"evaluations": 4}  # for what stops between two checkpoints
ADAPTER = "adapter_model.safetensors"
REFUSED = "mounting is refused"
FULL = "could not be written: the disk is full"


@dataclass(frozen=True)
class Whole:
    """A run without a fault: what it gave, and its seconds before and since its training began."""

    result: str
    before: float
    seconds: float


def side_by_side(work: Callable, over: Iterable) -> list:
    """Do the work for each, two at a time."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return list(pool.map(work, over))


def must(ended: Ended) -> Ended:
    """Return how a child ended that nothing was done to.

    Raises:
        RuntimeError: not well; holds what it printed.
    """
    if not ended.well:
        raise RuntimeError(f"A run without a fault did not end well:\n{ended.log}")
    return ended


def result(output: Path) -> str | None:
    """Return a hash of the adapter that a run gave and of that of its last step; None where one is missing."""
    files = [output / "adapter" / ADAPTER, output / "checkpoints" / f"checkpoint-{STEPS}" / ADAPTER]
    if not all(path.is_file() for path in files):
        return None
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def whole_run(rival: str, place: Path, **options) -> Whole:
    """Train without a fault, twice side by side, as all else runs.

    Raises:
        RuntimeError: the two gave different adapters: there is nothing to compare with.
    """
    # One alone first: it makes what all later ones find, such as the 4-bit copy of the base model.
    outputs = [place.with_name(f"{place.name}-{number}") for number in range(1 + SIDE_BY_SIDE)]
    first = must(run_child(Order(rival, outputs[0], options=options)))
    rest = side_by_side(lambda output: must(run_child(Order(rival, output, options=options))), outputs[1:])
    found = {result(output) for output in outputs}
    if len(found) != 1 or None in found:
        raise RuntimeError(f"Runs of {rival} without a fault gave different adapters: {found}.\n{first.log}")
    return Whole(found.pop(), min(e.before for e in rest), min(e.seconds for e in rest))


def go_on(rival: str, output: Path, whole: Whole, **options) -> str:
    """Start a run again after a fault, name the outcome, and delete the run."""
    ended = run_child(Order(rival, output, options=options))
    came = outcome(ended, result(output), whole.result)
    shutil.rmtree(output)
    return came


def killed(rival: str, output: Path, moment: float, whole: Whole) -> str:
    """Kill a run ``moment`` seconds after its training began, go on, and name the outcome."""
    while run_child(Order(rival, output), kill_after=moment).well:
        shutil.rmtree(output)  # it ended before: that is no killed run
        moment *= 0.8
    return go_on(rival, output, whole)


def damaged(rival: str, stopped: Path, output: Path, kind: str, whole: Whole) -> str:
    """Damage the newest checkpoint of a copy of a stopped run, go on, and name the outcome."""
    name, harm = DAMAGES[kind]
    shutil.copytree(stopped, output)
    harm(output / "checkpoints" / f"checkpoint-{STOPPED}" / name)
    return go_on(rival, output, whole)


def starved(rival: str, output: Path, size: int, whole: Whole) -> tuple[bool, str] | None:
    """Train on a disk that ends within a save, then go on with room enough.

    Returns:
        whether the run ended well, and the outcome of going on; None where the disk did not fill up.

    Raises:
        OSError: the system refuses mounting.
    """
    ended = run_child(Order(rival, output, disk=size))
    if REFUSED in ended.log:
        raise OSError(ended.log.strip().splitlines()[-1])
    if ended.well and FULL not in ended.log:
        shutil.rmtree(output)
        return None
    shutil.rmtree(output / "checkpoints")
    (output / LEFT).rename(output / "checkpoints")
    (output / "run.json").unlink(missing_ok=True)  # a run that ended well would not be taken up again
    return ended.well, go_on(rival, output, whole)


def chained(output: Path, seed: int, whole: Whole) -> str:
    """Let the time budget stop a run three times at random, then go on to the end, and name the outcome."""
    spans = whole.before + np.random.default_rng(seed).uniform(0, whole.seconds / (STOPS + 2), STOPS)
    for _ in range(TRIES):
        if all(stopped(output, span) for span in spans.tolist()):
            return go_on("ours", output, whole, **SPARSE)
        shutil.rmtree(output)
        spans /= 2  # it came to its end before: that is no chain of three stops
    return "not stopped"


def stopped(output: Path, span: float) -> bool:
    """Train for so many seconds; tell whether the run ended well because its time was over."""
    options = SPARSE | {"deadline": time.time() + span}
    must(run_child(Order("ours", output, options=options)))
    return read_json(output / "run.json")["ended"] == "time budget"
