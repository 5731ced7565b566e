"""Training: the recipe, the record, and that a run that was stopped ends as one that was not."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from utils import checkpoints, config, runlog, runtime, train
from utils.stages import REPO, read_json, sha256_file, write_json

SETTINGS = {
    "preset": "connector", "variant": "lora", "rank": 4, "alpha": 8, "dropout": 0.1, "learning_rate": 0.01,
    "epochs": 3, "global_batch": 4, "micro_batch": 2, "evaluations": 3, "generated": 3,
    "select": "eval_loss", "patience": 3, "seed": 0,
}  # fmt: skip


def job_in(folder, prepared, job=None, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "job.json", {"prepared": str(prepared), "output": str(folder),
                                     "config": SETTINGS | changes} | (job or {}))  # fmt: skip
    return folder / "job.json"


def lines_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def differ(one, two):
    """The largest difference between two adapters."""
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, prepared_folder):
    folder = tmp_path_factory.mktemp("runs") / "03_train_lora"
    train.main(job_in(folder, prepared_folder))
    return folder


def test_a_run_leaves_adapter_log_and_record(finished):
    run = read_json(finished / "run.json")
    # 8 pairs in global batches of 4 are 2 steps a pass, 3 passes
    assert (run["planned_steps"], run["steps"], run["accumulation"]) == (6, 6, 2)
    assert run["quantisation"] == "nf4, double, 18 linears of OPT"
    assert (run["ended"], run["sessions"], run["selected"]) == ("finished", 1, "eval_loss")
    weights = weights_of(finished)
    assert any("language_projection" in name for name in weights)
    assert sum(tensor.numel() for tensor in weights.values()) == run["trainable_parameters"]


def test_the_log_holds_loss_and_caption_scores_before_training_and_at_each_evaluation(finished):
    lines = lines_of(finished)
    measured = [line for line in lines if "eval_loss" in line]
    assert [line["step"] for line in measured] == [0, 2, 4, 6]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert measured[-1]["eval_loss"] < measured[0]["eval_loss"]
    assert all(0 <= line["eval_rouge_l"] <= 1 and line["eval_cider"] >= 0 for line in measured)
    # 3 of the 4 validation images are captioned; all are of one modality
    assert [sample["image_id"] for sample in measured[0]["captions"]] == ["valid_00", "valid_01", "valid_03"]
    assert measured[0]["captions"][1]["reference"] == "MR of the brain with a nodule."


def test_the_log_counts_passes_and_seconds(finished):
    lines = lines_of(finished)
    assert [line["epoch"] for line in lines if "loss" in line] == [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)
    assert {line["session"] for line in lines} == {1}
    assert all(line["images_per_s"] > 0 for line in lines if "loss" in line)


def test_the_selected_checkpoint_is_the_adapter_that_is_kept(finished):
    run = read_json(finished / "run.json")
    measured = {line["step"]: line["eval_loss"] for line in lines_of(finished) if "eval_loss" in line}
    assert run["best_step"] == min((2, 4, 6), key=measured.get)
    assert run["best"]["eval_loss"] == {"step": run["best_step"],
                                        "value": round(measured[run["best_step"]], 5)}  # fmt: skip
    best = finished / "checkpoints" / f"checkpoint-{run['best_step']}" / "adapter_model.safetensors"
    assert sha256_file(best) == sha256_file(finished / "adapter" / "adapter_model.safetensors")


@pytest.mark.slow
def test_a_best_checkpoint_that_was_damaged_is_not_handed_on(prepared_folder, tmp_path, monkeypatch):
    """A bit that flips between saving and the end of a run once went into the adapter unseen."""

    def damaged(trainer, real=train.bests):
        found = real(trainer)
        if trainer.state.global_step == 6 and found:
            best = tmp_path / "out" / "checkpoints" / f"checkpoint-{found['eval_loss']['step']}"
            (best / "adapter_model.safetensors").write_bytes(b"other")
        return found

    monkeypatch.setattr(train, "bests", damaged)
    with pytest.raises(runlog.TrainError, match="cannot be used: adapter_model.safetensors has changed"):
        train.main(job_in(tmp_path / "out", prepared_folder))


def test_the_adapter_names_its_base_and_no_folder_of_this_machine(finished, tiny_folder):
    """peft writes down the path that the base was loaded from: the folder of the 4-bit copy."""
    text = (finished / "adapter" / "adapter_config.json").read_text()
    assert json.loads(text)["base_model_name_or_path"] == tiny_folder.rpartition("/")[2]
    assert "/tmp" not in text


def test_a_finished_run_is_not_run_again(finished, capsys):
    train.main(finished / "job.json")
    assert "nothing to do" in capsys.readouterr().out


def test_a_log_that_a_kill_cut_off_is_read_up_to_its_last_whole_line(tmp_path):
    """A cut through a letter once raised UnicodeDecodeError, and a line separator in a caption cut it too."""
    log = tmp_path / "log.jsonl"
    log.write_bytes('{"step": 1, "c": "a\u2028b"}\n{"step": 2}\n{"step": 3, "c": "caf\u00e9'.encode()[:-1])
    assert runlog.lines_until(3, log) == [{"step": 1, "c": "a\u2028b"}, {"step": 2}]
    assert runlog.lines_until(1, log) == [{"step": 1, "c": "a\u2028b"}]
    assert runlog.lines_until(-1, tmp_path / "none") == []


def without_time(folder):
    """Return what each line of a run's log says, but for clocks and memory."""
    clocks = ("seconds", "session", "images_per_s", "memory_gib", "eval_seconds")
    return [{k: v for k, v in line.items() if k not in clocks} for line in lines_of(folder)]


