"""The pictures of an evaluation: tables of scores in, Figure out. Nothing is scored or resampled here.

A score runs from 0 to 1 unless its label says otherwise; ``n`` is the number of images that count. An
interval that is not there (NaN in ``low`` and ``high``) is not drawn.
"""

import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image

from utils.plots import BASE, COMMON, DROPPED, INK, TUNED, caption_gallery
from utils.training_plots import name_above

COLOURS = {"most common caption": COMMON, "nearest image": DROPPED[2], "base": BASE, "tuned": TUNED,
           "reference": INK}  # fmt: skip
FEW = 20  # images: a group of fewer says little, and its bars are hatched
FACETS = ("modality", "region", "finding", "side")


def headline(table: pd.DataFrame, names: list[str]) -> Figure:
    """Draw a small panel a metric: each system a dot, its 95 % interval a bar, its value in figures.

    Args:
        table: one row a system and metric; columns system, metric, label, value, low, high, n.
        names: the metrics to draw, in this order.

    Raises:
        ValueError: the table lacks one of them.
    """
    if missing := [name for name in names if name not in set(table["metric"])]:
        raise ValueError(f"The table has no metric {', '.join(missing)}: score it, or leave its name out.")
    systems, most = table["system"].drop_duplicates().tolist(), table["n"].max()
    rows, columns = max(1, -(-len(names) // 4)), max(1, min(4, len(names)))
    size = (max(6.5, 1.6 + 2.3 * columns), 0.8 + rows * (0.6 + 0.25 * len(systems)))
    figure, panels = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False,
                                  layout="constrained")  # fmt: skip
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes, name in zip(panels.flat, names, strict=False):
        dots(axes, table[table["metric"] == name].set_index("system").reindex(systems), most)
    panels[0, 0].set_yticks(range(len(systems)), systems)
    panels[0, 0].set_ylim(len(systems) - 0.5, -0.5)
    figure.suptitle(f"95 % intervals, paired bootstrap over n = {most:,.0f} images", x=0.01, ha="left",
                    fontsize=11, fontweight="bold")  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.1)  # a panel's figures must not seem to belong to the next
    figure.supxlabel("score, 0 to 1 where the panel names no other scale", fontsize=9)
    return figure


def dots(axes: Axes, rows: pd.DataFrame, most: int) -> None:
    """Draw one metric of all systems; a panel of fewer than ``most`` images says how many it has."""
    places, colours = range(len(rows)), [COLOURS[system] for system in rows.index]
    axes.hlines(places, rows["low"], rows["high"], colors=colours, linewidth=6, alpha=0.45)
    axes.scatter(rows["value"], places, color=colours, s=10, zorder=3)
    for place, value in zip(places, rows["value"], strict=True):
        axes.text(1.03, place, written(value), transform=axes.get_yaxis_transform(), va="center", fontsize=8)
    ends = rows[["value", "low", "high"]].astype(float).to_numpy()
    lowest, highest = (np.nanmin(ends), np.nanmax(ends)) if np.isfinite(ends).any() else (0, 1)
    # Scores that are nothing but rounding do not fill a panel.
    axes.set_xlim(min(0, 1.08 * lowest), max(1.08 * highest, 0.01) if highest > 0 else 1)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.tick_params(axis="x", labelsize=8)
    n, label = rows["n"].max(), rows["label"].dropna().iloc[0]
    note = "" if n == most else f" (n\u00a0=\u00a0{n:,.0f})"  # no line breaks in it
    axes.set_title(textwrap.fill(label + note, 27), fontsize=9)


def written(value: float, sign: str = "") -> str:
    """Return a score in figures, three decimals below 10; "–" where it is undefined."""
    if pd.isna(value):
        return "–"
    digits = 3 if abs(value) < 10 else 1
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")  # no -0.000


