"""Which micro-batch, and how many layers checkpointed: the fastest way that fits into memory."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from transformers import Blip2Config

from utils import duration
from utils.cards import T4, Card
from utils.dataset import PAD_MULTIPLE
from utils.memory import GIB, Adaptation, Load, demand

USABLE = 14.0 / 14.75  # of a GPU's memory: the rest is for what the arithmetic does not know
CPU_BATCH = 16  # rows of a micro-batch beyond which a CPU gains nothing
EQUAL = 1.02  # the estimate is no better than that: of near equals, the one that computes least twice


@dataclass(frozen=True)
class Lengths:
    """How many pairs there are and how long their captions, in tokens with the newline.

    ``longest`` is the cut of notebook 02, ``p95`` the 95th percentile of the training captions.
    """

    p95: int
    longest: int
    mean: float
    pairs: int
    valid: int

    @classmethod
    def of(cls, lengths: Sequence[int], valid: int, limit: int) -> "Lengths":
        """Sum up the training captions' ``lengths`` (tokens), the validation pairs and the token limit."""
        p95 = math.ceil(np.percentile(lengths, 95))
        return cls(min(p95, limit), limit, float(np.mean(lengths)), len(lengths), valid)


@dataclass(frozen=True)
class Request:
    """All that a plan follows from, see ``make_plan``."""

    config: Blip2Config
    adaptation: Adaptation
    lengths: Lengths
    card: Card
    global_batch: int
    ranks: int
    micro_batch: int | None
    dtype: str

    def columns(self, tokens: int) -> int:
        """Return the columns of a batch whose longest caption has ``tokens`` tokens."""
        return -(-(self.config.num_query_tokens + 1 + tokens) // PAD_MULTIPLE) * PAD_MULTIPLE

    def parts(self, micro_batch: int, checkpointed: int, tokens: int | None = None) -> dict[str, float]:
        """Return GiB a GPU of each part, at the longest caption or at one of ``tokens``."""
        columns = self.columns(tokens or self.lengths.longest)
        load = Load(micro_batch, columns, checkpointed, self.ranks)
        parts = demand(self.config, self.adaptation, self.dtype, load)
        return {name: size / GIB for name, size in parts.items()}

    @property
    def memory(self) -> float:
        """GiB that a rank may use; on a CPU the ranks share."""
        return self.card.memory_gib / (self.ranks if self.card.is_cpu else 1)

    def fits(self, micro_batch: int, checkpointed: int) -> bool:
        """Tell whether a way to run fits under the memory, with the margin of a GPU."""
        usable = self.memory * (1 if self.card.is_cpu else USABLE)
        return sum(self.parts(micro_batch, checkpointed).values()) <= usable

    @property
    def divisors(self) -> list[int]:
        """The micro-batches that divide a rank's share of the global batch, or the one that is given."""
        share = self.global_batch // self.ranks
        return [m for m in range(1, share + 1) if share % m == 0 and self.micro_batch in (None, m)]

    @property
    def tightest(self) -> tuple[int, int]:
        """The way that takes the least memory; of a CPU, the only one that is considered."""
        if self.card.is_cpu:
            return max(m for m in self.divisors if m <= CPU_BATCH or self.micro_batch), 0
        return self.divisors[0], self.config.text_config.num_hidden_layers

    def seconds(self, way: tuple[int, int]) -> float:
        """Return the estimated seconds an image of (micro-batch, checkpointed layers)."""
        # Of a card without known rates, the T4's proportions order the choices.
        card = self.card if self.card.tflops else replace(self.card, tflops=T4.tflops, gb_s=T4.gb_s)
        columns = duration.mean_columns(self.config, self.lengths.mean)
        return duration.seconds_an_image(self.config, self.adaptation, card, self.dtype, columns, *way)

    def ways(self) -> Iterator[tuple[int, int]]:
        """Yield each micro-batch that fits, with the fewest layers that have to be checkpointed."""
        only, most = self.tightest
        for batch in [only] if self.card.is_cpu else self.divisors:
            least = bisect_left(range(most + 1), True, key=partial(self.fits, batch))
            if least <= most:
                yield batch, least

    def choice(self) -> tuple[int, int] | None:
        """Return the way that the estimate calls fastest, of near equals the one that checkpoints least.

        None where none fits.
        """
        found = {way: self.seconds(way) for way in self.ways()}
        near = [way for way, seconds in found.items() if seconds <= EQUAL * min(found.values())]
        return min(near, key=lambda way: way[1], default=None)
