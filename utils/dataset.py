"""The prepared stage -> items and padded batches for BLIP-2."""

from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from PIL import Image

PAD_MULTIPLE = 8  # tensor cores want lengths in eights
IGNORE = -100


class PreparedSplit(torch.utils.data.Dataset):
    """The pairs of one split, in the order of their ids.

    Args:
        folder: the finished stage ``02_preprocess``.
        split: "train", "valid" or "test".
    """

    def __init__(self, folder: Path, split: str):
        self.name = split
        self._shards = sorted(folder.glob(f"images-{split}-*.parquet"))
        ids = self._column("image_id").to_pylist()
        self._rows = sorted(range(len(ids)), key=ids.__getitem__)
        captions = pd.read_parquet(folder / "captions.parquet").set_index("image_id")
        self.table = captions.loc[[ids[i] for i in self._rows]].reset_index()

    def __len__(self) -> int:
        return len(self._rows)

    def _column(self, name: str) -> pa.ChunkedArray:
        """Read one column of all shards."""
        return pa.concat_tables(pq.read_table(p, columns=[name]) for p in self._shards).column(name)

    @cached_property
    def _bytes(self) -> pa.ChunkedArray:
        """The PNG of every row; read when first asked for, since cached features need none of them."""
        return pc.struct_field(self._column("image"), "bytes")

    @property
    def lengths(self) -> list[int]:
        """Tokens of each caption, its newline counted."""
        return self.table["input_ids"].map(len).tolist()

    def image(self, index: int) -> Image.Image:
        """Return the prepared image, in RGB."""
        return self._stored(index).convert("RGB")

    def pixels(self, index: int) -> torch.Tensor:
        """Return the prepared image as uint8 of shape (3, size, size)."""
        return image_to_pixels(self._stored(index))

    def _stored(self, index: int) -> Image.Image:
        """Return the image as it is stored: mode L where it is grey."""
        data = self._bytes[self._rows[index]].as_buffer()
        return Image.open(BytesIO(data), formats=("PNG",))

    def __getitem__(self, index: int) -> dict:
        ids = torch.tensor(self.table["input_ids"].iat[index].tolist())
        return {"pixels": self.pixels(index), "input_ids": ids}


def show_batch(batch: dict, tokenizer) -> pd.DataFrame:
    """List the first row of a batch token by token: what goes in, and where a label stands."""
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    names = [repr(tokenizer.decode([i])) for i in ids]
    rows = {
        "input": names,
        "id": ids,
        "attended": batch["attention_mask"][0].tolist(),
        "label": labels,
    }
    return pd.DataFrame(rows).rename_axis("position")


def image_to_pixels(image: Image.Image) -> torch.Tensor:
    """Return an image of mode RGB or L as uint8 of shape (3, height, width)."""
    if image.mode == "L":
        return torch.from_numpy(np.array(image)).expand(3, -1, -1)  # one channel in memory, seen thrice
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


@dataclass(frozen=True)
class Layout:
    """What BLIP-2 expects around a caption: ``[<image> x queries][BOS][caption ... newline]``."""

    image_id: int
    queries: int
    bos_id: int
    pad_id: int
    newline_id: int

    def prompt(self, batch: int) -> torch.Tensor:
        """Return the prompt-only input ids, of shape (batch, queries + 1): the images, then BOS."""
        row = [self.image_id] * self.queries + [self.bos_id]
        return torch.tensor([row] * batch)

    def width(self, tokens: int) -> int:
        """Return the columns of a batch whose longest caption has ``tokens`` tokens."""
        return -(-(self.queries + 1 + tokens) // PAD_MULTIPLE) * PAD_MULTIPLE


class Collator:
    """Items -> a batch padded on the right to a multiple of 8.

    Labels stand on the caption and its newline alone; image tokens, BOS and padding carry -100. What else
    an item holds, pixels (3, H, W) or features (queries, width), is stacked.
    """

    def __init__(self, layout: Layout):
        self.layout = layout

    def __call__(self, items: list[dict]) -> dict[str, torch.Tensor]:
        """Return input_ids, attention_mask and labels (B, T) int64, and what else the items hold."""
        head = self.layout.prompt(1)[0]
        width = self.layout.width(max(len(item["input_ids"]) for item in items))
        ids = torch.full((len(items), width), self.layout.pad_id)
        labels = torch.full((len(items), width), IGNORE)
        for row, item in enumerate(items):
            end = len(head) + len(item["input_ids"])
            ids[row, : len(head)] = head
            ids[row, len(head) : end] = item["input_ids"]
            labels[row, len(head) : end] = item["input_ids"]
        seen = {name: torch.stack([i[name] for i in items]) for name in items[0] if name != "input_ids"}
        attended = (ids != self.layout.pad_id).long()
        return {**seen, "input_ids": ids, "attention_mask": attended, "labels": labels}


def normalise(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Turn uint8 pixels (B, 3, H, W) into BLIP-2's input, on the device they are on."""
    shape = (1, 3, 1, 1)
    centre = torch.tensor(mean, device=pixels.device).view(shape)
    spread = torch.tensor(std, device=pixels.device).view(shape)
    return (pixels.float() / 255 - centre) / spread