class Stop(Exception):
    """Stands for the kill of the process."""


def killed_at(step, monkeypatch):
    """Let the next run end as a kill after ``step`` would end it."""

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Stop

    def build(*arguments, real=train.build_trainer):
        trainer, facts = real(*arguments)
        trainer.add_callback(Kill())
        return trainer, facts

    monkeypatch.setattr(train, "build_trainer", build)


def test_a_stopped_run_goes_on_and_ends_bit_for_bit_the_same(
    finished, prepared_folder, tmp_path, monkeypatch, capsys
):
    job = job_in(tmp_path / "03_train_lora", prepared_folder)
    with monkeypatch.context() as patch:
        killed_at(3, patch)
        with pytest.raises(Stop):
            train.main(job)
    assert "START" in capsys.readouterr().out
    train.main(job)
    assert "CONTINUE from checkpoint-2" in capsys.readouterr().out
    one, two = (f / "adapter" / "adapter_model.safetensors" for f in (finished, job.parent))
    assert sha256_file(one) == sha256_file(two)
    # an evaluation on resuming stood twice in the log and counted against the patience
    assert without_time(job.parent) == without_time(finished)
    assert [line["session"] for line in lines_of(job.parent) if "loss" in line] == [1, 1, 2, 2, 2, 2]
    assert read_json(job.parent / "run.json")["sessions"] == 2


@pytest.mark.slow
def test_a_time_budget_ends_a_run_properly_and_the_chain_ends_as_the_unbroken_run(
    finished, prepared_folder, tmp_path, capsys
):
    folder = tmp_path / "03_train_lora"
    for step in (1, 2, 3):  # a deadline that has passed lets every session make one step
        train.main(job_in(folder, prepared_folder, {"deadline": time.time() - 1}))
        run = read_json(folder / "run.json")
        assert (run["ended"], run["steps"], run["sessions"]) == ("time budget", step, step)
        assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    assert "time budget at step 3 of 6" in capsys.readouterr().out
    train.main(job_in(folder, prepared_folder))
    assert (read_json(folder / "run.json")["ended"], read_json(folder / "run.json")["sessions"]) == ("finished", 4)
    assert differ(weights_of(folder), weights_of(finished)) == 0
    assert without_time(folder) == without_time(finished)


