"""The evaluation: all systems on the same images, by the same metrics, with paired intervals."""

import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from utils import bertscore, concepts, facts, health, meteor, metrics, resampling, runtime
from utils.availability import MetricUnavailable
from utils.captioned import MODELS, SYSTEMS
from utils.card import public_name
from utils.published import ROWS
from utils.resampling import Measure
from utils.stages import StageFolder, read_json, write_json

GROUPS = ("modality", "colour")
GROUPED = ("rouge_l", "cider", "all_right_share")  # told for each group
NO_NAMES = "not computed: the source has no cui_mapping.csv; set CUI_MAPPING to ROCOv2's"
Figures = dict[str, dict[str, dict]]


def concept_names(table: pd.DataFrame | None) -> concepts.ConceptNames | None:
    """Make the reader of concepts from a table CUI, Canonical name; None stays None."""
    if table is None:
        return None
    return concepts.ConceptNames(dict(zip(table["CUI"], table["Canonical name"], strict=True)))


def run_bertscore(joined: pd.DataFrame, folder: Path, setting: str | None, procs: int) -> Path | str:
    """Compute BERTScore of every system in processes of their own.

    Args:
        joined: what :func:`captioned.join` returned.
        folder: of the stage; parts that are there are kept.
        setting: the parameter BERTSCORE.
        procs: processes.

    Returns:
        the folder of the scores, or why there are none.
    """
    try:
        model = bertscore.wanted(setting)
    except MetricUnavailable as error:
        return str(error)
    output = folder / "bertscore"
    output.mkdir(exist_ok=True)
    said = joined[["reference", *SYSTEMS.values()]].set_axis(["reference", *SYSTEMS], axis=1)
    said.to_parquet(output / "pairs.parquet", index=False)
    write_json(output / "job.json", {
        "pairs": str(output / "pairs.parquet"), "systems": list(SYSTEMS), "output": str(output),
        "model": model, "layers": None, "batch_size": 32, "device": None,
    })  # fmt: skip
    runtime.launch("utils.bertscore", output / "job.json", procs=procs)
    return output


def measures_of(
    joined: pd.DataFrame, names: concepts.ConceptNames | None, bert: Path | str
) -> tuple[dict[str, dict[str, Measure]], dict[str, str]]:
    """Return system -> metric -> measure, and metric -> why it was not computed.

    Args:
        joined: what :func:`captioned.join` returned.
        names: of the concepts; None where there are none.
        bert: what :func:`run_bertscore` returned.
    """
    references, missing = joined["reference"].tolist(), {} if names is not None else {"concept_f1": NO_NAMES}
    said = {system: joined[column].tolist() for system, column in SYSTEMS.items()}
    measures = metrics.overlap_measures(references, said)
    for system, captions in tqdm(said.items(), desc="scoring", unit="system", file=sys.stdout, delay=2):
        found = measures[system]
        found |= facts.fact_measures(references, captions, joined["modality"].tolist())
        found |= health.health_measures(references, captions, joined.get(f"{system}_cut"))
        if names is not None:
            found |= concepts.concept_measures(references, captions, joined["cuis"].tolist(), names)
        try:
            found |= bert_measures(bert, system)
        except MetricUnavailable as error:
            missing |= dict.fromkeys(bertscore.METRICS, str(error))
    try:
        for system, measure in meteor.meteor_measures(references, said).items():
            measures[system]["meteor"] = measure
    except MetricUnavailable as error:
        missing["meteor"] = f"not computed: {error}"
    return measures, missing


def bert_measures(bert: Path | str, system: str) -> dict[str, Measure]:
    """Return BERTScore's measures of a system.

    Raises:
        MetricUnavailable: there are none; says why.
    """
    if isinstance(bert, str):
        raise MetricUnavailable(bert)
    return bertscore.bertscore_measures(bert, system)


def grouped(measures: dict, joined: pd.DataFrame) -> dict[tuple[str, str, str], dict[str, Measure]]:
    """Return (by, system, group) -> metric -> mean over the images of one group."""
    found = {}
    for by in GROUPS:
        names = joined[by].fillna("unknown").to_numpy()
        for system, group in itertools.product(MODELS, sorted(set(names))):
            found[by, system, group] = {
                metric: resampling.mean_of(np.asarray(measures[system][metric].each, float), names == group)
                for metric in GROUPED
            }
    return found


def figures_of(measures: dict, drawn: dict) -> Figures:
    """Return system -> metric -> value, low, high (95 %) and n, as JSON has them: None where undefined."""
    return {
        system: {
            metric: figure(metric, measure.value, drawn[system][metric], measure.n)
            for metric, measure in found.items()
        }
        for system, found in measures.items()
    }


