"""What notebook 03 shows while it trains: where the run is, its curves, its captions, redrawn in place.

Everything is read from ``log.jsonl``, so the saved page shows the last state without a kernel or a GPU.
"""

import io
import sys
from pathlib import Path
from time import monotonic

import matplotlib.pyplot as plt
import pandas as pd

from utils import results, status, training_plots
from utils.stages import read_json

ENDS = {"finished": "finished", "stopped early": "stopped early: it no longer got better",
        "time budget": "stopped at its time budget: run it again to go on"}  # fmt: skip


class TrainingView:
    """Shows a run that trains in other processes: in a notebook's cell, else a line an evaluation.

    Used as ``with TrainingView(folder, plan) as view: launch(..., after=view.refresh)``; leaving the
    block, also by an error, shows the last state.

    Args:
        folder: of stage 03; its ``log.jsonl`` may not exist yet.
        plan: has ``steps`` and ``hours``, both of the whole run; None where there is none.
        budget_hours: after which this session stops, counted from here; None for no time budget.
        every: seconds between two states of the text.
        redraw: seconds between two pictures where no evaluation came: drawing takes time from the ranks.
    """

    def __init__(self, folder: Path, plan=None, budget_hours: float | None = None,
                 every: float = 2, redraw: float = 30):  # fmt: skip
        self.folder, self.plan, self.budget = folder, plan, budget_hours
        self.every, self.redraw = every, redraw
        self.started = self.told = self.drawn = monotonic()
        self.lines, self.seen, self.complaint = [], None, None
        self.page = Page() if in_notebook() else None
        self.shown = None
        self.refresh()

    def __enter__(self) -> "TrainingView":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def refresh(self) -> None:
        """Show what is new; does nothing where nothing is, so that it may be called at any rate."""
        self.guard(self.show)

    def close(self) -> None:
        """Show the last state, and how the session ended."""
        self.guard(lambda: self.show(self.end()))

    def guard(self, work) -> None:
        """Do ``work``; what goes wrong in a view is said once, and must not end the run it shows."""
        try:
            self.read()
            work()
        except Exception as error:
            said = f"The view of the training is not up to date: {type(error).__name__}: {error}"
            if said != self.complaint:
                print(said, flush=True)
            self.complaint = said

    def read(self) -> None:
        """Read the log where it has changed."""
        path = self.folder / "log.jsonl"
        state = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        if state not in (None, self.seen):
            self.lines, self.seen = results.read_lines(path), state

    def show(self, end: str | None = None) -> None:
        """Show what is new, or at the end everything."""
        found, shown = status.evaluations(self.lines), self.shown
        self.shown = found
        if self.page is None:
            # What stands there at the start was told by the sessions before.
            self.tell([line for line in found if line not in shown] if shown is not None else [], end)
        elif end or found != shown or monotonic() - self.told >= self.every:
            self.told = monotonic()
            self.page.write("status", self.text(end))
            if end or found != shown or monotonic() - self.drawn >= self.redraw:
                self.draw()

    def tell(self, found: list[dict], end: str | None) -> None:
        """Print a line for each of these evaluations, and the whole state at the end."""
        for line in found:
            until = self.lines[: self.lines.index(line) + 1]
            print(" · ".join((*status.place(until, self.steps()), *status.quality(until))), flush=True)
        if end:
            print(self.text(end), flush=True)

    def draw(self) -> None:
        """Redraw the curves, and the captions of the first and the last evaluation."""
        if not self.lines:
            return
        self.drawn = monotonic()
        self.page.draw("curves", training_plots.training_curves(results.log_table(self.lines)))
        samples = results.sample_table(self.lines)
        if len(samples):
            self.page.table("captions", results.caption_table(samples, 2))

    def text(self, end: str | None) -> str:
        """Say in a few lines where the run is, how good, how fast, and how long it still takes."""
        if not self.lines:
            return end or "No step is logged yet: the data and the model are loaded first."
        lines, steps = self.lines, self.steps()
        rest = [end] if end else [self.time_left(), self.budget_left()]
        parts = (status.place(lines, steps), status.quality(lines), status.load(lines), rest)
        said = [" · ".join(part for part in parts if part) for parts in parts]
        return "\n".join(line for line in (status.bar(lines[-1]["step"], steps), *said) if line)

    def time_left(self) -> str:
        """Say how long it is to the last step."""
        return status.time_left(self.lines, self.steps(), getattr(self.plan, "hours", None))

    def budget_left(self) -> str:
        """Say what is left of this session's time budget."""
        if self.budget is None:
            return ""
        left = 3600 * self.budget - (monotonic() - self.started)
        return f"{status.duration(max(0, left))} left of the time budget"

    def steps(self) -> int | None:
        """Return the planned steps of the whole run, None where nothing says them."""
        return self.plan.steps if self.plan is not None else self.record().get("planned_steps")

    def record(self) -> dict:
        """Return the run's record, empty where the one that is there is of a session before."""
        path = self.folder / "run.json"
        run = read_json(path) if path.is_file() else {}
        last = self.lines[-1].get("session") if self.lines else None
        return run if run.get("sessions", last) == last else {}

    def end(self) -> str:
        """Say how the session ended."""
        return ENDS.get(self.record().get("ended"), "not finished: run it again to go on")


class Page:
    """The three places in a notebook's cell that are redrawn: status, curves, captions."""

    def __init__(self):
        from IPython.display import display

        waiting = {"status": "", "curves": "The log holds no curves yet.",
                   "captions": "The log holds no captions yet."}  # fmt: skip
        # All three at once, so that what the ranks print stays together below them.
        self.places = {
            name: display({"text/plain": text}, raw=True, display_id=True) for name, text in waiting.items()
        }

    def write(self, place: str, text: str) -> None:
        """Put a text in one of the places."""
        self.places[place].update({"text/plain": text}, raw=True)

    def draw(self, place: str, figure) -> None:
        """Put a figure in one of the places, and close it: the notebook would show it once more."""
        from IPython.display import Image

        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=figure.dpi)
        plt.close(figure)
        self.places[place].update(Image(image.getvalue()))

    def table(self, place: str, table: pd.DataFrame) -> None:
        """Put a table of texts in one of the places."""
        self.places[place].update({"text/html": as_html(table), "text/plain": table.to_string()}, raw=True)


def as_html(table: pd.DataFrame) -> str:
    """Write a table of texts as HTML: whole, wrapped, and as text whatever tags or ``$`` they hold."""
    looks = {"text-align": "left", "vertical-align": "top", "white-space": "normal",
             "overflow-wrap": "anywhere"}  # fmt: skip
    styled = table.rename_axis(None).style.format(escape="html").set_properties(**looks)
    styled = styled.format_index(escape="html", axis=0).format_index(escape="html", axis=1)
    # The classes by which MathJax 2 and 3 leave a part of the page alone.
    styled = styled.set_table_attributes('class="tex2jax_ignore mathjax_ignore"')
    return styled.to_html(table_uuid="captions")


def in_notebook() -> bool:
    """Tell whether this is a kernel, whose page can be redrawn."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")
