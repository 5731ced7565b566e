"""Concepts: which of ROCOv2's concepts a caption names, and whether they are the image's.

A licence-free stand-in for a UMLS concept F1: a concept counts as named where its canonical name of
``cui_mapping.csv`` stands in the caption. Synonyms are not known ("kidney stone" is no "Kidney
Calculi"), so recall is low for every system, the reference captions included; compare systems, and
do not read the figures as those of a UMLS tagger.
"""

import re
from collections.abc import Iterable
from functools import partial

import numpy as np
import pandas as pd

from utils.metrics import check_texts
from utils.negation import is_negated, negated_spans
from utils.resampling import Measure, Sums, mean_of
from utils.terms import MODALITY_CUIS, modality_terms, named_terms

# A mark between two words is a word here, so that no name reaches across the end of a sentence.
_WORD = re.compile(r"[^\W_]+|[.,;:()]")


class ConceptNames:
    """The canonical names of concepts, made ready to be found in captions.

    mapping: CUI -> canonical name. Of two concepts with the same name, both are named by it. Raises
    ValueError for a name without a word.
    """

    def __init__(self, mapping: dict[str, str]) -> None:
        self.mapping = dict(mapping)
        # Words in lower case -> (CUI, the forms that abbreviations among the words must have).
        self._found: dict[tuple[str, ...], list[tuple[str, list[str | None]]]] = {}
        self._longest: dict[str, int] = {}  # first word -> words of the longest such name
        self._modalities = {
            cui: modality_terms(name) for cui, name in MODALITY_CUIS.items() if cui in self.mapping
        }
        for cui, name in self.mapping.items():
            words = _WORD.findall(name)
            if not words:
                raise ValueError(f"The concept {cui} has the name {name!r}, without a word: give it a name.")
            for plural in ("", "s", "es"):
                self._add(cui, [*words[:-1], words[-1] + plural], [_is_abbreviation(w, name) for w in words])

    def _add(self, cui: str, words: list[str], abbreviations: list[bool]) -> None:
        key = tuple(word.lower() for word in words)
        forms = [word if fixed else None for word, fixed in zip(words, abbreviations, strict=True)]
        self._found.setdefault(key, []).append((cui, forms))
        self._longest[key[0]] = max(len(key), self._longest.get(key[0], 0))

    def mentions(self, caption: str) -> tuple[frozenset[str], frozenset[str]]:
        """Return the CUIs that a caption affirms, and those that it denies (`utils.negation`).

        Case is ignored but for abbreviations ("PET"), the last word may have a plural -s or -es, and
        the longest of the names that begin at a word counts. Modalities are read by the lexicon, and
        are never denied: "CT" is "X-Ray Computed Tomography"; "PET/CT" is one concept where the
        mapping has it, and then neither of its parts.
        """
        words = list(_WORD.finditer(caption))
        written, spans = [word.group() for word in words], negated_spans(caption)
        affirmed, negated, i = set(), set(), 0
        while i < len(words):
            cuis, length = self._named_at(written, i)
            (negated if is_negated(words[i].start(), spans) else affirmed).update(cuis)
            i += length
        affirmed = affirmed - self._modalities.keys() | self._stated_modalities(caption)
        return frozenset(affirmed), frozenset(negated - self._modalities.keys())

    def _named_at(self, written: list[str], start: int) -> tuple[list[str], int]:
        """Return the CUIs of the longest name that begins at a word, and the words to go on by."""
        for length in range(self._longest.get(written[start].lower(), 0), 0, -1):
            words = written[start : start + length]
            entries = self._found.get(tuple(word.lower() for word in words), ())
            cuis = [
                cui
                for cui, forms in entries
                if all(form in (None, word) for form, word in zip(forms, words, strict=True))
            ]
            if cuis:
                return cuis, length
        return [], 1

    def _stated_modalities(self, caption: str) -> set[str]:
        named = named_terms(caption)["modality"]
        stated = {cui: terms for cui, terms in self._modalities.items() if terms <= named}
        return {cui for cui, terms in stated.items() if not any(terms < wider for wider in stated.values())}


