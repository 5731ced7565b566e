"""The view of a running training: current, whole and only one, whatever becomes of the log."""

import json
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

from utils import live
from utils.stages import REPO

PLAN = SimpleNamespace(steps=40, hours=1.0)


def training(step, session=1):
    return {"step": step, "seconds": step * 2.0, "session": session, "epoch": step / 10, "loss": 1.0,
            "learning_rate": 1e-4, "images_per_s": 16.0, "memory_gib": [1.5]}  # fmt: skip


def evaluation(step, session=1, caption="a lung"):
    return {"step": step, "seconds": step * 2.0 + 0.5, "session": session, "epoch": step / 10,
            "eval_loss": 3.0 - step / 20, "eval_cider": step / 10, "eval_rouge_l": step / 100,
            "captions": [{"image_id": "v_1", "reference": "a chest", "caption": caption}]}  # fmt: skip


def write(folder, *lines, tail=""):
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


class Recorder:
    """Stands for the notebook's cell: what was written to each place, in order."""

    def __init__(self):
        self.texts, self.figures, self.tables = [], [], []

    def write(self, place, text):
        self.texts.append(text)

    def draw(self, place, figure):
        self.figures.append(len(figure.subfigs))
        plt.close(figure)

    def table(self, place, table):
        self.tables.append(table.to_dict("list"))


@pytest.fixture
def clock(monkeypatch):
    time = SimpleNamespace(now=100.0)
    monkeypatch.setattr(live, "monotonic", lambda: time.now)
    return time


@pytest.fixture
def page(monkeypatch, clock):
    recorder = Recorder()
    monkeypatch.setattr(live, "Page", lambda: recorder)
    monkeypatch.setattr(live, "in_notebook", lambda: True)
    return recorder


def test_before_the_first_step_the_view_says_what_it_waits_for(tmp_path, page):
    live.TrainingView(tmp_path, PLAN)
    assert page.texts == ["No step is logged yet: the data and the model are loaded first."]
    assert page.figures == page.tables == []


def test_the_status_says_place_quality_load_and_time(tmp_path, page, clock):
    write(tmp_path, evaluation(0), training(10), evaluation(10))
    view = live.TrainingView(tmp_path, PLAN, budget_hours=2)
    assert page.texts[-1] == (
        "██████░░░░░░░░░░░░░░░░░░\n"
        "step 10 of 40 · 1.0 passes · 20 s of training\n"
        "loss 1.000 · validation loss 2.500 · CIDEr 1.000 · ROUGE-L 0.100\n"
        "16.0 images/s · memory 1.5 GiB\n"
        "about 45 min to the last step (estimate from the plan) · 2 h 00 min left of the time budget"
    )
    clock.now += 3600
    view.refresh()
    assert page.texts[-1].endswith("1 h 00 min left of the time budget")


def test_an_evaluation_is_drawn_at_once_and_other_lines_now_and_then(tmp_path, page, clock):
    write(tmp_path, evaluation(0))
    view = live.TrainingView(tmp_path, PLAN, every=2, redraw=30)
    assert (len(page.texts), len(page.figures)) == (1, 1)
    write(tmp_path, evaluation(0), training(5))
    view.refresh()
    assert (len(page.texts), len(page.figures)) == (1, 1)
    clock.now += 2
    view.refresh()
    assert (len(page.texts), len(page.figures)) == (2, 1)
    write(tmp_path, evaluation(0), training(5), evaluation(10))
    view.refresh()
    assert (len(page.texts), len(page.figures)) == (3, 2)
    clock.now += 30
    view.refresh()
    assert (len(page.texts), len(page.figures)) == (4, 3)
    clock.now += 2
    view.refresh()
    assert (len(page.texts), len(page.figures)) == (5, 3)


def test_the_captions_of_the_last_evaluation_stand_beside_those_of_the_first(tmp_path, page):
    write(tmp_path, *(evaluation(step, caption=f"caption {step}") for step in (0, 10, 20)))
    live.TrainingView(tmp_path)
    assert page.tables == [{"reference": ["a chest"], "step 0": ["caption 0"], "step 20": ["caption 20"]}]


def test_a_line_in_writing_is_shown_once_it_is_whole(tmp_path, page, clock):
    write(tmp_path, evaluation(0), tail='{"step": 10, "seco')
    view = live.TrainingView(tmp_path, PLAN)
    assert "step 0 of 40" in page.texts[-1]
    write(tmp_path, evaluation(0), training(10))
    clock.now += 5
    view.refresh()
    assert "step 10 of 40" in page.texts[-1]


def test_a_log_that_a_resumed_run_cut_back_is_drawn_as_it_now_stands(tmp_path, page, clock):
    write(tmp_path, evaluation(0), training(10), evaluation(10), training(20), evaluation(20))
    view = live.TrainingView(tmp_path, PLAN)
    write(tmp_path, evaluation(0), training(10), evaluation(10))
    view.refresh()
    assert "step 10 of 40" in page.texts[-1]
    assert list(page.tables[-1]) == ["reference", "step 0", "step 10"]
    write(tmp_path, evaluation(0), training(10), evaluation(10), evaluation(20, session=2))
    view.refresh()
    assert len(page.figures) == 3


