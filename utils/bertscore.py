"""``python -m utils.bertscore JOB.json``: BERTScore of every system, in a process of its own.

BERTScore (Zhang et al., ICLR 2020) matches contextual embeddings of tokens; bert_score computes it.
The process starts when BLIP-2 has left the GPU, and its memory goes back to the machine at its end.
The images are cut into parts, as those of ``utils.generate`` are: each finished part is a file.

The job: ``pairs``, a parquet file with the columns reference and one a system; ``systems``, their names;
``output``, a folder; ``model`` and ``layers``, None for the library's choice for that model;
``batch_size``; ``device``, None for the GPU where there is one.
"""

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from utils import runtime
from utils.availability import MetricUnavailable
from utils.files import read_json, write_json
from utils.metrics import check_texts, normalise
from utils.resampling import Measure, mean_of

MODEL = "microsoft/deberta-xlarge-mnli"  # the ImageCLEFmedical evaluator's, with idf
METRICS = ("bertscore_f1", "bertscore_f1_idf")
PART = 512  # images: what a kill can cost, and whose embeddings are held at a time
PLAN = "bertscore.json"


def wanted(setting: str | None) -> str:
    """Return the model to compute BERTScore by; nothing is looked for on the network.

    Args:
        setting: a model's name; "auto" for ``MODEL`` where there is a GPU or the weights are in the hub's
            cache; None for none.

    Raises:
        MetricUnavailable: it is not to be computed; the message says why.
    """
    from huggingface_hub import try_to_load_from_cache

    if setting is None:
        raise MetricUnavailable("not computed: BERTSCORE is None")
    files = ("model.safetensors", "pytorch_model.bin")
    cached = any(isinstance(try_to_load_from_cache(MODEL, name), str) for name in files)
    if setting == "auto" and not cached and not runtime.gpus():
        raise MetricUnavailable(
            f"not computed: no GPU here; set BERTSCORE = {MODEL!r} to compute it on the CPU"
        )
    return MODEL if setting == "auto" else setting


def bertscore_measures(folder: Path, system: str) -> dict[str, Measure]:
    """Return both metrics of a system: F1 without and with idf over the references, means over images.

    Args:
        folder: the job's output.
        system: one of the job's.

    Raises:
        MetricUnavailable: the scores are not there; the message says why.
    """
    if not (folder / PLAN).is_file():
        raise MetricUnavailable("not computed: no process was started for it")
    plan = read_json(folder / PLAN)
    parts = [read_part(folder, number, plan["made_from"]) for number in range(plan["parts"])]
    reasons = [part["status"] for part in parts if "status" in part]
    if reasons or not all(parts):
        raise MetricUnavailable(reasons[0] if reasons else "not computed: its process ended too early")
    scores = np.concatenate([part["scores"][system] for part in parts])
    return {metric: mean_of(values) for metric, values in zip(METRICS, scores.T, strict=True)}


def part_path(folder: Path, number: int) -> Path:
    """Return the file of part ``number``."""
    return folder / f"bertscore-{number:05d}.json"


def read_part(folder: Path, number: int, made_from: str) -> dict:
    """Return what a part says: scores, or the status of one that failed; {} for none made from the same."""
    path = part_path(folder, number)
    part = read_json(path) if path.is_file() else {}
    return part if part.get("made_from") == made_from else {}


def read_pairs(job: dict) -> pd.DataFrame:
    """Read the job's captions, normalised as the ImageCLEFmedical evaluator does.

    Raises:
        ValueError: a caption is no text.
    """
    pairs = pd.read_parquet(job["pairs"], columns=["reference", *job["systems"]])
    for system in job["systems"]:
        check_texts(pairs["reference"].tolist(), pairs[system].tolist())
    return pairs.map(normalise)


def fingerprint(job: dict, pairs: pd.DataFrame) -> str:
    """Return the sha256 of all that a part's scores depend on."""
    parts = [PART, job["model"], job["layers"], pairs.to_dict("list")]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def main(job_path: str) -> None:
    """Score this rank's parts, those that are not there yet, or say in a part's file why it cannot be."""
    runtime.exit_with_launcher()
    job = read_json(Path(job_path))
    output, pairs = Path(job["output"]), read_pairs(job)
    made_from, count = fingerprint(job, pairs), -(-len(pairs) // PART)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if rank == 0:
        write_json(output / PLAN, {"made_from": made_from, "parts": count, "model": job["model"]})
    todo = [n for n in range(rank, count, ranks) if "scores" not in read_part(output, n, made_from)]
    if not todo:
        print(f"rank {rank}: all scores are there; nothing to do.")
        return
    try:
        scores_of = scorer_of(job, pairs["reference"].tolist())
        for number in tqdm(todo, desc="BERTScore", unit="part", file=sys.stdout, disable=rank > 0):
            scores = scores_of(pairs.iloc[number * PART : (number + 1) * PART])
            write_json(part_path(output, number), {"made_from": made_from, "scores": scores})
    except MetricUnavailable as error:
        print(f"BERTScore: {error}")
        write_json(part_path(output, todo[0]), {"made_from": made_from, "status": str(error)})


def scorer_of(job: dict, references: list[str]):
    """Load the job's model; return its :meth:`PairScorer.scores`.

    Raises:
        MetricUnavailable: its weights are not to be had, or do not fit the GPU.
    """
    import torch

    from utils.bertscorer import PairScorer

    try:
        return PairScorer(job["model"], job["layers"], references, job["batch_size"], job["device"]).scores
    except (OSError, ValueError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise MetricUnavailable(f"not computed: weights not available ({reason})") from None
    except torch.OutOfMemoryError:
        raise MetricUnavailable(f"not computed: the GPU's memory does not hold {job['model']}") from None


if __name__ == "__main__":
    main(sys.argv[1])
