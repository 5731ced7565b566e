"""A run over several sessions: the time budget, and going on with what another session left."""

import time

import pytest

from utils import runtime, sessions, stages
from utils.config import ConfigError
from utils.stages import STOPPED, write_json

NAME, CONFIG = "03_train_lora", {"rank": 16, "seed": 0}


@pytest.fixture
def at(monkeypatch):
    """Return a function that lets the code believe in a place, with a kernel that started at 1,000,000."""
    monkeypatch.setattr(sessions, "kernel_start", lambda: 1_000_000.0)
    return lambda place: monkeypatch.setattr(runtime, "place", lambda: place)


def test_kaggle_has_a_budget_of_its_own_and_other_places_have_none(at):
    at("kaggle")
    assert sessions.deadline(None) == 1_000_000 + 10.5 * 3600
    for place in ("colab", "local"):
        at(place)
        assert sessions.deadline(None) is None


def test_hours_count_from_the_start_of_the_kernel_anywhere(at):
    at("local")
    assert sessions.deadline(2) == 1_000_000 + 7200


@pytest.mark.parametrize("hours", [0, -1, "ten", float("nan"), True])
def test_hours_that_are_none_are_refused(at, hours):
    at("local")
    with pytest.raises(ConfigError, match="HOURS is"):
        sessions.deadline(hours)


def test_a_kernel_has_started_before_now():
    assert time.time() - 3600 < sessions.kernel_start() <= time.time()


def test_a_deadline_is_told_in_hours(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1000.0)
    assert sessions.told(1000 + 5400) == "time budget: 1.5 h from now"
    assert sessions.told(500) == "time budget: 0.0 h from now"
    assert sessions.told(None) == "no time budget"


@pytest.fixture
def prepared(finish, tmp_path):
    return finish(tmp_path / "work", "02_preprocess")


@pytest.fixture
def mounted(prepared, tmp_path):
    """Another session's output with a run that its time budget stopped."""

    def mount(name="radiglow-03", config=CONFIG, state=STOPPED):
        folder = stages.start_stage(tmp_path / "input" / name, NAME, config, (prepared,))
        (folder / "checkpoints" / "checkpoint-8").mkdir(parents=True)
        (folder / "checkpoints" / "checkpoint-8" / "sealed.json").write_text("{}")
        write_json(folder / "run.json", {"ended": "time budget"})
        stages.seal_stage(folder, {}, ignore=("checkpoints",), state=state)
        return folder

    return mount


def adopt(tmp_path, prepared):
    return sessions.adopt(tmp_path / "work", NAME, CONFIG, (prepared,), (tmp_path / "input",))


def test_a_stopped_run_of_another_session_is_taken_up_with_its_checkpoints(
    mounted, prepared, tmp_path, capsys
):
    folder = mounted()
    assert adopt(tmp_path, prepared) == folder
    own = tmp_path / "work" / NAME
    assert (own / "checkpoints" / "checkpoint-8" / "sealed.json").is_file()
    assert "took up radiglow-03/03_train_lora, which its time budget stopped" in capsys.readouterr().out
    stages.start_stage(tmp_path / "work", NAME, CONFIG, (prepared,))  # goes on without a word
    assert stages.read_manifest(own, NAME) is None


def test_a_finished_run_is_not_copied(mounted, prepared, tmp_path):
    mounted(state=stages.FINISHED)
    assert adopt(tmp_path, prepared) is None
    assert not (tmp_path / "work" / NAME).exists()


def test_what_was_begun_here_comes_first(mounted, prepared, tmp_path):
    mounted()
    own = stages.start_stage(tmp_path / "work", NAME, CONFIG, (prepared,))
    (own / "log.jsonl").write_text("mine")
    assert adopt(tmp_path, prepared) is None
    assert (own / "log.jsonl").read_text() == "mine"


def test_a_stage_that_was_only_opened_is_no_beginning(mounted, prepared, tmp_path):
    mounted()
    stages.start_stage(tmp_path / "work", NAME, CONFIG, (prepared,))
    assert adopt(tmp_path, prepared) is not None


def test_a_run_with_other_parameters_or_other_data_is_left_and_named(
    mounted, prepared, finish, tmp_path, capsys
):
    mounted("other-rank", config=CONFIG | {"rank": 4})
    assert adopt(tmp_path, prepared) is None
    assert "is another run: RANK was 4 and is now 16" in capsys.readouterr().out
    mounted("other-data")
    another = finish(tmp_path / "elsewhere", "02_preprocess", {"caption_percentile": 50})
    assert adopt(tmp_path, another) is None
    assert "it was trained on other data" in capsys.readouterr().out
