"""Captioning a split: base and tuned from one model, parts that resume, and nothing of another job."""

import json

import pytest
import torch

from utils import captionparts, config, generate, model, results
from utils.captionparts import CaptionParts
from utils.dataset import PreparedSplit, normalise
from utils.model import ModelError
from utils.stages import read_json, write_json

COLUMNS = ["image_id", "base", "base_logprob", "base_token_logprobs", "base_cut",
           "tuned", "tuned_logprob", "tuned_token_logprobs", "tuned_cut"]  # fmt: skip


def randomised(base, preset, spread=0.3):
    """An adapter that changes what the model says, as one that was trained does."""
    adapted = model.add_lora(base, preset, 4, 8, 0.0)
    generator = torch.Generator().manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += spread * torch.randn(parameter.shape, generator=generator)
    return adapted


@pytest.fixture(scope="module")
def adapter(tiny_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    randomised(model.load_base(tiny_folder, "float32"), "connector").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def statistics(prepared_folder):
    return read_json(prepared_folder / "preprocess.json")


@pytest.fixture(scope="module")
def captioner(adapter, statistics):
    return generate.Captioner(adapter, statistics, beams=1, max_new_tokens=6)


@pytest.fixture(scope="module")
def pixels(prepared_folder):
    split = PreparedSplit(prepared_folder, "test")
    return torch.stack([split.pixels(i) for i in range(3)])


@pytest.fixture
def job(prepared_folder, adapter, tmp_path):
    """Return a function that writes a job of batches of two images, with changes to its configuration."""

    def write(name="run", **changes):
        folder = tmp_path / "work" / name
        folder.mkdir(parents=True, exist_ok=True)
        how = {"beams": 1, "batch_size": 2, "max_new_tokens": 4, "min_new_tokens": 1, "no_repeat_ngram": 3}
        path = {"prepared": str(prepared_folder), "adapter": str(adapter), "output": str(folder)}
        write_json(folder / "job.json", path | {"split": "test", "config": how | changes})
        return folder / "job.json"

    return write


@pytest.fixture
def as_rank(monkeypatch):
    """Return a function that runs a job as one rank of several."""
    monkeypatch.setattr(captionparts, "PART", 2)  # 5 images are 3 parts

    def run(path, rank=0, ranks=1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        generate.main(path)

    return run


def parts(path):
    return {file.name: file.read_bytes() for file in (path.parent / "parts").glob("part-*.json")}


def test_the_base_caption_is_the_one_of_a_model_without_adapter(captioner, tiny_folder, pixels, statistics):
    plain = model.load_base(tiny_folder, "float32")
    values = normalise(pixels, statistics["mean"], statistics["std"])
    prompt = captioner.layout.prompt(3)
    ids = plain.generate(pixel_values=values, input_ids=prompt, attention_mask=torch.ones_like(prompt),
                         max_new_tokens=6, do_sample=False, eos_token_id=202, pad_token_id=1)  # fmt: skip
    expected = captioner.tokenizer.batch_decode(ids[:, 17:], skip_special_tokens=True)
    both = captioner.both(pixels)
    assert both["base"].texts == [" ".join(text.split()) for text in expected]
    assert both["tuned"].texts != both["base"].texts


def test_one_image_of_any_size_gives_both_captions(captioner):
    from PIL import Image

    answer = captioner(Image.new("RGB", (300, 100), (80, 80, 80)))
    assert set(answer) == {"base", "tuned"}
    assert "\n" not in answer["tuned"]


def test_every_image_is_captioned_once_in_the_order_of_ids(job, as_rank, capsys):
    path = job()
    as_rank(path)
    table = results.read_predictions(path.parent)
    assert table["image_id"].tolist() == [f"test_{i:02d}" for i in range(5)]
    assert [name for name in table.columns if name != "stamp"] == COLUMNS
    assert "5/5" in capsys.readouterr().out
    as_rank(path)
    assert "nothing to do" in capsys.readouterr().out


def test_two_ranks_write_the_very_bytes_of_one(job, as_rank, capsys):
    one, two = job("one"), job("two")
    as_rank(one)
    as_rank(two, rank=1, ranks=2)
    capsys.readouterr()
    as_rank(two, rank=0, ranks=2)
    assert "5/5" in capsys.readouterr().out  # the bar counts the images of both
    assert parts(one) == parts(two)
    assert len(parts(one)) == 3


def test_the_bar_waits_for_the_images_of_the_other_ranks(job, as_rank, monkeypatch, capsys):
    as_rank(job("first"))  # makes the 4-bit copy, for which a later rank would wait
    path = job()
    as_rank(path, rank=1, ranks=2)
    other = path.parent / "parts" / "part-00001.json"
    data = other.read_bytes()
    other.unlink()
    capsys.readouterr()
    monkeypatch.setattr(generate.time, "sleep", lambda _: other.write_bytes(data))
    as_rank(path, rank=0, ranks=2)
    assert "5/5" in capsys.readouterr().out


def test_a_lost_part_is_made_again_and_no_other(job, as_rank):
    path = job()
    as_rank(path)
    expected, folder = parts(path), path.parent / "parts"
    (folder / "part-00001.json").unlink()
    (folder / "part-00002.json").write_text('{"stamp": "cut o')
    before = (folder / "part-00000.json").stat().st_mtime_ns
    as_rank(path)
    assert parts(path) == expected
    assert (folder / "part-00000.json").stat().st_mtime_ns == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "name"),
    [({"beams": 2}, "beams"), ({"max_new_tokens": 5}, "max_new_tokens"), ({"min_new_tokens": 2}, "min_new_tokens"),
     ({"no_repeat_ngram": 2}, "no_repeat_ngram"), ({"batch_size": 4}, "batch_size")],
)  # fmt: skip
def test_parts_of_another_decoding_are_made_anew_and_the_line_says_why(job, as_rank, capsys, changes, name):
    fresh = job("fresh", **changes)
    as_rank(fresh)
    as_rank(job())
    capsys.readouterr()
    path = job(**changes)
    as_rank(path)
    assert f"rank 0: 3 parts do not count and are made anew (other {name})" in capsys.readouterr().out
    assert parts(path) == parts(fresh)


