"""The study: what differs in each row, that finished runs are kept, and a table with its spread."""

import pandas as pd
import pytest

from utils import results, runtime, study
from utils.config import TrainConfig
from utils.stages import StageError, StageFolder, read_json, write_json


@pytest.fixture
def prepared(prepared_folder):
    return StageFolder(prepared_folder, {"stage": "02_preprocess"})


@pytest.fixture
def launched(monkeypatch):
    """Let no process start: a training leaves its record, and is noted."""
    ran = []

    def launch(module, job, procs):
        ran.append((module, read_json(job)))
        write_json(job.parent / "run.json", {"trainable_parameters": 5})

    monkeypatch.setattr(runtime, "launch", launch)
    return ran


def test_every_row_is_a_configuration_that_can_be_trained():
    usual = {"preset": "connector", "variant": "lora", "rank": 16, "alpha": 32, "dropout": 0.05,
             "learning_rate": None, "epochs": 3, "global_batch": None, "micro_batch": None, "evaluations": 1,
             "generated": 0, "select": "eval_loss", "patience": 3, "seed": 0}  # fmt: skip
    for name, row in study.ROWS.items():
        changes = {k: v for k, v in row.items() if k != "modes"}
        assert set(changes) <= set(usual), name
        TrainConfig(**usual | changes)
    assert study.ROWS[study.USUAL] == {}


def test_a_row_is_trained_as_notebook_03_does_but_for_what_differs(prepared, launched, tmp_path):
    study.train(tmp_path / "run", prepared, {"rank": 4, "alpha": 8, "epochs": 3, "seed": 1}, 2)
    ((module, job),) = launched
    assert module == "utils.train"
    config = job["config"]
    assert (config["preset"], config["rank"], config["alpha"], config["seed"]) == ("connector", 4, 8, 1)
    assert (config["evaluations"], config["generated"]) == (1, 0)


def test_a_finished_run_is_kept_and_one_of_another_configuration_is_refused(prepared, launched, tmp_path):
    for _ in range(2):
        study.train(tmp_path / "run", prepared, {"seed": 1}, 2)
    assert len(launched) == 1
    with pytest.raises(StageError, match="was trained otherwise"):
        study.train(tmp_path / "run", prepared, {"seed": 2}, 2)


RUNS = pd.DataFrame({
    "row": ["a", "a", "b"], "seed": [0, 1, 0], "trainable": [1000, 1000, 50],
    "validation_loss": [0.5, 0.7, None], "cider": [1.0, 2.0, 3.0], "rouge_l": [0.5, 0.5, 0.6],
    "all_right_share": [0.25, 0.75, 1.0],
})  # fmt: skip


def test_the_table_gives_mean_and_standard_deviation_and_nothing_for_what_was_not_measured():
    table = results.study_table(RUNS)
    # the deviation of 1 and 2 with n - 1 is the square root of a half
    assert table.loc["a"].tolist() == ["1,000", 2, "0.600 ± 0.141", "1.500 ± 0.707", "0.500 ± 0.000",
                                       "0.500 ± 0.354"]  # fmt: skip
    assert table.loc["b"].tolist() == ["50", 1, "–", "3.000", "0.600", "1.000"]


def test_the_picture_has_a_line_for_each_row_and_a_dot_for_each_run():
    from utils import training_plots

    figure = training_plots.study(RUNS)
    losses, ciders, _ = figure.axes
    assert [label.get_text() for label in losses.get_yticklabels()] == ["a", "b"]
    dots = [line for axes in (losses, ciders) for line in axes.lines if line.get_marker() == "o"]
    assert [len(line.get_xdata()) for line in dots] == [2, 2, 1]


def test_the_committed_study_holds_every_row_with_its_seeds():
    runs = results.read_study()
    assert runs["row"].drop_duplicates().tolist() == list(study.ROWS)
    assert runs.groupby("row").size().min() >= 3