def figure(metric: str, value: float, replicates: np.ndarray, n: int) -> dict:
    """Return a value with its interval and the number of images that it is of; nothing where n is 0.

    CIDEr's replicates are moved so that their mean is the value: they lie beside it, since an image that is
    drawn twice makes its own words look common.
    """
    if metric.startswith("cider") and not np.isnan(replicates).all():
        replicates = replicates - np.nanmean(replicates) + value
    low, high = resampling.interval(replicates) or (None, None)
    plain = {"value": value, "low": low, "high": high}
    undefined = n == 0 or np.isnan(value)
    return {k: None if undefined or v is None else float(v) for k, v in plain.items()} | {"n": int(n)}


def differences(measures: dict, drawn: dict) -> Figures:
    """Return other system -> metric -> tuned minus other, with the interval of the paired difference.

    n is that of the system with fewer images that count.
    """
    tuned, found = measures["tuned"], {}
    for other in SYSTEMS:
        if other != "tuned":
            found[other] = {
                metric: figure(
                    metric,
                    tuned[metric].value - measure.value,
                    drawn["tuned"][metric] - drawn[other][metric],
                    min(measure.n, tuned[metric].n),
                )
                for metric, measure in measures[other].items() if metric in tuned
            }  # fmt: skip
    return found


def evaluate(
    joined: pd.DataFrame, measures: dict[str, dict[str, Measure]], missing: dict[str, str], resamples: int,
    seed: int,
) -> dict:  # fmt: skip
    """Score all systems and draw the intervals: what ``metrics.json`` holds beside its settings.

    Args:
        joined: what :func:`captioned.join` returned.
        measures: what :func:`measures_of` returned, with what it could not compute.
        missing: metric -> why it was not computed.
        resamples: of the paired bootstrap over images; 0 draws no intervals.
        seed: of the bootstrap.
    """
    parts = grouped(measures, joined)
    drawn = resampling.replicates(measures | parts, resamples, seed)
    groups: dict = {by: {system: {} for system in MODELS} for by in GROUPS}
    for (by, system, group), figures in figures_of(parts, drawn).items():
        groups[by][system][group] = figures
    confused = facts.modality_confusion(joined["modality"].tolist(), joined["tuned"].tolist())
    return {
        "scores": figures_of(measures, drawn),
        "tuned_minus": differences(measures, drawn),
        "not_computed": missing,
        "groups": groups,
        "confusion": confused.to_dict("index"),
        "calibration": {system: calibration(joined, measures, system) for system in MODELS},
        "most_common_caption": joined["common"].iloc[0],
        "published": list(ROWS),
    }


def calibration(joined: pd.DataFrame, measures: dict[str, dict[str, Measure]], system: str) -> dict:
    """Return Spearman's correlation of log-probability a token with ROUGE-L: whether the model knows."""
    sure = joined[f"{system}_logprob"] / joined[f"{system}_token_logprobs"].map(len).clip(lower=1)
    good = pd.Series(measures[system]["rouge_l"].each, joined.index)
    # Of a constant no order is known.
    rho = sure.corr(good, method="spearman") if min(sure.nunique(), good.nunique()) > 1 else np.nan
    return figure("spearman", rho, np.empty(0), len(joined))


def settings(decoding: dict, prepared: StageFolder, trained: StageFolder) -> dict:
    """Collect all that a score depends on, so that nobody has to guess it later."""
    preprocess = read_json(prepared.path / "preprocess.json")
    run = read_json(trained.path / "run.json")
    return {
        "split": "test",
        "images": prepared.manifest["counts"]["test"],
        "source": public_name(preprocess["source"]),
        "image_modes": preprocess["image_modes"],
        "model_id": public_name(preprocess["model_id"]),
        "model_revision": preprocess["model_revision"],
        "adapter_sha256": trained.manifest["files"]["adapter/adapter_model.safetensors"]["sha256"],
        "preset": run["preset"],
        "decoding": decoding | {"sampling": False},
        "bertscore_model": bertscore.MODEL if decoding["bertscore"] == "auto" else decoding["bertscore"],
        "token_limit": preprocess["token_limit"],
        "normalisation": "ImageCLEFmedical Caption: lower case, digits -> number, no punctuation",
        "raw": "the caption as written; BLEU and CIDEr on 13a tokens, case kept",
        "cider": "CIDEr-D of the COCO caption code, document frequencies from these references",
        "intervals": "95 %, percentiles of the paired bootstrap over images; CIDEr's centred at its value",
    }
