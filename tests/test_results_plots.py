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
from utils.stages import StageFolder

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


DRAWINGS = {
    "funnel": lambda: plots.funnel({s: {"kept": 5, "mode L": 3, "copy of a test image": 0} for s in ("train", "valid", "test")}),
    "funnel of one reason": lambda: plots.funnel({"train": {"kept": 1}}),
    "funnel with more reasons than colours": lambda: plots.funnel({"train": {"kept": 9} | {f"mode {n}": n for n in range(9)}}),
    "funnel with an empty split": lambda: plots.funnel({"train": {"kept": 2}, "test": {"kept": 0}}),
    "grid": lambda: plots.image_grid([grey(9)] * 7, [f"title {n}" for n in range(7)]),
    "grid of one": lambda: plots.image_grid([grey(9)], ["$x$ \n"]),
    "grid of awkward titles": lambda: plots.image_grid([grey(9)] * 6, AWKWARD),
    "grey grid": lambda: plots.image_grid([Image.new("L", (30, 500))], [""]),
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
    assert words_of(plots.token_lengths(pd.Series([5, 60, 61, 80]), 60)) == [
        "limit 60: 2 longer ones are cut "
    ]