def concept_measures(
    references: list[str], predictions: list[str], cuis: list[Iterable[str]], names: ConceptNames
) -> dict[str, Measure]:
    """Return concept_precision, concept_recall, concept_f1 and invented_share, each 0 to 1.

    The first three are micro averages: concepts that predictions affirm against the images' own
    (`cuis[i]`), as far as the mapping names them; n are the images with such a concept. Nothing
    named and nothing to name agree: 1, also where n is 0. `concept_f1.each` holds F1 of each image.
    invented_share: of all images, those whose prediction affirms a concept that is neither the
    image's nor affirmed by the reference. Raises ValueError as `utils.metrics.check_texts` does, and
    when `cuis` is no list of ids for each image.
    """
    counts, invented = [], []
    for own, said, foreign in _compared(references, predictions, cuis, names):
        counts.append((len(own & said), len(said), len(own)) if own else (0, 0, 0))
        invented.append(bool(foreign))
    statistics = np.array(counts, dtype=float)
    counted = statistics[:, 2] > 0
    f1 = partial(_micro, below=np.array([0, 0.5, 0.5]))
    return {
        "concept_precision": Sums(statistics, partial(_micro, below=np.array([0, 1, 0])), int(counted.sum())),
        "concept_recall": Sums(statistics, partial(_micro, below=np.array([0, 0, 1])), int(counted.sum())),
        "concept_f1": Sums(statistics, f1, int(counted.sum()), np.where(counted, f1(statistics), np.nan)),
        "invented_share": mean_of(np.array(invented)),
    }


def concept_errors(
    references: list[str], predictions: list[str], cuis: list[Iterable[str]], names: ConceptNames
) -> pd.DataFrame:
    """Return each image's concepts that its prediction missed or invented: names, joined by ", ".

    Columns missed and invented, n rows; the definitions are those of `concept_measures`.
    """
    compared = _compared(references, predictions, cuis, names)
    rows = [(own - said, foreign) for own, said, foreign in compared]
    texts = [[", ".join(sorted({names.mapping[cui] for cui in part})) for part in row] for row in rows]
    return pd.DataFrame(texts, columns=["missed", "invented"])


def _compared(
    references: list[str], predictions: list[str], cuis: list[Iterable[str]], names: ConceptNames
) -> list[tuple[frozenset[str], frozenset[str], frozenset[str]]]:
    """Return of each image its own concepts with a name, those affirmed, and those invented."""
    check_texts(references, predictions)
    _check_cuis(cuis, len(references))
    compared = []
    for reference, prediction, own in zip(references, predictions, map(frozenset, cuis), strict=True):
        said, expected = names.mentions(prediction)[0], names.mentions(reference)[0]
        compared.append((own & names.mapping.keys(), said, said - own - expected))
    return compared


def _micro(sums: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Divide right concepts by a mix of named and own ones; sums (..., 3) -> (...)."""
    divisor, nothing = sums @ below, sums[..., 1] + sums[..., 2] == 0
    return np.divide(sums[..., 0], divisor, out=np.where(nothing, 1.0, 0.0), where=divisor > 0)


def _is_abbreviation(word: str, name: str) -> bool:
    # The X of "X-Ray" is none; a name in long capitals ("PELVIS") is a plain word.
    return word.isupper() and len(word) <= 5 and (len(word) > 1 or word == name)


def _check_cuis(cuis: list[Iterable[str]], n: int) -> None:
    if len(cuis) != n:
        raise ValueError(
            f"There are concept ids of {len(cuis)} images for {n} captions: "
            "pass one list of ids (an empty one for none) an image, in the same order."
        )
    wrong = [i for i, ids in enumerate(cuis) if isinstance(ids, str) or not isinstance(ids, Iterable)]
    if wrong:
        raise ValueError(
            f"The concept ids of {len(wrong)} of {n} images are no list (first: number {wrong[0]}, "
            f"{cuis[wrong[0]]!r}): split them into a list of ids first."
        )
