"""Items and batches: where the image stands, where the labels stand, where the padding stands."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from utils.dataset import Collator, Layout, PreparedSplit, image_to_pixels, normalise, show_batch
from utils.images import to_png
from utils.imageshards import schema

LAYOUT = Layout(image_id=90, queries=3, bos_id=2, pad_id=1, newline_id=50)


def item(*ids):
    return {"pixels": torch.zeros(3, 2, 2, dtype=torch.uint8), "input_ids": torch.tensor(ids)}


def test_a_batch_is_laid_out_as_blip2_expects():
    batch = Collator(LAYOUT)([item(11, 12, 50), item(13, 50)])
    assert batch["input_ids"].tolist() == [
        [90, 90, 90, 2, 11, 12, 50, 1],
        [90, 90, 90, 2, 13, 50, 1, 1],
    ]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 0, 0]]


def test_labels_stand_on_the_caption_and_its_newline_alone():
    batch = Collator(LAYOUT)([item(11, 12, 50), item(13, 50)])
    assert batch["labels"].tolist() == [
        [-100, -100, -100, -100, 11, 12, 50, -100],
        [-100, -100, -100, -100, 13, 50, -100, -100],
    ]


def test_a_batch_is_padded_to_the_next_multiple_of_eight():
    widths = [Collator(LAYOUT)([item(*range(10, 10 + n))])["labels"].shape[1] for n in (1, 4, 5, 13)]
    assert widths == [8, 8, 16, 24]


def test_the_prompt_is_the_image_and_the_beginning_of_the_sentence():
    assert LAYOUT.prompt(2).tolist() == [[90, 90, 90, 2], [90, 90, 90, 2]]


def test_pixels_are_normalised_channel_by_channel():
    pixels = torch.tensor([0, 255, 51], dtype=torch.uint8).view(1, 3, 1, 1)
    values = normalise(pixels, [0.5, 0.5, 0.0], [0.5, 0.25, 0.2])
    torch.testing.assert_close(values.flatten(), torch.tensor([-1.0, 2.0, 1.0]))


def test_an_image_becomes_channels_first_bytes():
    image = Image.new("RGB", (2, 1))
    image.putpixel((1, 0), (10, 20, 30))
    assert image_to_pixels(image).tolist() == [[[0, 10]], [[0, 20]], [[0, 30]]]


def test_a_split_is_read_in_the_order_of_its_ids(prepared_folder):
    split = PreparedSplit(prepared_folder, "train")
    assert split.table["image_id"].tolist() == [f"train_{i:02d}" for i in range(8)]
    # the image of row i was painted with the grey value 10 * i
    assert [split.image(i).getpixel((0, 0))[0] for i in range(8)] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert split[3]["pixels"].shape == (3, 224, 224)
    assert split[3]["input_ids"][-1] == 202


@pytest.fixture
def pictures(tmp_path):
    """A split of two shards with grey and coloured pictures of noise, and the pictures by their ids."""
    noise, made = np.random.default_rng(0), {}
    for number, names in enumerate((("d", "a", "e"), ("c", "b"))):
        for name in names:
            shape = (224, 224) if name in "ace" else (224, 224, 3)
            made[name] = Image.fromarray(noise.integers(0, 256, shape, dtype=np.uint8))
        rows = [
            {"image_id": n, "split": "train", "image": {"bytes": to_png(made[n]), "path": n}} for n in names
        ]
        pq.write_table(pa.Table.from_pylist(rows, schema()), tmp_path / f"images-train-{number:05d}.parquet")
    captions = pd.DataFrame({"image_id": list("ebadc"), "input_ids": [[ord(i), 50] for i in "ebadc"]})
    captions.to_parquet(tmp_path / "captions.parquet")
    return PreparedSplit(tmp_path, "train"), made


def test_grey_and_coloured_pictures_give_the_pixels_that_were_stored_in_any_order(pictures):
    split, made = pictures
    assert [made[name].mode for name in "abcde"] == ["L", "RGB", "L", "RGB", "L"]
    for index in (3, 0, 4, 4, 1, 2, 0):
        item, expected = split[index], np.asarray(made["abcde"[index]].convert("RGB"))
        assert (item["pixels"].dtype, item["pixels"].shape) == (torch.uint8, (3, 224, 224))
        assert np.array_equal(item["pixels"].numpy(), expected.transpose(2, 0, 1))
        assert np.array_equal(np.asarray(split.image(index)), expected)
        assert item["input_ids"].tolist() == [ord("abcde"[index]), 50]


def test_grey_and_coloured_pictures_are_stacked_into_one_batch(pictures):
    split, made = pictures
    pixels = Collator(LAYOUT)([split[3], split[2]])["pixels"]
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (2, 3, 224, 224))
    assert pixels.is_contiguous()
    for row, name in enumerate("dc"):
        assert np.array_equal(pixels[row].permute(1, 2, 0).numpy(), np.asarray(made[name].convert("RGB")))


def test_a_shown_batch_names_its_tokens(tiny_folder):
    from utils.model import layout_of, load_config, load_tokenizer

    tokenizer = load_tokenizer(tiny_folder)
    layout = layout_of(load_config(tiny_folder), tokenizer)
    ids = [*tokenizer("CT", add_special_tokens=False)["input_ids"], layout.newline_id]
    table = show_batch(Collator(layout)([item(*ids)]), tokenizer)
    assert table.loc[15, ["input", "label"]].tolist() == ["'<image>'", -100]
    assert table.loc[16, ["input", "id", "label"]].tolist() == ["'</s>'", 2, -100]
    assert table.loc[16 + len(ids), ["input", "label"]].tolist() == ["'\\n'", 202]
