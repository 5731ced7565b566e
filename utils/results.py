"""Read back what the stages wrote, for the notebooks: tables, logs and pictures."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from PIL import Image

from utils.captionparts import read_costs
from utils.folders import read_csv
from utils.pairs import CUI_MAPPING
from utils.stages import StageError, StageFolder, read_json

STUDY = Path(__file__).parent / "sample" / "study.json"
STUDIED = {"validation_loss": "validation loss", "cider": "CIDEr", "rouge_l": "ROUGE-L",
           "all_right_share": "all facts right"}  # fmt: skip
LOG_COLUMNS = ["step", "seconds", "session", "epoch", "loss", "grad_norm", "learning_rate", "images_per_s",
               "memory_gib", "gpu_util", "eval_loss", "eval_cider", "eval_rouge_l"]  # fmt: skip


def read_table(path: Path) -> pd.DataFrame:
    """Read a parquet table of a stage; an unknown modality is None and not NaN."""
    table = pd.read_parquet(path).astype({"modality": object})
    return table.assign(modality=table["modality"].where(table["modality"].notna(), None))


def read_records(stage: StageFolder) -> pd.DataFrame:
    """Read every pair of stage 01 with its reason."""
    return read_table(stage.path / "records.parquet")


def read_revision(stage: StageFolder) -> str | None:
    """Read which commit of a hub data set stage 01 has looked at; None for other sources."""
    return read_json(stage.path / "report.json")["revision"]


def read_concepts(stage: StageFolder, mapping: str | None = "auto") -> pd.DataFrame | None:
    """Read the concepts' names (CUI, Canonical name); None where there are none.

    Args:
        stage: 01 or 02.
        mapping: a ``cui_mapping.csv``; "auto" for the one that the stage hands on, None for none.

    Raises:
        SourceError: ``mapping`` is no such file.
    """
    path = stage.path / CUI_MAPPING if mapping == "auto" else mapping and Path(mapping)
    if path is None or (mapping == "auto" and not path.is_file()):
        return None
    table = read_csv(path, ("CUI", "Canonical name"))
    return table if len(table) else None


def read_prepared(folder: Path, records: pd.DataFrame) -> list[Image.Image]:
    """Read the prepared images of some records of stage 02, which may be unfinished, in their order."""
    found = {}
    for split, some in records.groupby("split"):
        found |= read_bytes(folder, split, some["image_id"].tolist())
    return [Image.open(BytesIO(found[image_id])) for image_id in records["image_id"]]


def read_captions(stage: StageFolder, split: str) -> pd.DataFrame:
    """Read the captions of one split of stage 02, ordered by image id."""
    table = read_table(stage.path / "captions.parquet")
    return table[table["split"] == split].sort_values("image_id", ignore_index=True)


def read_images(stage: StageFolder, split: str, image_ids: list[str]) -> list[Image.Image]:
    """Read prepared images of one split of stage 02, in the order asked for."""
    found = read_bytes(stage.path, split, image_ids)
    return [Image.open(BytesIO(found[image_id])).convert("RGB") for image_id in image_ids]


def read_bytes(folder: Path, split: str, image_ids: list[str]) -> dict[str, bytes]:
    """Return image id -> PNG bytes of some prepared images of one split."""
    found = {}
    for path in sorted(folder.glob(f"images-{split}-*.parquet")):
        table = pq.read_table(path, filters=[("image_id", "in", list(image_ids))])
        found |= {row["image_id"]: row["image"]["bytes"] for row in table.to_pylist()}
    return found


def read_lines(path: Path) -> list[dict]:
    """Read the lines of ``log.jsonl`` of stage 03 as they stand; an unfinished last one is left out.

    Raises:
        StageError: a finished line is no JSON object.
    """
    *finished, last = path.read_bytes().split(b"\n")  # of bytes: a caption may hold any other line end
    lines = []
    for number, line in enumerate(finished, 1):
        lines.append(read_object(line))
        if lines[-1] is None:
            raise StageError(
                f"Line {number} of {path.name} is damaged. Take it out, or train anew with FRESH = True."
            )
    # Without its line end the last one may be cut off by a kill, or still be in writing.
    return [line for line in (*lines, read_object(last)) if line is not None]


def read_object(line: bytes) -> dict | None:
    """Return the JSON object that a line holds, None where it holds none."""
    try:
        value = json.loads(line)
    except ValueError:  # also where the cut went through a letter
        return None
    return value if isinstance(value, dict) else None


def log_table(lines: list[dict]) -> pd.DataFrame:
    """Turn the log's lines into rows: ``LOG_COLUMNS``, then others by name; the captions are left out."""
    table = pd.DataFrame([{k: v for k, v in line.items() if k != "captions"} for line in lines])
    return table.reindex(columns=[*LOG_COLUMNS, *table.columns.difference(LOG_COLUMNS)])


def sample_table(lines: list[dict]) -> pd.DataFrame:
    """Turn the captions of the log's evaluations into rows: step, image_id, reference, caption."""
    rows = [{"step": line["step"], **sample} for line in lines for sample in line.get("captions") or []]
    return pd.DataFrame(rows, columns=["step", "image_id", "reference", "caption"])


