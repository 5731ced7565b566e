"""Long work in parts: what is finished stays, whatever ends the run; what is not whole has no name."""

import contextlib
import errno
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from utils import parts
from utils.parts import Part, finished, parts_of, save, write_parts
from utils.stages import REPO, StageError

NAMES = ["x-train-00000.parquet", "x-train-00001.parquet", "x-train-00002.parquet", "x-train-00003.parquet"]


def four(folder):
    """Four parts of two images each."""
    return [Part(folder / name, "train", (f"{n}a", f"{n}b"), folder, ("a.png", "b.png"))
            for n, name in enumerate(NAMES)]  # fmt: skip


def write(part):
    save(part, pa.table({"image_id": part.image_ids}))


def write_or(fault, number, part):
    """Write a part, but let a fault happen first at one of them."""
    if part.path.name == NAMES[number]:
        fault(part)
    write(part)


def kill_worker(part):
    part.path.with_name(f".{part.path.name}.{os.getpid()}.tmp").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)


def fill_disk(part):
    """Let what is written next go to a disk without room, in all truth."""
    part.path.with_name(f".{part.path.name}.{os.getpid()}.tmp").symlink_to("/dev/full")


def exceed_quota(part):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


def stumble(part):
    raise KeyError("a bug of the programmer")


def names(folder):
    return sorted(os.listdir(folder))


def test_every_split_is_cut_into_parts_in_the_order_of_its_records(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ROWS", 2)
    records = pd.DataFrame(
        [("t3", "train", "s.parquet#2"), ("v1", "valid", "v1.png"), ("t1", "train", "s.parquet#0"), ("t2", "train", "r#9.png"), ("e1", "test", "e1.png")],
        columns=["image_id", "split", "source"],
    )  # fmt: skip
    found = parts_of(records, Path("root"), tmp_path, "images")
    assert [(p.path.name, p.split, p.image_ids, p.sources, p.shards) for p in found] == [
        ("images-train-00000.parquet", "train", ("t3", "t1"), ("s.parquet#2", "s.parquet#0"), {"s.parquet"}),
        ("images-train-00001.parquet", "train", ("t2",), ("r#9.png",), set()),
        ("images-valid-00000.parquet", "valid", ("v1",), ("v1.png",), set()),
        ("images-test-00000.parquet", "test", ("e1",), ("e1.png",), set()),
    ]  # fmt: skip
    assert {p.path.parent for p in found} == {tmp_path}
    assert {p.root for p in found} == {Path("root")}


def test_a_part_of_no_records_does_not_exist(tmp_path):
    nothing = pd.DataFrame({"image_id": [], "split": [], "source": []})
    assert parts_of(nothing, tmp_path, tmp_path, "images") == []


def test_a_part_is_finished_when_its_own_file_is_there_and_whole(tmp_path):
    part, other = four(tmp_path)[:2]
    assert not finished(part)  # absent
    write(part)
    assert finished(part)
    whole = part.path.read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-1], b"", b"<html>not found</html>" * 20):
        part.path.write_bytes(broken)
        assert not finished(part)
    write(other)
    os.replace(other.path, part.path)  # whole, but about other images
    assert not finished(part)
    pq.write_table(pa.table({"image_id": part.image_ids}), part.path)  # without any key
    assert not finished(part)
    part.path.unlink()
    part.path.mkdir()
    assert not finished(part)


def test_the_same_ids_in_another_split_or_order_are_another_part(tmp_path):
    keys = {Part(tmp_path, split, ids, tmp_path, ()).key
            for split, ids in (("train", ("a", "b")), ("test", ("a", "b")), ("train", ("b", "a")))}  # fmt: skip
    assert len(keys) == 3


def test_what_is_saved_keeps_its_own_metadata_beside_the_key(tmp_path):
    part = four(tmp_path)[0]
    save(part, pa.table({"n": [1]}).replace_schema_metadata({b"mine": b"kept"}))
    assert pq.read_schema(part.path).metadata == {b"mine": b"kept", b"radiglow.part": part.key}


