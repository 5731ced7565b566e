"""The lexicon: which radiology words a caption names.

A caption is read by regular expressions alone, without a model or a licence. Three limits follow,
and every table made from it shares them: negation is read by rules (`utils.negation`), for findings
only; "left" and "right" count wherever they stand ("right arrow"); and "MR" is always magnetic
resonance, also where an echocardiography report means mitral regurgitation.
"""

import re
from functools import lru_cache

from utils.negation import is_negated, negated_spans

# Manual modality concepts of ROCOv2 (UMLS concept id -> modality). Ids and grouping: Rückert et
# al., "ROCOv2: Radiology Objects in COntext version 2", Scientific Data 2024.
MODALITY_CUIS = {
    "C1306645": "X-ray",  # plain x-ray
    "C0040405": "CT",  # X-ray computed tomography
    "C0024485": "MR",  # magnetic resonance imaging
    "C0041618": "ultrasound",  # ultrasonography
    "C0002978": "angiography",
    "C0032743": "PET",  # positron emission tomography
    "C1699633": "PET/CT",  # one examination that is both: its caption should name both
}


def _lexicon(**patterns: str) -> dict[str, re.Pattern]:
    """Compile term=pattern pairs; an underscore in a term stands for a space."""
    return {term.replace("_", " "): re.compile(text) for term, text in patterns.items()}


# Abbreviations are matched by case, because "mr" and "pet" are also words. General captioners
# write in lower case, so the lower-case forms count where the next word leaves no doubt.
_MODALITY = {
    "CT": re.compile(r"\b(?:CB|HR|CE|NC)?CTA?\b|\bct\b|(?i:computed tomogra|computeri[sz]ed tomo)"),
    "MR": re.compile(
        r"\bf?MR(?:I|A|CP)?\b|\bmri\b|\bmr(?= (?:scan|imag|angio))"
        r"|(?i:magnetic resonance)"
    ),
    "X-ray": re.compile(r"(?i)\bx[- ]?rays?\b(?! computed)|radiograph|mammogra|orthopantomogra"),
    "ultrasound": re.compile(r"(?i)ultraso(?:und|nogra)|sonogra|echocardiogra"),
    # CT and MR angiography are CT and MR examinations, in ROCOv2's concepts too.
    "angiography": re.compile(
        r"(?i)(?<!\bCT[- ])(?<!\bMR[- ])(?<!\bMRI )(?<!tomography )(?<!tomographic )"
        r"(?<!resonance )angiogra"
    ),
    "PET": re.compile(r"\bPET\b|\bpet(?= (?:scan|imag)|[-/ ]ct\b)|(?i:positron)"),
}

_REGION = _lexicon(
    chest=r"(?i)chest|thora|\blungs?\b|pulmon|mediastin",
    heart=r"(?i)\bheart\b|\bcardiac|myocard|pericard|(?:left|right) (?:ventric|atri)",
    abdomen=r"(?i)abdom|\bliver|hepat|renal|kidney|spleen|splenic|pancrea|gallbladder"
    r"|stomach|gastric|bowel|\bcolon",
    # The head of a bone or of the pancreas is no brain.
    brain=r"(?i)brain|cereb|(?:\b|intra)cranial|\bskull"
    r"|(?<!femoral )(?<!humeral )(?<!radial )(?<!pancreatic )\bhead\b(?! of)",
    neck=r"(?i)(?<!femoral )(?<!pancreatic )\bneck\b(?! of)|thyroid|laryn",
    spine=r"(?i)spine|spinal|vertebr|lumbar|sacral|sacrum",
    breast=r"(?i)\bbreast|mammogra",
    pelvis=r"(?i)(?<!renal )\bpelvi|\bbladder|\buter(?:us|ine)|\bovar|prostat|\bhips?\b",
    knee=r"(?i)\bknees?\b|patell",
    shoulder=r"(?i)shoulder|humer(?:us|al)|scapul|clavic",
    hand=r"(?i)\bhands?\b|wrist|finger|metacarp",
    elbow=r"(?i)elbow|olecranon",
    foot=r"(?i)\b(?:foot|feet)\b|ankle|metatars|calcane",
    jaw=r"(?i)\bjaws?\b|mandib|maxill|dental|\b(?:tooth|teeth)\b|panoramic",
    eye=r"(?i)\borbit|\beyes?\b|ocular",
)

