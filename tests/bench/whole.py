"""Notebook 01 on a stand-in for the whole of ROCOv2, from its three layouts, each in one run."""

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench import standin
from tests.bench.lines import Line
from utils.pairs import SPLITS
from utils.stages import REPO, read_json

MINUTES = 10  # for one source, on two cores
GIB = 8  # of Kaggle's 31


def run(scale: float) -> list[Line]:
    """Run the notebook on each layout and compare what it wrote."""
    with tempfile.TemporaryDirectory() as place:
        minutes, peaks, stages = {}, [], {}
        for name, folder in standin.write(Path(place), scale).items():
            work = Path(place) / f"work-{name}"
            started = time.perf_counter()
            peaks.append(run_notebook(folder, work))
            minutes[name], stages[name] = (time.perf_counter() - started) / 60, work / "01_filter"
        lines = [
            Line(f"notebook 01, {name} layout", m, "min", MINUTES, most=True) for name, m in minutes.items()
        ]
        memory = Line("peak memory of all processes", max(peaks), "GiB", GIB, most=True)
        return [*lines, memory, *verdict_lines(stages, scale)]


def run_notebook(source: Path, work: Path) -> float:
    """Run notebook 01 and return the most memory, in GiB, that its processes took together."""
    command = [
        sys.executable,
        "-m",
        "utils.series",
        "--only",
        "01",
        "--source",
        str(source),
        "--work",
        str(work),
    ]
    most = 0
    with subprocess.Popen(command, cwd=REPO, stdout=sys.stderr) as process:
        while process.poll() is None:
            most = max(most, tree_memory(process.pid))
            time.sleep(0.25)
    if process.returncode:
        raise RuntimeError(f"notebook 01 failed on {source.name}: exit code {process.returncode}")
    return most / 2**30


def tree_memory(pid: int) -> int:
    """Return the bytes in memory of a process and its descendants; shared pages count in each."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for member in family:
        with suppress(psutil.NoSuchProcess):
            total += member.memory_info().rss
    return total


def verdict_lines(stages: dict[str, Path], scale: float) -> list[Line]:
    """Count the pairs that are not accounted for, and the records in which the sources differ."""
    kept = {
        split: sum(r["rgb"] and r["caption"] != "" for r in standin.rows_of(split, scale)) for split in SPLITS
    }
    total = sum(standin.counts(scale)["pairs"].values())
    funnel = read_json(stages["zenodo"] / "report.json")["funnel"]
    lost = total - sum(sum(row.values()) for row in funnel.values())
    wrong = sum(abs(funnel[split]["kept"] - count) for split, count in kept.items())
    first = pq.read_table(stages["zenodo"] / "records.parquet").drop("source")
    return [
        Line(f"of {total:,} pairs, without a reason", abs(lost), "pairs", 0, most=True),
        Line(f"of {sum(kept.values()):,} pairs to keep, wrongly judged", wrong, "pairs", 0, most=True),
        *(Line(f"records that differ, {name} from zenodo", differing(first, stages[name]), "records", 0, most=True)
          for name in ("kaggle", "hub")),
    ]  # fmt: skip


def differing(first: pa.Table, stage: Path) -> int:
    """Count the records in which a stage differs from ``first``, in any column but the source."""
    other = pq.read_table(stage / "records.parquet").drop("source")
    if other.equals(first):
        return 0
    return sum(a != b for a, b in zip_longest(first.to_pylist(), other.to_pylist())) or first.num_rows
