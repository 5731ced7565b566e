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

from utils import plots, results
from utils.config import MODES
from utils.stages import StageFolder
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


def test_the_log_has_its_columns_even_where_no_line_has_a_value(tmp_path):
    lines = [{"step": 0, "eval_loss": 3.5, "seconds": 1.0}, {"step": 10, "loss": 2.5, "extra": 1}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = results.read_log(tmp_path / "log.jsonl")
    assert table.columns.tolist() == ["step", "seconds", "loss", "eval_loss", "learning_rate", "extra"]
    assert table["step"].tolist() == [0, 10]
    assert table["loss"].dropna().tolist() == [2.5]
    assert table["learning_rate"].isna().all()


def test_the_parts_of_all_ranks_are_joined_by_id(tmp_path):
    (tmp_path / "parts").mkdir()
    for number, ids in enumerate((["d", "b"], ["c", "a"])):
        rows = [{"image_id": i, "tuned": i.upper(), "tuned_logprob": -1.5} for i in ids]
        (tmp_path / "parts" / f"part-{number}.json").write_text(json.dumps(rows))
    table = results.read_predictions(tmp_path)
    assert table["image_id"].tolist() == ["a", "b", "c", "d"]
    assert table["tuned"].tolist() == ["A", "B", "C", "D"]


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


SCORES = pd.DataFrame({"bleu_1": [0.1, 0.2, 0.3], "cider": [0.0, 0.0, 1.5], "side_accuracy": [1, 0, 1]},
                      index=["most common caption", "base", "tuned"])  # fmt: skip
LOG = pd.DataFrame({"step": [0, 10, 20], "loss": [np.nan, 3.0, 2.0], "eval_loss": [4.0, np.nan, 2.5],
                    "learning_rate": [np.nan, 1e-3, 0.0]})  # fmt: skip


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
    "curves": lambda: plots.training_curves(LOG, 20),
    "curves of one line": lambda: plots.training_curves(LOG.head(1), 0),
    "bars": lambda: plots.score_bars(SCORES, list(SCORES)),
    "bars of two metrics": lambda: plots.score_bars(SCORES, ["cider", "bleu_1"]),
    "confusion": lambda: plots.confusion(pd.DataFrame([[3, 1], [0, 2]], ["CT", "MR"], ["CT", "MR"])),
    "confusion of one modality": lambda: plots.confusion(pd.DataFrame([[4, 0]], ["CT"], ["CT", "none"])),
    "confusion of an empty row": lambda: plots.confusion(pd.DataFrame([[0, 0]], ["CT"], ["CT", "none"])),
    "gallery": lambda: plots.caption_gallery([grey(9)] * 6, answers(AWKWARD)),
    "gallery of one": lambda: plots.caption_gallery([grey(9)], answers([""])),
}  # fmt: skip


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
