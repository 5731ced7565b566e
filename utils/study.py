"""``python -m utils.study``: what preset, rank, variant and image modes change, with seeds and error bars.

Trains every row of ``ROWS`` with several seeds on the data of a work folder (the sample's, unless told
otherwise), captions the same validation images with each adapter, and writes a table. A run that is
finished is kept, so the study goes on where it was stopped.
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from utils import facts, metrics, notebooks, results, runtime, series, stages
from utils.config import TrainConfig
from utils.stages import REPO, StageFolder, read_json, write_json

USUAL = "connector, rank 16"
# Name -> what differs from notebook 03's parameters; "modes" stands for the images and is no parameter of it.
ROWS = {
    USUAL: {},
    "decoder": {"preset": "decoder"},
    "vision": {"preset": "vision"},
    "rank 4": {"rank": 4, "alpha": 8},
    "rank 64": {"rank": 64, "alpha": 128},
    "rsLoRA, rank 64": {"rank": 64, "variant": "rslora"},
    "DoRA": {"variant": "dora"},
    # Its B matrices learn 16 times as fast: with the rate of the other rows the run blows up.
    "LoRA+": {"variant": "lora+", "learning_rate": 2.5e-4},
    "all image modes": {"modes": "all"},
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.study", description=__doc__.split("\n")[0])
    parser.add_argument("--work", default="auto", help="work folder with a finished stage 02")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the training pairs")
    parser.add_argument("--procs", type=int, help="processes to train with")
    parser.add_argument("--out", type=Path, default=results.STUDY, help="where the table goes")
    return parser.parse_args(arguments)


def prepared_for(modes: str, work: Path) -> StageFolder:
    """Return the prepared data: the work folder's own, or the same source with every image mode."""
    if modes == "usual":
        return stages.open_stage("02_preprocess", work, roots=())
    own = stages.open_stage("01_filter", work, roots=()).manifest["config"]["source"]
    other = work / "study" / "all_modes"
    options = ["--only", "01,02", "--source", own, "--work", str(other), "--set", "IMAGE_MODES=None"]
    if series.main(options):
        raise stages.StageError("The data with every image mode could not be prepared; see above.")
    return stages.open_stage("02_preprocess", other, roots=())


def train(folder: Path, prepared: StageFolder, changes: dict, procs: int) -> dict:
    """Train one row with one seed, unless that is done; return its ``run.json``."""
    # One measurement, at the end: rows are compared after the same number of steps, not each at its best.
    usual = {k.lower(): v for k, v in notebooks.parameters_of("03_train_lora").items()}
    fields = TrainConfig.__dataclass_fields__
    wanted = {k: v for k, v in usual.items() if k in fields} | {"evaluations": 1, "generated": 0} | changes
    folder.mkdir(parents=True, exist_ok=True)
    job = {"prepared": str(prepared.path), "output": str(folder), "config": TrainConfig(**wanted).json()}
    if (folder / "job.json").is_file() and read_json(folder / "job.json") != job:
        raise stages.StageError(f"{stages.short(folder)} was trained otherwise. Delete it, then run again.")
    write_json(folder / "job.json", job)
    if not (folder / "run.json").is_file():
        runtime.launch("utils.train", folder / "job.json", procs=procs)
    return read_json(folder / "run.json")


def score(folder: Path, prepared: StageFolder, procs: int) -> dict[str, float]:
    """Caption the validation split with a run's adapter and score it."""
    output = folder / "captions"
    output.mkdir(exist_ok=True)
    write_json(output / "job.json", {
        "prepared": str(prepared.path), "adapter": str(folder / "adapter"), "output": str(output),
        "split": "valid", "config": {"beams": 1, "batch_size": 32, "max_new_tokens": None,
                                     "min_new_tokens": 0, "no_repeat_ngram": 0},
    })  # fmt: skip
    runtime.launch("utils.generate", output / "job.json", procs=procs)
    captions = results.read_captions(prepared, "valid")
    tuned = results.read_predictions(output)["tuned"].tolist()
    references = captions["caption"].tolist()
    right = facts.fact_agreement(references, tuned, captions["modality"].tolist())
    return {
        "cider": metrics.cider(references, tuned)[0],
        "rouge_l": float(metrics.rouge(references, tuned)["rouge_l"].mean()),
        "all_right_share": float(right["all_right"].mean()),
    }


def run(options: argparse.Namespace) -> pd.DataFrame:
    """Run what is not there yet and return one line a run."""
    work, procs = runtime.work_folder(options.work), runtime.rank_count(options.procs)
    usual, lines = prepared_for("usual", work), []
    for name, row in ROWS.items():
        changes = {k: v for k, v in row.items() if k != "modes"} | {"epochs": options.epochs}
        data = prepared_for("all", work) if "modes" in row else usual
        for seed in range(options.seeds):
            folder = work / "study" / f"{name.replace(',', '').replace(' ', '-').lower()}-{seed}"
            print(f"{name}, seed {seed}", flush=True)
            record = train(folder, data, changes | {"seed": seed}, procs)
            measured = {"validation_loss": record["best_validation_loss"]}
            # A loss over other validation images could not be compared; captions are of the same ones.
            measured |= {"validation_loss": None} if "modes" in row else {}
            lines.append({"row": name, "seed": seed, "trainable": record["trainable_parameters"],
                          "steps": record["steps"]} | measured | score(folder, usual, procs))  # fmt: skip
    return pd.DataFrame(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run the study, print its table and write it."""
    options = parse_arguments(arguments)
    lines = run(options)
    write_json(options.out, {
        "epochs": options.epochs, "seeds": options.seeds, "versions": stages.versions(),
        "command": f"python -m utils.study --seeds {options.seeds} --epochs {options.epochs:g}",
        "runs": lines.astype(object).where(lines.notna(), None).to_dict("records"),
    })  # fmt: skip
    print(results.study_table(lines).to_string())
    where = options.out.relative_to(REPO) if options.out.is_relative_to(REPO) else options.out.name
    print(f"written: {where}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
