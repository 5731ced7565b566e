"""Caption text: cleaning that keeps every clinical word, and tokenisation for BLIP-2's OPT."""

import re
import unicodedata

import numpy as np

# "lung.The" -> "lung. The": a stop between two small letters and a capitalised word. Abbreviations
# ("e.g.The"), figures ("3.5"), "T2.Axial" and web addresses do not match, and stay as they are.
GLUED = re.compile(r"(?<=[a-z]{2})\.(?=[A-Z][a-z])")
# "<image>" or "<pad>" in a caption is text, not the token of that name.
PLAIN = {"add_special_tokens": False, "split_special_tokens": True}
ADDRESS = re.compile(r"www\.|https?:", re.IGNORECASE)


def clean(caption: str) -> str:
    """Return ``caption`` in Unicode NFC, with single spaces, none outside, glued sentences parted."""
    text = " ".join(unicodedata.normalize("NFC", caption).split())
    return text if ADDRESS.search(text) else GLUED.sub(". ", text)


def token_ids(caption: str, tokenizer, newline_id: int) -> list[int]:
    """Return the text's ids and the newline at the end, BLIP-2 OPT's end of sequence.

    No BOS: the image tokens stand before it, so that the collator puts both in front.
    """
    return [*tokenizer(caption, **PLAIN)["input_ids"], newline_id]


def cut(ids: list[int], limit: int) -> list[int]:
    """Shorten ``ids`` to ``limit`` tokens; the end-of-sequence at the end stays.

    A caption that is cut still ends in the newline: else the model would never learn to stop.
    """
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def token_limit(lengths: list[int], percentile: float, room: int) -> int:
    """Return the token limit: the percentile of the training lengths, at most the model's ``room``."""
    return min(int(np.ceil(np.percentile(lengths, percentile))), room)
