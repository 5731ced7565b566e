"""A random tiny BLIP-2 and a prepared stage of a few grey images, for tests that train and caption."""

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from utils.stages import write_json

CAPTIONS = ["CT of the chest.", "MR of the brain with a nodule.", "X-ray of the knee."]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The folder of an unpretrained model with the sample model's layout and tokenizer."""
    from utils.sample.tiny_blip2 import build_processor, random_model

    folder = tmp_path_factory.mktemp("tiny")
    random_model(0).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def prepared_folder(tmp_path_factory, tiny_folder):
    """Stage 02 of 8 training, 4 validation and 5 test images, stored as grey ones are, out of order."""
    from utils import model
    from utils.captions import token_ids
    from utils.images import to_png
    from utils.imageshards import schema

    folder, rows = tmp_path_factory.mktemp("work") / "02_preprocess", []
    folder.mkdir()
    tokenizer = model.load_tokenizer(tiny_folder)
    for split, count in (("train", 8), ("valid", 4), ("test", 5)):
        images = []
        for i in reversed(range(count)):
            name, caption = f"{split}_{i:02d}", CAPTIONS[i % 3]
            png = to_png(Image.new("L", (224, 224), 10 * i))
            images.append({"image_id": name, "split": split, "image": {"bytes": png, "path": name}})
            rows.append({"image_id": name, "split": split, "modality": "CT", "cuis": [], "caption": caption,
                         "raw_caption": caption, "input_ids": token_ids(caption, tokenizer, 202)})  # fmt: skip
        table = pa.Table.from_pylist(images, schema=schema())
        pq.write_table(table, folder / f"images-{split}-00000.parquet")
    captions = pd.DataFrame(rows)
    captions.assign(n_tokens=captions["input_ids"].map(len)).to_parquet(folder / "captions.parquet")
    write_json(folder / "preprocess.json", {"model_id": tiny_folder, "token_limit": 12, "size": 224,
                                            "resample": "bicubic (Pillow)", "model_revision": None,
                                            "mean": [0.5] * 3, "std": [0.5] * 3})  # fmt: skip
    return folder
