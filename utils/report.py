"""``metrics.json`` -> the tables of notebook 04: every number that it shows comes from that file alone."""

from collections.abc import Iterable

import pandas as pd

from utils.card import card_text, modes_told, scores_text
from utils.published import SCORES, published_table
from utils.stages import StageFolder

# metric -> its name in tables and figures; raw twins, on the text as written, have the suffix _raw
LABELS = {
    "bleu_1": "BLEU-1", "bleu_2": "BLEU-2", "bleu_3": "BLEU-3", "bleu_4": "BLEU-4",
    "rouge_1": "ROUGE-1", "rouge_l": "ROUGE-L", "cider": "CIDEr-D (0 to 10)",
    "cider_plain": "CIDEr, unclipped (0 to 10)", "chrf": "chrF", "meteor": "METEOR 1.5",
    "bertscore_f1": "BERTScore F1, no idf", "bertscore_f1_idf": "BERTScore F1, idf",
    "concept_precision": "concept precision", "concept_recall": "concept recall",
    "concept_f1": "concept F1", "invented_share": "captions that invent a concept",
    "modality_accuracy": "modality right", "region_accuracy": "region right",
    "finding_accuracy": "finding right", "side_accuracy": "side right",
    "all_right_share": "all four right", "laterality_agreement": "laterality agreement",
    "side_flip_share": "sides flipped", "negation_flip_share": "negations flipped",
    "length_ratio": "length ratio", "unique_share": "unique captions",
    "repetition": "repeated trigrams", "empty_share": "empty captions",
    "cut_share": "cut at the limit", "mean_words": "words a caption",
}  # fmt: skip
HEADLINE = ("bleu_1", "bleu_4", "rouge_l", "cider", "chrf", "concept_f1", "modality_accuracy",
            "finding_accuracy", "side_accuracy", "all_right_share", "length_ratio",
            "unique_share")  # fmt: skip
SHARES = HEADLINE[:10]  # from 0 to 1, but for CIDEr, and higher is better: their difference means something
COMPARED = {"modes": "image modes", "text": "text normalised by", "bertscore_model": "BERTScore's model",
            "meteor": "METEOR"}  # fmt: skip
NOTHING = "–"


def label(metric: str, model: str | None = None) -> str:
    """Return a metric's name as tables show it; BERTScore's is nothing without its ``model``."""
    plain = metric.removesuffix("_raw")
    by = f" ({(model or '').rpartition('/')[2]})" if plain.startswith("bertscore") else ""
    return LABELS[plain] + by + (", raw text" if plain != metric else "")


def cell(figure: dict | None, signed: bool = False) -> str:
    """Write a figure and its interval: "0.512 [0.490, 0.533]"."""
    if figure is None or figure["value"] is None:
        return NOTHING
    parts = [figure[name] for name in ("value", "low", "high") if figure[name] is not None]
    # Adding 0 takes the sign from a rounded -0.
    value, *interval = (f"{round(part, 3) + 0.0:{'+.3f' if signed else '.3f'}}" for part in parts)
    return f"{value} [{', '.join(interval)}]" if interval else value


def in_order(written: dict) -> list[str]:
    """List every metric that was computed for a system or is told as missing, in the order of ``LABELS``."""
    there = {m for figures in written["scores"].values() for m in figures} | set(written["not_computed"])
    order = [m + suffix for m in LABELS for suffix in ("", "_raw")]
    return [metric for metric in order if metric in there]


def scores_table(written: dict, names: Iterable[str] | None = None) -> pd.DataFrame:
    """Lay out scores with 95 % intervals: a row a metric, a column a system, and the images that count.

    Args:
        written: what ``metrics.json`` holds.
        names: metrics; None for all. The row of one that was not computed says so; see :func:`reasons`.
    """
    rows = {}
    for metric in in_order(written) if names is None else names:
        found = [figures.get(metric) for figures in written["scores"].values()]
        nothing = "not computed" if metric in written["not_computed"] else NOTHING
        cells = [cell(figure) if figure else nothing for figure in found]
        name = label(metric, written["settings"]["bertscore_model"])
        rows[name] = dict(zip(written["scores"], cells, strict=True)) | {"n": images(found)}
    return pd.DataFrame.from_dict(rows, orient="index")


def images(figures: list[dict | None]) -> str:
    """Write how many images count: one number, or where systems differ one a system."""
    counts = [f"{figure['n']:,}" if figure else NOTHING for figure in figures]
    there = {count for count in counts if count != NOTHING}
    return " / ".join(counts) if len(there) > 1 else next(iter(there), NOTHING)


def reasons(written: dict) -> str:
    """Say of each metric that was not computed why not, a line each."""
    model = written["settings"]["bertscore_model"]
    return "\n".join(f"{label(metric, model)}: {why}" for metric, why in written["not_computed"].items())


