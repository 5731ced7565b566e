"""Notebooks 01 and 02 against what the public notebooks do with the same files."""

import csv
import multiprocessing
import os
import resource
import shutil
import tempfile
import time
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path

from tests.bench.files import image_files, many_names, write_hub_shards, write_release
from tests.bench.lines import Line

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
GENERATED = 2000  # images of ROCOv2's sizes
WHOLE = 80_000  # names, for what reads headers alone: as many as ROCOv2 has
MEMORY = 2000, 20_000
GIB = 2**30


def run(scale: float) -> list[Line]:
    """Measure everything on generated files and, where they are there, on real ones."""
    os.environ["OMP_NUM_THREADS"] = "1"  # "one core" means one
    with tempfile.TemporaryDirectory() as place, redirect_stdout(StringIO()):
        root = Path(place)
        generated = write_release(
            root / "generated", int(GENERATED * scale), min(400, int(GENERATED * scale))
        )
        releases = {"generated": generated}
        if (REAL / "radiology_mini").is_dir():
            releases["real"] = REAL / "radiology_mini"
        lines = []
        for name, release in releases.items():
            lines += audit_lines(name, image_files(release), root, scale)
            lines += reading_lines(name, release, root)
        lines += preparing_lines(generated, root)
        lines += caption_lines()
        lines += memory_lines(root, scale)
    return lines


def cores() -> int:
    """Return the cores that notebooks 01 and 02 use."""
    from utils.runtime import cores

    return cores()


def fresh(folder: Path) -> Path:
    """Return ``folder``, empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@contextmanager
def stopwatch():
    """Yield a list that holds the seconds once the block is left."""
    seconds = []
    started = time.perf_counter()
    yield seconds
    seconds.append(time.perf_counter() - started)


def audit_lines(name: str, files: list[Path], place: Path, scale: float) -> list[Line]:
    """Compare the header audit with filters over decoded images: in a folder, and in the hub's PNG shards."""
    folder = many_names(place / f"names-{name}", files, max(len(files), int(WHOLE * scale)))
    shards = write_hub_shards(place / f"hub-{name}", files, max(1, int(WHOLE * scale / len(files) / 2)))
    hub_shard = str(shards / "data/train-00000-of-00001.parquet")
    return [
        *audit_both(f"{name} files", folder, [{"image": str(path)} for path in files], place),
        *audit_both(f"{name} files as the hub's PNG", shards, hub_shard, place),
    ]


def audit_both(name: str, root: Path, theirs: str | list[dict], place: Path) -> list[Line]:
    """Compare the header audit of a release, as the notebook runs it and on one core, with ``datasets``.

    Args:
        name: of the files.
        root: the release; it may hold the files again and again, under further names.
        theirs: the files once, as a parquet file or as rows.
        place: for what is written.
    """
    kept, files, seconds = filtered_by_datasets(theirs, place)
    lines = []
    for procs, bar in ((cores(), 50), (1, None)):
        verdicts, took = audited(root, place, procs)
        assert verdicts == [kept[n % files] for n in range(len(verdicts))], "the verdicts differ"
        lines.append(Line(f"header audit, {len(verdicts):,} {name}, {procs} processes", len(verdicts) / took,
                          "images/s", bar, f"datasets filter, decoding {files:,}", files / seconds))  # fmt: skip
    return lines


def audited(root: Path, place: Path, procs: int) -> tuple[list[bool], float]:
    """Audit the headers of a release and judge them; return which training images are RGB, and the seconds."""
    from utils import filtering, rocov2

    release = rocov2.open_release(str(root), place)
    with stopwatch() as seconds:
        records = filtering.audit(release, fresh(place / "audit"), procs, pixels=False)
        records = filtering.apply_rules(records, filtering.rules_for(records, ("RGB",)))
    train = records[records["split"] == "train"]
    # An ID that stands twice is refused for that, whatever its mode: the mode is what both filters read.
    return (train["mode"] == "RGB").tolist(), seconds[0]


def filtered_by_datasets(files: str | list[dict], place: Path) -> tuple[list[bool], int, float]:
    """Filter by mode as the public notebooks do; return who stays, how many files, and the seconds."""
    import datasets

    datasets.disable_progress_bars()
    if isinstance(files, str):
        images = datasets.Dataset.from_parquet(files, cache_dir=str(place / "cache"))
    else:
        images = datasets.Dataset.from_list(files)
    images = images.select_columns("image").cast_column("image", datasets.Image())
    images = images.add_column("row", list(range(len(images))))
    with stopwatch() as seconds:
        kept = images.filter(lambda row: row["image"].mode == "RGB", load_from_cache_file=False)
    stays = set(kept["row"])
    return [row in stays for row in range(len(images))], len(images), seconds[0]


def blip(path: Path):
    """Prepare one file as BLIP-2's own Pillow processor does, from the file to the normalised array."""
    from PIL import Image

    with Image.open(path) as image:
        return processor()(image.convert("RGB"), return_tensors="np")["pixel_values"]


def processor(made=[]):  # noqa: B006  made once
    """Return BLIP-2's image processor, Pillow backend."""
    if not made:
        from transformers import BlipImageProcessorPil

        made.append(BlipImageProcessorPil(size={"height": 224, "width": 224}, resample=3))
    return made[0]


