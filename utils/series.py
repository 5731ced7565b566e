"""``python -m utils.series``: run the five notebooks in order, from data to demo.

Every finished stage is kept; run again, the series goes on after the last finished one.
"""

import argparse
import ast
import contextlib
import fcntl
import os
import sys
import time
from pathlib import Path

from utils import config as configs
from utils import notebooks, rocov2, runtime, stages
from utils.stages import STAGES, StageError

RUN_FOLDER = "notebooks"  # executed notebooks and their HTML, below the work folder


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.series", description=__doc__.split("\n")[0])
    parser.add_argument("--source", help="sample, a folder in ROCOv2's layout, or a hub data set")
    parser.add_argument("--work", default="auto", help="folder of the stage folders (default: ./work)")
    parser.add_argument("--only", help="stages by number, such as 01,02 (default: all)")
    parser.add_argument("--procs", type=int, help="processes to train and caption with")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="a parameter of the notebooks, a Python literal; may be repeated")  # fmt: skip
    parser.add_argument("--fresh", action="store_true", help="make the chosen stages anew")
    parser.add_argument("--update-notebooks", action="store_true",
                        help="write the executed notebooks, cleaned, over those in notebooks/")  # fmt: skip
    return parser.parse_args(arguments)


def literal(text: str):
    """Read a Python literal; a bare word stands for itself, so that PRESET=decoder needs no quotes."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def overrides(options: argparse.Namespace) -> dict:
    """Collect the parameters that the command line sets.

    Raises:
        ConfigError: ``--set`` without "=", or a name that no notebook has.
    """
    given = {}
    for item in options.set:
        name, equals, value = item.partition("=")
        configs.demand(bool(equals), f"--set {item}: write it as NAME=VALUE.")
        given[name] = literal(value)
    given |= {n: v for n, v in (("SOURCE", options.source), ("PROCS", options.procs)) if v is not None}
    known = {name for stage in STAGES for name in notebooks.parameters_of(stage)}
    for name in given:
        configs.demand(
            name in known, f"No notebook has a parameter {name}; there are: {', '.join(sorted(known))}."
        )
    # The notebooks run in another folder: a relative path means the caller's.
    for name in ("SOURCE", "MODEL_ID"):
        if isinstance(given.get(name), str) and given[name] and Path(given[name]).is_dir():
            given[name] = str(Path(given[name]).resolve())
    runtime.rank_count(given.get("PROCS"))  # raises where it is no number of processes
    work = given.get("WORK", options.work)
    configs.demand(isinstance(work, str) and work != "", f"WORK is {work!r}: give a folder.")
    given["WORK"] = str(runtime.work_folder(work))
    return given | {"FRESH": bool(given.get("FRESH", options.fresh))}


def chosen(only: str | None) -> list[str]:
    """Return the stages to run, in order.

    Raises:
        ConfigError: a number that no stage has.
    """
    if only is None:
        return list(STAGES)
    numbers = [number.strip().zfill(2) for number in only.split(",")]
    known = {name[:2]: name for name in STAGES}
    for number in numbers:
        configs.demand(
            number in known,
            f"--only {only}: there is no stage {number}; there are {', '.join(known)}.",
        )
    return [name for name in STAGES if name[:2] in numbers]


def plan(names: list[str], given: dict, work: Path) -> dict[str, dict]:
    """Return the configuration that each stage would record, all parameters checked before any runs."""
    source = given.get("SOURCE", notebooks.parameters_of("01_filter")["SOURCE"])
    if "01_filter" not in names and "SOURCE" not in given:
        source = stages.open_stage("01_filter", work).manifest["config"]["source"]
    configs.FilterConfig(source, None, 1, None, True)  # refuses what is no name of a source
    source = runtime.choose_source(source)
    if "01_filter" not in names and (work / "01_filter" / stages.MANIFEST).is_file():
        before = stages.open_stage("01_filter", work).manifest["config"]["source"]
        configs.demand(
            source == before,
            f"SOURCE is {source}, and notebook 01 has read {before}: leave --source out, or run 01 too.",
        )
    wanted = {n: configs.configure(n, notebooks.parameters_of(n) | given, source) for n in names}
    if "03_train_lora" in wanted:
        training = wanted["03_train_lora"]
        training.accumulation(runtime.rank_count(given.get("PROCS")), training.micro_batch or 1)
    return {name: config.json() for name, config in wanted.items()}


def is_done(name: str, wanted: dict, work: Path) -> bool:
    """Tell whether a stage is finished as wanted, from its input stages as they are now.

    One that its time budget stopped is not.

    Raises:
        StageError: an input stage is missing, or what is there was made otherwise.
    """
    needs = {need: stages.open_stage(need, work).fingerprint for need in STAGES[name].needs}
    stages.check_same(work / name, {"config": wanted, "inputs": needs})
    manifest = stages.read_manifest(work / name, name)
    return manifest is not None and stages.StageFolder(work / name, manifest).finished


def run_stage(name: str, given: dict, work: Path) -> Path:
    """Run one notebook and keep it, with an HTML copy, in the work folder; return its path."""
    own = notebooks.parameters_of(name)
    # papermill writes a tuple as the text of one
    parameters = {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if k in own}
    folder = work / RUN_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    return notebooks.execute(name, parameters, folder / f"{name}.ipynb")


def figures(counts: dict) -> str:
    """Write a stage's key figures in one line."""
    return ", ".join(f"{k} {v:,}" if isinstance(v, int) else f"{k} {v}" for k, v in counts.items())