@pytest.mark.slow
def test_another_configuration_is_not_trained_on_from_these_checkpoints(
    prepared_folder, tmp_path, monkeypatch
):
    job = job_in(tmp_path / "out", prepared_folder)
    train.main(job_in(tmp_path / "out", prepared_folder, {"deadline": time.time() - 1}))
    with pytest.raises(checkpoints.CheckpointError, match="SEED was 0 and is now 1"):
        train.main(job_in(tmp_path / "out", prepared_folder, seed=1))
    monkeypatch.setattr(train, "CODE", 99)
    with pytest.raises(checkpoints.CheckpointError, match="CODE was"):
        train.main(job)


@pytest.mark.slow
def test_another_micro_batch_goes_on_from_these_checkpoints(finished, prepared_folder, tmp_path):
    train.main(job_in(tmp_path / "out", prepared_folder, {"deadline": time.time() - 1}))
    train.main(job_in(tmp_path / "out", prepared_folder, micro_batch=4))
    assert read_json(tmp_path / "out" / "run.json")["micro_batch"] == 4


@pytest.mark.slow
def test_early_stopping_ends_a_run_that_gets_worse(prepared_folder, tmp_path):
    job = job_in(tmp_path / "out", prepared_folder, learning_rate=1.0, epochs=10, evaluations=10, patience=1)
    train.main(job)
    run = read_json(tmp_path / "out" / "run.json")
    assert (run["ended"], run["stopped_early"]) == ("stopped early", True)
    assert run["steps"] < run["planned_steps"] == 20


def test_a_loss_that_is_no_number_ends_the_run_with_a_sentence(prepared_folder, tmp_path, monkeypatch):
    """Trainer goes on with NaN weights to the end, and its filter hides them from the log."""
    monkeypatch.setattr(train.CaptionTrainer, "compute_loss",
                        lambda self, model, inputs, **k: sum(p.sum() for p in model.parameters()
                                                             if p.requires_grad) * float("nan"))  # fmt: skip
    with pytest.raises(runlog.TrainError, match="The loss is nan at step 1. Lower LEARNING_RATE"):
        train.main(job_in(tmp_path / "out", prepared_folder))


@pytest.mark.slow
def test_accumulation_by_1_2_and_4_gives_the_same_update(prepared_folder, tmp_path):
    """transformers up to 5.15 left BLIP-2's loss a sum over accumulation: gradients grew with it."""
    runs = []
    for micro in (4, 2, 1):
        folder = tmp_path / f"micro{micro}"
        changes = {"micro_batch": micro, "dropout": 0.0, "epochs": 1, "evaluations": 1}
        train.main(job_in(folder, prepared_folder, **changes))
        assert read_json(folder / "run.json")["accumulation"] == 4 // micro
        steps = [(line["loss"], line["grad_norm"]) for line in lines_of(folder) if "loss" in line]
        runs.append((steps, weights_of(folder)))
    for steps, weights in runs[1:]:
        assert steps == [pytest.approx(pair, rel=1e-5) for pair in runs[0][0]]
        assert differ(weights, runs[0][1]) < 1e-5


@pytest.mark.slow
def test_checkpointed_layers_change_the_memory_and_not_the_run(finished, prepared_folder, tmp_path, monkeypatch):
    real = train.plan_for

    def two_layers(*arguments):
        made = real(*arguments)
        object.__setattr__(made, "checkpointed_layers", 2)
        return made

    monkeypatch.setattr(train, "plan_for", two_layers)
    recomputed = []
    monkeypatch.setattr(train.model, "checkpoint", lambda *a, real=train.model.checkpoint, **k: (
        recomputed.append(1), real(*a, **k))[1])  # fmt: skip
    train.main(job_in(tmp_path / "out", prepared_folder))
    assert len(recomputed) == 2 * 12  # layers x micro-batches of the run
    assert differ(weights_of(tmp_path / "out"), weights_of(finished)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["rslora", "dora", "lora+"])
