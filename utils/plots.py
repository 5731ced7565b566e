"""Data in, Figure out. Nothing is read or computed here but what a picture needs.

In a notebook a figure shows itself at the end of its cell; elsewhere use its ``savefig``.
"""

import textwrap
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator
from PIL import Image

INK, KEPT = "#22313f", "#2a7f8e"
DROPPED = ("#d9a441", "#c2603f", "#8a6fa8", "#7d8b99", "#b5b04c", "#4d8b57", "#b56a9c", "#5b7fb8")
BASE, TUNED, COMMON = "#9aa7b4", "#2a7f8e", "#d9a441"
LINES = (KEPT, *DROPPED)  # as many as there are modalities, with "unknown"
plt.rcParams.update({
    "figure.dpi": 80, "savefig.dpi": 110, "savefig.bbox": "tight", "font.size": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": INK,
    "axes.titleweight": "bold", "axes.titlesize": 11, "axes.titlelocation": "left",
})  # fmt: skip


def funnel(counts: dict[str, dict[str, int]]) -> Figure:
    """Draw how many pairs of each split stay, and why the others do not.

    Args:
        counts: split -> reason -> pairs, "kept" first.
    """
    figure, axes = plt.subplots(figsize=(9, 2.6))
    reasons = list(next(iter(counts.values())))
    left = np.zeros(len(counts))
    totals = np.maximum([sum(row.values()) for row in counts.values()], 1)
    for number, reason in enumerate(reasons):
        width = np.array([row[reason] for row in counts.values()]) / totals
        colour = KEPT if reason == "kept" else DROPPED[(number - 1) % len(DROPPED)]
        bars = axes.barh(list(counts), width, left=left, color=colour, label=reason)
        labels = [
            f"{row[reason]:,}" if w > 0.06 else "" for row, w in zip(counts.values(), width, strict=True)
        ]
        axes.bar_label(bars, labels, label_type="center", color="white", fontsize=9)
        left += width
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.set_xlim(0, 1)
    axes.set_title("Pairs by split and reason")
    axes.legend(ncols=1, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize=9)
    return figure


