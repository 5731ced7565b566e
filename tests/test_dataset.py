"""Items and batches: where the image stands, where the labels stand, where the padding stands."""

import torch
from PIL import Image

from utils.dataset import Collator, Layout, PreparedSplit, image_to_pixels, normalise, show_batch

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


def test_a_shown_batch_names_its_tokens(tiny_folder):
    from utils.model import layout_of, load_config, load_tokenizer

    tokenizer = load_tokenizer(tiny_folder)
    layout = layout_of(load_config(tiny_folder), tokenizer)
    ids = [*tokenizer("CT", add_special_tokens=False)["input_ids"], layout.newline_id]
    table = show_batch(Collator(layout)([item(*ids)]), tokenizer)
    assert table.loc[15, ["input", "label"]].tolist() == ["'<image>'", -100]
    assert table.loc[16, ["input", "id", "label"]].tolist() == ["'</s>'", 2, -100]
    assert table.loc[16 + len(ids), ["input", "label"]].tolist() == ["'\\n'", 202]