def test_every_variant_trains_and_is_read_back(prepared_folder, tmp_path, tiny_folder, variant):
    from utils import model

    train.main(job_in(tmp_path / "out", prepared_folder, variant=variant, learning_rate=0.001))
    losses = [line["eval_loss"] for line in lines_of(tmp_path / "out") if "eval_loss" in line]
    assert losses[-1] < losses[0]
    adapted = model.load_adapter(model.load_base(tiny_folder, "float32"), tmp_path / "out" / "adapter")
    settings = adapted.peft_config["default"]
    assert (settings.use_rslora, settings.use_dora) == (variant == "rslora", variant == "dora")


def test_lora_plus_teaches_the_b_matrices_faster(prepared_folder, tmp_path):
    trainer, _ = train.build_trainer(read_json(job_in(tmp_path / "out", prepared_folder, variant="lora+")))
    trainer.create_optimizer()
    rates = {}
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    for group in trainer.optimizer.param_groups:
        rates |= {names[id(p)]: group["lr"] for p in group["params"]}
    assert {rate for name, rate in rates.items() if "lora_B" in name} == {0.01 * 16}
    assert {rate for name, rate in rates.items() if "lora_A" in name} == {0.01}
    assert len(rates) == sum(p.requires_grad for p in trainer.model.parameters())


@pytest.mark.slow
def test_the_decoder_preset_trains_on_features_without_the_visual_part(prepared_folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train, "drop_visual", lambda m, real=train.drop_visual: (seen.append(1), real(m)))
    train.main(job_in(tmp_path / "03_train_lora", prepared_folder, preset="decoder"))
    assert seen
    (features,) = (tmp_path / "features").iterdir()
    assert sorted(p.name for p in features.iterdir()) == ["train-00000.safetensors", "valid-00000.safetensors"]
    losses = [line["eval_loss"] for line in lines_of(tmp_path / "03_train_lora") if "eval_loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_the_decoder_preset_learns_the_same_from_features_as_from_pictures(
    prepared_folder, tmp_path, monkeypatch
):
    for name in ("features", "pictures"):
        if name == "pictures":
            monkeypatch.setattr(train, "with_features", lambda base, splits, *rest: splits)
        train.main(job_in(tmp_path / name / "03", prepared_folder, preset="decoder"))
    one, two = (lines_of(tmp_path / name / "03") for name in ("features", "pictures"))
    for key in ("loss", "eval_loss"):
        values = [[line[key] for line in lines if key in line] for lines in (one, two)]
        assert values[0] == pytest.approx(values[1], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["connector", "decoder"])
def test_a_run_under_autocast_trains_measures_captions_and_goes_on(
    prepared_folder, tmp_path, monkeypatch, preset
):
    """What a GPU does, with the dtype that a CPU can autocast to; the base model is then in bf16 as well."""
    monkeypatch.setattr(runtime, "compute_dtype", lambda: ("bfloat16", "a test"))
    folder = tmp_path / "03_train_lora"
    train.main(job_in(folder, prepared_folder, {"deadline": time.time() - 1}, preset=preset))
    train.main(job_in(folder, prepared_folder, preset=preset))
    assert read_json(folder / "run.json")["dtype"] == "bfloat16"
    losses = [line["eval_loss"] for line in lines_of(folder) if "eval_loss" in line]
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in weights_of(folder).values()} == {torch.float32}
    for shard in tmp_path.glob("features/*/*.safetensors"):
        assert load_file(shard)["features"].dtype == torch.bfloat16


def test_training_arguments_follow_the_configuration(tmp_path, prepared_folder):
    settings = config.TrainConfig(**SETTINGS | {"epochs": 7, "evaluations": 4})
    planned = train.plan_for(settings, prepared_folder, 1)
    args = train.arguments(settings, tmp_path, planned, "float32", "none")
    # 7 passes of 8 pairs in batches of 4 are 14 steps; 4 evaluations are one every 14 / 4, rounded up
    assert (args.max_steps, args.eval_steps, args.save_steps) == (14, 4, 4)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (2, 2)
    assert args.ddp_find_unused_parameters is False


