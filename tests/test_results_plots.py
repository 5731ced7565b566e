"""What the stages wrote is read back in order, and drawn whatever the words are."""

import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure
from PIL import Image

from utils import plots, results, training_plots
from utils.config import MODES
from utils.stages import StageError, StageFolder
from utils.terms import MODALITY_CUIS

AWKWARD = ["$x$ and $\\frac{1$", "one\ntwo\r\nthree", "", "_" * 300, "Röntgen → 5 µm", "a caption"]


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def stage(path):
    return StageFolder(path, {})


def grey(value):
    return Image.new("RGB", (224, 224), (value,) * 3)


def shard(path, values):
    """Write a shard of one-coloured images: id -> grey value."""
    rows = []
    for image_id, value in values.items():
        buffer = io.BytesIO()
        grey(value).save(buffer, "PNG")
        rows.append({"image_id": image_id, "image": {"bytes": buffer.getvalue(), "path": None}})
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_records_are_read_with_none_where_no_modality_is_known(tmp_path):
    pd.DataFrame({"image_id": ["b", "a"], "modality": ["CT", None]}).to_parquet(tmp_path / "records.parquet")
    table = results.read_records(stage(tmp_path))
    assert table["image_id"].tolist() == ["b", "a"]
    assert table["modality"].tolist() == ["CT", None]


def test_records_of_no_known_modality_at_all_are_read(tmp_path):
    pd.DataFrame({"image_id": ["b", "a"], "modality": [None, None]}).to_parquet(tmp_path / "records.parquet")
    assert results.read_records(stage(tmp_path))["modality"].tolist() == [None, None]


def test_captions_of_one_split_are_read_by_id(tmp_path):
    pd.DataFrame({
        "image_id": ["c", "a", "b"], "split": ["test", "test", "train"], "modality": ["CT", None, "MR"],
        "caption": ["third", "first", "second"],
    }).to_parquet(tmp_path / "captions.parquet")  # fmt: skip
    table = results.read_captions(stage(tmp_path), "test")
    assert table["caption"].tolist() == ["first", "third"]
    assert table["modality"].tolist() == [None, "CT"]
    assert table.index.tolist() == [0, 1]


def test_images_come_in_the_order_asked_for_out_of_any_shard(tmp_path):
    shard(tmp_path / "images-test-00000.parquet", {"a": 10, "b": 20})
    shard(tmp_path / "images-test-00001.parquet", {"c": 30})
    shard(tmp_path / "images-train-00000.parquet", {"a": 99})
    found = results.read_images(stage(tmp_path), "test", ["c", "a"])
    assert [(image.getpixel((0, 0))[0], image.mode, image.size) for image in found] == [
        (30, "RGB", (224, 224)), (10, "RGB", (224, 224)),
    ]  # fmt: skip


def test_the_commit_that_stage_01_looked_at_is_read_from_its_report(tmp_path):
    for revision in ("0123abc", None):
        (tmp_path / "report.json").write_text(json.dumps({"revision": revision, "pixels": True}))
        assert results.read_revision(stage(tmp_path)) == revision


def test_prepared_images_of_any_split_come_in_the_order_of_the_records(tmp_path):
    shard(tmp_path / "images-test-00000.parquet", {"a": 10, "b": 20})
    shard(tmp_path / "images-train-00000.parquet", {"c": 30, "d": 40})
    shard(tmp_path / "images-train-00001.parquet", {"e": 50})
    records = pd.DataFrame(
        {"image_id": ["e", "a", "c"], "split": ["train", "test", "train"]}, index=[7, 3, 5]
    )
    images = results.read_prepared(tmp_path, records)
    assert [image.getpixel((0, 0))[0] for image in images] == [50, 10, 30]
    assert results.read_prepared(tmp_path, records.head(0)) == []


def test_the_bytes_of_some_images_of_one_split_are_read_as_they_were_written(tmp_path):
    shard(tmp_path / "images-test-00000.parquet", {"a": 10, "b": 20})
    shard(tmp_path / "images-train-00000.parquet", {"a": 30})
    found = results.read_bytes(tmp_path, "test", ["b", "a", "other"])
    assert {i: Image.open(io.BytesIO(png)).getpixel((0, 0))[0] for i, png in found.items()} == {
        "a": 10,
        "b": 20,
    }
    assert all(png.startswith(b"\x89PNG") for png in found.values())


