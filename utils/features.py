"""The frozen visual features: what the Q-Former makes of each image, computed once.

The preset ``decoder`` trains nothing before the language projection. So the ViT and the Q-Former need to
see each image once; their output is kept in shards, in the dtype in which it was computed, and they leave
the GPU: 2.2 GiB for BLIP2-OPT-6.7B. An image takes 32 x 768 numbers, 49 kB in fp16.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from utils.dataset import PreparedSplit, normalise
from utils.runtime import KAGGLE_INPUT
from utils.stages import require_disk

SHARD = 512  # images: what a kill can cost, and 25 MB
PLACE = "features"  # their folder, below the work folder


def key_of(copy: str, settings: dict) -> str:
    """Return what features depend on, as a hash: the model's copy (commit, dtype) and the preprocessing.

    Args:
        copy: the name of the 4-bit copy, see ``base.copy_name``.
        settings: what ``preprocess.json`` holds.
    """
    parts = [copy, *(settings[name] for name in ("size", "resample", "mean", "std"))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


class FeatureStore:
    """The feature shards of the splits of one prepared stage.

    Args:
        folder: of the shards of one key.
        key: what they must have been computed with.
    """

    def __init__(self, folder: Path, key: str):
        self.folder, self.key = folder, key

    def shards(self, split: PreparedSplit) -> Iterator[tuple[Path, range]]:
        """Yield each shard's file and the rows of the split that it holds."""
        for number, start in enumerate(range(0, len(split), SHARD)):
            path = self.folder / f"{split.name}-{number:05d}.safetensors"
            yield path, range(start, min(start + SHARD, len(split)))

    def stamp(self, split: PreparedSplit, rows: range) -> dict[str, str]:
        """Return what a shard must say of itself: the key, and a hash of the ids of its images.

        One entry, since safetensors writes several in any order, and equal shards shall be equal files.
        """
        ids = split.table["image_id"].iloc[rows.start : rows.stop].tolist()
        return {"of": f"{self.key} {hashlib.sha256(json.dumps(ids).encode()).hexdigest()}"}

    def finished(self, path: Path, stamp: dict[str, str]) -> bool:
        """Tell whether a shard is there, whole and of these images."""
        try:
            with safe_open(path, framework="pt") as file:
                return file.metadata() == stamp
        except (OSError, SafetensorError):
            return False

    def missing(self, split: PreparedSplit, rank: int = 0, ranks: int = 1) -> list[tuple[Path, range]]:
        """List the shards that a rank has yet to compute.

        Dealt out before it is asked which are there: ranks that ask at different moments get other answers.
        """
        mine = list(self.shards(split))[rank::ranks]
        return [(p, rows) for p, rows in mine if not self.finished(p, self.stamp(split, rows))]

    def compute(
        self, model, splits: list[PreparedSplit], statistics: dict, batch_size: int, dtype: torch.dtype,
        rank: int = 0, ranks: int = 1,
    ) -> None:  # fmt: skip
        """Compute this rank's share of the missing shards; a kill costs the shards at work.

        Args:
            model: the whole base model.
            splits: the splits to have.
            statistics: mean and std of the image processor.
            batch_size: images that the ViT sees at a time.
            dtype: in which training computes; the features are computed and kept in it.
            rank: of this process.
            ranks: processes that share the work.

        Raises:
            StageError: the disk has no room.
        """
        todo = [(split, *shard) for split in splits for shard in self.missing(split, rank, ranks)]
        self.folder.mkdir(parents=True, exist_ok=True)
        images = sum(len(rows) for *_, rows in todo)
        require_disk(self.folder, ranks * images * self.bytes_of(model), "The visual features")
        bar = tqdm(total=images, desc="visual features", unit="image", file=sys.stdout, disable=rank > 0)
        # The context in which training runs the model, so that the features are the same.
        autocast = torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32)
        with bar, torch.no_grad(), autocast:
            for split, path, rows in todo:
                batches = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
                parts = [see(model, split, batch, statistics) for batch in batches]
                self.save(torch.cat(parts).to(dtype), path, self.stamp(split, rows))
                bar.update(len(rows))

    def bytes_of(self, model) -> int:
        """Return the bytes of one image's features."""
        config = model.config
        width = config.num_query_tokens * config.qformer_config.hidden_size
        return width * model.language_projection.weight.element_size()

    def save(self, features: torch.Tensor, path: Path, stamp: dict[str, str]) -> None:
        """Write a shard: whole and on the disk before it gets its name."""
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            save_file({"features": features.contiguous()}, temporary, metadata=stamp)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def find_features(key: str, splits: list[PreparedSplit], work: Path) -> Path:
    """Return the folder of the features of ``key``: the work folder's, or a mounted one that is whole.

    Args:
        key: see :func:`key_of`.
        splits: the splits to have.
        work: the work folder.
    """
    own = work / PLACE / key
    mounts = [found for depth in range(1, 6)
              for found in sorted(KAGGLE_INPUT.glob("/".join(["*"] * depth + [PLACE, key])))]  # fmt: skip
    whole = (f for f in mounts if not any(FeatureStore(f, key).missing(split) for split in splits))
    return own if own.is_dir() else next(whole, own)


def see(model, split: PreparedSplit, rows: range, statistics: dict) -> torch.Tensor:
    """Return the Q-Former's output of some images, on the CPU: (images, queries, width)."""
    pixels = torch.stack([split.pixels(row) for row in rows]).to(model.device)
    values = normalise(pixels, statistics["mean"], statistics["std"])
    return model.get_image_features(pixel_values=values).qformer_outputs[0].cpu()


class FeatureSplit(torch.utils.data.Dataset):
    """A prepared split whose items hold features instead of pixels.

    Args:
        split: the prepared split.
        store: with all of its shards.
    """

    def __init__(self, split: PreparedSplit, store: FeatureStore):
        self.split, self.table, self.lengths = split, split.table, split.lengths
        self._paths = [path for path, _ in store.shards(split)]
        self._open: dict[int, object] = {}

    def __len__(self) -> int:
        return len(self.split)

    def __getstate__(self) -> dict:
        """Leave the opened files out: a loader's worker opens its own."""
        return {**self.__dict__, "_open": {}}

    def features(self, index: int) -> torch.Tensor:
        """Return the features of one image: (queries, width)."""
        shard, row = divmod(index, SHARD)
        if shard not in self._open:
            self._open[shard] = safe_open(self._paths[shard], framework="pt").get_slice("features")
        return self._open[shard][row]

    def __getitem__(self, index: int) -> dict:
        ids = torch.tensor(self.table["input_ids"].iat[index].tolist())
        return {"features": self.features(index), "input_ids": ids}


class SeenBefore(torch.nn.Module):
    """Stands where ViT and Q-Former stood: hands on the features that come in place of pixels."""

    def forward(self, pixel_values=None, encoder_hidden_states=None, **kwargs) -> BaseModelOutputWithPooling:
        """Return the features (B, queries, width) as they came."""
        given = pixel_values if encoder_hidden_states is None else encoder_hidden_states
        return BaseModelOutputWithPooling(last_hidden_state=given)


def drop_visual(model) -> None:
    """Let ViT and Q-Former go; from now on the model takes features for ``pixel_values``."""
    model.vision_model, model.qformer = SeenBefore(), SeenBefore()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # once: their memory is what the larger micro-batch lives on
