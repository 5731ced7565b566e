"""A line of a bench: a figure beside its baseline of the same run, and the bar that it has to reach."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from importlib import metadata

NAMED = ("torch", "transformers", "datasets", "pillow", "pyarrow")


@dataclass(frozen=True)
class Line:
    """One figure.

    Attributes:
        what: what was measured.
        ours: its value.
        unit: of ours and of the baseline.
        baseline: what it is compared with; empty where the value itself has to reach the bar.
        theirs: the baseline's value in the same run.
        bar: the least ratio ours / theirs, or where there is no baseline the bound of ours; None for a
            figure that is only told.
        most: whether the bar is an upper bound.
    """

    what: str
    ours: float
    unit: str
    bar: float | None
    baseline: str = ""
    theirs: float | None = None
    most: bool = False

    @property
    def figure(self) -> float:
        """What the bar is held against: the ratio, or the value where there is no baseline."""
        return self.ours if self.theirs is None else self.ours / self.theirs

    @property
    def met(self) -> bool:
        """Whether the figure reaches its bar."""
        if self.bar is None:
            return True
        return self.figure <= self.bar if self.most else self.figure >= self.bar


def number(value: float) -> str:
    """Write a number with three digits that say something."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def table(lines: list[Line]) -> str:
    """Lay the lines out as text."""
    head = ("measured", "ours", "baseline", "", "ratio", "bar", "")
    rows = [head]
    for line in lines:
        ratio = "" if line.theirs is None else f"{line.figure:.2f} x"
        theirs = "" if line.theirs is None else f"{number(line.theirs)} {line.unit}"
        sign, unit = "<=" if line.most else ">=", "" if line.theirs is None else " x"
        bar = "" if line.bar is None else f"{sign} {number(line.bar)}{unit}"
        rows.append((line.what, f"{number(line.ours)} {line.unit}", line.baseline, theirs, ratio, bar,
                     "" if line.bar is None else "ok" if line.met else "MISSED"))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def as_json(name: str, lines: list[Line]) -> str:
    """Return the bench as one line of JSON, with the machine and the versions that it ran on."""
    machine = {"cores": len(os.sched_getaffinity(0)), "cpu": cpu(), "python": platform.python_version(),
               **{package: metadata.version(package) for package in NAMED}}  # fmt: skip
    rows = [{**asdict(line), "figure": line.figure, "met": line.met} for line in lines]
    return json.dumps({"bench": name, "machine": machine, "lines": rows})


def cpu() -> str:
    """Return the name of the processor, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"