LOG_NAMES = ["step", "seconds", "session", "epoch", "loss", "grad_norm", "learning_rate", "images_per_s",
             "memory_gib", "gpu_util", "eval_loss", "eval_cider", "eval_rouge_l"]  # fmt: skip


def log_file(folder, *lines, tail=b""):
    whole = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    (folder / "log.jsonl").write_bytes(whole.encode() + tail)
    return folder / "log.jsonl"


def test_the_log_has_its_columns_even_where_no_line_has_a_value(tmp_path):
    path = log_file(tmp_path, {"step": 0, "eval_loss": 3.5, "seconds": 1.0, "captions": [{"image_id": "a"}]},
                    {"step": 10, "loss": 2.5, "extra": 1, "memory_gib": [1.5, 2.5]})  # fmt: skip
    table = results.read_log(path)
    assert table.columns.tolist() == [*LOG_NAMES, "extra"]
    assert table["step"].tolist() == [0, 10]
    assert table["loss"].dropna().tolist() == [2.5]
    assert table["memory_gib"].dropna().tolist() == [[1.5, 2.5]]
    assert table["learning_rate"].isna().all()
    assert results.read_log(log_file(tmp_path)).columns.tolist() == LOG_NAMES


@pytest.mark.parametrize("tail", [b'{"step": 2, "lo', b'{"caption": "R\xc3', b"", b"1", b"\x00\x00"])
def test_a_last_line_that_a_kill_cut_off_is_left_out(tmp_path, tail):
    path = log_file(tmp_path, {"step": 0}, {"step": 1}, tail=tail)
    assert results.read_lines(path) == [{"step": 0}, {"step": 1}]


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path):
    assert results.read_lines(log_file(tmp_path, {"step": 0}, tail=b'{"step": 1}')) == [{"step": 0}, {"step": 1}]


def test_a_caption_may_hold_what_other_files_end_a_line_with(tmp_path):
    """str.splitlines ends a line at U+2028 and U+0085, which JSON leaves as they are."""
    line = {"step": 0, "captions": [{"image_id": "a", "reference": "one\u2028two\x85", "caption": "\x0b"}]}
    assert results.read_lines(log_file(tmp_path, line)) == [line]


def test_a_damaged_line_inside_the_log_is_named(tmp_path):
    path = log_file(tmp_path, {"step": 0}, tail=b'{"step": 1, "lo{"step": 2}\n{"step": 3}\n')
    with pytest.raises(StageError, match=r"^Line 2 of log\.jsonl is damaged\. Take it out, or train anew"):
        results.read_log(path)


def sampled(step, **captions):
    rows = [{"image_id": i, "reference": i.upper(), "caption": text} for i, text in captions.items()]
    return {"step": step, "eval_loss": 1.0, "captions": rows}


def test_the_sample_captions_are_read_by_evaluation(tmp_path):
    path = log_file(tmp_path, sampled(0, a="x", b="y"), {"step": 5, "loss": 1.0}, sampled(10, a="z"))
    table = results.read_samples(path)
    assert table.columns.tolist() == ["step", "image_id", "reference", "caption"]
    assert table.to_numpy().tolist() == [[0, "a", "A", "x"], [0, "b", "B", "y"], [10, "a", "A", "z"]]
    assert results.read_samples(log_file(tmp_path, {"step": 0})).columns.tolist() == table.columns.tolist()


def test_captions_over_time_stand_beside_their_reference():
    lines = [sampled(step, b=f"b{step}", a=f"a{step}") for step in (0, 10, 20, 30, 40, 50, 60)]
    table = results.caption_table(results.sample_table(lines), 4)
    assert table.to_dict("list") == {
        "reference": ["B", "A"], "step 0": ["b0", "a0"], "step 20": ["b20", "a20"],
        "step 40": ["b40", "a40"], "step 60": ["b60", "a60"],
    }  # fmt: skip
    assert table.index.tolist() == ["b", "a"]
    assert list(results.caption_table(results.sample_table(lines[:2]), 4)) == ["reference", "step 0", "step 10"]


