"""Stage 02 may be killed at any moment: what has a name is whole, and the next run goes on."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from utils.imageshards import rejects_of
from utils.stages import REPO

pytestmark = pytest.mark.slow
KILLS = 20
# Imports once, and forks for every run: the run is what is killed, with all of its processes.
SCRIPT = """
import os, sys
from pathlib import Path

def say(what):
    os.write(1, f"{what}\\n".encode())

def main():
    import pandas as pd
    from utils import parts, prepare
    from utils.rocov2 import Store

    parts.ROWS = 4
    records, store = pd.read_parquet(sys.argv[1]), Store(Path(sys.argv[2]))
    say("ready")
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.setsid()
            say(os.getpid())
            sys.stdout = open(os.devnull, "w")  # for the bar
            prepare.prepare_images(records, store, Path(line.strip()), procs=2)
            os._exit(0)
        say(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """60 images that take some 15 ms each, the 8th and the 40th of them cut off."""
    root = tmp_path_factory.mktemp("kill") / "release"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(60):
        small = rng.integers(0, 256, (40, 60, 3) if number % 3 else (40, 60), dtype=np.uint8)
        path = root / f"{number:02d}.jpg"
        Image.fromarray(small).resize((1500, 1000)).save(path)
        if number in (7, 39):
            path.write_bytes(path.read_bytes()[:4000])
    ids = [f"{number:02d}" for number in range(60)]
    records = pd.DataFrame({"image_id": ids, "source": [f"{i}.jpg" for i in ids], "keep": True,
                            "split": ["train"] * 40 + ["valid"] * 8 + ["test"] * 12})  # fmt: skip
    records.to_parquet(root.parent / "records.parquet")
    return root


@pytest.fixture(scope="module")
def script(release):
    """The script, at rest."""
    path = release.parent / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, str(path), str(release.parent / "records.parquet"), str(release)]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.stdin.close()


def run(script, folder, seconds=None):
    """Prepare the images, killing all processes after ``seconds`` if they are still there; give the status."""
    script.stdin.write(f"{folder}\n")
    script.stdin.flush()
    child = int(script.stdout.readline())
    if seconds is not None:
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):  # it was done before
            os.killpg(child, signal.SIGKILL)
    return int(script.stdout.readline())


def shards(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def test_a_run_killed_at_twenty_moments_ends_with_the_very_bytes_of_an_unbroken_one(script, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    started = time.monotonic()
    assert run(script, whole) == 0
    length = time.monotonic() - started
    expected = shards(whole)
    assert sorted(os.listdir(whole)) == sorted(expected)
    assert len(expected) == 10 + 2 + 3
    assert [image for name in sorted(expected) for image in rejects_of(whole / name)] == ["07", "39"]

    moments, kills, grown, halves = random.Random(0), 0, set(), 0
    while kills < KILLS:
        status = run(script, broken, moments.uniform(0, min(length, 1.5)))
        if status == 0:  # finished before it was killed: once more from the beginning
            assert shards(broken) == expected
            for path in broken.iterdir():
                path.unlink()
            continue
        assert status == -signal.SIGKILL
        kills += 1
        there = shards(broken)
        assert there.items() <= expected.items()  # what has its name is whole
        grown.add(len(there))
        halves += len(list(broken.glob(".*.tmp")))
    print(f"{length:.1f} s, shards after a kill: {sorted(grown)}, temporary files: {halves}")
    assert len(grown) > 3  # the kills fell into the work, and not before it
    assert run(script, broken) == 0
    assert shards(broken) == expected
    assert sorted(os.listdir(broken)) == sorted(expected)  # nothing is left of the killed runs
