"""Caption text: cleaning that keeps every clinical word, and tokenisation for BLIP-2's OPT."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

# "<image>" or "<pad>" in a caption is text, not the token of that name.
PLAIN = {"add_special_tokens": False, "split_special_tokens": True}
BATCH = 1000  # captions a call of the tokenizer: more is no faster
LONG_WORDS = 100

# What one sees of a character decides. Nothing: it goes. Joiners and marks of direction stay, for they
# mean something in other scripts. A blank, or a control character: a space, never nothing, as
# "3\x965 mm" must not become 35 mm. Half a surrogate pair is no text: no file and no tokenizer takes it.
UNSEEN = "\u00ad\u200b\u2060\u2061\u2062\u2063\u2064\ufeff"  # soft hyphen, zero widths, unseen operators
BLANKS = "\u115f\u2800\u3164"  # the fillers of Hangul and Braille
CONTROLS = [*range(0x20), *range(0x7F, 0xA0)]
ODD = dict.fromkeys(map(ord, UNSEEN), "") | dict.fromkeys([*map(ord, BLANKS), *CONTROLS], " ")
ODD |= dict.fromkeys(range(0xD800, 0xE000), "\ufffd")

# A capitalised word that may open a sentence: no file or site ("scan.TIF", "Foo.Bar.net"), no unit
# ("mm.Hg"), no part of a path.
NAMES = r"(?i:png|jpe?g|tiff?|gif|bmp|dcm|pdf|com|org|net)|Hg|H2O|Kg|Gy|Hz|Bq|Pa|Sv"
OPENS = rf"(?!(?:{NAMES})\b)(?=[A-ZÀ-ÖØ-Þ](?:[^\W_]|-)*+(?![_/@\\]|\.[a-z\d]))"
# A lone letter may be half of a unit ("mmol.L-1", "deg.C"), but for the article ("A large").
NOT_ALONE = r"(?=.(?:[^\W_]|-[^\W\d_])|A [a-z])"
# Where a space is missing, and in how many of 12,487 ROCO captions; every place was read, none was
# wrong. Left alone, as names and figures look alike: "T2.Axial", "e.g.The", "C.T", "MRI.A", "Dr.Smith",
# "3.5cm", "26Follow-up" (as 18Fluoro), "admissionA" (as MitraClip), '."Left"', ",A", "Nd:YAG", "normal..".
# The space goes behind the match. Each rule sees the same places before and after the others: the
# rule that parts words stands first, and the others look only at what no space can come between.
RULES = {
    # 18: "scanThe", "abdomenComputed": a title that runs into the text; only words no name ends in.
    "words": re.compile(r"(?<=[a-z]{3})(?=(?:The|There|This|Compute(?:d|rized)|Abbreviations?|Arrows)+\b)"),
    # 7: "Figure 1:MRI".
    "figure": re.compile(r"\bFigure \d{1,3}:(?=[A-Z])"),
    # 231: "lung.The", "3.1 cm.CT:", "image.A large"; the two letters keep "Dr.Smith" and "e.g.The".
    "sentence": re.compile(rf"\.(?<=[a-zß-öø-ÿµμ]{{2}}\.){OPENS}{NOT_ALONE}"),
    # 28: "(arrow).The", "(arrow).L, left".
    "bracket": re.compile(rf"\.(?<=\)\.){OPENS}"),
    # 7: "TEM.The"; not "U.W.", "T-SPOT.TB".
    "capitals": re.compile(rf"\.(?<=[A-Z]{{2}}\.){OPENS}(?=.[a-z][a-z])"),
    # 9: "patient 2.Axial"; the figure stands alone, so that "T2.Axial" and "1.5.The" stay.
    "figures": re.compile(rf"(?<![\w.,])\d+\.{OPENS}(?=.[a-z][a-z])"),
}
# Looked for from the start of a word only: else a long text without spaces takes quadratic time.
ADDRESS = re.compile(r"((?<!\S)\S*(?:www\.|https?:|@|10\.\d{4,9}/)\S*)", re.IGNORECASE)


def tidy(caption: str) -> str:
    """Return ``caption`` in Unicode NFC, with single spaces, none outside, nothing unseen."""
    # NFC comes second: what was unseen may have stood between a letter and its accent.
    return " ".join(unicodedata.normalize("NFC", caption.translate(ODD)).split())


def part(text: str) -> str:
    """Return tidy ``text`` with a space in every place that ``RULES`` find; it changes nothing else."""
    for rule in RULES.values():
        text = rule.sub(r"\g<0> ", text)
    return text


def clean(caption: str) -> str:
    """Return ``caption`` tidy, with glued sentences parted; web addresses stay whole.

    Letters, figures and signs stay as they are, their case and U+FFFD too. Cleaning twice is cleaning
    once.
    """
    text = tidy(caption)
    if not ADDRESS.search(text):
        return part(text)
    # Every second piece is an address.
    return "".join(p if i % 2 else part(p) for i, p in enumerate(ADDRESS.split(text)))


def words(caption: str) -> int:
    """Return the number of words, as white space separates them."""
    return len(caption.split())


def remarks(caption: str | None) -> tuple[str, ...]:
    """Return what a reader should know of a caption, in this order.

    Returns:
        of "missing" (None, nothing seen, or the text "nan" by which a table says so), "one word",
        "more than 100 words" (``LONG_WORDS``) and "replacement character" (U+FFFD) those that apply.
    """
    text = tidy(caption or "")
    if text in ("", "nan"):
        return ("missing",)
    notes = {
        "one word": words(text) == 1,
        f"more than {LONG_WORDS} words": words(text) > LONG_WORDS,
        "replacement character": "\ufffd" in text,
    }
    return tuple(note for note, applies in notes.items() if applies)


def token_ids(caption: str, tokenizer, newline_id: int) -> list[int]:
    """Return the text's ids and the newline at the end, BLIP-2 OPT's end of sequence.

    No BOS: the image tokens stand before it, so that the collator puts both in front.
    """
    return [*tokenizer(caption, **PLAIN)["input_ids"], newline_id]


def tokenise(captions: Sequence[str], tokenizer, newline_id: int) -> list[list[int]]:
    """Return ``token_ids`` of every caption, in their order; faster, by whole batches.

    Args:
        captions: cleaned texts, in anything that ``list`` reads; none is no error.
        tokenizer: the model's own, see ``model.load_tokenizer``.
        newline_id: BLIP-2 OPT's end of sequence.

    Raises:
        ValueError: a caption is no text; the tokenizer would name neither it nor its place.
    """
    texts = list(captions)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Caption {place} is {text!r} and no text. Leave out pairs without a caption.")
    ids = []
    for start in range(0, len(texts), BATCH):
        # Attention masks nobody reads cost a tenth of the time.
        found = tokenizer(texts[start : start + BATCH], **PLAIN, return_attention_mask=False)["input_ids"]
        ids += [[*i, newline_id] for i in found]
    return ids


def cut(ids: list[int], limit: int) -> list[int]:
    """Shorten ``ids`` to ``limit`` tokens; the end-of-sequence at the end stays.

    A caption that is cut still ends in the newline: else the model would never learn to stop.
    """
    return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]


def token_limit(lengths: list[int], percentile: float, room: int) -> int:
    """Return the token limit: the percentile of the training lengths, at most the model's ``room``."""
    return min(int(np.ceil(np.percentile(lengths, percentile))), room)
