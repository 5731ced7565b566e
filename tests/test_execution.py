"""The five notebooks for real, on a small release: data to demo, again, and killed in between."""

import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from tests import check_sample
from utils.sample.release import write_sample
from utils.stages import REPO, STAGES, open_stage, read_json

pytestmark = pytest.mark.slow
SMALL = {"train": 240, "valid": 24, "test": 40}
COMMAND = [sys.executable, "-m", "utils.series"]
# Every split holds one caption of 80 words and more: uncut, it alone would decide the loss of so few.
SETTINGS = ["--set", "EPOCHS=25", "--set", "CAPTION_PERCENTILE=90"]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    return write_sample(tmp_path_factory.mktemp("data") / "release", counts=SMALL, seed=3)


@pytest.fixture(scope="module")
def work(tmp_path_factory, release):
    """The work folder of a run that was killed during training and started again."""
    folder = tmp_path_factory.mktemp("series") / "work"
    arguments = ["--source", str(release), "--work", str(folder), *SETTINGS]
    checkpoints = folder / "03_train_lora" / "checkpoints"
    with subprocess.Popen([*COMMAND, *arguments], cwd=REPO, start_new_session=True) as process:
        for _ in range(1200):
            if list(checkpoints.glob("checkpoint-*/sealed.json")) or process.poll() is not None:
                break
            time.sleep(0.1)
        assert process.poll() is None, "the run ended before it could be killed"
        kill_tree(process.pid)
    # the same parameters, but for those that do not change the run
    subprocess.run([*COMMAND, *arguments], cwd=REPO, check=True)
    return folder


def kill_tree(pid):
    """Kill a process and all of its descendants at once, as the end of a session does."""
    table = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    parents = {int(p): int(pp) for p, pp in (line.split() for line in table.splitlines()[1:])}
    family, grew = {pid}, True
    while grew:
        children = {p for p, parent in parents.items() if parent in family} - family
        family |= children
        grew = bool(children)
    for member in family:
        try:
            os.kill(member, signal.SIGKILL)
        except ProcessLookupError:
            print(member, "ended by itself")


def test_every_stage_is_finished_and_knows_its_inputs(work):
    for name, stage in STAGES.items():
        folder = open_stage(name, work, roots=())
        assert folder.manifest["inputs"] == {
            need: open_stage(need, work, roots=()).fingerprint for need in stage.needs
        }


def test_the_filter_agrees_with_the_key_of_the_release(work, release):
    key = pd.read_csv(release / "key.csv", keep_default_na=False)
    funnel = read_json(work / "01_filter" / "report.json")["funnel"]
    for split, count in SMALL.items():
        assert sum(funnel[split].values()) == count
        rows = key[key["split"] == split]
        grey = rows[(rows["mode"] == "L") & (rows["caption_dirt"] != "empty")]
        assert funnel[split]["mode L"] <= len(grey)
        assert 0 < funnel[split]["kept"] <= (rows["mode"] == "RGB").sum()


def test_the_training_went_on_after_the_kill_on_two_processes_in_four_bits(work):
    page = (work / "notebooks" / "03_train_lora.ipynb").read_text()
    assert "CONTINUE from checkpoint-" in page
    run = read_json(work / "03_train_lora" / "run.json")
    assert run["processes"] == 2
    assert run["quantisation"] == "nf4, double, 18 linears of OPT"
    log = [
        line for line in (work / "03_train_lora" / "log.jsonl").read_text().splitlines() if "eval_" in line
    ]
    assert log[0].startswith('{"step": 0')


def test_every_kept_test_image_has_both_captions(work):
    captions = pd.read_parquet(work / "02_preprocess" / "captions.parquet")
    test = captions.loc[captions["split"] == "test", "image_id"].sort_values()
    predictions = pd.read_parquet(work / "04_evaluate" / "predictions.parquet")
    assert predictions["image_id"].tolist() == test.tolist()
    assert (predictions["tuned"] != "").all()
    assert (predictions["base_logprob"] < 0).all()
    submission = pd.read_csv(work / "04_evaluate" / "submission.csv")
    assert submission["ID"].tolist() == test.tolist()


def test_tuning_has_changed_what_the_model_says(work):
    """140 pairs teach the words and little else; what the whole sample must reach is in check_sample."""
    scores = read_json(work / "04_evaluate" / "metrics.json")["scores"]
    base, tuned = scores["base"], scores["tuned"]
    assert base["modality_accuracy"]["value"] < 0.1
    assert tuned["modality_accuracy"]["value"] > base["modality_accuracy"]["value"] + 0.1
    assert tuned["cider"]["value"] > 3 * base["cider"]["value"]


def test_metrics_json_alone_gives_every_table_of_the_notebook_again(work):
    assert check_sample.not_rebuilt(work) == 0


def test_the_pages_are_there_with_their_pictures(work):
    for name in STAGES:
        page = (work / "notebooks" / f"{name}.html").read_text()
        assert page.count('src="data:image/png;base64') >= 1
    assert (work / "05_caption_demo" / "gallery.png").stat().st_size > 10_000


def test_a_second_run_does_nothing_and_says_so(work, release):
    arguments = ["--source", str(release), "--work", str(work), *SETTINGS]
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
    result = subprocess.run([*COMMAND, *arguments], cwd=REPO, capture_output=True, text=True, check=True)
    assert "Nothing to do" in result.stdout
    assert {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()} == before


def test_another_parameter_over_these_stages_is_refused(work, release):
    arguments = ["--source", str(release), "--work", str(work), *SETTINGS, "--set", "RANK=8"]
    result = subprocess.run([*COMMAND, *arguments], cwd=REPO, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "RANK was 16 and is now 8" in result.stderr


def test_a_failing_notebook_names_its_cell_and_its_error(tmp_path, release):
    """A model that is not there: found in notebook 02, after 01 is done and kept."""
    arguments = ["--source", str(release), "--work", str(tmp_path / "w"), "--set", "MODEL_ID=nowhere/at-all"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [*COMMAND, *arguments], cwd=REPO, capture_output=True, text=True, check=False, env=env
    )
    assert result.returncode == 2
    assert "notebook 02_preprocess, cell" in result.stderr
    assert "(1. What the model expects) failed with ModelError" in result.stderr
    assert open_stage("01_filter", tmp_path / "w", roots=()).manifest["counts"]["train"] > 0
