"""What the machine is, and that a failing rank says why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import runtime, stages
from utils.runtime import Gpu

T4 = Gpu("Tesla T4", 7.5, 15.0)
H100 = Gpu("NVIDIA H100 80GB HBM3", 9.0, 79.6)


@pytest.fixture
def cards(monkeypatch):
    """Return a function that puts the given GPUs into the machine."""
    return lambda *found: monkeypatch.setattr(runtime, "gpus", lambda: found)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Return a function that puts a fake nvidia-smi with the given output first on PATH."""
    runtime.gpus.cache_clear()

    def install(output, code=0):
        fake = tmp_path / "nvidia-smi"
        fake.write_text(
            f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\ncat <<'END'\n{output}\nEND\nexit {code}\n"
        )
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    yield install
    runtime.gpus.cache_clear()


def test_two_t4_are_read_from_nvidia_smi(nvidia_smi, tmp_path):
    nvidia_smi("Tesla T4, 7.5, 15360\nTesla T4, 7.5, 15360")
    assert runtime.gpus() == (T4, T4)
    assert "--query-gpu=name,compute_cap,memory.total" in (tmp_path / "asked").read_text()


def test_an_h100_is_read_from_nvidia_smi(nvidia_smi):
    nvidia_smi("NVIDIA H100 80GB HBM3, 9.0, 81559")
    (gpu,) = runtime.gpus()
    assert (gpu.name, gpu.capability, round(gpu.memory, 1)) == ("NVIDIA H100 80GB HBM3", 9.0, 79.6)


def test_a_driver_that_does_not_answer_is_no_gpu(nvidia_smi):
    nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9)
    assert runtime.gpus() == ()


def test_a_machine_without_nvidia_smi_has_no_gpu(nvidia_smi, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert runtime.gpus() == ()


def test_looking_for_gpus_does_not_import_torch():
    code = "import sys; from utils import runtime; runtime.gpus(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=stages.REPO, capture_output=True, text=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("found", "profile"),
    [((), "cpu"), ((T4,), "t4"), ((T4, T4), "t4x2"), ((H100,), "gpu"), ((H100, H100), "gpu"),
     ((Gpu("NVIDIA L4", 8.9, 22.5),), "gpu"), ((T4, H100), "t4x2")],
)  # fmt: skip
def test_the_smallest_card_decides_the_profile(cards, found, profile):
    cards(*found)
    assert runtime.hardware() == profile


@pytest.mark.parametrize(
    ("found", "dtype", "reason"),
    [((), "float32", "no GPU"), ((T4,), "float16", "7.5 has no bf16"),
     ((Gpu("A100", 8.0, 40),), "bfloat16", "8.0 has bf16"), ((H100,), "bfloat16", "9.0 has bf16"),
     ((H100, T4), "float16", "7.5 has no bf16")],
)  # fmt: skip
def test_the_lowest_capability_decides_the_dtype_and_says_so(cards, found, dtype, reason):
    cards(*found)
    chosen, why = runtime.compute_dtype()
    assert chosen == dtype
    assert reason in why


@pytest.mark.parametrize(
    ("source", "found", "chosen"),
    [("auto", (), "sample"), ("auto", (T4,), "eltorio/ROCOv2-radiology"), ("sample", (T4,), "sample"),
     ("my/data", (), "my/data")],
)  # fmt: skip
def test_the_source_follows_the_machine_only_when_left_open(
    cards, monkeypatch, tmp_path, source, found, chosen
):
    monkeypatch.setattr(runtime, "KAGGLE_INPUT", tmp_path / "no mounts")
    cards(*found)
    assert runtime.choose_source(source) == chosen


def test_an_attached_release_comes_before_the_hub(cards, monkeypatch, tmp_path):
    (tmp_path / "datasets" / "rocov2").mkdir(parents=True)
    (tmp_path / "datasets" / "rocov2" / "train_captions.csv").touch()
    monkeypatch.setattr(runtime, "KAGGLE_INPUT", tmp_path)
    cards(T4)
    assert runtime.choose_source("auto") == str(tmp_path / "datasets" / "rocov2")


def test_folders_are_kept_as_absolute_paths(monkeypatch, tmp_path):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert runtime.choose_source("mine") == runtime.choose_model("mine", "sample") == str(tmp_path / "mine")


@pytest.mark.parametrize(
    ("model_id", "source", "found", "chosen"),
    [("auto", "sample", (), "sample"), ("auto", "eltorio/ROCOv2-radiology", (), "sample"),
     ("auto", "sample", (T4,), "sample"), ("auto", "a/b", (T4,), "Salesforce/blip2-opt-6.7b"),
     ("Salesforce/blip2-opt-2.7b", "sample", (), "Salesforce/blip2-opt-2.7b")],
)  # fmt: skip
def test_the_model_follows_machine_and_source_only_when_left_open(cards, model_id, source, found, chosen):
    cards(*found)
    assert runtime.choose_model(model_id, source) == chosen


