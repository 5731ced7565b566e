"""``python -m tests.generate_kills --kills 20``: a captioning killed at random ends like an unbroken one.

Captions the test split of a work folder (the sample's, unless told otherwise) with two ranks, once in peace,
and once killed again and again; then compares the bytes of all parts.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from utils import runtime
from utils.stages import REPO, open_stage, read_json, write_json

RANKS = 2
AFTER = 0.3  # seconds after a part has appeared, within which every second kill falls
# Imports once, and forks for every run: the run is what is killed, with all of its ranks.
SCRIPT = """
import os, sys
from utils import captionparts, generate

def say(what):
    os.write(1, f"{what}\\n".encode())

def run(job, rank, ranks):
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks))
    code = 1
    try:
        generate.main(job)
        code = 0
    finally:
        os._exit(code)

captionparts.PART, ranks = int(sys.argv[1]), int(sys.argv[2])
say("ready")
for line in sys.stdin:
    leader = os.fork()
    if leader == 0:
        os.setsid()
        say(os.getpid())
        sys.stdout = open(os.devnull, "w")  # for the bars
        children = []
        for rank in range(ranks):
            children.append(os.fork())
            if children[-1] == 0:
                run(line.strip(), rank, ranks)
        os._exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
    say(os.waitstatus_to_exitcode(os.waitpid(leader, 0)[1]))
"""


class Runs:
    """Runs of captioning jobs, at rest until one is asked for.

    Args:
        part: images in a part.
    """

    def __init__(self, part: int):
        command = [sys.executable, "-c", SCRIPT, str(part), str(RANKS)]
        environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout.readline() == "ready\n"

    def close(self) -> None:
        """End the script."""
        self.process.stdin.close()
        self.process.wait()

    def run(self, job: Path, seconds: float | None = None, after_a_part: bool = False) -> int:
        """Run a job, killing all of its ranks after ``seconds``, if they are still there; give the status."""
        there = len(parts(job))
        self.process.stdin.write(f"{job}\n")
        self.process.stdin.flush()
        leader = int(self.process.stdout.readline())
        if seconds is not None:
            while after_a_part and len(parts(job)) == there and runtime.is_alive(leader):
                time.sleep(0.01)
            time.sleep(seconds)
            with contextlib.suppress(ProcessLookupError):  # it was done before
                os.killpg(leader, signal.SIGKILL)
        return int(self.process.stdout.readline())


def parts(job: Path) -> dict[str, bytes]:
    """Return name -> bytes of the parts of a job."""
    return {path.name: path.read_bytes() for path in (job.parent / "parts").glob("part-*.json")}


def write_job(folder: Path, job: dict) -> Path:
    """Write a job that captions into ``folder``."""
    folder.mkdir(parents=True)
    write_json(folder / "job.json", job | {"output": str(folder)})
    return folder / "job.json"


def kill_and_compare(job: dict, place: Path, kills: int, part: int, seed: int = 0) -> dict:
    """Caption once in peace and once with ``kills`` kills; compare.

    Args:
        job: of ``utils.generate``, without its output.
        place: an empty folder.
        kills: how many runs are killed with SIGKILL, all ranks at once.
        part: images in a part.
        seed: of the moments.

    Returns:
        "kills", "equal" (the parts' bytes), "damaged" (parts that ever differed after a kill), "grown" (the
        numbers of parts that were there after a kill) and "seconds" of the unbroken run.
    """
    runs, moments = Runs(part), random.Random(seed)
    whole, broken = write_job(place / "whole" / "04", job), write_job(place / "broken" / "04", job)
    try:
        started = time.monotonic()
        assert runs.run(whole) == 0
        length, expected = time.monotonic() - started, parts(whole)
        killed, damaged, grown = 0, set(), []
        while killed < kills:
            soon = killed % 2 == 1
            status = runs.run(broken, moments.uniform(0, AFTER if soon else length), soon)
            damaged |= {name for name, data in parts(broken).items() if data != expected.get(name)}
            if status == 0:  # finished before it was killed: once more from the beginning
                shutil.rmtree(broken.parent / "parts")
                continue
            assert status == -signal.SIGKILL, f"the run failed by itself: {status}"
            killed += 1
            grown.append(len(parts(broken)))
        assert runs.run(broken) == 0
        equal = parts(broken) == expected
    finally:
        runs.close()
    return {"kills": killed, "equal": equal, "damaged": sorted(damaged), "grown": grown,
            "parts": len(expected), "seconds": round(length, 1)}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Print one line: whether the captions were the same."""
    parser = argparse.ArgumentParser(prog="python -m tests.generate_kills", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--work", default="auto", help="work folder with finished stages 02 and 03")
    options = parser.parse_args(arguments)
    work = runtime.work_folder(options.work)
    prepared, trained = (open_stage(name, work) for name in ("02_preprocess", "03_train_lora"))
    how = {"beams": 5, "batch_size": 12, "max_new_tokens": None, "min_new_tokens": 1, "no_repeat_ngram": 3}
    job = {"prepared": str(prepared.path), "adapter": str(trained.path / "adapter"), "split": "test",
           "config": how, "neighbours": True}  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        found = kill_and_compare(job, Path(place), options.kills, part=12)
    model_id = read_json(prepared.path / "preprocess.json")["model_id"]
    print(f"{found['kills']} kills of a captioning with {model_id}, {RANKS} ranks, {found['parts']} parts: "
          f"{'the same bytes' if found['equal'] else 'OTHER CAPTIONS'}, damaged parts {found['damaged']}, "
          f"parts after each kill {found['grown']}, unbroken run {found['seconds']} s")  # fmt: skip
    return 0 if found["equal"] and not found["damaged"] else 1


if __name__ == "__main__":
    sys.exit(main())
