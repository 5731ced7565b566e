"""Where the code runs: Kaggle, Colab or a local machine; its GPUs, its dtype, its ranks."""

import codecs
import functools
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from utils import __version__
from utils.stages import REPO, VERSIONED, versions

KAGGLE_WORK = Path("/kaggle/working/radiglow")
KAGGLE_INPUT = Path("/kaggle/input")
KAGGLE_TEMP = Path("/kaggle/temp")
HUB_DATASET = "eltorio/ROCOv2-radiology"
HUB_MODEL = "Salesforce/blip2-opt-6.7b"
SAMPLE_MODEL = "sample"
TAIL = 50_000  # characters of the ranks' output that are searched for their error
SILENCE = 3  # seconds
LAUNCHER = "RADIGLOW_LAUNCHER"  # the environment variable that holds the launching process's id


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi reports it; ``memory`` in GiB."""

    name: str
    capability: float
    memory: float


class LaunchError(RuntimeError):
    """Processes cannot be launched as asked, or one failed; the message holds its own error."""


def place() -> str:
    """Return "kaggle", "colab" or "local"."""
    if "KAGGLE_KERNEL_RUN_TYPE" in os.environ:
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def work_folder(work: str = "auto") -> Path:
    """Return the folder that holds the stage folders."""
    if work != "auto":
        return Path(work).resolve()
    return KAGGLE_WORK if place() == "kaggle" else REPO / "work"


def scratch(work: Path) -> Path:
    """Return the folder for raw data that is not kept: outside Kaggle's output, else in the work folder."""
    return KAGGLE_TEMP / "rocov2" if place() == "kaggle" else work / "raw"


@functools.cache
def gpus() -> tuple[Gpu, ...]:
    """List the GPUs without touching CUDA: a notebook that holds one starves the ranks it launches."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = "--query-gpu=name,compute_cap,memory.total"
    result = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode:
        return ()
    rows = [line.split(", ") for line in result.stdout.strip().splitlines()]
    return tuple(Gpu(name, float(cap), float(memory) / 1024) for name, cap, memory in rows)


def gpu_load() -> list[tuple[float, float]]:
    """Return memory in use (GiB) and utilisation (%) of each GPU right now; none where there are none."""
    query = "--query-gpu=memory.used,utilization.gpu"
    if not gpus():
        return []
    result = subprocess.run(
        ["nvidia-smi", query, "--format=csv,noheader,nounits"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    rows = [line.split(", ") for line in result.stdout.strip().splitlines()]
    return [(round(float(memory) / 1024, 2), float(util)) for memory, util in rows]


def hardware() -> str:
    """Name the hardware profile: "cpu", "t4", "t4x2" or "gpu" (24 GiB and more)."""
    found = gpus()
    if not found:
        return "cpu"
    if min(gpu.memory for gpu in found) >= 22:
        return "gpu"
    return "t4x2" if len(found) > 1 else "t4"


def compute_dtype() -> tuple[str, str]:
    """Return the dtype to compute in, and the reason.

    The capability decides: ``torch.cuda.is_bf16_supported()`` says yes on a T4, which only emulates it.
    """
    found = gpus()
    if not found:
        return "float32", "no GPU: a CPU computes in fp32"
    lowest = min(gpu.capability for gpu in found)
    if lowest < 8.0:
        return "float16", f"compute capability {lowest} has no bf16 units"
    return "bfloat16", f"compute capability {lowest} has bf16 units"


def choose_source(source: str) -> str:
    """Replace "auto": an attached ROCOv2 folder, the hub's copy on a GPU machine, else the sample."""
    if source != "auto":
        return str(Path(source).resolve()) if Path(source).is_dir() else source
    attached = sorted(p.parent for p in KAGGLE_INPUT.glob("**/train_captions.csv"))
    if attached:
        return str(attached[0])
    return HUB_DATASET if gpus() else "sample"


def choose_model(model_id: str, source: str) -> str:
    """Replace "auto": the sample's own model for phantoms and on a laptop, else BLIP-2 OPT-6.7B.

    Kaggle and Colab prepare data without an accelerator for a training with one.
    """
    if model_id != "auto":
        return str(Path(model_id).resolve()) if Path(model_id).is_dir() else model_id
    hosted = bool(gpus()) or place() != "local"
    return HUB_MODEL if hosted and source != "sample" else SAMPLE_MODEL