@pytest.mark.parametrize(
    ("variable", "place", "work"),
    [("KAGGLE_KERNEL_RUN_TYPE", "kaggle", Path("/kaggle/working/radiglow")),
     ("COLAB_RELEASE_TAG", "colab", stages.REPO / "work"), ("NOTHING", "local", stages.REPO / "work")],
)  # fmt: skip
def test_the_place_decides_the_work_folder(monkeypatch, variable, place, work):
    for name in ("KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "1")
    assert (runtime.place(), runtime.work_folder()) == (place, work)
    assert runtime.work_folder("/some/where") == Path("/some/where")


@pytest.mark.parametrize(
    ("procs", "found", "ranks"), [(None, (), 2), (None, (T4,), 1), (None, (T4, T4), 2), (1, (T4, T4), 1)]
)
def test_one_process_a_gpu_and_two_on_a_cpu(cards, procs, found, ranks):
    cards(*found)
    assert runtime.rank_count(procs) == ranks


def test_the_banner_says_what_will_compute(cards):
    cards(T4, T4)
    text = runtime.banner()
    assert "Tesla T4 (15 GiB), Tesla T4 (15 GiB)" in text
    assert "float16 (compute capability 7.5 has no bf16 units); profile t4x2" in text


def test_a_failing_rank_raises_its_own_error(capfd):
    with pytest.raises(runtime.LaunchError) as caught:
        runtime.launch("zipfile", "--list", "/nowhere/missing.zip", procs=1)
    assert str(caught.value).startswith("zipfile failed on 1 processes.")
    assert "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/missing.zip'" in str(
        caught.value
    )
    assert "Traceback" in capfd.readouterr().out


def test_an_uncaught_error_of_a_rank_is_one_write(monkeypatch):
    """Two ranks that failed at once wrote "FileNotFoundErrorFileNotFoundError: : ..."."""
    written = []
    monkeypatch.setattr(sys, "stderr", type("Err", (), {"write": lambda self, text: written.append(text)})())
    try:
        raise ValueError("both ranks")
    except ValueError as error:
        runtime.write_whole(type(error), error, error.__traceback__)
    assert len(written) == 1
    assert written[0].startswith("Traceback")
    assert written[0].endswith("ValueError: both ranks\n")


def test_ranks_run_in_the_repository_and_their_output_is_passed_on(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    runtime.launch("site", procs=1)  # prints the folders that Python imports from
    printed = capsys.readouterr().out
    assert f"    '{stages.REPO}'," in printed
    assert str(tmp_path) not in printed


OTHERS = [
    "W0801 12:00:00 torch/distributed/run.py:792] Setting OMP_NUM_THREADS\n",
    "Traceback (most recent call last):\n",
]
AROUND = ["torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n", "=====\n"]


@pytest.mark.parametrize(
    "line",
    ["ValueError: GLOBAL_BATCH 3 is no multiple", "[rank1]: torch.OutOfMemoryError: CUDA out of memory.",
     "utils.config.ConfigError: RANK is 0: give a number above 0.", "SystemExit: 3"],
)  # fmt: skip
def test_the_ranks_own_error_is_found_among_the_launchers_lines(line):
    assert runtime.own_error([*OTHERS, f"{line}\n", *AROUND]) == line


def test_the_first_of_several_errors_is_told():
    # The other ranks fail because the first did: they lose their connection.
    later = "[rank1]: torch.distributed.DistBackendError: connection closed by peer\n"
    assert runtime.own_error(["ValueError: the cause\n", *OTHERS, later, *AROUND]) == "ValueError: the cause"


def test_a_word_with_error_in_a_line_is_no_error():
    assert runtime.own_error(["the validation Error: 3.1\n", "loss 2\n"]) == "Its last line was: loss 2"


def test_without_an_error_line_the_last_one_is_told():
    assert runtime.own_error(["step 3\n", "Killed\n"]) == "Its last line was: Killed"
    assert runtime.own_error([]) == "Its last line was: none"


def test_a_rank_ends_when_its_launcher_is_gone():
    """A killed kernel left its ranks training into the folder of the next run."""
    launcher = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = "import time; from utils import runtime; runtime.exit_with_launcher(); time.sleep(60)"
    env = {**os.environ, runtime.LAUNCHER: str(launcher.pid)}
    rank = subprocess.Popen([sys.executable, "-c", code], cwd=stages.REPO, env=env)
    with pytest.raises(subprocess.TimeoutExpired):
        rank.wait(timeout=2)
    launcher.kill()  # not waited for: a process that ended and stays in the table is gone as well
    assert rank.wait(timeout=20) == 70
    launcher.wait()


def test_a_launcher_tells_after_each_piece_and_in_silence(monkeypatch, capsys):
    """The view of a training is drawn again while its ranks say nothing for minutes."""
    monkeypatch.setattr(runtime, "SILENCE", 0.05)
    told = []
    runtime.launch("timeit", "-n1", "-r1", "import time; time.sleep(1)", procs=1, after=lambda: told.append(1))
    assert len(told) > 5
    assert "1 loop" in capsys.readouterr().out


def test_bytes_of_a_letter_that_come_apart_are_put_together(tmp_path):
    reader, writer = os.pipe()
    with os.fdopen(reader, "rb", buffering=0) as stream:
        os.write(writer, b"caf\xc3")
        pieces = runtime.pieces(stream)
        first = next(pieces)
        os.write(writer, b"\xa9\rnext")
        os.close(writer)
        assert first + "".join(pieces) == "café\rnext"


def test_the_load_of_each_gpu_is_read_from_the_driver(cards, monkeypatch):
    cards(T4, T4)
    answer = subprocess.CompletedProcess([], 0, stdout="13312, 97\n512, 3\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: answer)
    assert runtime.gpu_load() == [(13.0, 97.0), (0.5, 3.0)]
    cards()
    assert runtime.gpu_load() == []
