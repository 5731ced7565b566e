"""The bench of faults does to a run what it says, and names what became of it."""

import os

import numpy as np
import pytest

from tests.bench import faults, trials
from tests.bench.children import PREPARED, Ended, Order, run_child
from tests.bench.damage import DAMAGES, outcome
from utils import sealed

pytestmark = pytest.mark.slow
WHOLE = trials.Whole("hash", 0.5, 2.0)


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint-8"
    folder.mkdir()
    for name in sorted({name for name, _ in DAMAGES.values()} - {"."}):
        (folder / name).write_bytes(np.arange(100, dtype=np.uint8).tobytes())
    return folder


def test_there_are_fourteen_kinds_of_damage():
    assert len(DAMAGES) == 14


@pytest.mark.parametrize("kind", DAMAGES)
def test_every_damage_changes_the_checkpoint(kind, checkpoint, tmp_path):
    stage = sealed.staging(tmp_path / "sealed")
    for path in checkpoint.iterdir():
        path.rename(stage / path.name)
    sealed.seal(stage, tmp_path / "sealed", {})
    name, harm = DAMAGES[kind]
    harm(tmp_path / "sealed" / name)
    reason = sealed.trouble(tmp_path / "sealed")
    assert reason == {
        "missing": f"{name} is missing", "truncated": f"{name} has changed",
        "bit": f"{name} has changed", "folder": "not sealed",
    }[kind.split()[-1]]  # fmt: skip


def test_a_flip_changes_one_bit_and_no_size(checkpoint):
    path = checkpoint / "optimizer.pt"
    before = np.frombuffer(path.read_bytes(), np.uint8)
    DAMAGES["optimizer.pt with a flipped bit"][1](path)
    after = np.frombuffer(path.read_bytes(), np.uint8)
    assert np.unpackbits(before ^ after).sum() == 1


@pytest.mark.parametrize(
    ("well", "log", "result", "named"),
    [
        (True, "CONTINUE from checkpoint-8\n", "hash", "identical"),
        (True, "passed over: checkpoint-8: optimizer.pt is missing\nCONTINUE\n", "hash", "fell back"),
        (True, "passed over: checkpoint-8: optimizer.pt is missing\nCONTINUE\n", "other", "different"),
        (True, "CONTINUE from checkpoint-8\n", None, "different"),
        (False, "Traceback\nutils.checkpoints.CheckpointError: checkpoint-8 was made\n", None, "refused"),
        (False, "Traceback\nRuntimeError: PytorchStreamReader failed\n", "hash", "crashed"),
        (False, "", None, "crashed"),
    ],
)
def test_every_outcome_has_its_name(well, log, result, named):
    assert outcome(Ended(well, log, 0.5, 2.0), result, "hash") == named


def test_a_result_is_the_adapter_and_the_last_checkpoint(tmp_path):
    assert trials.result(tmp_path) is None
    files = [tmp_path / "adapter" / trials.ADAPTER, tmp_path / "checkpoints/checkpoint-12" / trials.ADAPTER]
    for path in files:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"same")
    whole = trials.result(tmp_path)
    for path in files:
        path.write_bytes(b"other")
        assert trials.result(tmp_path) != whole
        path.write_bytes(b"same")
    assert trials.result(tmp_path) == whole


def scripted(monkeypatch, *ends):
    """Let children end as told, one after the other, each with a folder of its own."""
    ends, orders = list(ends), []

    def run_child(order, kill_after=None):
        order.output.mkdir(exist_ok=True)
        orders.append((order, kill_after))
        return ends.pop(0)

    monkeypatch.setattr(trials, "run_child", run_child)
    monkeypatch.setattr(trials, "result", lambda output: "hash")
    return orders


def test_a_run_that_was_faster_than_the_kill_is_run_again(monkeypatch, tmp_path):
    well, dead = Ended(True, "", 0.5, 2.0), Ended(False, "", 0.5, 1.6)
    orders = scripted(monkeypatch, well, dead, well)
    assert trials.killed("ours", tmp_path / "run", 2.0, WHOLE) == "identical"
    assert [after for _, after in orders] == [2.0, 1.6, None]
    assert not (tmp_path / "run").exists()


def test_a_chain_that_came_to_its_end_too_soon_is_begun_again_and_at_last_given_up(monkeypatch, tmp_path):
    orders = scripted(monkeypatch, *[Ended(True, "", 0.5, 2.0)] * 5)
    monkeypatch.setattr(trials, "read_json", lambda path: {"ended": "finished"})
    assert trials.chained(tmp_path / "run", 0, WHOLE) == "not stopped"
    assert len(orders) == 5


def test_a_chain_is_three_stops_and_a_run_to_the_end(monkeypatch, tmp_path):
    orders = scripted(monkeypatch, *[Ended(True, "", 0.5, 2.0)] * 4)
    monkeypatch.setattr(trials, "read_json", lambda path: {"ended": "time budget"})
    assert trials.chained(tmp_path / "run", 0, WHOLE) == "identical"
    assert ["deadline" in order.options for order, _ in orders] == [True, True, True, False]


def test_where_mounting_is_refused_the_bar_is_missed(monkeypatch, tmp_path):
    def refused(*args):
        raise OSError("PermissionError: mounting is refused: Operation not permitted")

    monkeypatch.setattr(faults, "sizes", lambda rival, root: [4096])
    monkeypatch.setattr(trials, "starved", refused)
    (line,) = faults.full_lines("ours", tmp_path, WHOLE, 1.0)
    assert "not done, PermissionError: mounting is refused" in line.what
    assert not line.met


def test_figures_of_the_stock_trainer_are_told_and_those_of_ours_held_against_a_bar(monkeypatch, tmp_path):
    came = ["identical", "fell back", "different", "crashed"]
    monkeypatch.setattr(trials, "killed", lambda rival, output, at, whole: came[int(output.name[-1])])
    ours, stock = (faults.kill_lines(rival, tmp_path, WHOLE, 4) for rival in ("ours", "stock"))
    assert [line.ours for line in ours] == [line.ours for line in stock] == [2, 1, 1]
    assert [line.met for line in ours] == [False, False, False]
    assert [line.bar for line in stock] == [None, None, None]
    assert ours[0].what == "killed runs that ended bit-identical, of 4"
    assert stock[0].what == "killed runs that ended bit-identical, of 4, stock Trainer"


@pytest.mark.slow
def test_ours_survives_one_fault_of_each_kind(tmp_path):
    trials.must(run_child(Order("prepare", tmp_path / PREPARED)))
    whole = trials.whole_run("ours", tmp_path / "whole")
    assert trials.killed("ours", tmp_path / "killed", whole.seconds / 2, whole) in ("identical", "fell back")
    stopped = tmp_path / "stopped"
    assert not run_child(Order("ours", stopped, kill_at=9)).well
    assert sorted(os.listdir(stopped / "checkpoints")) == ["checkpoint-7", "checkpoint-8"]
    for kind in ("optimizer.pt missing", "adapter_model.safetensors with a flipped bit"):
        assert trials.damaged("ours", stopped, tmp_path / "damaged", kind, whole) == "fell back"
    size = faults.sizes("ours", tmp_path)[70]  # of 84 or so: within optimizer.pt
    assert trials.starved("ours", tmp_path / "full", size, whole) in (
        (True, "identical"),
        (True, "fell back"),
    )
