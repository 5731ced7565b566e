"""The pictures of an evaluation show the figures they were given, at any number of images."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from utils import evaluation_plots as drawn
from utils.evaluation_plots import COLOURS

NONE = float("nan")
SYSTEMS = ["most common caption", "nearest image", "base", "tuned"]
LABELS = {"bleu_1": "BLEU-1", "bleu_4": "BLEU-4", "rouge_l": "ROUGE-L", "cider": "CIDEr-D (0 to 10)", "chrf": "chrF",
          "meteor": "METEOR", "concept_f1": "concept F1", "laterality_agreement": "laterality agreement",
          "negation_flip_share": "negation flips", "all_right_share": "all facts right"}  # fmt: skip
LONG = ["X-ray", "CT", "MR", "ultrasound", "angiography", "PET", "PET/CT", "fluoroscopic upper gastrointestinal series"]
SIZES = {"185 of five modalities": (185, LONG[:5]), "26 of one or none": (26, ["CT", None]), "9,927 of eight": (9927, LONG)}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def long_form(n):
    rows = [(system, metric, label, 0.1 + 0.15 * i, 0.1 + 0.15 * i - 1 / n**0.5, 0.1 + 0.15 * i + 1 / n**0.5, n)
            for metric, label in LABELS.items() for i, system in enumerate(SYSTEMS)]  # fmt: skip
    table = pd.DataFrame(rows, columns=["system", "metric", "label", "value", "low", "high", "n"])
    table.loc[table["metric"] == "laterality_agreement", "n"] = n // 3
    table.loc[table["metric"] == "negation_flip_share", ["value", "low", "high", "n"]] = [NONE, NONE, NONE, 0]
    return table


def grouped(kinds, n):
    sizes = [max(4, n >> place) for place in range(len(kinds))]
    rows = [(kind, size, system, 0.2 + 0.1 * i, 0.1 * i, 0.3 + 0.1 * i)
            for kind, size in zip(kinds, sizes, strict=True) for i, system in enumerate(SYSTEMS)]  # fmt: skip
    return pd.DataFrame(rows, columns=["group", "n", "system", "value", "low", "high"])


def scored(n, kinds=("CT",)):
    random = np.random.default_rng(0)
    table = pd.DataFrame({"image_id": [f"ROCOv2_test_{i:06d}" for i in range(n)]})
    table["modality"] = pd.Series([kinds[i % len(kinds)] for i in range(n)], dtype=object)
    table["reference"] = "Axial CT of the chest with a small nodule in the left lung (arrow)."
    for name, mean in (("base", 0.1), ("tuned", 0.3)):
        table[name] = "Chest CT."
        table[f"{name}_rouge_l"] = random.beta(2, 2 / mean - 2, n)
        table[f"{name}_cider"] = random.exponential(mean, n)
        table[f"{name}_token_logprobs"] = [random.normal(-2 + r, 0.5, 9) for r in table[f"{name}_rouge_l"]]
        for facet in ("modality", "region", "finding", "side"):
            table[f"{name}_{facet}_right"] = facet != "side"
    return table


def words(n):
    random = np.random.default_rng(0)
    return pd.DataFrame({name: random.lognormal(mean, 0.6, n).astype(int) for name, mean in
                         (("reference", 2.85), ("base", 2.2), ("tuned", 2.6))})  # fmt: skip


DRAWINGS = {
    "headline": lambda n, kinds: drawn.headline(long_form(n), list(LABELS)[3:9]),
    "one metric": lambda n, kinds: drawn.headline(long_form(n), ["bleu_4"]),
    "difference": lambda n, kinds: drawn.difference_plot(long_form(n)[lambda rows: rows["system"] == "tuned"]),
    "groups": lambda n, kinds: drawn.by_group(grouped(kinds, n), "ROUGE-L by modality", "ROUGE-L (0 to 1)"),
    "lengths": lambda n, kinds: drawn.length_distribution(words(n)),
    "scores": lambda n, kinds: drawn.score_distribution(scored(n), {"rouge_l": "ROUGE-L", "cider": "CIDEr-D (0 to 10)"}),
    "calibration": lambda n, kinds: drawn.calibration(scored(n)),
    "gallery": lambda n, kinds: drawn.gallery([grey()] * 5, scored(n, kinds).head(5), f"Some of {n:,}"),
}  # fmt: skip


def grey():
    return Image.new("RGB", (224, 224), (90, 90, 90))


def boxes(figure):
    """Return (text, where it is drawn) of every text of a figure."""
    figure.canvas.draw()
    texts = [*figure.texts, figure._suptitle, figure._supxlabel]
    for axes in figure.axes:
        if axes.get_visible():
            texts += [*axes.texts, axes.title, axes._left_title]
            texts += [axes.xaxis.label, axes.yaxis.label] if axes.axison else []
            ticks = [*axes.xaxis._update_ticks(), *axes.yaxis._update_ticks()] if axes.axison else []
            texts += [tick.label1 for tick in ticks]
            texts += axes.get_legend().get_texts() if axes.get_legend() else []
    shown = {id(text): text for text in texts if text is not None and text.get_visible() and text.get_text().strip()}
    return [(text.get_text(), text.get_window_extent()) for text in shown.values()]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", DRAWINGS)
def test_no_two_words_lie_on_each_other_or_outside(name, size, tmp_path, recwarn):
    figure = DRAWINGS[name](*SIZES[size])
    found = boxes(figure)
    assert len(found) > 5
    assert [(a, b) for i, (a, box) in enumerate(found) for b, other in found[:i] if box.overlaps(other)] == []
    page = figure.bbox.padded(1)
    assert [text for text, box in found if not all(map(page.containsx, box.intervalx))] == []
    assert [text for text, box in found if not all(map(page.containsy, box.intervaly))] == []
    figure.savefig(tmp_path / "figure.png")
    assert [str(warning.message) for warning in recwarn] == []


def figures_of(axes):
    return [text.get_text() for text in axes.texts]


def bars_of(lines):
    return [segment[:, 0].round(6).tolist() for segment in lines.get_segments()]


def test_the_headline_shows_each_system_in_each_panel_with_its_interval():
    table = pd.DataFrame({
        "system": ["base", "tuned"] * 2, "metric": ["flips"] * 2 + ["bleu_4"] * 2, "label": ["Flips"] * 2 + ["BLEU-4"] * 2,
        "value": [NONE, 0.25, 0.1, 12.345], "low": [NONE, NONE, 0.05, 11], "high": [NONE, NONE, 0.2, 13], "n": [3, 3, 1200, 1200],
    })  # fmt: skip
    figure = drawn.headline(table, ["bleu_4", "flips"])
    bleu, flips = figure.axes
    assert figure._suptitle.get_text() == "95 % intervals, paired bootstrap over n = 1,200 images"
    assert [axes.get_title("left") for axes in figure.axes] == ["BLEU-4", "Flips (n\u00a0=\u00a03)"]
    assert [label.get_text() for label in bleu.get_yticklabels()] == ["base", "tuned"]
    assert (figures_of(bleu), figures_of(flips)) == (["0.100", "12.3"], ["–", "0.250"])
    assert all(text.get_position()[0] > 1 for text in bleu.texts)  # right of the panel, clear of its bars
    assert bars_of(bleu.collections[0]) == [[0.05, 0.2], [11, 13]]
    assert bleu.collections[1].get_offsets().tolist() == [[0.1, 0], [12.345, 1]]
    assert [to_hex(colour) for colour in bleu.collections[1].get_facecolors()] == [COLOURS["base"], COLOURS["tuned"]]


def test_a_metric_that_the_table_lacks_is_named():
    with pytest.raises(ValueError, match=r"^The table has no metric meteor, spice: score it, or leave its name out"):
        drawn.headline(long_form(5).query("metric != 'meteor'"), ["bleu_1", "meteor", "spice"])


def test_a_difference_is_coloured_by_the_side_of_zero_on_which_its_whole_interval_lies():
    table = pd.DataFrame({
        "metric": ["bleu_4", "cider", "rouge_l", "meteor"], "label": ["BLEU-4", "CIDEr-D", "ROUGE-L", "METEOR"],
        "value": [0.1, -2.0, 0.01, 0.3], "low": [0.05, -3.0, -0.01, NONE], "high": [0.2, -1.0, 0.03, NONE], "n": 26,
    })  # fmt: skip
    axes = drawn.difference_plot(table).axes[0]
    assert axes.get_title("left") == "What tuning changed, n = 26 images"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["BLEU-4", "CIDEr-D / 10", "ROUGE-L", "METEOR"]
    assert figures_of(axes) == ["+0.100  [+0.050, +0.200]", "−0.200  [−0.300, −0.100]",
                                "+0.010  [−0.010, +0.030]", "+0.300"]  # fmt: skip
    assert bars_of(axes.collections[2]) == [[-0.3, -0.1]]
    dots = [to_hex(dot.get_facecolor()[0]) for dot in axes.collections[1::2]]
    assert dots == [COLOURS["tuned"], "#c2603f", COLOURS["base"], COLOURS["base"]]


def test_a_group_of_fewer_than_twenty_images_is_hatched_and_the_legend_says_why():
    table = pd.DataFrame({
        "group": ["CT", "CT", None, None], "n": [20, 20, 19, 19], "system": ["base", "tuned"] * 2,
        "value": [0.1, 0.2, 0.3, 0.4], "low": [0.05, NONE, 0.1, 0.1], "high": [0.15, NONE, 0.5, 0.5],
    })  # fmt: skip
    axes = drawn.by_group(table, "By modality", "BLEU-4").axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["CT\nn = 20", "unknown\nn = 19"]
    assert [[bar.get_height() for bar in bars] for bars in axes.containers] == [[0.1, 0.3], [0.2, 0.4]]
    assert [[bar.get_hatch() for bar in bars] for bars in axes.containers] == [[None, "////"], [None, "////"]]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["base", "tuned", "fewer than 20 images"]
    assert len(drawn.by_group(table.head(2), "", "").axes[0].get_legend().get_texts()) == 2


def test_the_lengths_are_shares_of_the_captions_and_the_last_step_holds_the_longest():
    table = pd.DataFrame({"reference": [*[2] * 150, *[3] * 49, 500], "base": [1] * 200, "tuned": [0] * 200})
    axes = drawn.length_distribution(table).axes[0]
    assert axes.get_title("left") == "Length of the captions, n = 200 images"
    assert axes.get_xlabel() == "words of a caption (last step: 4 and more)"
    heights = {}
    for patch in axes.patches:
        x, y = patch.get_xy().T
        heights[patch.get_label()] = {float(a): float(round(b, 6)) for a, b in zip(x, y, strict=True) if b > 0}
    assert heights == {
        "reference (median 2)": {1.5: 75.0, 2.5: 24.5, 3.5: 0.5, 4.5: 0.5},
        "base (median 1)": {0.5: 100.0, 1.5: 100.0}, "tuned (median 0)": {-0.5: 100.0, 0.5: 100.0},
    }  # fmt: skip


def test_the_scores_count_the_images_that_have_one_and_rise_to_all_of_them():
    table = pd.DataFrame({"base_f1": [0.0, 0.5, NONE], "tuned_f1": [0.25, 1.0, 0.5]})
    axes = drawn.score_distribution(table, {"f1": "concept F1"}).axes[0]
    assert axes.get_title("left") == "concept F1, n = 2"
    assert [line.get_label() for line in axes.lines] == ["base (median 0.25)", "tuned (median 0.62)"]
    assert axes.lines[1].get_xydata().tolist() == [[0.25, 0.0], [0.25, 0.5], [1.0, 1.0]]
    assert drawn.score_distribution(table.head(0), {"f1": "concept F1"}).axes[0].get_title("left") == "concept F1, n = 0"


def sure(*pairs, base=0.0):
    """Rows of (log-probabilities of the tokens, ROUGE-L) of the tuned captions."""
    tokens, scores = zip(*pairs, strict=True)
    return pd.DataFrame({"tuned_token_logprobs": tokens, "base_token_logprobs": tokens,
                         "tuned_rouge_l": scores, "base_rouge_l": base})  # fmt: skip


def test_calibration_ranks_the_mean_of_the_tokens_and_leaves_out_captions_without_any():
    """The ranks 1 2 3 against 2 1 3 correlate by 0.5; of a constant score no rank is known."""
    figure = drawn.calibration(sure(([-1.0, -3.0], 0.2), ([-1.0], 0.1), ([-0.5], 0.9), ([], 0.0)))
    tuned, base = figure.axes
    assert tuned.get_title("left") == "tuned: Spearman's rho +0.500, n = 3 images"
    assert base.get_title("left") == "base: Spearman's rho –, n = 3 images"
    assert tuned.lines[0].get_xydata().tolist() == [[-2.0, 0.2], [-1.0, 0.1], [-0.5, 0.9]]
    assert tuned.lines[2].get_xydata().round(6).tolist() == [[-1.166667, 0.4]]


def test_calibration_averages_ten_groups_of_equal_size():
    table = sure(*(([-float(i)], i % 3 / 2) for i in range(60)))
    means = drawn.calibration(table).axes[0].lines[2]
    assert means.get_xydata()[:2].tolist() == [[-56.5, 0.5], [-50.5, 0.5]]
    assert means.get_label() == "means (groups of equal size: 10)"


def test_calibration_of_empty_captions_alone_is_drawn(recwarn):
    figure = drawn.calibration(sure(([], 0.0), ([], 0.0)))
    assert figure.axes[0].get_title("left") == "tuned: Spearman's rho –, n = 0 images"
    assert [str(warning.message) for warning in recwarn] == []


def test_the_score_line_names_overlap_and_facts():
    row = scored(1).iloc[0].to_dict() | {"tuned_rouge_l": 0.418, "tuned_cider": 1.26}
    assert drawn.score_line(row, "tuned") == "ROUGE-L .42 · CIDEr 1.3 · facts 3/4"
    assert drawn.score_line(row | {"tuned_rouge_l": 1.0}, "tuned")[:14] == "ROUGE-L 1.00 ·"


def test_the_gallery_writes_where_an_image_comes_from_and_the_scores_of_its_captions():
    table = scored(1).assign(modality=None, tuned_rouge_l=0.5, tuned_cider=0.0, base_rouge_l=0.0, base_cider=0.25)
    figure = drawn.gallery([grey()], table.assign(base="$x$", tuned=" "), "Worst")
    assert figure._suptitle.get_text() == "Worst"
    assert figures_of(figure.axes[1]) == [
        "reference", "unknown modality · ROCOv2_test_000000",
        "Axial CT of the chest with a small nodule in\nthe left lung (arrow).",
        "base", "ROUGE-L .00 · CIDEr 0.2 · facts 3/4", "$x$", "tuned", "ROUGE-L .50 · CIDEr 0.0 · facts 3/4", "(empty)",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("caption", ["word " * 200, "WIDE CAPTION OF MR " * 20, "W" * 300, "$\\frac{ " * 60])
def test_the_longest_captions_stay_in_their_cells(caption):
    figure = drawn.gallery([grey()] * 4, scored(4).assign(reference=caption, base=caption, tuned=caption), "Long")
    found = boxes(figure)
    assert [(a, b) for i, (a, box) in enumerate(found) for b, other in found[:i] if box.overlaps(other)] == []
    for picture, cell in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        for text in cell.texts:
            box, room = text.get_window_extent(), cell.get_window_extent()
            assert (box.x0 >= room.x0, box.x1 <= room.x1 + 1, box.y0 >= room.y0 - 2) == (True, True, True), text
            assert not box.overlaps(picture.get_window_extent()), text
    assert figure.axes[1].texts[2].get_text().endswith("…")


def test_a_difference_of_rounding_alone_has_no_sign():
    """A table of 26 real radiographs showed −0.000."""
    assert drawn.written(-0.0001, "+") == "+0.000"
    assert drawn.written(-0.25, "+") == "−0.250"


def test_scores_that_are_rounding_alone_do_not_fill_a_panel():
    """The BLEU-4 of 26 real radiographs, 1e-6, had an axis of its own scale."""
    rows = [{"system": s, "metric": "bleu_4", "label": "BLEU-4", "value": 1e-6, "low": 0, "high": 2e-6, "n": 26}
            for s in ("base", "tuned")]  # fmt: skip
    figure = drawn.headline(pd.DataFrame(rows), ["bleu_4"])
    assert figure.axes[0].get_xlim() == (0, 0.01)
