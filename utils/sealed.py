"""Sealed folders: a folder counts only when every file in it is as it was when it was finished.

A folder is written under another name, its files are hashed and brought to the disk, and only then it gets
its name. A kill, a full disk or a power cut leaves the whole folder or none, never half of one; what
changes later is found by the hashes. The seal guards against accidents, not against people: who can
write the folder can write its seal.
"""

import hashlib
import json
import os
import shutil
from pathlib import Path

from utils.files import read_json, sha256_file, write_json

SEAL = "sealed.json"
STAGE, GONE = ".stage", ".del"  # what folders are called while they are made, and while they are deleted


def staging(final: Path) -> Path:
    """Return a fresh folder to write what shall become ``final``, on the same disk.

    Raises:
        OSError: it cannot be made.
    """
    stage = final.with_name(f"{STAGE}-{final.name}")
    discard(stage)
    stage.mkdir(parents=True)
    return stage


def seal(stage: Path, final: Path, facts: dict) -> None:
    """Finish a folder: hash its files, bring them to the disk, and give it its name.

    Args:
        stage: a complete folder on the disk of ``final``.
        final: its name from now on; what is there already is replaced.
        facts: JSON values kept in the seal, see :func:`facts`.

    Raises:
        OSError: the disk is full or cannot be written; ``final`` is then as it was before.
    """
    files = {name: {"sha256": sha256_file(stage / name), "bytes": (stage / name).stat().st_size}
             for name in contents(stage)}  # fmt: skip
    content = {"files": files, **facts}
    write_json(stage / SEAL, content | {"sha256": digest(content)})
    for path in stage.rglob("*"):
        to_disk(path)
    to_disk(stage)
    aside = set_aside(final)
    os.rename(stage, final)
    to_disk(final.parent)
    delete(aside)


def trouble(folder: Path, hashes: bool = True) -> str | None:
    """Return why a folder does not count, or None where it is whole.

    Args:
        folder: sealed or not, there or not.
        hashes: whether every file is read; without, only names and sizes are compared.
    """
    if not (folder / SEAL).is_file():
        return "not sealed"
    try:
        files = read_seal(folder)["files"].items()
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{SEAL} is unreadable"
    there = contents(folder)
    for name, (size, sha256) in listed.items():
        if name not in there:
            return f"{name} is missing"
        if is_changed(folder / name, size, sha256 if hashes else None):
            return f"{name} has changed"
    # An unknown file may be a pickle that a loader prefers: nothing of such a folder is read.
    return next((f"holds a file that was not sealed: {name}" for name in there if name not in listed), None)


def facts(folder: Path) -> dict:
    """Return the facts that a folder was sealed with.

    Raises:
        OSError, ValueError: there is no seal, or it cannot be read.
    """
    return {key: value for key, value in read_seal(folder).items() if key not in ("files", "sha256")}


def read_seal(folder: Path) -> dict:
    """Return what a seal holds.

    Raises:
        ValueError: it is no JSON, or has changed since it was written.
    """
    content = read_json(folder / SEAL)
    if not isinstance(content, dict) or content.get("sha256") != digest(content):
        raise ValueError(f"{folder / SEAL} has changed since it was written.")
    return content


def digest(content: dict) -> str:
    """Return the sha256 of a seal's content, but for the entry that holds it."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def contents(folder: Path) -> list[str]:
    """List all but folders below ``folder``, by their relative names; the seal itself is left out."""
    found = (p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir())
    return [name for p in found if (name := p.relative_to(folder).as_posix()) != SEAL]


def is_changed(path: Path, size: int, sha256: str | None) -> bool:
    """Tell whether a file differs from what was sealed; one that cannot be read does."""
    try:
        return path.stat().st_size != size or sha256 not in (None, sha256_file(path))
    except OSError:
        return True


def to_disk(path: Path) -> None:
    """Wait until a file, or the list of a folder's names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def discard(path: Path) -> None:
    """Delete a folder or a file, if there is one, so that a kill leaves no half of it under its name."""
    delete(set_aside(path))


def set_aside(path: Path) -> Path:
    """Rename ``path``, if it is there, to a name that counts for nothing; return that name."""
    aside = path.with_name(f"{GONE}-{path.name.lstrip('.')}")
    delete(aside)
    if path.exists() or path.is_symlink():
        os.rename(path, aside)
    return aside


def delete(path: Path) -> None:
    """Delete a folder or a file; nothing need be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def tidy(parent: Path) -> None:
    """Delete what kills and full disks left half made or half deleted in ``parent``."""
    for pattern in (f"{STAGE}*", f"{GONE}*"):
        for path in sorted(parent.glob(pattern)):
            delete(path)
