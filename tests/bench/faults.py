"""Runs that are killed, damaged, starved of disk and stopped, and whether they end as one that was not.

The stock Trainer goes through the same in the same harness, but for the time budget, which it has not.
"""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from tests.bench import trials
from tests.bench.children import PREPARED, Order, run_child
from tests.bench.damage import DAMAGES
from tests.bench.lines import Line
from tests.bench.trials import Whole, side_by_side

KILLS, CHAINS = 200, 10
PAGE = 4096  # bytes, of which tmpfs gives no part
GOOD = ("identical", "fell back", "refused")


def run(scale: float) -> list[Line]:
    """Put both rivals through everything, in a folder that is deleted afterwards."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        trials.must(run_child(Order("prepare", root / PREPARED)))
        lines = []
        for rival in ("ours", "stock"):
            whole = trials.whole_run(rival, root / f"{rival}-whole")
            lines += kill_lines(rival, root, whole, max(1, round(KILLS * scale)))
            lines += damage_lines(rival, root, whole)
            lines += full_lines(rival, root, whole, scale)
        return lines + chain_lines(root, max(1, round(CHAINS * scale)))


def held(rival: str, what: str, ours: int, unit: str, bar: int, most: bool = False) -> Line:
    """Return a figure that is held against its bar where it is ours, and only told where it is not."""
    name = what if rival == "ours" else f"{what}, stock Trainer"
    return Line(name, ours, unit, bar if rival == "ours" else None, most=most)


def kill_lines(rival: str, root: Path, whole: Whole, count: int) -> list[Line]:
    """Kill as many runs with SIGKILL, each at a random moment of its training."""
    moments = np.random.default_rng(0).uniform(0, whole.seconds, count).tolist()
    outputs = [root / f"{rival}-killed-{number}" for number in range(count)]
    came = Counter(side_by_side(
        lambda pair: trials.killed(rival, *pair, whole), zip(outputs, moments, strict=True)
    ))  # fmt: skip
    print(f"{rival}, killed: {dict(came)}", flush=True)
    same = came["identical"] + came["fell back"]
    return [
        held(rival, f"killed runs that ended bit-identical, of {count}", same, "runs", count),
        held(rival, f"killed runs that could not go on, of {count}", came["crashed"], "runs", 0, most=True),
        held(rival, f"killed runs that ended different, of {count}", came["different"], "runs", 0, most=True),
    ]


def damage_lines(rival: str, root: Path, whole: Whole) -> list[Line]:
    """Damage a checkpoint in every way and print what became of the run that went on from it."""
    stopped = root / f"{rival}-stopped"
    run_child(Order(rival, stopped, kill_at=trials.STOPPED + 1))
    outputs = {kind: root / f"{rival}-damaged-{number}" for number, kind in enumerate(DAMAGES)}
    came = side_by_side(
        lambda kind: trials.damaged(rival, stopped, outputs[kind], kind, whole), DAMAGES
    )  # fmt: skip
    for kind, outcome in zip(DAMAGES, came, strict=True):
        print(f"{rival}, {kind}: {outcome}", flush=True)
    of, total = Counter(came), len(DAMAGES)
    good = sum(of[outcome] for outcome in GOOD)
    return [
        held(rival, f"damages passed over, refused or harmless, of {total}", good, "kinds", total),
        held(rival, f"damages after which training crashed, of {total}", of["crashed"], "kinds", 0, most=True),
        held(rival, f"damages that trained on silently different, of {total}", of["different"], "kinds", 0,
             most=True),
    ]  # fmt: skip


def pages(folder: Path) -> int:
    """Return the pages that a folder's files take in a tmpfs."""
    return sum(-(-path.stat().st_size // PAGE) for path in folder.iterdir())


def sizes(rival: str, root: Path) -> list[int]:
    """Return sizes of a disk, in bytes, that end at each page of a run's third save."""
    output = root / f"{rival}-measured"
    run_child(Order(rival, output, kill_at=4))
    second, third = (pages(output / "checkpoints" / f"checkpoint-{step}") for step in (2, 3))
    return [page * PAGE for page in range(2 * second, 2 * second + third)]


def full_lines(rival: str, root: Path, whole: Whole, scale: float) -> list[Line]:
    """Let the disk end at each page of a save, so within every file of it."""
    ends = sizes(rival, root)[:: max(1, round(1 / scale))]
    todo = [(root / f"{rival}-full-{size}", size) for size in ends]
    try:
        came = side_by_side(lambda pair: trials.starved(rival, *pair, whole), todo)
    except OSError as error:
        return [Line(f"runs on a full disk: not done, {error}", 0, "runs", 1 if rival == "ours" else None)]
    full = [pair for pair in came if pair is not None]
    print(f"{rival}, full disk: {dict(Counter(came))}", flush=True)
    ended, later = sum(well for well, _ in full), sum(c in ("identical", "fell back") for _, c in full)
    return [
        held(rival, f"runs that ended well on a full disk, of {len(full)}", ended, "runs", max(1, len(full))),
        held(rival, f"the same, went on with room and ended bit-identical, of {len(full)}", later, "runs",
             max(1, len(full))),
    ]  # fmt: skip


def chain_lines(root: Path, count: int) -> list[Line]:
    """Stop as many runs three times by their time budget."""
    whole = trials.whole_run("ours", root / "ours-sparse", **trials.SPARSE)
    came = side_by_side(
        lambda number: trials.chained(root / f"ours-chain-{number}", number, whole), range(count)
    )  # fmt: skip
    print(f"ours, chains: {dict(Counter(came))}", flush=True)
    what = f"chains of three time-budget stops that ended bit-identical, of {count}"
    return [held("ours", what, came.count("identical"), "chains", count)]