def summary(names: list[str], seconds: dict[str, float], work: Path) -> str:
    """Return the closing table: stage, seconds, key figures."""
    lines = [f"{'stage':<16} {'seconds':>8}  key figures"]
    for name in names:
        counts = stages.open_stage(name, work).manifest["counts"]
        spent = f"{seconds[name]:.0f}" if name in seconds else "kept"
        lines.append(f"{name:<16} {spent:>8}  {figures(counts)}")
    lines.append(f"Results: {stages.short(work)}  (pages to read: {stages.short(work / RUN_FOLDER)}/*.html)")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> None:
    """Check everything that can be checked at once, then run what is not there yet."""
    names, given = chosen(options.only), overrides(options)
    work = stages.check_work(given["WORK"])
    with alone_in(work):
        run_stages(names, given, work, options)


@contextlib.contextmanager
def alone_in(work: Path):
    """Hold the work folder for one run of the series: two at once would mix their files.

    Raises:
        StageError: another run holds it.
    """
    with open(work / ".lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StageError(
                f"Another run of the series works in {stages.short(work)}. Wait for its end, or choose "
                f"another folder with --work DIR."
            ) from error
        yield


def run_stages(names: list[str], given: dict, work: Path, options: argparse.Namespace) -> None:
    """Run the stages that are not finished as wanted, and say how each went."""
    wanted = plan(names, given, work)
    reads = next((n for n in ("01_filter", "02_preprocess") if n in wanted), None)
    if reads == "01_filter" or (reads and (given["FRESH"] or not is_done(reads, wanted[reads], work))):
        rocov2.check_source(wanted[reads]["source"])  # before --fresh deletes a thing
    seconds: dict[str, float] = {}
    for number, name in enumerate(names, 1):
        place = f"[{number}/{len(names)}] {name}"
        if not given["FRESH"] and is_done(name, wanted[name], work):
            print(f"{place}: finished before, kept", flush=True)
            continue
        print(f"{place}: running", flush=True)
        started = time.perf_counter()
        executed = run_stage(name, given, work)
        seconds[name] = time.perf_counter() - started
        print(f"{place}: done in {seconds[name]:.0f} s", flush=True)
        if not is_done(name, wanted[name], work):
            raise StageError(f"Stage {name} was stopped by its time budget. The same command goes on.")
        if options.update_notebooks:
            notebooks.publish(name, executed)
    if options.update_notebooks:
        notebooks.publish_picture(work)
    if not seconds:
        print("Nothing to do: every stage is finished with these parameters.")
    print(summary(names, seconds, work))


def main(arguments: list[str] | None = None) -> int:
    """Run the series; return 0, or 2 after one sentence that says what was wrong."""
    try:
        run(parse_arguments(arguments))
    except (StageError, configs.ConfigError, runtime.LaunchError) as error:
        print(f"\nStopped: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. Finished stages are kept; the same command goes on.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    code = main()
    if code == 130:  # the broken-off kernel connection would complain at a proper exit
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)