def difference_plot(table: pd.DataFrame) -> Figure:
    """Draw how far tuned lies above base, a line a metric, with its 95 % interval in figures beside it.

    Args:
        table: one row a metric; columns metric, label, value, low, high, n. Metrics from 0 to 1, and CIDEr
            (metric names that begin with "cider"), which is divided by 10 to share their scale.
    """
    tenths = table["metric"].str.startswith("cider")
    values = table[["value", "low", "high"]].div(np.where(tenths, 10, 1), axis=0)
    labels = [label + " / 10" if ten else label for label, ten in zip(table["label"], tenths, strict=True)]
    figure, axes = plt.subplots(figsize=(9, 1.1 + 0.27 * len(table)), layout="constrained")
    for place, (value, low, high) in enumerate(values.itertuples(index=False)):
        colour = TUNED if low > 0 else DROPPED[1] if high < 0 else BASE
        axes.hlines(place, low, high, color=colour, linewidth=6, alpha=0.45)
        axes.scatter(value, place, color=colour, s=10, zorder=3)
        interval = "" if pd.isna(low) else f"  [{written(low, '+')}, {written(high, '+')}]"
        axes.text(1.02, place, written(value, "+") + interval, transform=axes.get_yaxis_transform(),
                  va="center", fontsize=8.5)  # fmt: skip
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(table)), labels)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlabel("tuned minus base (bar: 95 % interval, grey where it holds 0 or there is none)")
    axes.set_title(f"What tuning changed, n = {table['n'].max():,.0f} images")
    return figure


def by_group(table: pd.DataFrame, title: str, label: str) -> Figure:
    """Draw one metric group by group, a bar a system, with its 95 % interval; small groups are hatched.

    Args:
        table: one row a group and system; columns group (None is "unknown"), n, system, value, low, high.
        title: of the figure.
        label: of the metric.
    """
    table = table.assign(group=table["group"].fillna("unknown"))
    sizes = table.groupby("group", sort=False)["n"].max()
    systems = table["system"].drop_duplicates().tolist()
    figure, axes = plt.subplots(figsize=(max(8, 0.6 + 1.15 * len(sizes)), 3.4), layout="constrained")
    width = 0.8 / len(systems)
    for number, system in enumerate(systems):
        rows = table[table["system"] == system].set_index("group").reindex(sizes.index)
        places = np.arange(len(sizes)) + width * (number - (len(systems) - 1) / 2)
        bars = axes.bar(places, rows["value"], 0.92 * width, color=COLOURS[system], label=system)
        for bar, n in zip(bars, sizes, strict=True):
            bar.set(**hatched(n))
        axes.vlines(places, rows["low"], rows["high"], color=INK, linewidth=1.2)
    names = [f"{textwrap.fill(group, 15, break_long_words=False)}\nn = {n:,}" for group, n in sizes.items()]
    axes.set_xticks(range(len(sizes)), names, fontsize=9, parse_math=False)
    axes.set_ylabel(label)
    if table["low"].notna().any():
        axes.set_xlabel("thin line: 95 % interval", fontsize=8.5)
    handles, labels = axes.get_legend_handles_labels()
    if (sizes < FEW).any():
        handles.append(Patch(facecolor=BASE, **hatched(0)))
        labels.append(f"fewer than {FEW} images")
    name_above(axes, title, handles, labels)
    return figure


def hatched(n: int) -> dict:
    """Return how the bars of a group of ``n`` images look."""
    return {"hatch": "////", "edgecolor": "white", "alpha": 0.5} if n < FEW else {}


