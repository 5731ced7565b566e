"""Metrics as statistics of single images, and the paired bootstrap over images.

A corpus metric such as BLEU is no mean over images: it is a formula of sums. What is kept of each
image are therefore the terms of those sums. From them come the metric's value and, for images
drawn with replacement, its replicates: each is what the metric gives on the list so drawn.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from tqdm import tqdm

# Replicates computed at a time: 10,000 images then need some 10 MB for each array held.
CHUNK = 32


class Measure(Protocol):
    """A figure of one system over N images.

    n: the images that count. each: (N,) the value of each image, NaN where it does not count;
    None where the metric has none.
    """

    n: int
    each: np.ndarray | None

    @property
    def value(self) -> float:
        """The figure over all images; NaN where it is not defined."""

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) values for counts (B, N): how often each image was drawn, N draws a row."""


@dataclass(frozen=True)
class Sums:
    """A metric that is a function of sums over images.

    statistics: (N, k) float64, zeros in the rows of images that do not count. of: maps sums of
    shape (..., k) to values of shape (...), NaN where undefined. n, each: see `Measure`.
    """

    statistics: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]
    n: int
    each: np.ndarray | None = None

    @property
    def value(self) -> float:
        """The figure over all images; NaN where it is not defined."""
        return float(self.of(self.statistics.sum(axis=0)))

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Return (B,) values for counts of shape (B, N)."""
        return self.of(counts @ self.statistics)


def mean_of(values: np.ndarray, counted: np.ndarray | None = None) -> Sums:
    """Return the mean of values (N,) over the images that count (a mask (N,); all by default).

    Raises ValueError when an image that counts has no value (NaN).
    """
    values = np.asarray(values, dtype=float)
    counted = np.ones(len(values), bool) if counted is None else np.asarray(counted, dtype=bool)
    lost = np.flatnonzero(counted & np.isnan(values))
    if len(lost):
        raise ValueError(
            f"{len(lost)} of {counted.sum()} images that count have no value (first: number {lost[0]}): "
            "score them, or leave them out through `counted`."
        )
    statistics = np.column_stack([np.where(counted, values, 0.0), counted.astype(float)])
    return Sums(statistics, _quotient, int(counted.sum()), np.where(counted, values, np.nan))


def ratio_of(above: np.ndarray, below: np.ndarray, n: int) -> Sums:
    """Return sum(above) / sum(below) over images, both (N,); NaN where the divisor is 0."""
    return Sums(np.column_stack([above, below]).astype(float), _quotient, n)


def _quotient(sums: np.ndarray) -> np.ndarray:
    above, below = sums[..., 0], sums[..., 1]
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below != 0)


def replicates(
    measures: dict[str, dict[str, Measure]], resamples: int, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Return (resamples,) bootstrap values of every measure: system -> metric -> values.

    Images are drawn with replacement, as many as there are (Efron 1979), and every system is
    valued on the same draws: the difference of two systems' replicates is the paired bootstrap.
    Raises ValueError when the measures are not of the same number of images.
    """
    n, rng = _images(measures), np.random.default_rng(seed)
    values = {system: {name: np.empty(resamples) for name in own} for system, own in measures.items()}
    with tqdm(total=resamples, desc="bootstrap", unit="resample", file=sys.stdout, delay=1) as bar:
        for start in range(0, resamples, CHUNK):
            rows = slice(start, min(start + CHUNK, resamples))
            # Draw by draw, so that the replicates do not depend on the size of a chunk.
            draws = (rng.integers(n, size=n) for _ in range(rows.stop - start))
            counts = np.stack([np.bincount(drawn, minlength=n) for drawn in draws]).astype(float)
            for system, own in measures.items():
                for name, measure in own.items():
                    values[system][name][rows] = measure.resampled(counts)
            bar.update(len(counts))
    return values


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Return the percentile interval (low, high) of (B,) replicates; None where none is defined.

    Undefined replicates (NaN) are left out.
    """
    defined = replicates[~np.isnan(replicates)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _images(measures: dict[str, dict[str, Measure]]) -> int:
    """Return N, read from the arrays that the measures keep of each image."""
    sizes = {}
    for system, own in measures.items():
        for name, measure in own.items():
            kept = getattr(measure, "statistics", measure.each)
            if kept is not None:
                sizes.setdefault(len(kept), f"{name} of {system!r}")
    if len(sizes) != 1:
        found = ", ".join(f"{size} ({where})" for size, where in sizes.items()) or "none"
        raise ValueError(
            f"The measures must be of the same images, but their numbers are: {found}. "
            "Score every system on the same references."
        )
    return sizes.popitem()[0]
