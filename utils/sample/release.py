"""Writes the sample in ROCOv2's folder layout, with the dirt of a real release and a key to it."""

import csv
import hashlib
import io
import json
import multiprocessing
import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from utils.sample import texts
from utils.sample.phantoms import Phantom, doppler, draw, random_phantom, random_size

SPLITS = ("train", "valid", "test")
COUNTS = {"train": 3000, "valid": 300, "test": 300}
SMALLEST_SPLIT = 12  # one row for each kind of dirt, and a clean one

# Kind of dirt -> rows in a thousand; every split has at least one of each.
IMAGE_DEFECTS = {"rgba": 6, "sixteen_bit": 6, "truncated": 4, "wrong_extension": 4}
CAPTION_DIRT = {"empty": 3, "spaces": 6, "glued": 5, "one_word": 4, "long": 3, "replacement": 3}
DUPLICATES = 4  # train rows in a thousand that are byte for byte a test picture

MODALITY_CONCEPTS = {"X-ray": ("C1306645", "Plain x-ray"),
                 "CT": ("C0040405", "X-Ray Computed Tomography"),
                 "MR": ("C0024485", "Magnetic Resonance Imaging"),
                 "ultrasound": ("C0041618", "Ultrasonography"),
                 "angiography": ("C0002978", "angiogram")}
REGION_CONCEPTS = {"chest": ("C0817096", "Chest"), "abdomen": ("C0000726", "Abdomen"),
               "brain": ("C0006104", "Brain"), "knee": ("C0022742", "Knee")}
FINDING_CONCEPTS = {"nodule": ("C0028259", "Nodule"), "cyst": ("C0010709", "Cyst"),
                "calcification": ("C0006663", "Calcinosis")}


@dataclass
class Row:
    """One image of the release; every field but `caption` and `seed` is a column of key.csv."""

    ID: str
    split: str
    phantom: Phantom
    caption: str
    seed: tuple
    mode: str = "RGB"
    format: str = "JPEG"
    image_defect: str = ""
    caption_dirt: str = ""
    duplicate_of: str = ""

    @property
    def path(self):
        """Where the image lies below the release's folder."""
        return f"{self.split}/{self.ID}.{'png' if self.mode in ('RGBA', 'I;16') else 'jpg'}"


KEY = ("ID", "split", "modality", "region", "finding", "side", "size", "mode", "format",
       "image_defect", "caption_dirt", "duplicate_of")