def length_distribution(words: pd.DataFrame) -> Figure:
    """Draw how many words the captions have: columns reference, base, tuned, one row an image."""
    top = int(np.ceil(np.nanquantile(words.to_numpy(float), 0.99))) + 1
    step = -(-top // 40)
    top = -(-top // step) * step  # the last step begins with it
    edges = np.arange(0, top + step + 1, step) - 0.5
    figure, axes = plt.subplots(figsize=(9, 3), layout="constrained")
    for name, counts in words.items():
        shares, label = np.full(len(words), 100 / len(words)), f"{name} (median {counts.median():.0f})"
        axes.hist(counts.clip(upper=top), edges, weights=shares, histtype="step", linewidth=1.8,
                  color=COLOURS[name], label=label)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel=f"words of a caption (last step: {top} and more)", ylabel="share of captions (%)")
    name_above(axes, f"Length of the captions, n = {len(words):,} images", *axes.get_legend_handles_labels())
    return figure


def score_distribution(scored: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Draw the captions' own scores, base against tuned: the share of images at or below each score.

    Args:
        scored: columns ``base_``/``tuned_`` and the metric's name, one row an image.
        names: metric -> label, a panel each.
    """
    rows, columns = -(-len(names) // 3), min(3, len(names))
    size = (max(6.5, 3.6 * columns), 2.9 * rows)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in panels.flat[len(names) :]:
        axes.set_visible(False)
    for axes, (name, label) in zip(panels.flat, names.items(), strict=False):
        both = scored[[f"base_{name}", f"tuned_{name}"]].dropna()
        for system in ("base", "tuned"):
            values = both[f"{system}_{name}"]
            name_and_median = f"{system} (median {values.median():.2f})"
            if len(both):
                axes.ecdf(values, color=COLOURS[system], linewidth=1.8, label=name_and_median)
        axes.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f}")
        axes.set(xlabel=label, ylabel="images at or below (%)")
        name_above(axes, f"{label}, n = {len(both):,}", *axes.get_legend_handles_labels())
    return figure


def calibration(scored: pd.DataFrame) -> Figure:
    """Draw how sure the models were of their captions against how good those are.

    Args:
        scored: one row an image; columns ``{tuned,base}_token_logprobs`` (lists of natural logarithms; an
            empty one does not count) and ``{tuned,base}_rouge_l``.
    """
    figure, panels = plt.subplots(1, 2, figsize=(10.5, 3.5), sharex=True, sharey=True, layout="constrained")
    for axes, system in zip(panels, ("tuned", "base"), strict=True):
        points = sureness(scored, system)
        alpha = float(np.clip(60 / max(1, len(points)), 0.06, 0.6))
        axes.plot(points["sure"], points["score"], ".", color=COLOURS[system], alpha=alpha)
        axes.plot([], [], ".", color=COLOURS[system], label="an image")  # the legend's, not so pale
        # Of equal counts: images crowd where the model is sure.
        parts = np.array_split(points.to_numpy(), max(1, min(10, len(points) // 3)))
        means = np.reshape([part.mean(axis=0) for part in parts if len(part)], (-1, 2))
        label = f"means (groups of equal size: {len(means)})"
        axes.plot(*means.T, "o-", color=INK, markersize=4, label=label)
        rho = points["sure"].rank().corr(points["score"].rank())  # NaN where one of them is constant
        axes.set_xlabel("mean log-probability of a token (nats)")
        title = f"{system}: Spearman's rho {written(rho, '+')}, n = {len(points):,} images"
        name_above(axes, title, *axes.get_legend_handles_labels())
    panels[0].set_ylabel("ROUGE-L of the caption")
    return figure


def sureness(scored: pd.DataFrame, system: str) -> pd.DataFrame:
    """Return the columns sure (mean log-probability of a token) and score (ROUGE-L), the least sure first."""
    means = [np.mean(tokens) if len(tokens) else np.nan for tokens in scored[f"{system}_token_logprobs"]]
    points = pd.DataFrame({"sure": means, "score": scored[f"{system}_rouge_l"].to_numpy(float)})
    return points.dropna().sort_values("sure", kind="stable")


def score_line(row: pd.Series, system: str) -> str:
    """Return one caption's scores in a line: "ROUGE-L .42 · CIDEr 1.3 · facts 3/4"."""
    right = sum(bool(row[f"{system}_{facet}_right"]) for facet in FACETS)
    overlap = f"{row[f'{system}_rouge_l']:.2f}".removeprefix("0")
    return f"ROUGE-L {overlap} · CIDEr {row[f'{system}_cider']:.1f} · facts {right}/{len(FACETS)}"


def origin(row: pd.Series) -> str:
    """Return an image's modality and id in a line."""
    return f"{'unknown modality' if pd.isna(row['modality']) else row['modality']} · {row['image_id']}"


def gallery(images: list[Image.Image], scored: pd.DataFrame, title: str) -> Figure:
    """Draw images beside their captions and the scores of these, two a row, under a title.

    Args:
        images: one a row of ``scored``.
        scored: columns image_id, modality, reference, base, tuned and the scores of ``score_line``.
        title: of the figure.
    """
    notes = [{"reference_note": origin(row), "base_note": score_line(row, "base"),
              "tuned_note": score_line(row, "tuned")} for _, row in scored.iterrows()]  # fmt: skip
    return caption_gallery(images, scored.join(pd.DataFrame(notes, scored.index)), title)
