"""The pictures of a training run, drawn from ``log.jsonl`` alone: curves, and captions over time."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from PIL import Image

from utils.plots import BASE, COMMON, DROPPED, INK, TUNED
from utils.results import caption_table

ROUGE = DROPPED[2]
GPUS = (TUNED, *DROPPED)


def training_curves(log: pd.DataFrame) -> Figure:
    """Draw a run: losses and scores above, then learning rate, speed, memory and GPU utilisation.

    A panel whose figures the log does not hold is left out.

    Args:
        log: ``results.read_log``; a run of several sessions is one curve.
    """
    top = [draw for draw, column in ((losses, "eval_loss"), (scores, "eval_cider")) if has(log, column)]
    small = ((learning_rate, "learning_rate"), (speed, "images_per_s"),
             (memory, "memory_gib"), (utilisation, "gpu_util"))  # fmt: skip
    bottom = [draw for draw, column in small if has(log, column)]
    rows = [row for row in (top or [losses], bottom) if row]
    heights = (3.2, 2.2)[: len(rows)]
    figure = plt.figure(figsize=(10.5, sum(heights)), layout="constrained")
    # Figures of their own: in one grid the columns of the one row would push those of the other.
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)
    for part, row in zip(parts.flat, rows, strict=True):
        for axes, draw in zip(part.subplots(1, len(row), squeeze=False).flat, row, strict=True):
            draw(axes, log)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure


def has(log: pd.DataFrame, column: str) -> bool:
    """Tell whether any line of the log holds a figure of this name."""
    return column in log and bool(log[column].notna().any())


def losses(axes: Axes, log: pd.DataFrame) -> None:
    """Draw the loss of training and validation, with the best step."""
    train, valid = log.dropna(subset=["loss"]), log.dropna(subset=["eval_loss"])
    axes.plot(train["step"], train["loss"], color=BASE, linewidth=1.2, label="training")
    axes.plot(valid["step"], valid["eval_loss"], "o-", color=TUNED, markersize=4, label="validation")
    if len(valid):
        mark_best(axes, valid.loc[valid["eval_loss"].idxmin()], "eval_loss", "best")
    mark_sessions(axes, log, "continued")
    axes.set_ylabel("loss per token (nats)")
    spread_low_values(axes, pd.concat([train["loss"], valid["eval_loss"]]))
    name_above(axes, "Loss", *axes.get_legend_handles_labels())


def spread_low_values(axes: Axes, values: pd.Series) -> None:
    """Give a loss that falls to a fifth a logarithmic axis: its first steps would flatten the rest."""
    if len(values) and values.min() > 0 and values.max() > 5 * values.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())


def scores(axes: Axes, log: pd.DataFrame) -> None:
    """Draw CIDEr, and ROUGE-L on an axis of its own: their sizes differ several times."""
    rows = log.dropna(subset=["eval_cider"])
    axes.plot(rows["step"], rows["eval_cider"], "o-", color=TUNED, markersize=4, label="CIDEr (left)")
    mark_best(axes, rows.loc[rows["eval_cider"].idxmax()], "eval_cider", "best CIDEr")
    mark_sessions(axes, log)
    axes.set_ylabel("CIDEr", color=TUNED)
    axes.set_ylim(0, 1.15 * max(rows["eval_cider"].max(), 1e-3))
    handles = axes.get_legend_handles_labels()
    if has(log, "eval_rouge_l"):
        handles = [a + b for a, b in zip(handles, rouge(axes.twinx(), rows), strict=True)]
    name_above(axes, "Captions of some validation images", *handles)


def name_above(axes: Axes, title: str, handles: list, labels: list[str]) -> None:
    """Write title and legend above the panel: inside, a line at the best step may run anywhere."""
    axes.set_title(title, pad=20)
    legend = axes.legend(
        handles, labels, frameon=False, fontsize=8.5, ncols=len(labels), loc="lower left",
        bbox_to_anchor=(0, 1), borderaxespad=0, borderpad=0.2, handlelength=1.4, columnspacing=1,
        handletextpad=0.5,
    )  # fmt: skip
    legend.set_in_layout(False)  # the title's distance is its room


def rouge(axes: Axes, rows: pd.DataFrame) -> tuple[list, list]:
    """Draw ROUGE-L on the right axis and return its handle and label for the legend."""
    axes.plot(rows["step"], rows["eval_rouge_l"], "s--", color=ROUGE, markersize=3.5, label="ROUGE-L (right)")
    axes.set_ylabel("ROUGE-L", color=ROUGE)
    axes.set_ylim(0, 1.15 * max(rows["eval_rouge_l"].max(), 1e-3))
    axes.spines["right"].set_visible(True)
    return axes.get_legend_handles_labels()


def mark_best(axes: Axes, row: pd.Series, column: str, name: str) -> None:
    """Draw a line at the best evaluation; the legend says its step and its value."""
    label = f"{name} {row[column]:.3g}, step {row['step']:.0f}"
    axes.axvline(row["step"], color=COMMON, linewidth=1.5, zorder=1, label=label)


def mark_sessions(axes: Axes, log: pd.DataFrame, label: str | None = None) -> None:
    """Draw a dotted line at each step from which a stopped run went on; one label for all of them."""
    sessions = log["session"].fillna(1)
    for step in log["step"].shift()[sessions.diff() > 0]:
        axes.axvline(step, color=INK, linewidth=0.9, linestyle=":", zorder=1, label=label)
        label = None


def learning_rate(axes: Axes, log: pd.DataFrame) -> None:
    """Draw the learning rate by step."""
    one_line(axes, log, "learning_rate")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    # matplotlib would write its own power of ten where the title stands.
    axes.yaxis.set_major_formatter(lambda rate, _: f"{1e4 * rate:g}")
    axes.set_title("Learning rate (1e-4)")


def speed(axes: Axes, log: pd.DataFrame) -> None:
    """Draw the training images a second, over all ranks."""
    one_line(axes, log, "images_per_s")
    axes.set_title("Images a second")


def one_line(axes: Axes, log: pd.DataFrame, column: str) -> None:
    """Draw one figure of the log by step, from 0 up."""
    rows = log.dropna(subset=[column])
    axes.plot(rows["step"], rows[column], color=TUNED, linewidth=1.5)
    mark_sessions(axes, log)
    axes.set_ylim(0, 1.15 * max(rows[column].max(), 1e-12))


def memory(axes: Axes, log: pd.DataFrame) -> None:
    """Draw the memory in GiB: the peak of each GPU so far, or what the first rank holds on a CPU."""
    on_gpus = has(log, "gpu_util")
    one_line_a_gpu(axes, log, "memory_gib", legend=on_gpus)
    axes.set(title="Peak memory (GiB)" if on_gpus else "Memory of rank 0 (GiB)")


def utilisation(axes: Axes, log: pd.DataFrame) -> None:
    """Draw how busy each GPU is, in percent."""
    one_line_a_gpu(axes, log, "gpu_util", legend=True)
    axes.set(title="GPUs busy (%)", ylim=(0, 105))


def one_line_a_gpu(axes: Axes, log: pd.DataFrame, column: str, legend: bool) -> None:
    """Draw a column of lists, one line for each place in them; sessions may differ in their GPUs."""
    rows = log.dropna(subset=[column])
    table = pd.DataFrame([dict(enumerate(figures)) for figures in rows[column]], index=rows["step"])
    for number, colour in zip(table, GPUS, strict=False):
        style = "--" if number % 2 else "-"  # two GPUs often show the same figures
        axes.plot(table.index, table[number], style, color=colour, linewidth=1.5, label=f"GPU {number}")
    mark_sessions(axes, log)
    axes.set_ylim(0, 1.15 * max(table.max().max(), 1e-12))
    if legend:
        axes.legend(frameon=False, fontsize=8, loc="lower right")


def captions_over_time(images: list[Image.Image], samples: pd.DataFrame, count: int = 4) -> Figure:
    """Draw validation images, a row each: the picture, its reference, its caption at ``count`` steps.

    Args:
        images: one for each image of ``samples``, in the order in which they first stand there.
        samples: columns step, image_id, reference, caption (``results.read_samples``).
        count: evaluations to show, from the first to the last.
    """
    table = caption_table(samples, count)
    rows, columns = max(1, len(table)), 1 + max(1, table.shape[1])
    figure, axes = plt.subplots(
        rows, columns, figsize=(1.5 + 1.9 * (columns - 1), 1.45 * rows), squeeze=False,
        width_ratios=(1.4, *[1.9] * (columns - 1)),
        gridspec_kw={"left": 0, "right": 1, "bottom": 0, "top": 1, "wspace": 0.05, "hspace": 0.08},
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    captions_of = table.itertuples(index=False)
    for line, image, captions in zip(axes[: len(table)], images, captions_of, strict=True):
        line[0].imshow(image, cmap="gray", vmin=0, vmax=255)
        for axis, caption in zip(line[1:], captions, strict=True):
            write_caption(axis, caption)
    for axis, name in zip(axes[0][1:], table, strict=False):
        axis.set_title(name, fontsize=9, color=INK if name == "reference" else TUNED)
    return figure


def write_caption(axis: Axes, caption: str) -> None:
    """Write a caption from the top of its cell, cut to what fits; ``$`` is text, not mathematics."""
    lines = textwrap.wrap(" ".join(caption.split()), 25, max_lines=7, placeholder=" …")
    axis.text(0, 1, "\n".join(lines), fontsize=8.5, color=INK, va="top", parse_math=False)


def study(runs: pd.DataFrame) -> Figure:
    """Draw the rows of a study: each run a dot, the mean a bar, the standard deviation its whisker.

    Args:
        runs: ``results.read_study``.
    """
    measures = (("validation_loss", "validation loss (nats per token)"), ("cider", "CIDEr"),
                ("all_right_share", "captions with all facts right"))  # fmt: skip
    names = runs["row"].drop_duplicates().tolist()
    figure, panels = plt.subplots(1, 3, figsize=(10.5, 0.6 + 0.34 * len(names)), sharey=True,
                                  layout="constrained")  # fmt: skip
    for axes, (column, title) in zip(panels, measures, strict=True):
        for place, name in enumerate(names):
            values = runs.loc[runs["row"] == name, column].astype(float).dropna()
            if len(values):
                axes.errorbar(values.mean(), place, xerr=values.std(ddof=1) if len(values) > 1 else None,
                              fmt="|", markersize=12, color=INK, capsize=3, zorder=3)  # fmt: skip
                axes.plot(values, [place] * len(values), "o", color=TUNED, markersize=5, alpha=0.7)
        axes.set(title=title)
        axes.grid(axis="y", color=BASE, alpha=0.3)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    return figure