def write_sample(folder, counts=COUNTS, seed=0, procs=2):
    """Write the sample release: images, captions, concepts and key.csv, or find it written.

    Args: folder to write; counts, images a split (at least 12 each); seed; procs, worker processes.
    Returns: Path of the folder.
    Raises: ValueError for a split that is missing or too small to hold each kind of dirt;
        FileExistsError if the folder holds something that is not a sample.
    """
    if set(counts) != set(SPLITS) or min(counts.values()) < SMALLEST_SPLIT:
        raise ValueError(f"counts must name {SPLITS} with at least {SMALLEST_SPLIT} images each")
    folder, recipe = Path(folder), _recipe(counts, seed)
    if (folder / "key.csv").exists() and _recipe_of(folder) == recipe:
        return folder
    if folder.exists() and any(folder.iterdir()) and _recipe_of(folder) is None:
        raise FileExistsError(f"{folder} holds something else than a sample; choose another folder")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    for split in SPLITS:
        (part / split).mkdir(parents=True)
    rows = plan(counts, seed)
    _write_images(part, rows, procs)
    _write_tables(part, rows)
    (part / "sample.json").write_text(json.dumps(recipe, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    return part.rename(folder)


def plan(counts, seed):
    """All rows of the release, in order, with dirt assigned; nothing is drawn yet."""
    by_split = {split: _plan_split(split, counts[split], seed) for split in SPLITS}
    rng = np.random.default_rng([seed, 77])
    # A leak: the train copy of a test picture, which a careful filter must find.
    originals = [row for row in by_split["test"] if not row.image_defect and not row.caption_dirt]
    copies = [row for row in by_split["train"] if not row.image_defect and not row.caption_dirt]
    wanted = min(_share(DUPLICATES, counts["train"]), len(originals))
    for copy, original in zip(rng.choice(copies, wanted, replace=False),
                              rng.choice(originals, wanted, replace=False), strict=True):
        copy.phantom, copy.mode, copy.seed = original.phantom, original.mode, original.seed
        copy.caption = texts.caption(copy.phantom, rng)
        copy.image_defect, copy.duplicate_of = "duplicate", original.ID
    return [row for split in SPLITS for row in by_split[split]]


def _share(per_thousand, count):
    return max(1, round(per_thousand * count / 1000))


def _plan_split(split, count, seed):
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    rows, number = [], 0
    for _ in range(count):
        number += 1 if rng.random() < .98 else 2  # ROCOv2's numbering has gaps
        phantom = random_phantom(rng)
        rows.append(Row(f"SAMPLE_{split}_{number:06d}", split, phantom,
                        texts.caption(phantom, rng), (seed, SPLITS.index(split), number),
                        mode="L" if rng.random() < .35 else "RGB"))
    order = iter(rng.permutation(count))  # no row has two kinds of dirt: the key stays readable
    for kind, share in IMAGE_DEFECTS.items():
        for _ in range(_share(share, count)):
            _spoil_image(rows[next(order)], kind)
    for kind, share in CAPTION_DIRT.items():
        for _ in range(_share(share, count)):
            row = rows[next(order)]
            row.caption_dirt, row.caption = kind, _spoil_caption(row, kind, rng)
    return rows


def _spoil_image(row, kind):
    row.image_defect = kind
    row.mode = {"rgba": "RGBA", "sixteen_bit": "I;16"}.get(kind, row.mode)
    row.format = "JPEG" if kind == "truncated" else "PNG"


def _spoil_caption(row, kind, rng):
    clean = row.caption
    if kind == "empty":
        return ""
    if kind == "spaces":
        return f"  {clean} \t"
    if kind == "glued":
        return f"{clean}The patient is a {rng.integers(20, 80)}-year-old woman."
    if kind == "one_word":
        return texts.SHORT_MODALITY[row.phantom.modality] + "."
    if kind == "replacement":
        return f"{clean[:-1]}, 2\ufffd3 cm."
    return texts.discussion(clean, int(rng.integers(80, 121)), rng)


def image_bytes(row):
    """The image file of a row as bytes; the same row gives the same bytes."""
    rng = np.random.default_rng(row.seed)
    pixels = draw(row.phantom, rng, random_size(row.phantom, rng))
    coloured = row.mode == "RGB" and row.phantom.modality == "ultrasound" and rng.random() < .3
    if coloured:
        image = Image.fromarray(doppler(pixels, row.phantom, rng))
    elif row.mode == "I;16":  # 12 bits in a 16-bit file, as scanners export them
        low_bits = rng.integers(0, 16, pixels.shape, np.uint16)
        image = Image.fromarray(pixels.astype(np.uint16) * 16 + low_bits)
    else:
        image = Image.fromarray(pixels).convert(row.mode)
    buffer = io.BytesIO()
    image.save(buffer, row.format, **({"quality": 85} if row.format == "JPEG" else {}))
    content = buffer.getvalue()
    return content[:len(content) * 3 // 5] if row.image_defect == "truncated" else content


def _write_image(job):
    folder, row = job
    (folder / row.path).write_bytes(image_bytes(row))


def _write_images(folder, rows, procs):
    jobs = [(folder, row) for row in rows]
    bar = dict(total=len(rows), desc="drawing the sample", unit="image", file=sys.stdout)
    if procs < 2:
        for job in tqdm(jobs, **bar):
            _write_image(job)
        return
    # spawn, not fork: a notebook that has loaded torch has threads, which a fork would break
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(procs, mp_context=context) as pool:
        for _ in tqdm(pool.map(_write_image, jobs, chunksize=25), **bar):
            pass


def _write_tables(folder, rows):
    for split in SPLITS:
        mine = [row for row in rows if row.split == split]
        _write_csv(folder / f"{split}_captions.csv", ("ID", "Caption"),
                   [(row.ID, row.caption) for row in mine])
        _write_csv(folder / f"{split}_concepts_manual.csv", ("ID", "CUIs"),
                   [(row.ID, ";".join(_cuis(row.phantom))) for row in mine])
    names = [*MODALITY_CONCEPTS.values(), *REGION_CONCEPTS.values(), *FINDING_CONCEPTS.values()]
    _write_csv(folder / "cui_mapping.csv", ("CUI", "Canonical name"), names)
    _write_csv(folder / "key.csv", KEY, [_key(row) for row in rows])


def _write_csv(path, header, lines):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\r\n").writerows([header, *lines])


def _cuis(phantom):
    cuis = [MODALITY_CONCEPTS[phantom.modality][0], REGION_CONCEPTS[phantom.region][0]]
    if phantom.finding in FINDING_CONCEPTS:
        cuis.append(FINDING_CONCEPTS[phantom.finding][0])
    return cuis


def _key(row):
    values = {**asdict(row), **asdict(row.phantom)}
    return [values[column] for column in KEY]


def _recipe(counts, seed):
    """What the sample depends on: the request, and the code that draws and speaks."""
    names = ("anatomy.py", "phantoms.py", "texts.py", "release.py")
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in names)
    return {"counts": dict(counts), "seed": seed, "code": hashlib.sha256(code).hexdigest()[:16]}


def _recipe_of(folder):
    try:
        return json.loads((folder / "sample.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