_FINDING = _lexicon(
    nodule=r"(?i)\bnodul",
    cyst=r"(?i)\b(?:pseudo|poly|multi)?cyst(?:s|ic)?\b(?! (?:duct|artery))",
    calcification=r"(?i)calcif",
    mass=r"(?i)\bmass(?:es)?\b",
    tumour=r"(?i)tumou?r|neoplas|carcinoma|metasta",
    lesion=r"(?i)\blesion",
    effusion=r"(?i)effusion",
    fracture=r"(?i)fractur",
    pneumothorax=r"(?i)pneumothora",
    pneumonia=r"(?i)pneumoni[ac]|pneumonitis",
    consolidation=r"(?i)consolidat",
    opacity=r"(?i)\bopaci|ground-?\s?glass",
    atelectasis=r"(?i)atelecta",
    stone=r"(?i)\bstones?\b|\bcalcul(?:us|i)\b|lithiasis",
    aneurysm=r"(?i)aneurysm",
    thrombus=r"(?i)thromb(?:us|i|os)",
    embolism=r"(?i)embol(?:us|i\b|ism)",
    stenosis=r"(?i)stenos|stenotic",
    dilatation=r"(?i)\bdilat",
    haemorrhage=r"(?i)ha?emorrhag|ha?ematoma|\bbleeding",
    oedema=r"(?i)o?edema",
    abscess=r"(?i)abscess",
    hernia=r"(?i)\bherni",
    lymph_node=r"(?i)lymph node|lymphaden",
    cardiomegaly=r"(?i)cardiomegal|enlarged heart",
)

# "Bilateral" names both sides, so it equals a caption that spells them out.
_SIDE = _lexicon(left=r"(?i)\bleft\b|\bbilateral", right=r"(?i)\bright\b|\bbilateral")

LEXICON: dict[str, dict[str, re.Pattern]] = {
    "modality": _MODALITY,
    "region": _REGION,
    "finding": _FINDING,
    "side": _SIDE,
}
FACETS = tuple(LEXICON)


def named_terms(caption: str) -> dict[str, frozenset[str]]:
    """Return the lexicon terms that a caption names, by facet.

    The dictionary has the keys of `FACETS`; a facet of which nothing is named has an empty set. A
    finding counts where it is affirmed at least once: "no effusion" names none. Pass the caption as
    written: case decides about CT, MR and PET.
    """
    return dict(zip(FACETS, _read(caption), strict=True))


# Each reference is read again for every system and table: 10,000 captions take some 4 s.
@lru_cache(maxsize=2**16)
def _read(caption: str) -> tuple[frozenset[str], ...]:
    named = {
        facet: frozenset(term for term, pattern in terms.items() if pattern.search(caption))
        for facet, terms in LEXICON.items()
    }
    return tuple((named | {"finding": _findings(caption, named["finding"], negated=False)}).values())


def negated_terms(caption: str) -> frozenset[str]:
    """Return the findings that a caption denies at least once ("no effusion or mass")."""
    return _findings(caption, frozenset(_FINDING), negated=True)


def _findings(caption: str, terms: frozenset[str], negated: bool) -> frozenset[str]:
    spans = negated_spans(caption)
    if not spans:
        return frozenset() if negated else terms
    return frozenset(
        term
        for term in terms
        if any(is_negated(m.start(), spans) == negated for m in _FINDING[term].finditer(caption))
    )


def modality_terms(modality: str) -> frozenset[str]:
    """Return the terms that a caption of this modality should name ("PET/CT" names two)."""
    return frozenset(modality.split("/"))


def modality_of(cuis: list[str]) -> str | None:
    """Return the modality that an image's concept ids state, or None when they do not settle it.

    None stands for no modality concept and for several different ones. Raises TypeError for a
    single string, whose letters would otherwise be read as concept ids.
    """
    if isinstance(cuis, str):
        raise TypeError(f"The concept ids {cuis[:40]!r} are one string: split them into a list of ids first.")
    found = {MODALITY_CUIS[cui] for cui in cuis if cui in MODALITY_CUIS}
    return found.pop() if len(found) == 1 else None