def image_grid(images: list[Image.Image], titles: list[str], columns: int = 6) -> Figure:
    """Draw pictures with a short title over each, ``columns`` a row."""
    rows = max(1, -(-len(images) // columns))
    figure, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.25 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        name_it(axis, title)
    figure.tight_layout()
    return figure


def name_it(axis, title: str) -> None:
    """Write a small title over a picture; ``$`` is text, not mathematics."""
    axis.set_title(textwrap.fill(title, 24), fontsize=8, fontweight="normal", loc="center", parse_math=False)


def token_lengths(lengths: pd.Series, limit: int) -> Figure:
    """Draw the training captions' lengths in tokens, with the limit at which they are cut."""
    figure, axes = plt.subplots(figsize=(8, 2.8))
    top = int(max(limit * 1.5, lengths.quantile(0.99))) + 1
    step = -(-top // 80)  # whole tokens, or the bars would beat against them
    axes.hist(lengths.clip(upper=top), bins=np.arange(0, top + step + 1, step) - 0.5, color=KEPT)
    axes.axvline(limit, color=DROPPED[1], linewidth=2)
    longer = int((lengths > limit).sum())
    axes.set(xlabel=f"tokens of a caption, with its end (last bar: {top} and more)", ylabel="captions")
    axes.set_title(f"Length of the training captions: {longer:,} are cut at {limit} tokens")
    return figure


def modes_and_colour(table: pd.DataFrame) -> Figure:
    """Draw how many images of each mode (rows) hold only grey pixels, and how many hold colour."""
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.4 * max(1, len(table))))
    left = np.zeros(len(table))
    for name, colour in zip(table.columns, (DROPPED[3], DROPPED[1]), strict=True):
        bars = axes.barh(table.index, table[name], left=left, color=colour, label=name)
        big = table[name] > 0.05 * table.to_numpy().sum()
        labels = [f"{n:,}" if wide else "" for n, wide in zip(table[name], big, strict=True)]
        axes.bar_label(bars, labels, label_type="center", color="white", fontsize=9)
        left += table[name].to_numpy()
    axes.invert_yaxis()
    axes.set(xlabel="images", title="Mode of the file, and what its pixels show")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def caption_words(counts: pd.DataFrame) -> Figure:
    """Draw the lengths of captions in words, the splits beside each other.

    Args:
        counts: columns split and words, one row a caption.
    """
    most = int(counts["words"].quantile(0.99)) + 1 if len(counts) else 1
    step = -(-most // 40)
    top = -(-most // step) * step  # the last step begins with it
    edges = np.arange(0, top + step + 1, step) - 0.5
    figure, axes = plt.subplots(figsize=(8, 2.8))
    for (split, rows), colour in zip(counts.groupby("split", sort=False), (KEPT, *DROPPED), strict=False):
        shares = np.full(len(rows), 1 / len(rows))
        axes.hist(rows["words"].clip(upper=top), edges, weights=shares, histtype="step", linewidth=1.8,
                  color=colour, label=f"{split} (median {rows['words'].median():.0f})")  # fmt: skip
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"words of a caption (last step: {top} and more)", ylabel="captions of the split")
    axes.set_title("Length of the captions")
    if len(counts):
        axes.legend(frameon=False)
    return figure


def before_after(originals: list[Image.Image], prepared: list[Image.Image], titles: list[str]) -> Figure:
    """Draw original pictures above what was made of them."""
    columns = max(1, len(titles))
    figure, axes = plt.subplots(2, columns, figsize=(1.9 * columns, 4.4), squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=True, color=BASE)
    for row, (images, name) in enumerate(((originals, "original"), (prepared, "prepared"))):
        for axis, image, title in zip(axes[row], images, titles, strict=False):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            note = title if row == 0 else f"{image.width}×{image.height}"
            name_it(axis, note)
        axes[row][0].set_ylabel(name)
    figure.tight_layout()
    return figure


def brightness(table: pd.DataFrame) -> Figure:
    """Draw the share of pixels at each of 32 steps of brightness (columns 0 to 31), a line a row."""
    figure, axes = plt.subplots(figsize=(8, 2.8))
    edges = np.arange(33) * 8
    for (name, row), colour in zip(table.iterrows(), LINES, strict=False):
        shares = row[list(range(32))].astype(float)
        axes.stairs(shares, edges, baseline=None, color=colour, linewidth=1.5, label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    axes.set(xlabel="brightness of a pixel (0 is black, 255 white)", ylabel="share of pixels")
    axes.set_title("Brightness by modality")
    if len(table):
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def confusion(matrix: pd.DataFrame) -> Figure:
    """Draw which modality the captions name (columns) for which modality of the image (rows)."""
    matrix = matrix.loc[:, [c in matrix.index or matrix[c].any() for c in matrix.columns]]
    share = matrix.div(matrix.sum(axis=1).replace(0, 1), axis=0)
    figure, axes = plt.subplots(figsize=(1.2 + 0.9 * matrix.shape[1], 1 + 0.5 * matrix.shape[0]))
    axes.imshow(share, cmap="BuGn", vmin=0, vmax=1.2, aspect="auto")
    for (row, column), value in np.ndenumerate(matrix.to_numpy()):
        if value:
            colour = "white" if share.iat[row, column] > 0.5 else INK
            axes.text(column, row, str(value), ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(matrix.shape[1]), matrix.columns, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(matrix.shape[0]), matrix.index)
    axes.set(xlabel="named in the tuned caption", ylabel="modality of the image")
    axes.set_title(f"Modality, n = {matrix.to_numpy().sum():,} images")
    return figure


def caption_gallery(images: list[Image.Image], captions: pd.DataFrame, title: str = "") -> Figure:
    """Draw images beside their reference, base and tuned captions, two a row.

    Args:
        images: one a row of ``captions``.
        captions: columns image_id, reference, base, tuned; where there are, reference_note, base_note and
            tuned_note stand beside the captions' names.
        title: over all of them; none where it is empty.
    """
    rows, head = max(1, -(-len(images) // 2)), 0.4 if title else 0.1
    height = head + 2.1 * rows
    figure, axes = plt.subplots(
        rows, 4, figsize=(11, height), width_ratios=(1, 1.75) * 2, squeeze=False,
        gridspec_kw={"left": 0.01, "right": 0.99, "bottom": 0, "top": 1 - head / height, "wspace": 0.05,
                     "hspace": 0.07},
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for number, (image, (_, row)) in enumerate(zip(images, captions.iterrows(), strict=True)):
        picture, text = axes[number // 2, number % 2 * 2], axes[number // 2, number % 2 * 2 + 1]
        picture.imshow(image, cmap="gray", vmin=0, vmax=255)
        write_captions(text, [(name, row[name], colour, row.get(f"{name}_note", "")) for name, colour in
                              (("reference", INK), ("base", "#6b7884"), ("tuned", TUNED))])  # fmt: skip
    figure.suptitle(title, x=0.01, y=1 - 0.08 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    return figure


def write_captions(axis, parts: list[tuple[str, str, str, str]]) -> None:
    """Write captions below each other (name, caption, colour, note), each cut to what fits."""
    down = 0
    for name, caption, colour, note in parts:
        lines = three_lines(" ".join(caption.split()) or "(empty)")
        write = partial(axis.annotate, xy=(0, 1), textcoords="offset points", va="top", color=colour,
                        parse_math=False)  # fmt: skip
        write(name, xytext=(0, down), fontsize=8, fontweight="bold")
        if note:
            write(note, xytext=(54, down), fontsize=8)
        write("\n".join(lines), xytext=(0, down - 11), fontsize=9)
        down -= 16 + 11 * len(lines)


def three_lines(caption: str, width: float = 236) -> list[str]:
    """Break a caption into at most three lines of ``width`` points at size 9."""
    font = FontProperties(size=9)
    for letters in (46, 38, 30, 22):  # capitals are wide
        lines = textwrap.wrap(caption, letters, max_lines=3, placeholder=" …")
        if max(text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines) < width:
            break
    return lines
