"""Training in a process of its own: started in no time, killed when asked, its disk as small as asked."""

import ctypes
import gc
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000  # CLONE_NEWNS, CLONE_NEWUSER of unshare(2)
PRIVATE = 0x44000  # MS_PRIVATE | MS_REC of mount(2)
LIMIT = 120  # seconds, of which a run takes one or two
LOG, LEFT = "child.log", "left"
PREPARED = "02_preprocess"  # the folder of what all runs train on, beside theirs
STEPS = 12  # of a run


@dataclass(frozen=True)
class Order:
    """What a child does.

    Attributes:
        rival: "ours", "stock", or "prepare", which writes what both train on.
        output: its folder, below the one that holds the prepared data.
        kill_at: step at whose begin the child kills itself.
        disk: bytes of a file system of its own for the checkpoints; None leaves them on the machine's disk.
        options: of ours.
    """

    rival: str
    output: Path
    kill_at: int | None = None
    disk: int | None = None
    options: dict | None = None


@dataclass(frozen=True)
class Ended:
    """How a child ended: well or not, what it printed, seconds until and since its training began."""

    well: bool
    log: str
    before: float
    seconds: float


def server() -> multiprocessing.context.BaseContext:
    """Return the fork server's context; the server imports torch and the rest once, for all children."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.bench.rivals"])
    return context


def run_child(order: Order, kill_after: float | None = None) -> Ended:
    """Run a child to its end, or kill it some seconds after its training began.

    What it says tells whether it ended well: exit statuses get lost where two threads start children.
    """
    context, started = server(), time.perf_counter()
    listen, tell = context.Pipe(duplex=False)
    order.output.mkdir(parents=True, exist_ok=True)
    process = context.Process(target=work, args=(order, tell))
    process.start()
    tell.close()
    said = [heard(listen, LIMIT)]
    begun = time.perf_counter()
    if said == ["begun"]:
        said.append(heard(listen, LIMIT if kill_after is None else kill_after))
    ended = time.perf_counter()
    process.kill()  # where it has ended, nothing
    process.join()
    log = (order.output / LOG).read_text(encoding="utf-8", errors="replace")
    return Ended("well" in said, log, begun - started, ended - begun)


def heard(listen: Connection, seconds: float) -> str | None:
    """Return what a child says next; None where it is gone, or silent for that long."""
    try:
        return listen.recv() if listen.poll(seconds) else None
    except EOFError:
        return None


def work(order: Order, tell: Connection) -> None:
    """Be the child: print into a file, train, say when training begins and that it ended well."""
    from tqdm import tqdm
    from transformers import Trainer

    from tests.bench.rivals import RIVALS

    with open(order.output / LOG, "wb") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    tqdm.set_lock(
        threading.RLock()
    )  # its own is a semaphore of the system, which a killed child leaves behind
    gc.freeze()  # what the server imported need not be looked through again
    Trainer.train = first_telling(Trainer.train, tell)
    if order.kill_at is not None:
        Trainer.training_step = killing(Trainer.training_step, order.kill_at)
    checkpoints = order.output / "checkpoints"
    if order.disk is not None:
        own_disk(checkpoints, order.disk)
    try:
        RIVALS[order.rival](order.output, **(order.options or {}))
    finally:
        sys.stdout.flush()
        if order.disk is not None:
            # The file system goes with the process: what it held is what the next run finds.
            shutil.copytree(checkpoints, order.output / LEFT)
    tell.send("well")


def first_telling(train: Callable, tell: Connection) -> Callable:
    """Return ``Trainer.train`` with a message before it."""

    def told(*args, **kwargs):
        tell.send("begun")
        return train(*args, **kwargs)

    return told


def killing(step: Callable, at: int) -> Callable:
    """Return ``Trainer.training_step`` that kills its process at the begin of step ``at``."""

    def killed(self, *args, **kwargs):
        if self.state.global_step == at - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, *args, **kwargs)

    return killed


def own_disk(folder: Path, size: int) -> None:
    """Mount an empty file system of ``size`` bytes that this process alone sees.

    Raises:
        OSError: the system lets nobody mount, not even in a name space of one's own.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEW_MOUNTS):
        demand(libc.unshare(NEW_MOUNTS | NEW_USER))
        for name, line in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path(f"/proc/self/{name}").write_text(line)
    demand(libc.mount(None, b"/", None, PRIVATE, None))
    folder.mkdir(parents=True)
    demand(libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, f"size={size}".encode()))


def demand(status: int) -> None:
    """Raise the error of a call into libc that did not return 0."""
    if status:
        error = ctypes.get_errno()
        raise OSError(error, f"mounting is refused: {os.strerror(error)}")