@pytest.mark.slow
def test_a_run_whose_steps_do_not_divide_is_measured_after_its_last(prepared_folder, tmp_path):
    train.main(job_in(tmp_path / "out", prepared_folder, epochs=3.5, evaluations=2))
    assert [line["step"] for line in lines_of(tmp_path / "out") if "eval_loss" in line] == [0, 4, 7]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["connector", "decoder"])
def test_two_ranks_train_what_one_trains(prepared_folder, tmp_path, preset):
    """With dropout: its masks belong to the micro-batch, whichever rank has it."""
    for ranks in (1, 2):
        folder = tmp_path / str(ranks) / "03_train_lora"
        runtime.launch("utils.train", job_in(folder, prepared_folder, preset=preset), procs=ranks)
    one, two = (tmp_path / name / "03_train_lora" for name in "12")
    assert read_json(two / "run.json")["processes"] == 2
    assert differ(weights_of(one), weights_of(two)) < 1e-5
    for left, right in zip(lines_of(one), lines_of(two), strict=True):
        for key in ("loss", "eval_loss", "eval_cider"):
            assert left.get(key) == pytest.approx(right.get(key), abs=1e-5)
        assert left.get("captions") == right.get("captions")


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_one(prepared_folder, tmp_path):
    folder = tmp_path / "broken" / "03_train_lora"
    runtime.launch(
        "utils.train", job_in(folder, prepared_folder, {"deadline": time.time() - 1}), procs=2
    )
    runtime.launch("utils.train", job_in(folder, prepared_folder), procs=1)
    whole = tmp_path / "whole" / "03_train_lora"
    runtime.launch("utils.train", job_in(whole, prepared_folder), procs=1)
    assert differ(weights_of(folder), weights_of(whole)) < 1e-5


@pytest.mark.slow
def test_two_nodes_train_together_over_loopback(prepared_folder, tmp_path):
    job = job_in(tmp_path / "03_train_lora", prepared_folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1",
               "--rdzv_backend=c10d", "--rdzv_endpoint=localhost:29517", "--rdzv_id=radiglow",
               "-m", "utils.train", str(job)]  # fmt: skip
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    nodes = [subprocess.Popen(command, cwd=REPO, env=env) for _ in range(2)]
    assert [node.wait(timeout=240) for node in nodes] == [0, 0]
    run = read_json(tmp_path / "03_train_lora" / "run.json")
    assert (run["processes"], run["steps"], run["ended"]) == (2, 6, "finished")


def test_the_best_step_is_the_first_of_equals_among_those_that_are_there():
    from utils.trainer import best_step, worn_out

    history = [{"step": 0, "eval_loss": 1.0}, {"step": 5, "eval_loss": 0.5, "eval_cider": 1.0}, {"step": 7, "loss": 0},
               {"step": 10, "eval_loss": 0.5, "eval_cider": 2.0}, {"step": 15, "eval_loss": 0.4, "eval_cider": 1.5}]
    assert best_step(history, "eval_loss", {5, 10}) == (5, 0.5)
    assert best_step(history, "eval_loss", {5, 10, 15}) == (15, 0.4)
    assert best_step(history, "eval_cider", {5, 10, 15}) == (10, 2.0)
    assert best_step(history, "eval_cider", set()) is None
    assert worn_out(history, "eval_cider", 1)
    assert not worn_out(history, "eval_cider", 2)
    assert not worn_out(history, "eval_loss", 1)


def test_the_captioned_subset_is_spread_over_the_split_and_the_same_every_time():
    from utils.trainer import subset_of

    assert subset_of(100, 5) == [0, 24, 49, 74, 99]
    assert subset_of(3, 64) == [0, 1, 2]
    assert subset_of(100, 0) == []


@pytest.mark.slow
def test_torch_decides_nothing_that_the_seed_does_not(prepared_folder, tmp_path):
    """Random state left over from before a run must not reach it: a resumed run has another."""
    for name, seed in (("a", 1), ("b", 2)):
        torch.manual_seed(seed)
        train.main(job_in(tmp_path / name, prepared_folder, epochs=1))
    assert differ(weights_of(tmp_path / "a"), weights_of(tmp_path / "b")) == 0
