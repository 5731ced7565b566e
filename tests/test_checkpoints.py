"""A checkpoint is whole or not there; a run goes on from the newest whole one, or says why it does not."""

import errno
import os
import sys

import pytest
import torch
from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainingArguments

from utils import checkpoints, sealed
from utils.checkpoints import CheckpointError, SealedTrainer, is_full, resume_point, rotate
from utils.files import read_json, sha256_file
from utils.runtime import launch

pytestmark = pytest.mark.slow
CONTRACT = {"rank": 8, "modes": ["RGB"]}
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
# what torch and safetensors raise on a full tmpfs, word for word
TORCH = RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
WRITER = RuntimeError(
    "[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file data/0: file write failed"
)
STREAM = RuntimeError("basic_ios::clear: iostream error")
SAFE = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


class Line(torch.nn.Module):
    """y = ax + b, so small that a run takes no time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(2, 1)

    def forward(self, x, labels):
        answer = self.linear(x)
        return {"loss": (answer[:, 0] - labels).square().mean(), "logits": answer}


def trainer_in(folder, model=None, steps=6, every=1, contract=CONTRACT, kind=SealedTrainer, **options):
    args = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=every, per_device_train_batch_size=2,
        learning_rate=0.1, use_cpu=True, report_to="none", disable_tqdm=True, logging_strategy="no",
        ddp_backend="gloo" if "LOCAL_RANK" in os.environ else None,
    )  # fmt: skip
    pairs = [{"x": torch.tensor([i / 8, 1 - i / 4]), "labels": torch.tensor(i / 2)} for i in range(8)]
    return kind(model=model or Line(), args=args, train_dataset=pairs, contract=contract, **options)


def names(folder):
    return sorted((p.name for p in folder.iterdir()), key=lambda name: (len(name), name))


def adapted():
    """A peft model, whose checkpoints hold an adapter alone."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    return get_peft_model(Line(), LoraConfig(r=1, target_modules=["linear"]))