def difference_table(written: dict, names: Iterable[str] = SHARES) -> pd.DataFrame:
    """Lay out tuned minus each other system, with the interval of the paired difference."""
    others = written["tuned_minus"]
    return pd.DataFrame({
        f"tuned − {other}": {label(m): cell(figures.get(m), signed=True) for m in names}
        for other, figures in others.items()
    })  # fmt: skip


def group_table(written: dict, by: str) -> pd.DataFrame:
    """Lay out base and tuned for each modality or colour mode, with n."""
    systems = written["groups"][by]
    rows = {}
    for group in systems["tuned"]:
        rows[group] = {"n": max(f["n"] for f in systems["tuned"][group].values())}
        for metric in systems["tuned"][group]:
            for system, figures in systems.items():
                rows[group][f"{label(metric)}, {system}"] = cell(figures[group][metric])
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("n", ascending=False)


def long_scores(written: dict, names: Iterable[str] = HEADLINE) -> pd.DataFrame:
    """Return scores as ``evaluation_plots.headline`` draws them: a row a system and metric."""
    rows = [
        {"system": system, "metric": m, "label": label(m), **figures[m]}
        for system, figures in written["scores"].items() for m in names if m in figures
    ]  # fmt: skip
    return pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})


def long_differences(written: dict, other: str = "base", names: Iterable[str] = SHARES) -> pd.DataFrame:
    """Return tuned minus another system as ``evaluation_plots.difference_plot`` draws it."""
    figures = written["tuned_minus"][other]
    rows = [{"metric": m, "label": label(m), **figures[m]} for m in names if m in figures]
    return pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})


def long_groups(written: dict, by: str, metric: str) -> pd.DataFrame:
    """Return one metric by group as ``evaluation_plots.by_group`` draws it, the largest group first."""
    rows = [
        {"group": group, "system": system, **figures[metric]}
        for system, groups in written["groups"][by].items() for group, figures in groups.items()
    ]  # fmt: skip
    table = pd.DataFrame(rows).astype({"value": float, "low": float, "high": float})
    return table.sort_values("n", ascending=False, kind="stable", ignore_index=True)


def comparison(written: dict) -> pd.DataFrame:
    """Put our systems above published ones, each with what its scores depend on."""
    settings = written["settings"]
    decoding = settings["decoding"]
    limit = decoding["max_new_tokens"] or settings["token_limit"]
    beams = "greedy" if decoding["beams"] == 1 else f"{decoding['beams']} beams"
    modes = modes_told(settings["image_modes"])
    bert = f"{settings['bertscore_model']}, no idf"
    if "bertscore_f1" in written["not_computed"]:
        bert = "not computed"
    shared = {"split": settings["split"], "n": settings["images"], "modes": modes, "text": "ImageCLEFmedical",
              "decoding": f"{beams}, {decoding['min_new_tokens']} to {limit} new tokens",
              "bertscore_model": bert, "source": f"this run, on {settings['source']}"}  # fmt: skip
    ours = [
        {"system": f"{system}, {settings['model_id']}", **shared,
         **{m: (written["scores"][system].get(m) or {}).get("value") for m in SCORES}}
        for system in ("base", "tuned")
    ]  # fmt: skip
    titles = {metric: LABELS[metric].partition(",")[0] for metric in SCORES}
    return published_table(ours, written["published"]).rename(columns=titles | COMPARED)


def cost_table(written: dict) -> pd.DataFrame:
    """Lay out what the captions cost."""
    return pd.DataFrame.from_dict(written["cost"], orient="index")


def confusion(written: dict) -> pd.DataFrame:
    """Return the modality that tuned captions name (columns) for the modality of the image (rows)."""
    return pd.DataFrame.from_dict(written["confusion"], orient="index")


def markdown(table: pd.DataFrame) -> str:
    """Write a table in Markdown, its index first."""
    head = ["", *map(str, table.columns)]
    rows = [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def card(written: dict, prepared: StageFolder, run: dict) -> str:
    """Return the adapter's model card with the scores that ``metrics.json`` holds."""
    return card_text(prepared, run) + scores_text(written, markdown(scores_table(written, HEADLINE)))


def key_figures(written: dict) -> dict:
    """Return the stage's key figures, base -> tuned."""
    base, tuned = written["scores"]["base"], written["scores"]["tuned"]
    told = {"cider": "cider", "modality": "modality_accuracy", "all_right": "all_right_share"}
    return {"images": written["settings"]["images"]} | {
        name: f"{base[m]['value']:.3f} -> {tuned[m]['value']:.3f}" for name, m in told.items()
    }
