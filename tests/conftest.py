"""What several test files share: small releases, finished stage folders, the real radiographs."""

import csv
import io
import os
from pathlib import Path

# Several processes on two cores: with two threads each they spend their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib
import pytest
from PIL import Image

from tests.tiny import prepared_folder, tiny_folder  # noqa: F401
from utils import stages

matplotlib.use("Agg")
REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
SPLITS = ("train", "valid", "test")


def real(name):
    if not (REAL / name).is_dir():
        pytest.skip(f"the real data ../shared/data/{name} is not on this machine")
    return REAL / name


@pytest.fixture
def real_release():
    """The folder of 122 real radiographs in ROCOv2's layout."""
    return real("radiology_mini")


@pytest.fixture
def encode():
    """Return a function: an image, or a mode and a grey value -> the bytes of a file."""

    def encode(image, format="PNG", value=0, size=(8, 6), **options):
        if isinstance(image, str):
            image = Image.new("RGB", size, (value,) * 3).convert(image)
        buffer = io.BytesIO()
        image.save(buffer, format=format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def release_folder(tmp_path, encode):
    """Return a function that writes a ROCOv2 folder with one PNG a mode in each split.

    IDs are ``train_1``, ``train_2``...; the captions "train 1." and so on; no two files are the same.
    """

    def write(train=("RGB", "L"), valid=("RGB",), test=("RGB",)):
        root, value = tmp_path / "release", 0
        for split, modes in zip(SPLITS, (train, valid, test), strict=True):
            (root / split).mkdir(parents=True)
            with open(root / f"{split}_captions.csv", "w", newline="") as file:
                table = csv.writer(file)
                table.writerow(["ID", "Caption"])
                for number, mode in enumerate(modes, 1):
                    value += 10
                    (root / split / f"{split}_{number}.png").write_bytes(encode(mode, value=value))
                    table.writerow([f"{split}_{number}", f"{split} {number}."])
        return root

    return write


@pytest.fixture
def finish():
    """Return a function that makes a finished stage folder from file names and their texts."""

    def finish(work, name, config=None, inputs=(), files=None, counts=None):
        folder = stages.start_stage(work, name, config or {}, inputs)
        for path, text in (files or {"result.txt": "done"}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return stages.seal_stage(folder, counts or {})

    return finish