def read_log(path: Path) -> pd.DataFrame:
    """Read ``log.jsonl`` of stage 03: one row a line, NaN where a line has no such figure.

    Columns: steps, ``seconds`` over all sessions, ``epoch`` in passes over the training pairs, losses in
    nats per token, ``memory_gib`` and ``gpu_util`` (percent) as lists with one figure a GPU.

    Raises:
        StageError: a finished line is no JSON object.
    """
    return log_table(read_lines(path))


def read_samples(path: Path) -> pd.DataFrame:
    """Read the captions of the evaluations in ``log.jsonl``: columns step, image_id, reference, caption."""
    return sample_table(read_lines(path))


def caption_table(samples: pd.DataFrame, count: int = 4) -> pd.DataFrame:
    """Put the captions of ``count`` evaluations beside the reference, from the first to the last.

    Args:
        samples: columns step, image_id, reference, caption.
        count: evaluations to show, evenly spread.

    Returns:
        One row an image; columns "reference", "step 0", "step 62"... "–" where an evaluation did not
        caption the image, "(empty)" where it wrote nothing.
    """
    references = samples.groupby("image_id", sort=False)["reference"].first()
    steps = samples["step"].drop_duplicates().sort_values().tolist()
    chosen = sorted({steps[round(at)] for at in np.linspace(0, len(steps) - 1, count)}) if steps else []
    table = pd.DataFrame({"reference": references})
    for step in chosen:
        captions = samples[samples["step"] == step].drop_duplicates("image_id", keep="last")
        captions = captions.set_index("image_id")["caption"]
        table[f"step {step}"] = captions.where(captions.str.strip() != "", "(empty)").reindex(table.index)
    return table.fillna("–")


def read_predictions(folder: Path) -> pd.DataFrame:
    """Join the parts of stage 04, by id; columns: see ``captionparts.CaptionParts``."""
    parts = [read_json(path) for path in sorted((folder / "parts").glob("part-*.json"))]
    tables = [pd.DataFrame({k: v for k, v in part.items() if k != "stamp"}) for part in parts]
    return pd.concat(tables, ignore_index=True).sort_values("image_id", ignore_index=True)


def read_cost(folder: Path) -> dict[str, dict[str, float]]:
    """Sum what captioning has cost: step -> images, seconds of all processes, rate of one, peak memory."""
    costs = read_costs(folder)
    steps = {"see": "visual part, for both", "base": "base captions", "tuned": "tuned captions"}
    images = int(costs["images"].sum())
    return {
        name: {
            "images": images,
            "seconds, all processes": round(float(costs[step].sum()), 1),
            "images/s of a process": round(images / max(float(costs[step].sum()), 1e-9), 2),
            "peak memory of a process, GiB": round(float(costs["peak_gib"].max()), 2),
        }
        for step, name in steps.items()
    }


def training_figures(run: dict) -> dict:
    """Return the key figures of stage 03 from its ``run.json``.

    The loss is None where a time budget ended the run before its first measurement.
    """
    loss = run["best_validation_loss"]
    return {
        "processes": run["processes"],
        "steps": run["steps"],
        "best_step": run["best_step"],
        "validation_loss": None if loss is None else round(loss, 3),
        "trainable": run["trainable_parameters"],
    }


def read_study(path: Path = STUDY) -> pd.DataFrame:
    """Read what ``python -m utils.study`` measured: one row a run, with its row, seed and figures."""
    return pd.DataFrame(read_json(path)["runs"])


def study_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Summarise a study: a line a row, with mean ± standard deviation over the seeds.

    Args:
        runs: what :func:`read_study` returned.
    """
    rows = runs.groupby("row", sort=False)
    table = pd.DataFrame({"trainable": rows["trainable"].first().map("{:,}".format), "seeds": rows.size()})
    for column, title in STUDIED.items():
        mean, spread = rows[column].mean(), rows[column].std(ddof=1)
        written = [f"{m:.3f} ± {s:.3f}" if s == s else f"{m:.3f}" for m, s in zip(mean, spread, strict=True)]
        table[title] = pd.Series(written, mean.index).where(mean.notna(), "–")
    return table.rename_axis(None)


def one_of_each(modalities: pd.Series, count: int) -> list[int]:
    """Return ``count`` row positions that go round the modalities: the first of each, then the second."""
    names = modalities.fillna("unknown").reset_index(drop=True)
    turn = names.groupby(names).cumcount()
    return turn.sort_values(kind="stable").index[:count].tolist()


def examples(prepared: StageFolder, evaluated: StageFolder, count: int) -> pd.DataFrame:
    """Choose test images of all modalities: columns image_id, image, reference, modality."""
    scored = read_table(evaluated.path / "predictions.parquet")
    chosen = scored.iloc[one_of_each(scored["modality"], count)].sort_values("image_id")
    chosen = chosen[["image_id", "reference", "modality"]].reset_index(drop=True)
    images = read_images(prepared, "test", chosen["image_id"].tolist())
    return chosen.assign(image=images)[["image_id", "image", "reference", "modality"]]


def example_captions(chosen: pd.DataFrame, answers: list[dict[str, str]]) -> pd.DataFrame:
    """Put the captions of base and tuned model beside the chosen images' references."""
    texts = pd.DataFrame(answers, index=chosen.index)
    return chosen[["image_id", "reference", "modality"]].join(texts)