@pytest.fixture
def folder(tmp_path):
    """Checkpoints 1, 2, 3 of a run of six steps that was stopped after three."""
    trainer = trainer_in(tmp_path, adapted(), keep=lambda: {1, 2, 3}, callbacks=[StopAfter(3)])
    trainer.train()
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    return tmp_path


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_a_checkpoint_holds_these_files_and_no_pickle(folder):
    assert names(folder / "checkpoint-3") == [
        "README.md", "sealed.json", "optimizer.pt", "scheduler.pt", "trainer_state.json",
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    assert sealed.facts(folder / "checkpoint-3") == {"step": 3, "contract": CONTRACT}
    assert sealed.trouble(folder / "checkpoint-3") is None


def test_a_model_without_an_adapter_is_kept_as_safetensors(tmp_path):
    trainer_in(tmp_path, steps=1).train()
    assert names(tmp_path / "checkpoint-1") == [
        "sealed.json", "optimizer.pt", "scheduler.pt", "model.safetensors", "trainer_state.json",
    ]  # fmt: skip


def test_the_two_newest_stay_and_those_that_are_asked_for(tmp_path):
    trainer_in(tmp_path, steps=12, keep=lambda: {3}).train()
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-11", "checkpoint-12"]


def test_a_resumed_run_ends_as_one_that_was_not_stopped(folder, tmp_path_factory):
    whole = tmp_path_factory.mktemp("whole")
    trainer_in(whole, adapted()).train()
    resume = resume_point(folder, CONTRACT)
    assert resume == checkpoints.Resume(folder / "checkpoint-3", ())
    trainer_in(folder, adapted()).train(resume_from_checkpoint=str(resume.path))
    one, two = (f / "checkpoint-6" / "adapter_model.safetensors" for f in (whole, folder))
    assert sha256_file(one) == sha256_file(two)
    one, two = (read_json(f / "checkpoint-6" / "trainer_state.json") for f in (whole, folder))
    assert one["global_step"] == two["global_step"] == 6


def test_what_is_loaded_is_loaded_as_weights_only(folder, monkeypatch):
    load, asked = torch.load, []

    def spy(path, *args, **kwargs):
        asked.append((os.path.basename(path), kwargs.get("weights_only")))
        return load(path, *args, **kwargs)

    monkeypatch.setattr(torch, "load", spy)
    trainer_in(folder, adapted(), steps=4).train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert asked == [("optimizer.pt", True), ("scheduler.pt", True)]


def test_a_pickle_is_never_sealed(tmp_path):
    class Pickling(SealedTrainer):
        def _save(self, output_dir=None, state_dict=None):
            super()._save(output_dir, state_dict)
            torch.save({}, os.path.join(output_dir, "pytorch_model.bin"))

    with pytest.raises(CheckpointError, match=r"checkpoint-1 would hold the pickle pytorch_model\.bin"):
        trainer_in(tmp_path, kind=Pickling).train()


def test_a_sealed_pickle_is_not_read_either(folder):
    stage = sealed.staging(folder / "checkpoint-4")
    (stage / "adapter_model.bin").write_bytes(b"pickle")
    sealed.seal(stage, folder / "checkpoint-4", {"contract": CONTRACT})
    resume = resume_point(folder, CONTRACT)
    assert resume.path.name == "checkpoint-3"
    assert resume.skipped == ("checkpoint-4: holds a pickle: adapter_model.bin",)


def test_what_is_passed_over_is_told_with_its_reason(folder):
    (folder / "checkpoint-3" / "optimizer.pt").unlink()
    (folder / "checkpoint-2" / "adapter_model.bin").write_bytes(b"pickle")
    (folder / "checkpoint-10").mkdir()
    assert resume_point(folder, CONTRACT) == checkpoints.Resume(
        folder / "checkpoint-1",
        ("checkpoint-10: not sealed", "checkpoint-3: optimizer.pt is missing",
         "checkpoint-2: holds a file that was not sealed: adapter_model.bin"),
    )  # fmt: skip


def test_without_a_whole_checkpoint_training_starts_and_says_what_was_there(folder, tmp_path):
    for step in (1, 2, 3):
        (folder / f"checkpoint-{step}" / "sealed.json").unlink()
    resume = resume_point(folder, CONTRACT)
    assert resume.path is None
    assert resume.skipped == tuple(f"checkpoint-{step}: not sealed" for step in (3, 2, 1))
    assert resume_point(tmp_path / "not there", CONTRACT) == checkpoints.Resume(None, ())


def test_another_contract_is_refused_with_old_and_new_values(folder):
    with pytest.raises(CheckpointError) as refusal:
        resume_point(folder, {"rank": 16, "modes": ("RGB",), "seed": 1})
    assert str(refusal.value) == (
        "checkpoint-3 was made differently: RANK was 8 and is now 16, SEED was None and is now 1. Give the "
        "old values to go on from it, or train anew with FRESH = True."
    )
    # a tuple comes back from JSON as a list: that is no difference
    assert resume_point(folder, {"rank": 8, "modes": ("RGB",)}).path.name == "checkpoint-3"


def test_what_was_passed_over_goes_once_there_is_a_newer_whole_one_and_not_before(folder):
    """Counted among the newest, a damaged checkpoint would have pushed out the last good one."""
    (folder / "checkpoint-3" / "optimizer.pt").write_bytes(b"")
    (folder / "checkpoint-9").mkdir()
    resume = resume_point(folder, CONTRACT)
    assert names(folder) == ["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-9"]

    class FullOnce(SealedTrainer):
        def _write(self, model, trial):
            seen.append(names(folder))
            if self.state.global_step == 3:
                raise NO_SPACE
            super()._write(model, trial)

    seen = []
    trainer_in(folder, adapted(), steps=4, kind=FullOnce).train(resume_from_checkpoint=str(resume.path))
    assert seen == [["checkpoint-1", "checkpoint-2", "checkpoint-3", "checkpoint-9"]] * 2
    assert names(folder) == ["checkpoint-2", "checkpoint-4"]
    assert resume_point(folder, CONTRACT) == checkpoints.Resume(folder / "checkpoint-4", ())


def test_rotation_counts_whole_checkpoints_and_leaves_other_files_alone(folder):
    for name in ("checkpoint-10", "checkpoint-best", "checkpoint-1-copy"):
        (folder / name).mkdir()
    rotate(folder, 1, {1, 10})
    assert names(folder) == ["checkpoint-1", "checkpoint-3", "checkpoint-best", "checkpoint-1-copy"]


def test_left_overs_of_a_kill_are_deleted_before_training_goes_on(folder):
    """On a full disk they would have taken the room of the next checkpoint."""
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(names(folder))

    (folder / ".stage" / "checkpoint-4").mkdir(parents=True)
    (folder / ".del-checkpoint-1").mkdir()
    trainer = trainer_in(folder, adapted(), steps=4, callbacks=[Look()])
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3"))
    assert seen[0] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert names(folder) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("error", [NO_SPACE, OSError(errno.EDQUOT, "Quota"), TORCH, WRITER, STREAM, SAFE])
@pytest.mark.parametrize("where", ["save_model", "_save_optimizer_and_scheduler", "sealing"])
def test_a_full_disk_costs_one_checkpoint_and_not_the_run(tmp_path, monkeypatch, capsys, error, where):
    seen = []

    class Full(SealedTrainer):
        def _save_checkpoint(self, model, trial):
            owner, name = (checkpoints.sealed, "seal") if where == "sealing" else (Trainer, where)
            with monkeypatch.context() as patch:
                if self.state.global_step == 4:
                    patch.setattr(owner, name, fail)
                super()._save_checkpoint(model, trial)
            seen.append((self.state.global_step, self.saved, names(tmp_path)))

    def fail(*args, **kwargs):
        raise error

    trainer_in(tmp_path, every=2, kind=Full).train()
    assert seen == [
        (2, True, ["checkpoint-2"]),
        (4, False, ["checkpoint-2"]),
        (6, True, ["checkpoint-2", "checkpoint-6"]),
    ]
    told = [line for line in capsys.readouterr().out.splitlines() if "checkpoint-4" in line]
    assert len(told) == 1
    assert told[0].startswith("checkpoint-4 could not be written: the disk is full (")
    assert told[0].endswith(" MB free). Training goes on; the next one is tried at step 6.")


def test_a_disk_that_is_full_at_the_end_says_that_none_follows(tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise NO_SPACE

    monkeypatch.setattr(Trainer, "_save_scaler", fail)
    trainer = trainer_in(tmp_path, steps=2, every=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert not trainer.saved
    assert names(tmp_path) == []
    assert "MB free). It was the last one." in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "no"), RuntimeError("CUDA"), OSError(errno.EIO, "I/O")]
)
def test_any_other_error_ends_the_run(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(Trainer, "_save_scaler", fail)
    assert not is_full(error)
    with pytest.raises(type(error)):
        trainer_in(tmp_path).train()


# ---- two ranks: this file is also what they run ----


def rank_main(folder):
    """Train on two ranks; the disk of the second is full at step 2."""
    from pathlib import Path

    rank, folder = int(os.environ["RANK"]), Path(folder)
    save = Trainer._save_scaler

    def full_once(self, output_dir):
        if rank == 1 and self.state.global_step == 2:
            raise NO_SPACE
        save(self, output_dir)

    Trainer._save_scaler = full_once
    trainer = trainer_in(folder, adapted(), steps=4)
    trainer.add_callback(Told(trainer))
    trainer.train()
    resume = resume_point(folder, CONTRACT)
    print(f"rank {rank}: {resume.path.name} {resume.skipped}", flush=True)
    try:
        resume_point(folder, {"rank": 9})
    except CheckpointError as refusal:
        print(f"rank {rank} refuses: {str(refusal)[:36]}", flush=True)
    torch.distributed.barrier()
    sys.stdout.flush()
    # Gloo's threads drop their last tensors in their own time: into the interpreter's end it aborts the process.
    os._exit(0)


class Told(TrainerCallback):
    def __init__(self, trainer):
        self.trainer = trainer

    def on_save(self, args, state, control, **kwargs):
        print(f"rank {args.process_index}: step {state.global_step}, saved {self.trainer.saved}", flush=True)


@pytest.mark.slow
def test_ranks_agree_what_was_saved_and_where_to_go_on(tmp_path, capfd):
    launch("tests.test_checkpoints", tmp_path, procs=2)
    out = capfd.readouterr().out
    for rank in (0, 1):
        for step, saved in ((1, True), (2, False), (3, True), (4, True)):
            assert f"rank {rank}: step {step}, saved {saved}" in out
        assert f"rank {rank}: checkpoint-4 ()" in out
        assert f"rank {rank} refuses: checkpoint-4 was made differently: M" in out
    assert out.count("checkpoint-2 could not be written: the disk is full") == 1
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]
    # from either number of ranks to the other
    trainer_in(tmp_path, adapted(), steps=5).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-5"]


if __name__ == "__main__":
    rank_main(sys.argv[1])