def test_a_caption_that_is_empty_or_missing_or_written_twice_is_told_apart():
    lines = [sampled(0, a=" ", b="old"), sampled(0, b="new"), sampled(10, a="x")]
    assert results.caption_table(results.sample_table(lines)).to_dict("list") == {
        "reference": ["A", "B"], "step 0": ["(empty)", "new"], "step 10": ["x", "–"],
    }  # fmt: skip
    assert results.caption_table(results.sample_table([])).to_dict("list") == {"reference": []}


def test_the_parts_of_all_ranks_are_joined_by_id(tmp_path):
    (tmp_path / "parts").mkdir()
    for number, ids in enumerate((["d", "b"], ["c", "a"])):
        part = {"stamp": "x", "image_id": ids, "tuned": [i.upper() for i in ids], "tuned_token_logprobs": [[-1.5]] * 2}
        (tmp_path / "parts" / f"part-{number}.json").write_text(json.dumps(part))
    table = results.read_predictions(tmp_path)
    assert table["image_id"].tolist() == ["a", "b", "c", "d"]
    assert table["tuned"].tolist() == ["A", "B", "C", "D"]
    assert table.columns.tolist() == ["image_id", "tuned", "tuned_token_logprobs"]


def test_what_the_captions_cost_is_summed_over_parts_and_processes(tmp_path):
    (tmp_path / "parts").mkdir()
    for number, (images, base, peak) in enumerate(((64, 8.0, 1.25), (36, 2.0, 1.5))):
        cost = {"images": images, "seconds": {"see": 1.0, "base": base, "tuned": 4.0}, "peak_gib": peak, "settings": {}}
        (tmp_path / "parts" / f"cost-{number}.json").write_text(json.dumps(cost))
    assert results.read_cost(tmp_path)["base captions"] == {
        "images": 100, "seconds, all processes": 10.0, "images/s of a process": 10.0,
        "peak memory of a process, GiB": 1.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("modalities", "count", "positions"),
    [
        (["CT", "CT", "MR", "CT", "MR", None], 6, [0, 2, 5, 1, 4, 3]),
        (["CT", "CT", "MR", "CT", "MR", None], 4, [0, 2, 5, 1]),
        (["CT"], 5, [0]),
        ([None, "unknown", "CT"], 3, [0, 2, 1]),
        ([], 3, []),
    ],
)
def test_examples_go_round_the_modalities(modalities, count, positions):
    series = pd.Series(modalities, dtype=object, index=[10 * n for n in range(len(modalities))])
    assert results.one_of_each(series, count) == positions


def test_examples_pair_test_images_with_their_references_and_answers(tmp_path):
    evaluated = tmp_path / "evaluated"
    evaluated.mkdir()
    pd.DataFrame(
        {"image_id": ["c", "b", "a"], "reference": ["C", "B", "A"], "modality": ["CT", "CT", "MR"]}
    ).to_parquet(evaluated / "predictions.parquet")
    shard(tmp_path / "images-test-00000.parquet", {"a": 10, "b": 20, "c": 30})
    chosen = results.examples(stage(tmp_path), stage(evaluated), 2)
    assert chosen["image_id"].tolist() == ["a", "c"]
    assert chosen["reference"].tolist() == ["A", "C"]
    assert [image.getpixel((0, 0))[0] for image in chosen["image"]] == [10, 30]
    answers = results.example_captions(chosen, [{"base": "x", "tuned": "y"}, {"base": "u", "tuned": "v"}])
    assert answers.to_dict("list") == {
        "image_id": ["a", "c"], "reference": ["A", "C"], "modality": ["MR", "CT"],
        "base": ["x", "u"], "tuned": ["y", "v"],
    }  # fmt: skip


def test_the_key_figures_of_training_come_from_its_record():
    run = {"processes": 2, "steps": 40, "best_step": 30, "best_validation_loss": 1.23456,
           "trainable_parameters": 1000, "dtype": "float32"}  # fmt: skip
    assert results.training_figures(run) == {
        "processes": 2, "steps": 40, "best_step": 30, "validation_loss": 1.235, "trainable": 1000,
    }  # fmt: skip


