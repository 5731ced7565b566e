"""THE table of stages, and the folders that carry state from one notebook to the next.

A stage folder counts only once its ``manifest.json`` is there: the manifest is written last, so a
run that was killed half-way leaves a folder that no reader takes for a finished one.
"""

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from utils.files import read_json, sha256_file, write_json

REPO = Path(__file__).resolve().parent.parent
# The one place that holds the repository's address; badges and the set-up cell are checked against it.
REPOSITORY = "https://github.com/RadiGlow/RadiGlow"
MANIFEST = "manifest.json"
LEAST_FREE = 200_000_000  # bytes below which no stage is started
PENDING = "pending.json"  # what an unfinished folder is being made with
FINISHED, STOPPED = "finished", "stopped by its time budget"  # the states of a sealed stage
VERSIONED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets", "pillow")


class StageError(RuntimeError):
    """A stage folder is missing, unfinished, stale or was made with other parameters."""


@dataclass(frozen=True)
class Stage:
    """One row of the series: a notebook and the folder that it writes."""

    name: str
    title: str
    needs: tuple[str, ...]
    takes: str
    gives: str
    hardware: str


STAGES = {
    stage.name: stage
    for stage in (
        Stage("01_filter", "Filter", (), "ROCOv2", "which pairs stay, and why", "CPU"),
        Stage("02_preprocess", "Preprocess", ("01_filter",), "kept pairs",
              "224×224 images, token ids", "CPU"),
        Stage("03_train_lora", "Train LoRA", ("02_preprocess",), "images and token ids",
              "LoRA adapter, run log", "2 × T4"),
        Stage("04_evaluate", "Evaluate", ("02_preprocess", "03_train_lora"), "adapter, test split",
              "captions, scores, figures", "2 × T4"),
        Stage("05_caption_demo", "Caption demo", ("02_preprocess", "03_train_lora", "04_evaluate"),
              "adapter, captions", "the caption demo", "1 × T4"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class StageFolder:
    """A finished stage: where it is and what its manifest says."""

    path: Path
    manifest: dict

    @property
    def finished(self) -> bool:
        """Whether nothing of it is left to do."""
        return self.manifest.get("state", FINISHED) == FINISHED

    @property
    def fingerprint(self) -> str:
        """Hash of what was made and from what; a rerun that changes nothing keeps it."""
        return fingerprint(self.manifest)


def fingerprint(manifest: dict) -> str:
    """Return the sha256 of the parts of ``manifest`` that do not depend on the clock."""
    parts = {key: manifest[key] for key in ("stage", "config", "inputs", "files")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def short(path: Path | str) -> str:
    """Return ``path`` relative to the current or the parent folder where it lies below one of them.

    Output of a notebook is shared: it must not carry the folders of the machine that ran it.
    """
    path = Path(path).resolve()
    for base in (Path.cwd(), REPO):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return f"{path.parent.name}/{path.name}".strip("/")


def check_work(work: Path | str) -> Path:
    """Create the work folder if needed and return it.

    Raises:
        StageError: the path is a file, or cannot be created or written.
    """
    work = Path(work)
    if work.exists() and not work.is_dir():
        raise StageError(f"The work folder {work} is a file. Choose a folder: --work DIR (WORK).")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(
            f"The work folder {work} cannot be made ({error.strerror}). Choose another: --work DIR."
        ) from error
    if not os.access(work, os.W_OK):
        raise StageError(f"The work folder {work} cannot be written. Choose another: --work DIR.")
    return work.resolve()


def require_disk(folder: Path, need: int, purpose: str) -> None:
    """Refuse to start what would run out of disk.

    Args:
        folder: an existing folder on the disk in question.
        need: bytes.
        purpose: what the bytes are for, as it stands in the message.

    Raises:
        StageError: fewer than ``need`` bytes are free.
    """
    free = shutil.disk_usage(folder).free
    if free < need:
        raise StageError(
            f"{purpose} needs about {need / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free in "
            f"{short(folder)}. Free some space, or choose another disk with --work DIR (WORK)."
        )


def read_manifest(folder: Path, name: str) -> dict | None:
    """Return the manifest of a finished stage folder, or None where there is no such stage.

    A manifest whose files are gone or have another size does not count, nor one whose stage is being
    made again.
    """
    if (folder / PENDING).exists():
        return None
    try:
        manifest = read_json(folder / MANIFEST)
        files = manifest["files"]
        whole = all((folder / f).stat().st_size == entry["bytes"] for f, entry in files.items())
        fingerprint(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole and manifest["stage"] == name else None


def candidates(name: str, work: Path, roots: tuple[Path, ...]) -> list[Path]:
    """List folders that may hold stage ``name``: the work folder's own first, then mounts."""
    found = [work / name] if (work / name / MANIFEST).is_file() else []
    mounted = [m.parent for root in roots for depth in range(1, 7)
               for m in Path(root).glob("/".join(["*"] * depth + [MANIFEST]))]  # fmt: skip
    return found + sorted(mounted, key=lambda p: -(p / MANIFEST).stat().st_mtime)


def open_stage(name: str, work: Path | str, roots: tuple[Path, ...] | None = None) -> StageFolder:
    """Find the finished stage ``name``: in the work folder, else below the input mounts.

    Raises:
        StageError: nowhere finished; says which notebook to run or attach.
    """
    roots = (Path("/kaggle/input"),) if roots is None else roots
    for folder in candidates(name, Path(work), roots):
        manifest = read_manifest(folder, name)
        if manifest is not None:
            return StageFolder(folder, manifest)
    state = "is unfinished" if (Path(work) / name).is_dir() else "is not there"
    raise StageError(
        f"Stage {name} {state} in {short(work)}. Run notebooks/{name}.ipynb first, or on Kaggle "
        f"attach its output (Add Input > Notebook Output)."
    )


def differences(old: dict, new: dict) -> str:
    """Say in words which keys of two flat configurations differ."""
    keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    return ", ".join(f"{k.upper()} was {old.get(k)!r} and is now {new.get(k)!r}" for k in keys)


def start_stage(
    work: Path, name: str, config: dict, inputs: tuple[StageFolder, ...] = (), fresh: bool = False
) -> Path:
    """Open stage ``name`` for writing and return its folder.

    What an earlier run with the same parameters and input left there is kept, so that long work
    can go on; what was made otherwise is never mixed with the new.

    Raises:
        StageError: the folder was made with other parameters or from another input stage.
    """
    folder = check_work(work) / name
    require_disk(work, LEAST_FREE, f"Stage {name}")
    if fresh and folder.exists():
        shutil.rmtree(folder)
    now = {"config": config, "inputs": {s.manifest["stage"]: s.fingerprint for s in inputs}}
    check_same(folder, now)
    folder.mkdir(exist_ok=True)
    write_json(folder / PENDING, now)
    return folder


def check_same(folder: Path, now: dict) -> None:
    """Compare what a stage folder was made with, finished or not, with what is wanted now.

    Raises:
        StageError: they differ; says in what.
    """
    old = earlier_settings(folder)
    later = ",".join(name[:2] for name in STAGES if name >= folder.name)
    anew = (
        f"Make it and the later stages anew (python -m utils.series --only {later} --fresh with your "
        f"other options, or FRESH = True in the notebooks)"
    )
    if old is not None and old != now:
        what = differences(old["config"], now["config"]) or "an input stage was made anew since"
        raise StageError(
            f"{short(folder)} was made differently: {what}. {anew}, or keep both by choosing another "
            f"work folder (--work DIR, WORK)."
        )
    sealed = (folder / MANIFEST).is_file() and not (folder / PENDING).exists()
    if sealed and read_manifest(folder, folder.name) is None:
        raise StageError(f"Files of {short(folder)} are gone or changed since it was finished. {anew}.")


def earlier_settings(folder: Path) -> dict | None:
    """Return config and inputs of what was made in ``folder`` before, finished or not.

    A folder in which a stage was only started, and nothing was made, binds nobody.
    """
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= {PENDING, "job.json"}:
        return None
    for name in (PENDING, MANIFEST):
        if (folder / name).is_file():
            try:
                settings = read_json(folder / name)
                return {"config": settings["config"], "inputs": settings["inputs"]}
            except (ValueError, KeyError, TypeError) as error:
                raise StageError(
                    f"{short(folder / name)} is broken. Make the stage anew (python -m utils.series "
                    f"--fresh, or FRESH = True in the notebook)."
                ) from error
    return None


def git_state() -> dict:
    """Return the commit of the repository and whether files differ from it ("unknown" outside git)."""

    def git(*arguments):
        result = subprocess.run(
            ["git", "-C", str(REPO), *arguments], capture_output=True, text=True, check=False
        )
        return result.stdout.strip() if result.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit or "unknown", "dirty": bool(git("status", "--porcelain"))}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that the results depend on."""
    return {name: metadata.version(name) for name in VERSIONED}


def seal_stage(
    folder: Path, counts: dict, ignore: tuple[str, ...] = (), state: str = FINISHED
) -> StageFolder:
    """Write the manifest of a stage, last of all, and return the stage.

    Args:
        folder: what :func:`start_stage` returned.
        counts: the stage's key figures, shown at the end of the series.
        ignore: names of sub-folders that are not part of the result (checkpoints).
        state: ``STOPPED`` for one that can be read as it is, and goes on when it is run again.
    """
    settings = read_json(folder / PENDING)
    skip = {MANIFEST, PENDING}
    files = {
        p.relative_to(folder).as_posix(): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name not in skip and p.relative_to(folder).parts[0] not in ignore
    }
    manifest = {"stage": folder.name, "state": state, **settings, "counts": counts, "git": git_state(),
                "versions": versions(), "files": files}  # fmt: skip
    write_json(folder / MANIFEST, manifest)
    (folder / PENDING).unlink(missing_ok=True)
    return StageFolder(folder, manifest)
