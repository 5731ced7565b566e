"""Training: the recipe, the record, and that a run that was stopped ends as one that was not."""

import json

import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from utils import config, train
from utils.stages import read_json, sha256_file, write_json

SETTINGS = {
    "preset": "connector", "rank": 4, "alpha": 8, "dropout": 0.1, "learning_rate": 0.01, "epochs": 3,
    "global_batch": 4, "micro_batch": 2, "evaluations": 3, "patience": 3, "seed": 0,
}  # fmt: skip


def job_in(folder, prepared, **changes):
    folder.mkdir(exist_ok=True)
    write_json(folder / "job.json", {"prepared": str(prepared), "output": str(folder),
                                     "config": SETTINGS | changes})  # fmt: skip
    return folder / "job.json"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared_folder):
    folder = tmp_path_factory.mktemp("runs") / "03_train_lora"
    train.main(job_in(folder, prepared_folder))
    return folder


def test_a_run_leaves_adapter_log_and_record(finished):
    run = read_json(finished / "run.json")
    # 8 pairs in global batches of 4 are 2 steps an epoch, 3 epochs
    assert (run["planned_steps"], run["steps"], run["accumulation"]) == (6, 6, 2)
    assert run["quantisation"] == "nf4, double, 18 linears of OPT"
    assert run["best_step"] in (2, 4, 6)
    weights = load_file(finished / "adapter" / "adapter_model.safetensors")
    assert any("language_projection" in name for name in weights)
    assert sum(tensor.numel() for tensor in weights.values()) == run["trainable_parameters"]


def test_the_log_holds_the_loss_before_training_and_at_each_evaluation(finished):
    lines = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [0, 2, 4, 6]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses[-1] < losses[0]


def test_the_best_checkpoint_is_the_one_that_is_kept(finished):
    run = read_json(finished / "run.json")
    best = finished / "checkpoints" / f"checkpoint-{run['best_step']}" / "adapter_model.safetensors"
    assert sha256_file(best) == sha256_file(finished / "adapter" / "adapter_model.safetensors")


def test_a_finished_run_is_not_run_again(finished, capsys):
    train.main(finished / "job.json")
    assert "nothing to do" in capsys.readouterr().out


def test_a_log_that_a_kill_cut_off_is_read_up_to_its_last_whole_line(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
    assert train.lines_until(2, log) == ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.0}']
    assert train.lines_until(1, log) == ['{"step": 1, "loss": 2.0}']
    assert train.lines_until(-1, tmp_path / "none") == []


def without_time(folder):
    """Return step and loss of each line of a run's log."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line.get("loss"), line.get("eval_loss")) for line in lines if "epoch" in line]


class Stop(Exception):
    """Stands for the kill of the process."""


def test_a_stopped_run_goes_on_and_ends_bit_for_bit_the_same(
    finished, prepared_folder, tmp_path, monkeypatch, capsys
):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise Stop

    job, build = job_in(tmp_path / "03_train_lora", prepared_folder), train.build_trainer

    def killed(*arguments):
        trainer, facts = build(*arguments)
        trainer.add_callback(Kill())
        return trainer, facts

    with monkeypatch.context() as patch:
        patch.setattr(train, "build_trainer", killed)
        with pytest.raises(Stop):
            train.main(job)
    assert "START" in capsys.readouterr().out
    train.main(job)
    assert "CONTINUE from checkpoint-2" in capsys.readouterr().out
    one, two = (f / "adapter" / "adapter_model.safetensors" for f in (finished, job.parent))
    assert sha256_file(one) == sha256_file(two)
    # an evaluation on resuming stood twice in the log and counted against the patience
    assert [without_time(job.parent)] == [without_time(finished)]


def test_early_stopping_ends_a_run_that_gets_worse(prepared_folder, tmp_path):
    job = job_in(tmp_path / "out", prepared_folder, learning_rate=50.0, epochs=10, evaluations=10, patience=1)
    train.main(job)
    run = read_json(tmp_path / "out" / "run.json")
    assert run["stopped_early"]
    assert run["steps"] < run["planned_steps"] == 20


def test_one_step_is_the_same_with_and_without_accumulation(prepared_folder, tmp_path):
    """transformers up to 5.15 left BLIP-2's loss a sum over accumulation: gradients grew with it."""
    losses = []
    for micro in (4, 1):
        folder = tmp_path / f"micro{micro}"
        job = job_in(folder, prepared_folder, micro_batch=micro, dropout=0.0, epochs=1, evaluations=1)
        train.main(job)
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        losses.append([(line["loss"], line["grad_norm"]) for line in lines if "loss" in line])
    assert losses[0] == [pytest.approx(pair, rel=1e-3) for pair in losses[1]]


def test_training_arguments_follow_the_configuration(tmp_path):
    settings = config.TrainConfig(**SETTINGS)
    args = train.arguments(settings, tmp_path, pairs=1001, procs=2, dtype="float32")
    # ceil(1001 / 4) = 251 steps an epoch, 3 epochs; an evaluation every third
    assert (args.max_steps, args.eval_steps, args.save_steps) == (753, 251, 251)
    assert args.gradient_accumulation_steps == 1
    assert args.ddp_find_unused_parameters is False