def test_a_file_is_whole_and_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    steps, part = [], four(tmp_path)[0]

    def fsync(number):
        temporary = tmp_path / f".{NAMES[0]}.{os.getpid()}.tmp"
        assert os.fstat(number).st_ino == temporary.stat().st_ino
        assert pq.read_table(temporary).num_rows == 2
        steps.append(("on the disk", names(tmp_path)))
        force(number)

    def replace(source, target):
        steps.append(("named", names(tmp_path)))
        rename(source, target)

    force, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write(part)
    unnamed = [f".{NAMES[0]}.{os.getpid()}.tmp"]
    assert steps == [("on the disk", unnamed), ("named", unnamed)]
    assert names(tmp_path) == [NAMES[0]]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_failure_while_saving_leaves_nothing_behind(tmp_path, monkeypatch, step, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(type(error)):
        write(four(tmp_path)[0])
    assert names(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this machine has no /dev/full")
def test_a_full_disk_leaves_nothing_behind(tmp_path):
    part = four(tmp_path)[0]
    fill_disk(part)
    with pytest.raises(OSError, match="No space left on device"):
        write(part)
    assert names(tmp_path) == []
    assert Path("/dev/full").exists()


def test_finished_parts_are_left_alone_and_leftovers_of_killed_runs_swept(tmp_path, capsys):
    work = four(tmp_path)
    write(work[1])
    (tmp_path / f".{NAMES[0]}.123.tmp").write_bytes(b"half")
    (tmp_path / f".{NAMES[1]}.124.tmp").write_bytes(b"half")
    (tmp_path / "report.json").write_text("{}")
    work[2].path.write_bytes(work[1].path.read_bytes()[:-9])  # truncated: not finished
    before = work[1].path.stat().st_mtime_ns, work[1].path.stat().st_ino, work[1].path.read_bytes()
    write_parts(work, write, 2, "trying")
    assert names(tmp_path) == ["report.json", *NAMES]
    assert all(finished(part) for part in work)
    assert before == (
        work[1].path.stat().st_mtime_ns, work[1].path.stat().st_ino, work[1].path.read_bytes(),
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert "trying:  25%" in shown.split("\r")[1]  # what was there before is counted from the beginning
    assert "8/8" in shown


def test_where_all_is_finished_no_process_is_started(tmp_path, monkeypatch, capsys):
    work = four(tmp_path)
    for part in work:
        write(part)
    monkeypatch.setattr(parts, "ProcessPoolExecutor", None)  # calling it would fail
    write_parts(work, write, 2, "again")
    assert "8/8" in capsys.readouterr().out


def test_after_a_worker_is_killed_the_finished_parts_are_kept_and_the_next_run_goes_on(tmp_path):
    work = four(tmp_path)
    with pytest.raises(StageError) as caught:
        write_parts(work, functools.partial(write_or, kill_worker, 2), 1, "trying")
    assert str(caught.value) == (
        "A worker process was killed, most often because memory ran out. 4 of 8 images are done and kept: "
        "run this again to go on. Close other programs first."
    )
    assert [name for name in names(tmp_path) if name in NAMES] == NAMES[:2]
    kept = [(tmp_path / name).stat().st_mtime_ns for name in NAMES[:2]]
    write_parts(work, write, 1, "again")
    assert names(tmp_path) == NAMES
    assert [(tmp_path / name).stat().st_mtime_ns for name in NAMES[:2]] == kept


@pytest.mark.parametrize("fault", [fill_disk, exceed_quota])
def test_a_full_disk_is_told_in_a_sentence_and_the_finished_parts_are_kept(tmp_path, fault):
    if fault is fill_disk and not Path("/dev/full").exists():
        pytest.skip("this machine has no /dev/full")
    folder = tmp_path / "02_preprocess"
    folder.mkdir()
    with pytest.raises(StageError) as caught:
        write_parts(four(folder), functools.partial(write_or, fault, 1), 1, "trying")
    kept = [name for name in names(folder) if name in NAMES]
    assert names(folder) == kept  # no temporary file
    assert NAMES[0] in kept
    assert NAMES[1] not in kept
    # those that had been handed out behind it were finished, and they count too
    assert str(caught.value) == (
        f"The disk of {tmp_path.name}/02_preprocess is full. Free some space. {2 * len(kept)} of 8 images "
        f"are done and kept: run this again to go on."
    )


def test_any_other_error_of_a_worker_comes_as_it_is_with_the_workers_own_traceback(tmp_path):
    with pytest.raises(KeyError, match="a bug of the programmer") as caught:
        write_parts(four(tmp_path), functools.partial(write_or, stumble, 3), 1, "trying")
    assert "in stumble" in str(caught.value.__cause__)
    assert names(tmp_path) == NAMES[:3]


SCRIPT = """
import os, sys, time
from pathlib import Path

import pyarrow as pa

from utils.parts import Part, save, write_parts

folder, seconds_to_start, seconds = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])

def slow(part):
    (folder / f"works-{os.getpid()}").touch()
    time.sleep(seconds)
    save(part, pa.table({"image_id": part.image_ids}))

if __name__ == "__main__":
    paths = [folder / f"x-{n:02d}.parquet" for n in range(12)]
    write_parts([Part(p, "train", (p.name,), folder, ("a",)) for p in paths], slow, 2, "slow work")
else:  # a worker that has not begun yet
    (folder / f"starts-{os.getpid()}").touch()
    time.sleep(seconds_to_start)
"""


@pytest.fixture
def run(tmp_path):
    """Return a function that starts two slow workers and waits for two files; it gives the process."""
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = tmp_path / "parts"
    folder.mkdir()
    started = []

    def run(to_start, seconds, pattern):
        command = [sys.executable, str(tmp_path / "script.py"), str(folder), str(to_start), str(seconds)]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )  # fmt: skip
        started.append(process)
        for _ in range(300):
            if len(list(folder.glob(pattern))) >= 2:
                return process, folder
            time.sleep(0.05)
        raise AssertionError(f"no {pattern}: {process.poll()}")

    yield run
    for process in started:
        with contextlib.suppress(ProcessLookupError):  # workers may have survived their parent
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def alive(pid):
    """Tell whether a process lives; one that has ended may wait to be collected (Z)."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] not in ("", "Z")


def test_workers_end_with_a_parent_that_is_killed(run):
    process, folder = run(0, 60, "works-*")
    workers = [int(path.name.partition("-")[2]) for path in folder.glob("works-*")]
    assert all(alive(pid) for pid in workers)
    os.kill(process.pid, signal.SIGKILL)
    end = time.monotonic() + 2
    while any(alive(pid) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)


@pytest.mark.parametrize(("to_start", "pattern"), [(0.5, "starts-*"), (0, "*.parquet")])
def test_ctrl_c_keeps_finished_parts_and_shows_no_traceback_of_a_worker(run, to_start, pattern):
    """While the workers are starting, and while they are at work."""
    process, folder = run(to_start, 0.1, pattern)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal and as Jupyter do
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    kept = sorted(p.name for p in folder.iterdir() if not p.name.startswith(("works-", "starts-")))
    assert 2 <= len(kept) < 12
    assert kept == [f"x-{n:02d}.parquet" for n in range(len(kept))]
    assert all(pq.read_table(folder / name)["image_id"].to_pylist() == [name] for name in kept)
