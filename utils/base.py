"""The base model on the disk: which commit of it, and the 4-bit copy that ranks and notebooks share.

BLIP2-OPT-6.7B is downloaded once, 31 GB in fp32. What is trained on is 6 GB of it in 4 bits: that copy
is kept below the work folder (``base/``), and every later load reads it and nothing else.
"""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from utils import sealed
from utils.runtime import KAGGLE_INPUT, SAMPLE_MODEL
from utils.stages import require_disk, short

PLACE = "base"  # the folder of the copies, below the work folder


def model_path(model_id: str) -> str:
    """Return where ``from_pretrained`` finds a model; "sample" is the one this package ships."""
    if model_id != SAMPLE_MODEL:
        return model_id
    return str(Path(__file__).parent / "sample" / "weights")


def revision_of(model_id: str) -> str | None:
    """Return the commit of a hub model that "main" stands for now; None for a folder.

    Recorded with the prepared data, so that every later stage loads that commit. Without internet it is
    the commit in the hub's cache.

    Raises:
        OSError: neither the hub nor its cache has the model.
    """
    if Path(model_path(model_id)).is_dir():
        return None
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model_id, "config.json")).parent.name


def copy_name(model_id: str, revision: str | None, dtype: str) -> str:
    """Return the folder name of a model's 4-bit copy; another commit, file or dtype gives another."""
    path = Path(model_path(model_id))
    if path.is_dir():
        weights = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(path.glob("*.*"))]
        revision = hashlib.sha256(repr(weights).encode()).hexdigest()
    return f"{path.name if model_id != SAMPLE_MODEL else model_id}-{(revision or 'main')[:12]}-nf4-{dtype}"


def find_copy(name: str, place: Path) -> Path | None:
    """Return the whole copy ``name`` in ``place``, else below the input mounts, else None.

    Sizes are compared and hashes are not: safetensors refuses what was cut off, and 6 GB take long.
    """
    mounts = [
        found for depth in range(1, 6)
        for found in sorted(KAGGLE_INPUT.glob("/".join(["*"] * depth + [PLACE, name])))
    ]  # fmt: skip
    return next((f for f in (place / name, *mounts) if sealed.trouble(f, hashes=False) is None), None)


def require_download(model_id: str, revision: str | None) -> None:
    """Refuse a download that the disk of the hub's cache has no room for; files that are there count as had.

    Without internet there is nothing to ask and nothing to download.

    Raises:
        StageError: too little room.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        files = HfApi().model_info(model_id, revision=revision, files_metadata=True).siblings
    except (HTTPError, OfflineModeIsEnabled):
        return
    missing = [file for file in files if file.rfilename.endswith(".safetensors")
               and try_to_load_from_cache(model_id, file.rfilename, revision=revision) is None]  # fmt: skip
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    require_disk(cache, sum(file.size for file in missing), f"The download of {model_id}")


def keep_copy(model: torch.nn.Module, tokenizer, folder: Path) -> None:
    """Save a model that was loaded in 4 bits, with its tokenizer, for the next load.

    Raises:
        StageError: the disk has no room for it.
    """
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    require_disk(folder.parent, int(1.1 * size), f"The 4-bit copy {folder.name}")
    stage = sealed.staging(folder)
    model.save_pretrained(stage)
    tokenizer.save_pretrained(stage)
    sealed.seal(stage, folder, {})
    print(f"kept the 4-bit copy of the base model: {short(folder)} ({size / 1e9:.2f} GB)", flush=True)


@contextmanager
def alone(name: str, place: Path) -> Iterator[None]:
    """Let one process at a time make the copy ``name``: the others find it made when their turn comes.

    Of ranks that belong together the first makes it: Transformers lets no other write weights.
    """
    place.mkdir(parents=True, exist_ok=True)
    while int(os.environ.get("RANK", 0)) > 0 and find_copy(name, place) is None:
        time.sleep(1)  # where the first rank fails, its launcher ends this one
    with open(place / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