LOG = results.log_table([
    {"step": 0, "session": 1, "eval_loss": 4.0},
    {"step": 10, "session": 1, "loss": 3.0, "learning_rate": 1e-3},
    {"step": 20, "session": 1, "loss": 2.0, "learning_rate": 0.0},
    {"step": 20, "session": 1, "eval_loss": 2.5},
])  # fmt: skip
FULL = results.log_table([
    {"step": 0, "session": 1, "eval_loss": 4.0, "eval_cider": 0.0, "eval_rouge_l": 0.1},
    {"step": 10, "session": 1, "loss": 3.0, "learning_rate": 1e-3, "images_per_s": 8.0, "memory_gib": [3.0],
     "gpu_util": [90]},
    {"step": 20, "session": 2, "loss": 0.5, "learning_rate": 5e-4, "images_per_s": 16.0, "memory_gib": [3.0, 4.0],
     "gpu_util": [95, 85]},
    {"step": 20, "session": 2, "eval_loss": 0.6, "eval_cider": 1.5, "eval_rouge_l": 0.4},
    {"step": 30, "session": 3, "loss": 0.4, "learning_rate": 0.0, "images_per_s": 16.0, "memory_gib": [3.0, 4.0],
     "gpu_util": [95, 85]},
    {"step": 30, "session": 3, "eval_loss": 0.7, "eval_cider": 1.75, "eval_rouge_l": 0.5},
])  # fmt: skip


def answers(words):
    return pd.DataFrame(
        {
            "image_id": [str(n) for n in range(len(words))],
            "reference": words,
            "base": words[::-1],
            "tuned": words,
        }
    )


MODALITIES = [*dict.fromkeys(MODALITY_CUIS.values()), "unknown"]


def modes(*rows):
    """Rows (mode, grey, colour)."""
    counts = {mode: {"only grey pixels": grey, "colour": colour} for mode, grey, colour in rows}
    table = pd.DataFrame(counts, index=["only grey pixels", "colour"], dtype=int)
    return table.T


def lengths(**words):
    """The words of the captions of each split."""
    rows = [(split, count) for split, counts in words.items() for count in counts]
    return pd.DataFrame(rows, columns=["split", "words"]).astype({"words": int})


def bright(names):
    """Shares of brightness as stage 02 measures them: all of every row's pixels in one step of its own."""
    rows = [
        {"images": 3, "mean": 9.0, **dict.fromkeys(range(32), 0.0), n: 0.75, 31: 0.25}
        for n, _ in enumerate(names)
    ]
    return pd.DataFrame(rows, index=pd.Index(names, name="modality"))


DRAWINGS = {
    "funnel": lambda: plots.funnel({s: {"kept": 5, "mode L": 3, "copy of a test image": 0} for s in ("train", "valid", "test")}),
    "funnel of one reason": lambda: plots.funnel({"train": {"kept": 1}}),
    "funnel with more reasons than colours": lambda: plots.funnel({"train": {"kept": 9} | {f"mode {n}": n for n in range(9)}}),
    "funnel with an empty split": lambda: plots.funnel({"train": {"kept": 2}, "test": {"kept": 0}}),
    "grid": lambda: plots.image_grid([grey(9)] * 7, [f"title {n}" for n in range(7)]),
    "grid of one": lambda: plots.image_grid([grey(9)], ["$x$ \n"]),
    "grid of awkward titles": lambda: plots.image_grid([grey(9)] * 6, AWKWARD),
    "grey grid": lambda: plots.image_grid([Image.new("L", (30, 500))], [""]),
    "modes and colour": lambda: plots.modes_and_colour(modes(("L", 30, 0), ("RGB", 34, 39), ("RGBA", 16, 3))),
    "one mode": lambda: plots.modes_and_colour(modes(("RGB", 0, 1))),
    "no mode": lambda: plots.modes_and_colour(modes()),
    "every mode": lambda: plots.modes_and_colour(modes(*((mode, 9, 1000) for mode in MODES))),
    "words": lambda: plots.caption_words(lengths(train=[1, 20, 3000], valid=[5], test=[7, 7])),
    "words of one": lambda: plots.caption_words(lengths(train=[1])),
    "words of none": lambda: plots.caption_words(lengths()),
    "before and after": lambda: plots.before_after([Image.new("L", (30, 500)), grey(9)], [grey(9)] * 2, ["CT", "$x$ \\frac{"]),
    "before and after of one": lambda: plots.before_after([grey(9)], [grey(9)], AWKWARD[:1]),
    "before and after of many": lambda: plots.before_after([grey(9)] * 6, [grey(9)] * 6, AWKWARD),
    "brightness": lambda: plots.brightness(bright(MODALITIES)),
    "brightness of one": lambda: plots.brightness(bright(["CT"])),
    "brightness of none": lambda: plots.brightness(bright(["CT"]).head(0)),
    "lengths": lambda: plots.token_lengths(pd.Series([5, 9, 12, 80]), 60),
    "lengths of one": lambda: plots.token_lengths(pd.Series([1]), 1),
    "curves": lambda: training_plots.training_curves(LOG),
    "curves of one line": lambda: training_plots.training_curves(LOG.head(1)),
    "curves of one training line": lambda: training_plots.training_curves(LOG[1:2]),
    "curves of all figures": lambda: training_plots.training_curves(FULL),
    "curves of scores that are nothing": lambda: training_plots.training_curves(FULL.head(1)),
    "captions over time": lambda: training_plots.captions_over_time([grey(9)] * 6, over_time(AWKWARD)),
    "captions of one evaluation": lambda: training_plots.captions_over_time([grey(9)], over_time(["$x$"], steps=1)),
    "confusion": lambda: plots.confusion(pd.DataFrame([[3, 1], [0, 2]], ["CT", "MR"], ["CT", "MR"])),
    "confusion of one modality": lambda: plots.confusion(pd.DataFrame([[4, 0]], ["CT"], ["CT", "none"])),
    "confusion of an empty row": lambda: plots.confusion(pd.DataFrame([[0, 0]], ["CT"], ["CT", "none"])),
    "gallery": lambda: plots.caption_gallery([grey(9)] * 6, answers(AWKWARD)),
    "gallery of one": lambda: plots.caption_gallery([grey(9)], answers([""])),
}  # fmt: skip