def banner() -> str:
    """Describe the machine in a few lines: what runs, on what, with which versions."""
    dtype, why = compute_dtype()
    cards = ", ".join(f"{gpu.name} ({gpu.memory:.0f} GiB)" for gpu in gpus()) or "none"
    installed = versions()
    lines = [
        f"machine    {place()}, {os.cpu_count()} CPU cores, {memory_gib():.0f} GiB memory",
        f"GPU        {cards}",
        f"computes   in {dtype} ({why}); profile {hardware()}",
        f"python     {platform.python_version()}, "
        + ", ".join(f"{name} {installed[name]}" for name in VERSIONED[:5]),
        f"code       RadiGlow {__version__}",
    ]
    return "\n".join(lines)


def memory_gib() -> float:
    """Return the machine's memory in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def rank_count(procs: int | None) -> int:
    """Return ``procs``, or what suits the machine: one process per GPU, two on a CPU.

    Raises:
        LaunchError: ``procs`` is no number of processes.
    """
    if procs is None:
        return len(gpus()) or 2
    if not isinstance(procs, int) or isinstance(procs, bool) or procs < 1:
        raise LaunchError(f"PROCS is {procs!r}: give a whole number above 0, or None for one per GPU.")
    return procs


def cores() -> int:
    """Return the CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def launch(module: str, *arguments, procs: int, after: Callable[[], None] | None = None) -> None:
    """Run ``python -m module`` on ``procs`` ranks, pass its output on, raise if any rank fails.

    A subprocess, because a failing ``!torchrun`` line does not stop a notebook, and because its
    memory goes back to the machine at its end.

    Args:
        module: to run.
        arguments: of the module.
        procs: ranks.
        after: called after each piece of output, and every few seconds without any.

    Raises:
        LaunchError: a rank failed; holds the rank's own last lines.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc_per_node={procs}", "-m", module, *map(str, arguments)]  # fmt: skip
    threads = max(1, (os.cpu_count() or 1) // procs)
    # The repository goes first: the folder of the notebook may hold another "utils".
    env = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONUNBUFFERED": "1",
           "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
           LAUNCHER: str(os.getpid())}  # fmt: skip
    tail = ""
    with subprocess.Popen(
        command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        for text in pieces(process.stdout):
            print(text, end="", flush=True)
            tail = (tail + text)[-TAIL:]
            if after is not None:
                after()
    if process.returncode:
        raise LaunchError(f"{module} failed on {procs} processes. {own_error(tail.splitlines())}")


def pieces(stream: BinaryIO) -> Iterator[str]:
    """Yield what a pipe brings as it comes, with its carriage returns; "" after each silence."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        ready, _, _ = select.select([stream], [], [], SILENCE)
        if not ready:
            yield ""
            continue
        data = os.read(stream.fileno(), 1 << 16)
        if not data:
            yield decoder.decode(b"", final=True)
            return
        yield decoder.decode(data)


def exit_with_launcher() -> None:
    """End this rank soon after the process that launched it is gone.

    A kernel that is killed takes nothing with it: its ranks would train on, unseen, into the folder
    in which the next run already works.
    """
    launcher = int(os.environ.get(LAUNCHER, 0))
    if launcher:
        sys.excepthook = write_whole

    def watch() -> None:
        while is_alive(launcher):
            time.sleep(1)
        os._exit(70)

    if launcher:
        threading.Thread(target=watch, daemon=True).start()


def write_whole(kind, error, trace) -> None:
    """Write an uncaught error at once: ranks that fail together write theirs piece by piece into one."""
    sys.stderr.write("".join(traceback.format_exception(kind, error, trace)))


def is_alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not yet collected does not."""
    import psutil  # comes with accelerate

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def own_error(tail: list[str]) -> str:
    """Return the last exception line of a rank from what the launcher printed around it."""
    errors = [line.strip() for line in tail if re.search(r"^(\[rank\d+\]: )?[\w.]*(Error|Exit)\b.*:", line)]
    errors = [line for line in errors if "ChildFailedError" not in line]
    return errors[0] if errors else "Its last line was: " + (tail[-1].strip() if tail else "none")
