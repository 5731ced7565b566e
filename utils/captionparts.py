"""The captions of a split as files: parts that are the same for any number of ranks, and that resume."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from utils.files import read_json, write_json

PART = 32  # images in one part, or as many whole batches as that holds: what a kill can cost
SYSTEMS = ("base", "tuned")


class CaptionParts:
    """The parts of one split, of which this rank makes every ``ranks``-th.

    ``part-00000.json`` holds columns: ``image_id`` and of each system its caption (``base``), the caption's
    log-probability (``base_logprob``) and those of its tokens (``base_token_logprobs``), and whether it was
    cut (``base_cut``); ``stamp`` says what they were made with. ``cost-00000.json`` holds what can differ
    from run to run, images, seconds and memory, and the settings behind the stamp.

    Args:
        folder: of the stage.
        ids: of the split's images, in order.
        batch_size: images captioned at a time.
        settings: all that the captions depend on; captions of other settings never count.
        rank: of this process.
        ranks: processes that share the work.
    """

    def __init__(self, folder: Path, ids: list[str], batch_size: int, settings: dict, rank: int, ranks: int):
        self.folder, self.ids, self.rank, self.ranks = folder / "parts", ids, rank, ranks
        self.size = max(1, PART // batch_size) * batch_size
        self.settings = settings | {"batch_size": batch_size, "ids": short_hash(ids)}
        self.stamp = short_hash(self.settings)
        self._seen: set[int] = set()
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, number: int, kind: str = "part") -> Path:
        """Return the file of part ``number``, or of its cost."""
        return self.folder / f"{kind}-{number:05d}.json"

    def rows(self, number: int) -> range:
        """Return the rows of the split that part ``number`` holds."""
        return range(number * self.size, min((number + 1) * self.size, len(self.ids)))

    def finished(self) -> Iterator[int]:
        """Yield the numbers of the parts, of any rank, that are there and were made with these settings."""
        for number in range(-(-len(self.ids) // self.size)):
            if number not in self._seen and stamp_of(self.path(number)) == self.stamp:
                self._seen.add(number)
            if number in self._seen:
                yield number

    def images_done(self) -> int:
        """Return how many images the finished parts of all ranks hold."""
        return sum(len(self.rows(number)) for number in self.finished())

    def todo(self) -> list[int]:
        """Return the numbers of this rank's parts that are yet to be made."""
        numbers = range(self.rank, -(-len(self.ids) // self.size), self.ranks)
        return sorted({*numbers} - {*self.finished()})

    def remove_others(self) -> None:
        """Remove this rank's parts that were made with other settings, and say why."""
        stale = [p for p in sorted(self.folder.glob("part-*.json")) if stamp_of(p) != self.stamp]
        # Of those that another rank may be replacing at this moment, none.
        stale = [p for p in stale if int(p.stem.split("-")[1]) % self.ranks == self.rank]
        changed: set[str] = set()
        for path in stale:
            cost = path.with_name(path.name.replace("part", "cost"))
            old = read_json(cost)["settings"] if cost.is_file() else {}
            changed |= {name for name, value in self.settings.items() if old.get(name) != value}
            path.unlink()
            cost.unlink(missing_ok=True)
        if stale:
            why = ", ".join(sorted(changed)) or "damaged"
            print(f"rank {self.rank}: {len(stale)} parts do not count and are made anew (other {why})")

    def write(self, number: int, columns: dict, cost: dict) -> None:
        """Write a part whole; its cost first, since a part that is there is finished."""
        write_json(self.path(number, "cost"), {"settings": self.settings} | cost)
        write_json(self.path(number), {"stamp": self.stamp} | columns)
        self._seen.add(number)


def short_hash(value) -> str:
    """Return a hash of what JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def stamp_of(path: Path) -> str | None:
    """Return the stamp of a part; None where it is not there or has none."""
    try:
        return read_json(path).get("stamp")
    except (OSError, ValueError, AttributeError):
        return None


def read_costs(folder: Path) -> pd.DataFrame:
    """Read what the parts of a stage have cost, one row a part.

    Returns:
        columns images; see, base, tuned (seconds); peak_gib (of its rank so far).
    """
    costs = [read_json(path) for path in sorted((folder / "parts").glob("cost-*.json"))]
    return pd.DataFrame([{"images": c["images"], **c["seconds"], "peak_gib": c["peak_gib"]} for c in costs])