def test_parts_of_another_adapter_are_made_anew(job, as_rank, adapter, tmp_path, capsys):
    import shutil

    as_rank(job())
    other = shutil.copytree(adapter, tmp_path / "other")
    weights = other / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    path = job()
    write_json(path, read_json(path) | {"adapter": str(other)})
    as_rank(path)
    assert "(other adapter_model.safetensors)" in capsys.readouterr().out


def test_what_a_part_costs_is_told_apart_from_what_it_says(job, as_rank):
    path = job()
    as_rank(path)
    costs = captionparts.read_costs(path.parent)
    assert costs["images"].tolist() == [2, 2, 1]
    assert list(costs.columns) == ["images", "see", "base", "tuned", "peak_gib"]
    assert (costs[["see", "base", "tuned", "peak_gib"]] > 0).all(axis=None)
    assert json.loads(parts(path)["part-00000.json"]).keys() == {"stamp", *COLUMNS}


def test_parts_hold_whole_batches_and_every_row_once(tmp_path):
    made = CaptionParts(tmp_path, [str(i) for i in range(185)], 12, {}, rank=1, ranks=2)
    assert [made.rows(n) for n in (0, 1, 7)] == [range(24), range(24, 48), range(168, 185)]
    assert made.todo() == [1, 3, 5, 7]
    assert CaptionParts(tmp_path, ["a"], 100, {}, 0, 1).size == 100


def test_parts_of_other_images_do_not_count(tmp_path):
    CaptionParts(tmp_path, ["a", "b"], 64, {}, 0, 1).write(0, {}, {})
    assert CaptionParts(tmp_path, ["a", "b"], 64, {}, 0, 1).todo() == []
    assert CaptionParts(tmp_path, ["a", "c"], 64, {}, 0, 1).todo() == [0]


def test_ranks_remove_only_their_own_parts_of_other_settings(tmp_path):
    """Another rank may be writing a good one to the same name at this moment."""
    ids = [str(i) for i in range(6)]
    for number in range(6):
        CaptionParts(tmp_path, ids, 64, {"beams": 1}, 0, 1).write(number, {}, {})
    made = CaptionParts(tmp_path, ids, 64, {"beams": 5}, 1, 2)
    made.remove_others()
    assert made.images_done() == 0  # the other rank's old part is still there, and does not count
    left = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert left == sorted(f"{kind}-0000{n}.json" for kind in ("part", "cost") for n in (0, 2, 4))


def test_an_adapter_of_another_base_model_is_refused_before_a_weight_is_read(job, adapter, tmp_path, as_rank):
    import shutil

    other, path = shutil.copytree(adapter, tmp_path / "other"), job()
    found = read_json(other / "adapter_config.json")
    write_json(other / "adapter_config.json", found | {"base_model_name_or_path": "Salesforce/blip2-opt-2.7b"})
    write_json(path, read_json(path) | {"adapter": str(other)})
    with pytest.raises(ModelError, match=r"^The adapter was trained on Salesforce/blip2-opt-2.7b, and the images"):
        as_rank(path)


def test_an_adapter_of_another_rank_than_its_run_is_refused(job, as_rank):
    path = job()
    write_json(path, read_json(path) | {"rank": 4})
    as_rank(path)
    write_json(path, read_json(path) | {"rank": 16})
    with pytest.raises(ModelError, match="The adapter has rank 4, and its run recorded rank 16"):
        as_rank(path)


def test_a_folder_without_an_adapter_is_refused(tmp_path):
    with pytest.raises(ModelError, match="holds no adapter_config.json. Run notebook 03 first."):
        generate.require_fit(tmp_path, "sample", None)


def test_an_adapter_of_other_shapes_ends_as_one_sentence(adapter, statistics, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    other = shutil.copytree(adapter, tmp_path / "other")
    weights = load_file(other / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    save_file(weights | {name: torch.zeros(4, 33)}, other / "adapter_model.safetensors")
    with pytest.raises(ModelError) as caught:
        generate.Captioner(other, statistics, 1, 4)
    assert "has other shapes than the layers of" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_notebooks_configuration_is_what_a_job_needs(job, as_rank):
    made = config.EvaluateConfig(1, 2, 4, 1, 3, 0, None, None, 0)
    path = job()
    as_rank(path)
    expected = parts(path)
    write_json(path, read_json(path) | {"config": made.json()})
    as_rank(path)
    assert parts(path) == expected
