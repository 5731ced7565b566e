"""The cards that the series may meet: memory and rates on which the plan's arithmetic rests.

The rates are what a card sustains in long runs, not what its paper promises: for the T4, which 70 W hold
down, 24 of 65 TFLOP/s; for the others .45 of the paper's dense 16-bit rate, and .78 of its bandwidth.
They are assumptions until a run replaces them by its own measured rate.
"""

from dataclasses import dataclass

from utils import runtime
from utils.runtime import Gpu

SUSTAINED, BANDWIDTH = 0.45, 0.78  # shares of what the paper says


@dataclass(frozen=True)
class Card:
    """One GPU, or the machine's CPU.

    Attributes:
        name: of the card.
        memory_gib: what torch can allocate of it, in GiB.
        dtype: to compute in.
        tflops: sustained rate of matrix products in that dtype, TFLOP/s; None where it is not known.
        gb_s: sustained memory bandwidth, GB/s; None where it is not known.
    """

    name: str
    memory_gib: float
    dtype: str
    tflops: float | None
    gb_s: float | None

    @property
    def is_cpu(self) -> bool:
        """Whether ranks share the machine's memory instead of having a card each."""
        return self.dtype == "float32"


def rated(name: str, memory_gib: float, tflops: float, gb_s: float) -> Card:
    """Return a card with bf16 units from its paper rates."""
    return Card(name, memory_gib, "bfloat16", SUSTAINED * tflops, BANDWIDTH * gb_s)


T4 = Card("T4", 14.75, "float16", 24, 250)
L4 = rated("L4", 22.0, 121, 300)
A10 = rated("A10", 22.0, 125, 600)
A100 = rated("A100", 39.4, 312, 1555)
A100_80 = rated("A100-80", 79.1, 312, 2039)
H100 = rated("H100", 79.1, 989, 3350)
KNOWN = (T4, L4, A10, A100_80, A100, H100)
CARDS: dict[str, tuple[Card, ...]] = {
    "t4": (T4,),
    "t4x2": (T4, T4),
    "l4": (L4,),
    "l4x4": (L4,) * 4,
    "a10": (A10,),
    "a100": (A100,),
    "a100-80": (A100_80,),
    "h100": (H100,),
    "cpu": (Card("CPU", runtime.memory_gib(), "float32", None, None),),
}


def machine(gpus: tuple[Gpu, ...] | None = None) -> tuple[Card, ...]:
    """Return the cards of this machine, or the CPU where it has none.

    Args:
        gpus: as ``runtime.gpus`` reports them; None asks it.
    """
    found = runtime.gpus() if gpus is None else gpus
    return tuple(card_of(gpu) for gpu in found) or CARDS["cpu"]


def card_of(gpu: Gpu) -> Card:
    """Return the card that a GPU is; one that is not known has memory and dtype, but no rates."""
    dtype = "float16" if gpu.capability < 8.0 else "bfloat16"
    # The driver keeps about 1.7 % of a card: torch sees 14.75 of the T4's 15 GiB.
    usable = round(gpu.memory * 14.75 / 15, 2)
    words = gpu.name.replace("-", " ").split()
    same = [card for card in KNOWN if card.name.split("-")[0] in words]
    if not same:
        return Card(gpu.name, usable, dtype, None, None)
    nearest = min(same, key=lambda card: abs(card.memory_gib - usable))
    return Card(gpu.name, usable, dtype, nearest.tflops, nearest.gb_s)