def over_time(words, steps=5):
    rows = [(10 * step, f"image {n}", word, word) for step in range(steps) for n, word in enumerate(words)]
    return pd.DataFrame(rows, columns=["step", "image_id", "reference", "caption"])


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_picture_is_drawn_and_saved_whatever_the_words(name, tmp_path, recwarn):
    figure = DRAWINGS[name]()
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        assert 100 < image.width < 3000
        assert 100 < image.height < 3000
        assert image.convert("L").getextrema()[0] < 128  # something is drawn
    assert [str(warning.message) for warning in recwarn] == []


def words_of(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_the_gallery_shows_every_caption_as_it_is_and_says_where_one_is_empty():
    words = words_of(plots.caption_gallery([grey(9)], answers(["$x$\n left"])))
    assert words == ["reference", "$x$ left", "base", "$x$ left", "tuned", "$x$ left"]
    assert words_of(plots.caption_gallery([grey(9)], answers([" "])))[1] == "(empty)"


def test_a_long_caption_is_cut_to_three_lines():
    lines = words_of(plots.caption_gallery([grey(9)], answers(["word " * 100])))[1].split("\n")
    assert len(lines) == 3
    assert lines[-1].endswith(" …")


def test_the_funnel_draws_shares_that_add_up_to_one():
    figure = plots.funnel({"train": {"kept": 3, "mode L": 1}, "test": {"kept": 1, "mode L": 1}})
    widths = [[bar.get_width() for bar in bars] for bars in figure.axes[0].containers]
    assert widths == [[0.75, 0.5], [0.25, 0.5]]
    assert words_of(figure) == ["3", "1", "1", "1"]


def test_the_confusion_shows_counts_where_there_are_any():
    assert words_of(plots.confusion(pd.DataFrame([[3, 1], [0, 2]], ["CT", "MR"], ["CT", "MR"]))) == [
        "3",
        "1",
        "2",
    ]


def test_the_lengths_say_how_many_are_cut():
    figure = plots.token_lengths(pd.Series([5, 60, 61, 80]), 60)
    assert figure.axes[0].get_title("left") == "Length of the training captions: 2 are cut at 60 tokens"


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def widths(figure):
    return [[int(bar.get_width()) for bar in bars] for bars in figure.axes[0].containers]


def test_grey_and_colour_keep_their_places_and_the_small_bars_have_no_number():
    figure = plots.modes_and_colour(modes(("L", 30, 0), ("RGB", 34, 39), ("RGBA", 16, 3)))
    assert legend_of(figure) == ["only grey pixels", "colour"]
    assert widths(figure) == [[30, 34, 16], [0, 39, 3]]
    assert words_of(figure) == ["30", "34", "16", "", "39", ""]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["L", "RGB", "RGBA"]


def test_the_legend_of_modes_stands_beside_the_bars():
    figure = plots.modes_and_colour(modes(("L", 3, 0), ("RGB", 900, 900)))
    figure.canvas.draw()
    axes = figure.axes[0]
    assert axes.get_legend().get_window_extent().x0 >= axes.get_window_extent().x1


def test_the_lengths_of_captions_are_shares_of_their_split():
    figure = plots.caption_words(lengths(train=[1, 2, 2, 4], test=[3]))
    assert legend_of(figure) == ["train (median 2)", "test (median 3)"]
    steps = [patch.get_xy() for patch in figure.axes[0].patches]
    assert [xy[:, 1].max() for xy in steps] == [0.5, 1.0]
    assert figure.axes[0].get_xlabel() == "words of a caption (last step: 4 and more)"


def test_the_last_step_of_the_lengths_holds_what_its_label_says():
    """150 words, in steps of four: the last began at 148, and an empty one stood behind it."""
    figure = plots.caption_words(lengths(train=[*range(1, 150), 151, 400]))
    assert figure.axes[0].get_xlabel() == "words of a caption (last step: 152 and more)"
    xy = figure.axes[0].patches[0].get_xy()
    inside = sorted({float(x) for x, y in xy if y > 0})
    assert inside[-2:] == [151.5, 155.5]
    assert xy[:, 0].max() == 155.5


def test_every_modality_has_a_line_of_its_own_colour():
    figure = plots.brightness(bright(MODALITIES))
    assert len(MODALITIES) == 8
    assert legend_of(figure) == MODALITIES
    lines = figure.axes[0].patches
    assert len({line.get_edgecolor() for line in lines}) == 8
    for number, line in enumerate(lines):
        values, edges, _ = line.get_data()
        assert (values[number], values[31], sum(values)) == (0.75, 0.25, 1.0)
        assert (edges[0], edges[-1]) == (0, 256)


def test_pictures_before_and_after_have_their_titles_and_sizes():
    figure = plots.before_after([Image.new("L", (30, 500))] * 2, [grey(9)] * 2, ["CT, L, 30×500", "MR"])
    titles = [axis.get_title("center") for axis in figure.axes]
    assert titles == ["CT, L, 30×500", "MR", "224×224", "224×224"]
    assert [axis.get_ylabel() for axis in figure.axes] == ["original", "", "prepared", ""]


def test_a_dark_grey_picture_is_drawn_as_dark_as_it_is():
    """matplotlib stretches the greys of mode L, and not those of RGB."""
    dark = Image.fromarray(np.array([[10, 20]], dtype=np.uint8))
    for figure in (plots.image_grid([dark], [""]), plots.before_after([dark], [dark], [""])):
        shown = [axis.images[0] for axis in figure.axes if axis.images]
        assert [image.get_clim() for image in shown] == [(0, 255)] * len(shown)
        assert shown


def test_no_pictures_are_an_empty_grid():
    assert not [axis for axis in plots.image_grid([], []).axes if axis.images]
    assert not [axis for axis in plots.before_after([], [], []).axes if axis.images]


def titles(figure):
    return [axis.get_title("left") for axis in figure.axes if axis.get_title("left")]


def panel(figure, title):
    return next(axis for axis in figure.axes if axis.get_title("left") == title)


def lines_of(axis):
    return {line.get_label(): line.get_xydata().tolist() for line in axis.lines}


def test_the_curves_have_no_panel_for_what_the_log_does_not_hold():
    assert titles(training_plots.training_curves(LOG)) == ["Loss", "Learning rate (1e-4)"]
    assert titles(training_plots.training_curves(LOG.head(1))) == ["Loss"]
    assert titles(training_plots.training_curves(FULL)) == [
        "Loss", "Captions of some validation images", "Learning rate (1e-4)", "Images a second",
        "Peak memory (GiB)", "GPUs busy (%)",
    ]  # fmt: skip
    on_cpu = training_plots.training_curves(FULL.assign(gpu_util=np.nan))
    assert titles(on_cpu)[-1] == "Memory of rank 0 (GiB)"


def test_a_run_of_three_sessions_is_one_curve_with_a_mark_where_each_went_on():
    lines = panel(training_plots.training_curves(FULL), "Loss").lines
    assert [line.get_label() for line in lines][:4] == ["training", "validation", "best 0.6, step 20", "continued"]
    assert lines[0].get_xydata().tolist() == [[10, 3.0], [20, 0.5], [30, 0.4]]
    assert [line.get_xdata()[0] for line in lines if line.get_linestyle() == ":"] == [10, 20]
    legend = panel(training_plots.training_curves(FULL), "Loss").get_legend()
    assert [text.get_text() for text in legend.get_texts()].count("continued") == 1


def test_the_scores_have_their_own_best_step():
    axis = panel(training_plots.training_curves(FULL), "Captions of some validation images")
    assert "best CIDEr 1.75, step 30" in lines_of(axis)
    assert lines_of(axis)["CIDEr (left)"] == [[0, 0.0], [20, 1.5], [30, 1.75]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == [
        "CIDEr (left)", "best CIDEr 1.75, step 30", "ROUGE-L (right)",
    ]  # fmt: skip


def test_each_gpu_has_its_line_from_the_session_on_in_which_it_was_there():
    axis = panel(training_plots.training_curves(FULL), "Peak memory (GiB)")
    assert lines_of(axis)["GPU 0"] == [[10, 3.0], [20, 3.0], [30, 3.0]]
    assert lines_of(axis)["GPU 1"][1:] == [[20, 4.0], [30, 4.0]]


@pytest.mark.parametrize(("last", "scale"), [(0.5, "log"), (2.6, "linear")])
def test_a_loss_that_falls_little_has_an_even_axis(last, scale):
    """Between 2.6 and 3.9 a logarithmic axis with ticks at 1, 2 and 5 has none."""
    log = results.log_table([{"step": 0, "eval_loss": 3.9}, {"step": 10, "eval_loss": last}])
    axis = panel(training_plots.training_curves(log), "Loss")
    low, high = axis.get_ylim()
    assert axis.get_yscale() == scale
    assert len([tick for tick in axis.get_yticks() if low <= tick <= high]) >= 2


def test_no_two_words_of_the_curves_lie_on_each_other():
    """With one grid for both rows matplotlib gave up and drew legends and titles over each other."""
    figure = training_plots.training_curves(FULL)
    figure.canvas.draw()
    boxes = [axis.get_legend().get_window_extent() for axis in figure.axes if axis.get_legend()]
    boxes += [axis._left_title.get_window_extent() for axis in figure.axes if axis.get_title("left")]
    boxes += [axis.xaxis.label.get_window_extent() for axis in figure.axes if axis.get_xlabel()]
    assert len(boxes) == 16
    assert [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if a.overlaps(b)] == []


def test_captions_over_time_are_drawn_beside_their_image_in_the_order_of_their_steps():
    figure = training_plots.captions_over_time([grey(10), grey(20)], over_time(["one", "two"], steps=7))
    heads = [axis.get_title("left") for axis in figure.axes[:6]]
    assert heads == ["", "reference", "step 0", "step 20", "step 40", "step 60"]
    assert words_of(figure) == ["one"] * 5 + ["two"] * 5
    assert [int(axis.images[0].get_array()[0, 0, 0]) for axis in figure.axes if axis.images] == [10, 20]


def test_images_and_captions_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="zip"):
        training_plots.captions_over_time([grey(10)], over_time(["one", "two"]))


def test_a_caption_stays_in_its_cell_and_is_cut_at_seven_lines():
    figure = training_plots.captions_over_time([grey(10)] * 2, over_time(["word " * 100, "WIDE CAPTION " * 9]))
    figure.canvas.draw()
    cells = [axis for axis in figure.axes if axis.texts]
    assert {axis.texts[0].get_text().count("\n") for axis in cells[:5]} == {6}
    assert cells[0].texts[0].get_text().endswith(" …")
    for axis in cells:
        assert axis.texts[0].get_window_extent().y0 >= axis.get_window_extent().y0 - 1
