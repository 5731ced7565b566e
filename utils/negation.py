"""Negation: which spans of a caption are denied.

The idea is NegEx's (Chapman et al., "A simple algorithm for identifying negated findings and
diseases in discharge summaries", J Biomed Inform 2001): a trigger denies what follows it, or what
stands before it, up to a word that ends its scope. The lists here are short and were fitted to
figure captions. Three limits: uncertainty is no denial ("possible fracture"), of two subjects
joined by "and" only the last is denied ("edema and effusion have resolved"), and a denied property
can deny its bearer ("no nodule growth").
"""

import re

# These look like triggers and deny nothing.
_HARMLESS = (
    r"without\s+(?:(?:iv|intravenous|oral|any)\s+)?contrast"
    r"|(?:not|cannot|never)\s+(?:be\s+)?(?:completely\s+)?(?:exclude\w*|ruled?\s+out)"
    # What is not fully gone is still to be seen.
    r"|(?:near\w*|almost|partial\w*|large\w*|high\w*|incomplete\w*)[\s-]+(?:complete(?:ly)?\s+)?"
    r"(?:resol|disappear)\w+"
)
# "Clearly", "well" and the like are left out: "not well seen" is seen.
_SEEN = (
    r"(?:seen|visible|visuali[sz]ed|observed|identified|detect(?:ed|able)|present|evident|noted|found"
    r"|demonstrated|appreciated|recogni[sz]ed|apparent)"
)
_BEFORE = (  # deny what stands before them
    r"(?:(?:is|are|was|were|has|have|had|can|could)\s+)?(?:not|no\s+longer|never|cannot)\s+"
    rf"(?:be(?:en)?\s+)?(?:longer\s+)?{_SEEN}(?!\s+(?:\w+\s+){{1,2}}(?:earlier|previous|prior|initial)\b)"
    r"|(?:(?:is|are|was|were|has|have|had|be|been|also|now|completely)\s+)+"
    r"(?:absent|excluded(?!\s+from)|ruled\s+out|resolved|disappeared)|disappeared"
)
_SIGN = (
    r"(?:evidence|signs?|features?|indications?|suspicion|suggestion|traces?|history|presence|formation"
    r"|recurrence)"
)
_AFTER = (  # deny what follows them
    rf"(?:no|without|lack\s+of|absence\s+of)\s+(?:(?!n?or\b|and\b)\w+\s+){{0,3}}{_SIGN}"
    r"\s+(?:of|for|that\s+\w+)"
    r"|no|none\s+of\s+\w+|without|w/o|nor|neither|not\s+(?:as\s+)?(?:an?|any)|absen(?:ce|t)(?:\s+of)?"
    r"|lack(?:s|ed|ing)?(?:\s+of)?|(?:devoid|free|disappearance|resolution)\s+of|negative\s+for"
    r"|(?:ruled|ruling)\s+out|fail(?:s|ed|ing)?\s+to\s+\w+"
    r"|(?:not|cannot)\s+(?:show|reveal|demonstrate|identify|detect|find|have|contain|disclose|see)"
    r"(?:\s+the\s+presence\s+of)?"
)
# One word is denied within itself: "non-displaced".
_WITHIN = r"non-?\s?\w+(?:-\w+)*"
_TRIGGER = re.compile(
    rf"\b(?:(?P<harmless>{_HARMLESS})|(?P<before>{_BEFORE})|(?P<after>{_AFTER})|(?P<within>{_WITHIN}))(?!\w)",
    re.IGNORECASE,
)

_ITEM = r"(?:\s+[\w/-]+){1,3}"
# A comma goes on with the denial only in a list that ends in "or": "no effusion, edema or mass".
_COMMA = rf",(?!(?:{_ITEM},)*(?:{_ITEM})?\s+n?or\b)"
_STOP = (
    r"[;:()]|\.(?!\d)|\b(?:and|but|however|except|although|though|despite|which|that|who|while|whereas"
    r"|because|due|show\w*|demonstrat\w*|reveal\w*|confirm\w*|is|are|was|were|has|have|had|can|could)\b"
)
# What follows a preposition is where something is not: the mass of "no flow in the mass" is there.
_PLACE = (
    r"\b(?:(?<!evidence\s)(?<!signs\s)(?<!sign\s)of|in|within|into|on|at|to|from|by|between|with|around"
    r"|after|before|during|under|for|near|suggest\w*)\b"
)
_END = re.compile(rf"{_STOP}|{_COMMA}|{_PLACE}", re.IGNORECASE)
_CLAUSE = re.compile(rf"{_STOP}|,", re.IGNORECASE)
_HEAD_END = re.compile(_PLACE, re.IGNORECASE)


def negated_spans(caption: str) -> list[tuple[int, int]]:
    """Return the spans [start, end) of the caption's characters that are denied; they may overlap."""
    spans = []
    for trigger in _TRIGGER.finditer(caption):
        kind = trigger.lastgroup
        if kind == "after":
            end = _END.search(caption, trigger.end())
            spans.append((trigger.end(), end.start() if end else len(caption)))
        elif kind == "before":
            spans.append(_subject(caption, trigger.start()))
        elif kind == "within":
            spans.append(trigger.span())
    return spans


def is_negated(start: int, spans: list[tuple[int, int]]) -> bool:
    """Tell whether what begins at character `start` stands in a denied span."""
    return any(low <= start < high for low, high in spans)


def _subject(caption: str, verb: int) -> tuple[int, int]:
    """Return the span of the subject's own words: of "the rim of the mass is absent", "the rim"."""
    start = max((stop.end() for stop in _CLAUSE.finditer(caption, 0, verb)), default=0)
    place = _HEAD_END.search(caption, start, verb)
    # A clause that opens with a place ("on MRI the mass has resolved") has its subject after it.
    if place and caption[start : place.start()].strip():
        return start, place.start()
    return start, verb