def blip_rate(files: list[Path]) -> float:
    """Return how many files a second BLIP-2's processor prepares on one core."""
    import torch

    torch.set_num_threads(1)
    blip(files[0])
    with stopwatch() as seconds:
        for path in files:
            blip(path)
    return len(files) / seconds[0]


def prepare(root: Path, place: Path, procs: int) -> tuple[float, int]:
    """Prepare every image of a release; return images a second and how many they are."""
    from utils import prepare as stage
    from utils import rocov2

    release = rocov2.open_release(str(root), place)
    records = release.pairs.assign(keep=True)
    folder = fresh(place / "shards")
    with stopwatch() as seconds:
        rejects = stage.prepare_images(records, release.store, folder, procs)
    assert not rejects, rejects
    return len(records) / seconds[0], len(records)


def preparing_lines(root: Path, place: Path) -> list[Line]:
    """Compare the writing of shards with BLIP-2's processor, and two cores with one."""
    theirs = blip_rate(image_files(root))
    one, count = prepare(root, place, 1)
    two, _ = prepare(root, place, 2)  # on two cores
    return [
        Line(f"preparing, shards written ({count:,} images), one core", one, "images/s", 1,
             "BlipImageProcessorPil, one core", theirs),
        Line("preparing, two processes", two, "images/s", 1.8, "itself, one core", one),
    ]  # fmt: skip


def reading_lines(name: str, root: Path, place: Path) -> list[Line]:
    """Compare items of the training dataset with BLIP-2's processor on the originals."""
    import numpy as np

    from utils.dataset import PreparedSplit

    prepare(root, place, 2)
    folder = place / "shards"
    write_captions(folder)
    split = PreparedSplit(folder, "train")
    order = np.random.default_rng(0).permutation(len(split)).tolist()
    split[order[0]]
    with stopwatch() as seconds:
        for index in order:
            split[index]
    rate = len(order) / seconds[0]
    files = image_files(root)
    size = sum(p.stat().st_size for p in folder.glob("images-*.parquet")) / len(files)
    return [
        Line(f"random items of the training data set, {name}, one core", rate, "images/s", 8,
             "BlipImageProcessorPil on the files", blip_rate(files)),
        Line(f"the same, {name}", rate, "images/s", 500),
        Line(f"size prepared, {name} ({len(files):,} images)", size / 1e3, "kB/image",
             40 if name == "real" else None, most=True),
    ]  # fmt: skip


def write_captions(folder: Path) -> None:
    """Write the table that the training data set reads beside the images."""
    import pandas as pd

    ids = [pd.read_parquet(p, columns=["image_id", "split"]) for p in sorted(folder.glob("images-*.parquet"))]
    table = pd.concat(ids, ignore_index=True)
    table.assign(input_ids=[[5, 6, 7]] * len(table), modality="CT").to_parquet(folder / "captions.parquet")


def caption_lines() -> list[Line]:
    """Measure cleaning and tokenising of real captions with the real tokenizer."""
    if not (REAL / "roco_v1_text").is_dir():
        return []
    from transformers import GPT2TokenizerFast

    from utils.captions import clean, tokenise

    captions = []
    for path in sorted((REAL / "roco_v1_text").glob("*.tsv")):
        with open(path, encoding="utf-8", newline="") as file:
            captions += [
                row["caption"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            ]
    tokenizer = GPT2TokenizerFast.from_pretrained(REAL / "opt_tokenizer")
    tokenise(captions[:10], tokenizer, 50118)
    with stopwatch() as seconds:
        tokenise([clean(caption) for caption in captions], tokenizer, 50118)
    return [Line(f"cleaning and tokenising {len(captions):,} captions", len(captions) / seconds[0],
                 "captions/s", 10_000)]  # fmt: skip


def peak(root: Path, place: Path, answer) -> None:
    """Run both stages' workers over a release and send the largest memory that any of them took."""
    from utils import filtering, rocov2

    with redirect_stdout(StringIO()):
        release = rocov2.open_release(str(root), place)
        filtering.audit(release, fresh(place / "audit"), procs=2)
        prepare(root, place, 2)
    answer.put(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)


def memory_lines(place: Path, scale: float) -> list[Line]:
    """Measure the largest worker of both stages at two sizes of the data set."""
    context = multiprocessing.get_context("spawn")
    peaks = []
    for count in MEMORY:
        count = int(count * scale)
        root = write_release(place / f"memory-{count}", int(count / 1.2), min(400, count // 2))
        answer = context.SimpleQueue()
        process = context.Process(target=partial(peak, root, place, answer))
        process.start()
        peaks.append(answer.get())
        process.join()
    names = [f"{int(count * scale):,}" for count in MEMORY]
    return [
        Line(f"peak memory of a worker, {names[1]} images", peaks[1] / GIB, "GiB", 1, most=True),
        Line(f"the same, {names[1]} images", peaks[1] / GIB, "GiB", 1.1, f"{names[0]} images",
             peaks[0] / GIB, most=True),
    ]  # fmt: skip
