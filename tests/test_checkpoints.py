"""A checkpoint that a kill cut off, or that changed since, is never taken up."""

import pytest

from utils import checkpoints


@pytest.fixture
def folder(tmp_path):
    for step in (5, 10, 100):
        checkpoint = tmp_path / f"checkpoint-{step}"
        checkpoint.mkdir()
        (checkpoint / "adapter_model.safetensors").write_bytes(b"weights" * step)
        (checkpoint / "optimizer.pt").write_bytes(b"moments")
        checkpoints.seal(checkpoint)
    return tmp_path


def test_the_newest_is_the_highest_step_and_not_the_last_in_the_alphabet(folder):
    assert checkpoints.newest(folder).name == "checkpoint-100"


@pytest.mark.parametrize("damage", ["unsealed", "missing file", "changed byte", "broken seal"])
def test_a_damaged_checkpoint_is_passed_over(folder, damage):
    last = folder / "checkpoint-100"
    if damage == "unsealed":
        (last / checkpoints.SEAL).unlink()
    if damage == "missing file":
        (last / "optimizer.pt").unlink()
    if damage == "changed byte":
        (last / "optimizer.pt").write_bytes(b"momentz")
    if damage == "broken seal":
        (last / checkpoints.SEAL).write_text('{"optimizer.pt": ')
    assert checkpoints.newest(folder).name == "checkpoint-10"
    assert checkpoints.discard_broken(folder) == ["checkpoint-100"]
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-10", "checkpoint-5"]


def test_without_checkpoints_there_is_none(tmp_path):
    assert checkpoints.newest(tmp_path) is None
    assert checkpoints.newest(tmp_path / "not there") is None
