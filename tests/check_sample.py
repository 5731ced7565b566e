"""``python -m tests.check_sample WORK``: do the figures of a sample run reach what README promises?

Prints each figure with its bar and exits 1 where one is missed.
"""

import sys
from pathlib import Path

import nbformat
import pandas as pd

from utils import report
from utils.stages import open_stage, read_json

# what a run on the sample must reach: (figure, lowest, highest)
BARS = (
    ("tuned modality accuracy", 0.95, 1.0),
    ("tuned all right", 0.70, 1.0),
    ("tuned CIDEr / base CIDEr", 3.0, float("inf")),
    ("tuned length ratio", 0.85, 1.05),
    ("metrics on which tuned beats the most common caption", 12, 12),
    ("tuned minus base CIDEr, lower end of its interval", 2.5, 10.0),
    ("processes that trained", 2, 2),
    ("tables of notebook 04 that metrics.json does not give again", 0, 0),
)
# higher is better for each; length ratio and shares of empty captions are judged by themselves
BEATEN = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_l", "cider", "modality_accuracy",
          "region_accuracy", "finding_accuracy", "side_accuracy", "all_right_share")  # fmt: skip


def figures(work: Path) -> dict[str, float]:
    """Collect the figures of a finished sample run."""
    written = read_json(open_stage("04_evaluate", work, roots=()).path / "metrics.json")
    plain = {system: {m: f["value"] for m, f in own.items()} for system, own in written["scores"].items()}
    common, nearest, base, tuned = (plain[s] for s in ("most common caption", "nearest image", "base", "tuned"))
    run = read_json(open_stage("03_train_lora", work, roots=()).path / "run.json")
    return {
        "tuned modality accuracy": tuned["modality_accuracy"],
        "tuned all right": tuned["all_right_share"],
        "tuned CIDEr / base CIDEr": tuned["cider"] / max(base["cider"], 1e-9),
        "tuned length ratio": tuned["length_ratio"],
        "metrics on which tuned beats the most common caption": sum(tuned[m] > common[m] for m in BEATEN),
        "metrics on which tuned beats the nearest image's caption": sum(tuned[m] > nearest[m] for m in BEATEN),
        "tuned minus base CIDEr, lower end of its interval": written["tuned_minus"]["base"]["cider"]["low"],
        "processes that trained": run["processes"],
        "tables of notebook 04 that metrics.json does not give again": not_rebuilt(work),
        "base modality accuracy": base["modality_accuracy"],
        "base all right": base["all_right_share"],
    }


def tables(written: dict) -> list[pd.DataFrame]:
    """Every table of notebook 04, from metrics.json alone."""
    return [
        report.scores_table(written, report.HEADLINE), report.difference_table(written),
        report.scores_table(written), report.group_table(written, "modality"), report.group_table(written, "colour"),
        report.comparison(written), report.cost_table(written),
    ]  # fmt: skip


def not_rebuilt(work: Path) -> int:
    """Count the tables of the executed notebook 04 that its metrics.json does not give again."""
    notebook = nbformat.read(work / "notebooks" / "04_evaluate.ipynb", as_version=4)
    shown = {"".join(output.data["text/html"]) for cell in notebook.cells for output in cell.get("outputs", [])
             if "text/html" in output.get("data", {})}  # fmt: skip
    written = read_json(open_stage("04_evaluate", work, roots=()).path / "metrics.json")
    with pd.option_context("display.max_colwidth", 100):
        return sum(table._repr_html_() not in shown for table in tables(written))


def main(work: str) -> int:
    """Print the figures and return 1 where one misses its bar."""
    found = figures(Path(work))
    missed = 0
    for name, low, high in BARS:
        value = found.pop(name)
        good = low <= value <= high
        missed += not good
        print(f"{'ok    ' if good else 'MISSED'} {name}: {value:.3f} (from {low} to {high})")
    for name, value in found.items():
        print(f"       {name}: {value:.3f}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
