"""Which pairs make which batch: buckets of like length, the same for any number of ranks."""

from collections.abc import Iterator, Sequence
from itertools import count, islice

import numpy as np

from utils.dataset import Layout

POOL = 50  # global batches that are sorted by length together: more would leave less to chance


class TrainingBatches:
    """The micro-batches of a whole run, in the order in which they are trained on; a ``batch_sampler``.

    The pairs come in a stream of shuffled passes, so that after k passes each was seen k times. Pools of
    the stream are sorted by length and cut into global batches, whose order is shuffled again. A global
    batch is cut into micro-batches, of which rank r takes every ranks-th: the step is the same for any
    number of ranks, and ranks that wait for each other have micro-batches of like length.

    Args:
        lengths: tokens of each pair's caption.
        global_batch: pairs of a step; a multiple of ``micro_batch``.
        micro_batch: pairs of one forward pass.
        steps: of the run.
        seed: of every choice.
    """

    drop_last = False

    def __init__(self, lengths: Sequence[int], global_batch: int, micro_batch: int, steps: int, seed: int):
        self.lengths, self.global_batch, self.batch_size = lengths, global_batch, micro_batch
        self.steps, self.seed = steps, seed

    def __len__(self) -> int:
        return self.steps * (self.global_batch // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for pairs in self.global_batches():
            for start in range(0, self.global_batch, self.batch_size):
                yield pairs[start : start + self.batch_size]

    def global_batches(self) -> Iterator[list[int]]:
        """Yield the pairs of each step, sorted by length."""
        stream = self._passes()
        for pool, first in enumerate(range(0, self.steps, POOL)):
            batches = min(POOL, self.steps - first)
            pairs = sorted(islice(stream, batches * self.global_batch), key=self.lengths.__getitem__)
            # A stream of its own: the passes must not depend on where pools end.
            for place in np.random.default_rng([self.seed, 1, pool]).permutation(batches):
                yield pairs[place * self.global_batch : (place + 1) * self.global_batch]

    def _passes(self) -> Iterator[int]:
        """Yield pair after pair, one shuffled pass after the other, without end."""
        for number in count():
            yield from np.random.default_rng([self.seed, 0, number]).permutation(len(self.lengths)).tolist()

    def useful_share(self, layout: Layout) -> float:
        """Return the share of the computed tokens that are no padding: images, BOS, captions."""
        useful = computed = 0
        for batch in self:
            tokens = [self.lengths[pair] for pair in batch]
            useful += sum(tokens) + len(batch) * (layout.queries + 1)
            computed += len(batch) * layout.width(max(tokens))
        return useful / computed


def measuring_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Cut a whole split into batches of like length, the longest first; the last may be smaller."""
    order = sorted(range(len(lengths)), key=lambda pair: -lengths[pair])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