def test_a_log_that_is_emptied_for_a_moment_breaks_nothing(tmp_path, page, capsys):
    write(tmp_path, evaluation(0))
    view = live.TrainingView(tmp_path, PLAN)
    write(tmp_path)
    view.refresh()
    write(tmp_path, evaluation(0), evaluation(10))
    view.refresh()
    assert "step 10 of 40" in page.texts[-1]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("run", "said"),
    [
        ({"ended": "finished", "sessions": 1}, "finished"),
        ({"ended": "stopped early", "sessions": 1}, "stopped early: it no longer got better"),
        ({"ended": "time budget", "sessions": 1}, "stopped at its time budget: run it again to go on"),
        (None, "not finished: run it again to go on"),
    ],
)
def test_the_last_state_says_how_the_session_ended(tmp_path, page, run, said):
    write(tmp_path, evaluation(0), training(10))
    if run:
        (tmp_path / "run.json").write_text(json.dumps(run))
    live.TrainingView(tmp_path, PLAN, budget_hours=2).close()
    assert page.texts[-1].splitlines()[-1] == said
    assert len(page.figures) == 2


def test_the_record_of_a_session_before_does_not_speak_for_this_one(tmp_path, page):
    """A continued session that failed was called finished at its time budget, as the one before."""
    (tmp_path / "run.json").write_text(json.dumps({"ended": "time budget", "sessions": 1}))
    write(tmp_path, evaluation(0), training(10), training(20, session=2))
    live.TrainingView(tmp_path, PLAN).close()
    assert page.texts[-1].splitlines()[-1] == "not finished: run it again to go on"


def test_without_a_plan_the_record_says_the_steps(tmp_path, page):
    write(tmp_path, evaluation(0), training(10))
    view = live.TrainingView(tmp_path)
    assert page.texts[-1].splitlines()[0] == "step 10 · 1.0 passes · 20 s of training"
    (tmp_path / "run.json").write_text(json.dumps({"ended": "finished", "planned_steps": 10}))
    view.close()
    assert "step 10 of 10" in page.texts[-1]


def test_the_last_state_is_shown_when_the_training_fails(tmp_path, page):
    def fail(view):
        with view:
            write(tmp_path, evaluation(0), training(10))
            raise RuntimeError("rank 1 ran out of memory")

    with pytest.raises(RuntimeError, match="rank 1"):
        fail(live.TrainingView(tmp_path, PLAN))
    assert "step 10 of 40" in page.texts[-1]


def test_a_view_that_cannot_be_drawn_says_so_once_and_lets_the_run_go_on(tmp_path, page, clock, capsys):
    write(tmp_path, evaluation(0))
    view = live.TrainingView(tmp_path, PLAN)
    (tmp_path / "log.jsonl").write_text("no JSON\n")
    for _ in range(3):
        clock.now += 60
        view.refresh()
    said = capsys.readouterr().out
    assert said.startswith("The view of the training is not up to date: StageError: Line 1 of log.jsonl")
    assert said.count("\n") == 1


def test_on_a_terminal_each_new_evaluation_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(live, "in_notebook", lambda: False)
    write(tmp_path, evaluation(0))
    view = live.TrainingView(tmp_path, PLAN)
    assert capsys.readouterr().out == ""  # told by the session before
    write(tmp_path, evaluation(0), training(10), evaluation(10))
    view.refresh()
    view.refresh()
    assert capsys.readouterr().out == (
        "step 10 of 40 · 1.0 passes · 20 s of training · "
        "loss 1.000 · validation loss 2.500 · CIDEr 1.000 · ROUGE-L 0.100\n"
    )
    view.close()
    assert capsys.readouterr().out.endswith("not finished: run it again to go on\n")


def test_a_table_of_captions_is_text_whatever_it_holds():
    """pandas cuts texts at 50 letters by itself, and a page would run a caption's tags."""
    table = pd.DataFrame({"step <0>": ["<script>alert('$x$')</script> " + "long " * 30]}, index=["<b>id</b>"])
    html = live.as_html(table)
    assert "<script>" not in html
    assert "<b>" not in html
    assert "step &lt;0&gt;" in html
    assert "&lt;script&gt;alert(&#39;$x$&#39;)&lt;/script&gt; " + "long " * 30 in html
    assert 'class="tex2jax_ignore mathjax_ignore"' in html


LOOP = """
import json, pathlib
import matplotlib.pyplot as plt
from tests.test_live import PLAN, evaluation, training
from utils import live

folder = pathlib.Path("log"); folder.mkdir()
with live.TrainingView(folder, PLAN, every=0, redraw=0) as view:
    for step in range(0, 41, 10):
        with open(folder / "log.jsonl", "a") as log:
            log.write(json.dumps(training(step)) + "\\n" + json.dumps(evaluation(step)) + "\\n")
        print("a rank says", step, flush=True)
        view.refresh()
    (folder / "run.json").write_text('{"ended": "finished", "sessions": 1}')
assert plt.get_fignums() == []
"""


@pytest.mark.slow
def test_a_notebook_run_without_a_screen_keeps_one_last_state(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    cells = [nbformat.v4.new_code_cell(LOOP)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    status, curves, captions, *said = notebook.cells[0].outputs
    assert status["data"]["text/plain"].startswith("█" * 24 + "\nstep 40 of 40")
    assert status["data"]["text/plain"].endswith("\nfinished")
    assert curves["data"]["image/png"].startswith("iVBORw0KGgo")
    assert "step 40" in captions["data"]["text/html"]
    assert [sorted(place["data"]) for place in (status, curves, captions)] == [
        ["text/plain"], ["image/png", "text/plain"], ["text/html", "text/plain"],
    ]  # fmt: skip
    assert "".join(output["text"] for output in said) == "".join(f"a rank says {n}\n" for n in range(0, 41, 10))
