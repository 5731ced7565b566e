"""The notebooks as files: their parameters, running one, and cleaning one for the repository."""

import ast
import asyncio
import base64
import io
import itertools
import re
import signal
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from PIL import Image

from utils.stages import REPO, StageError

FOLDER = REPO / "notebooks"
LARGE = 40_000  # characters of a picture in a notebook, four for three bytes


class NotebookError(StageError):
    """A notebook failed; the message names the cell and holds the original error."""


def parameters_cell(notebook) -> int:
    """Return the index of the one cell that is tagged ``parameters``."""
    tagged = [i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise NotebookError(f"A notebook needs one cell tagged parameters; this one has {len(tagged)}.")
    return tagged[0]


def parameters_of(name: str) -> dict:
    """Read the defaults of a notebook's parameters, without running anything."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    tree = ast.parse(notebook.cells[parameters_cell(notebook)].source)
    return {
        node.targets[0].id: ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)
    }


def title_above(notebook, index: int) -> str:
    """Return the last heading before a cell: what a reader would call the place."""
    for cell in reversed(notebook.cells[:index]):
        headings = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else []
        if headings:
            return headings[-1]
    return "top"


class Progress:
    """One line that says where a running notebook is; rewritten on a terminal, sparse in a log."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.cell, self.note = name, total, 0, ""
        self.started = self.shown = time.perf_counter()
        self.live = sys.stdout.isatty()

    def show(self, force: bool = False) -> None:
        """Show the line, at most every half second on a terminal and every 15 s in a log."""
        now = time.perf_counter()
        if not force and now - self.shown < (0.5 if self.live else 15):
            return
        self.shown = now
        line = f"  {self.name} · cell {self.cell}/{self.total} · {now - self.started:.0f} s · {self.note}"
        end = "\r" if self.live else "\n"
        print(line[:110].ljust(110) if self.live else line[:160], end=end, flush=True)


class Runner(NotebookClient):
    """Runs a notebook and keeps its progress line; text that a bar rewrote is kept as last seen."""

    progress: Progress

    async def async_start_new_kernel_client(self):
        """Start the kernel, and let an interrupt stop the series: nbclient's own handler fails in it."""
        client = await super().async_start_new_kernel_client()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_event_loop().remove_signal_handler(number)
        return client

    def output(self, outs, msg, display_id, cell_index):
        """Show the last line that the running cell printed."""
        if msg["msg_type"] == "stream":
            lines = [line for line in re.split(r"[\r\n]+", msg["content"]["text"]) if line.strip()]
            self.progress.note = lines[-1].strip() if lines else self.progress.note
            self.progress.show()
        return super().output(outs, msg, display_id, cell_index)


def settle_outputs(notebook) -> None:
    """Keep of the outputs what a reader of the saved page can see.

    The pieces of a stream are joined, of a line that a bar rewrote its last state stays, as on a
    terminal, and widgets are left out.
    """
    for cell in notebook.cells:
        joined: list = []
        for output in cell.get("outputs", []):
            if "application/vnd.jupyter.widget-view+json" in output.get("data", {}):
                continue  # dead without its kernel, and its state would hold the bytes of pictures
            if output.output_type == "stream" and joined and joined[-1].get("name") == output.name:
                joined[-1].text += output.text
            else:
                joined.append(output)
        for output in joined:
            if output.output_type == "stream":
                lines = output.text.replace("\r\n", "\n").split("\n")
                output.text = "\n".join(re.sub(r"\r+$", "", line).rpartition("\r")[2] for line in lines)
        if cell.cell_type == "code":
            cell.outputs = joined


def execute(name: str, parameters: dict, target: Path) -> Path:
    """Run the notebook ``name`` with ``parameters``; write it, executed, to ``target`` and as HTML.

    Raises:
        NotebookError: a cell failed. What ran up to there is written all the same.
    """
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    source = load_notebook_node(str(FOLDER / f"{name}.ipynb"))
    notebook = parameterize_notebook(source, parameters)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    runner = Runner(
        notebook,
        timeout=None,
        kernel_name="python3",
        resources={"metadata": {"path": str(REPO)}},  # the kernel's folder, whatever the caller's
        store_widget_state=False,  # it would hold the bytes of pictures
        extra_arguments=["--log-level=ERROR"],
    )
    runner.progress = Progress(name, len(notebook.cells))
    runner.on_cell_start = lambda cell, cell_index: setattr(runner.progress, "cell", cell_index + 1)
    try:
        runner.execute()
    except (CellExecutionError, DeadKernelError) as error:
        raise NotebookError(explain(name, notebook, runner.progress.cell - 1, error)) from error
    finally:
        keep(notebook, target)
    return target


def keep(notebook, target: Path) -> None:
    """Write an executed notebook and its page; a full disk must not hide why the notebook failed."""
    settle_outputs(notebook)
    try:
        nbformat.write(notebook, target)
        write_html(notebook, target.with_suffix(".html"))
    except OSError as error:
        print(f"  The executed notebook could not be written: {error.strerror}.", file=sys.stderr)


def explain(name: str, notebook, index: int, error: Exception) -> str:
    """Say in which cell a notebook failed and with which error."""
    where = f"notebook {name}, cell {index + 1} ({title_above(notebook, index)})"
    if isinstance(error, CellExecutionError):
        full = "No space left" in error.evalue
        advice = " Free some space: the same command goes on from there." if full else ""
        return f"{where} failed with {error.ename}: {error.evalue}{advice}"
    return f"{where}: the kernel died (most often: out of memory). The same command goes on from there."


def write_html(notebook, target: Path) -> None:
    """Write a notebook as one self-contained HTML page."""
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(template_name="lab").from_notebook_node(notebook)
    target.write_text(page, encoding="utf-8")


def publish(name: str, executed: Path) -> None:
    """Write an executed notebook over the repository's, without what belongs to one run alone."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    counted = itertools.count(1)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name[:2]}-{number:02d}"
        if cell.cell_type == "code":
            cell.execution_count = next(counted)
            lighten(cell.outputs)
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = cell.execution_count
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def lighten(outputs: list) -> None:
    """Give the large pictures among a cell's outputs 64 colours: a third of the bytes, and nobody sees it."""
    for output in outputs:
        picture = output.get("data", {}).get("image/png", "")
        if len(picture) > LARGE:
            buffer = io.BytesIO()
            image = Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB")
            image.quantize(64, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
            output["data"]["image/png"] = base64.b64encode(buffer.getvalue()).decode()


def publish_picture(work: Path, count: int = 4) -> None:
    """Draw README's picture from the first examples of a finished demo stage."""
    import pandas as pd

    from utils import plots, results
    from utils.stages import open_stage

    table = pd.read_csv(open_stage("05_caption_demo", work).path / "gallery.csv").head(count)
    images = results.read_images(open_stage("02_preprocess", work), "test", table["image_id"].tolist())
    plots.caption_gallery(images, table).savefig(REPO / ".github" / "gallery.png")
