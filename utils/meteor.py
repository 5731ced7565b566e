"""METEOR 1.5 by its authors' Java program, which the package pycocoevalcap brings along.

Words match when they are equal, of one stem, WordNet synonyms or paraphrases, in this order; see
Denkowski and Lavie, "Meteor Universal: Language Specific Translation Evaluation for Any Target
Language", WMT 2014. The program counts the matches of each pair; the score is made of sums of these
counts, so a corpus is valued, and resampled, as the program itself would.
"""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from utils.availability import MetricUnavailable
from utils.metrics import check_texts, normalise
from utils.resampling import Sums

JAR = "meteor-1.5.jar"
TIME_LIMIT = 1200  # seconds; 10,000 pairs take about 10
# The program's English parameters, tuned to human rankings of translations.
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
STAGES = np.array([1.0, 0.6, 0.8, 0.6])  # exact, stem, synonym, paraphrase
KINDS = np.array([DELTA, 1 - DELTA])  # content words, function words
COLUMNS, LENGTHS, CHUNKS = 23, slice(0, 2), 20  # of what it counts, see `match_counts`


def meteor_measures(references: list[str], systems: dict[str, list[str]]) -> dict[str, Sums]:
    """Return each system's METEOR, 0 to 1, of officially normalised captions; `each` has every pair's own.

    Two empty captions score 1 and add nothing to a corpus; an empty and a non-empty one score 0. All
    systems are asked about at once: the program takes seconds to read its paraphrases.

    Raises:
        ValueError: the lists are empty, differ in length or hold no strings.
        MetricUnavailable: there is no Java, or the program failed.
    """
    for predictions in systems.values():
        check_texts(references, predictions)
    captions = [caption for predictions in systems.values() for caption in predictions]
    counted = np.split(match_counts(references * len(systems), captions), len(systems))
    return {system: Sums(own, score, len(references), score(own))
            for system, own in zip(systems, counted, strict=True)}  # fmt: skip


def meteor_measure(references: list[str], predictions: list[str]) -> Sums:
    """Return METEOR of one system; see :func:`meteor_measures`."""
    return meteor_measures(references, {"": predictions})[""]


def match_counts(references: list[str], predictions: list[str]) -> np.ndarray:
    """Return what the program counts in each pair, (N, 23); raises as `meteor_measure`.

    Columns: words of prediction and reference; function words of both; for each stage the matched
    content words of both, then the matched function words of both; chunks of adjacent matches;
    matched words of both.
    """
    pairs = zip(map(one_line, references), map(one_line, predictions), strict=True)
    answers = ask(f"SCORE ||| {reference} ||| {prediction}" for reference, prediction in pairs)
    rows = [line.split() for line in answers]
    if [len(row) for row in rows] != [COLUMNS] * len(references):
        raise MetricUnavailable(f"METEOR 1.5 failed: {len(rows)} answers to {len(references)} pairs, "
                                f"the last one {' '.join(rows[-1]) if rows else 'missing'!r}.")  # fmt: skip
    counted = np.array(rows, dtype=float)
    whole = (matches(counted).sum(axis=(1, 2)) == counted[:, LENGTHS]).all(axis=1)
    # The program leaves the one chunk of a perfect match out of its sums.
    counted[whole & (counted[:, CHUNKS] == 1), CHUNKS] = 0
    return counted


def matches(sums: np.ndarray) -> np.ndarray:
    """Return the matches in counts (..., 23): (..., 4 stages, content or function words, 2 sides)."""
    return sums[..., 4:20].reshape(*sums.shape[:-1], 4, 2, 2)


def score(sums: np.ndarray) -> np.ndarray:
    """Value summed counts (..., 23) -> (...), as the program's MeteorScorer.computeMetrics does."""
    lengths, functions = sums[..., LENGTHS], sums[..., 2:4]
    matched = np.einsum("...skt,s,k->...t", matches(sums), STAGES, KINDS)
    weighed = DELTA * (lengths - functions) + (1 - DELTA) * functions
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(matched / weighed, -1, 0)
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        fragmentation = sums[..., CHUNKS] / sums[..., 21:23].mean(axis=-1)
    found = np.nan_to_num(mean * (1 - GAMMA * fragmentation**BETA))  # no match at all
    return np.where(lengths.any(axis=-1), found, 1.0)


def one_line(caption: str) -> str:
    """Return a caption normalised, in one line: the program takes a line for a pair."""
    return " ".join(normalise(caption).split())


def ask(questions) -> list[str]:
    """Return the program's answers, a line each; the process ends before this does.

    Raises:
        MetricUnavailable: there is no Java, no program, or it failed.
    """
    java = shutil.which("java")
    if java is None:
        raise MetricUnavailable("METEOR 1.5 needs Java, which is not installed: install a Java runtime, "
                                "such as Debian's default-jre-headless.")  # fmt: skip
    folder = Path(find_spec("pycocoevalcap").submodule_search_locations[0]) / "meteor"
    # All is asked at once, so neither side ever waits for the other; 1 GB holds the paraphrases.
    command = [java, "-Xmx1G", "-jar", JAR, "-", "-", "-stdio", "-l", "en", "-norm"]
    try:
        done = subprocess.run(command, cwd=folder, input="\n".join(questions) + "\n", capture_output=True,
                              encoding="utf-8", timeout=TIME_LIMIT, check=True)  # fmt: skip
    except subprocess.TimeoutExpired:
        raise MetricUnavailable(f"METEOR 1.5 gave no answer in {TIME_LIMIT} seconds.") from None
    except subprocess.CalledProcessError as error:
        message = " ".join(error.stderr.split())[:300] or "no message"
        raise MetricUnavailable(f"METEOR 1.5 failed: {message}") from None
    return done.stdout.splitlines()
