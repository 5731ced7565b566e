"""The nearest training image: by what the base model sees, the same for any number of ranks."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from utils import features, generate, model, neighbours
from utils.dataset import PreparedSplit
from utils.features import FeatureStore
from utils.stages import StageError, read_json, write_json

STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture(scope="module")
def base(tiny_folder):
    return model.load_base(tiny_folder, "float32")


@pytest.fixture
def splits(prepared_folder):
    return [PreparedSplit(prepared_folder, name) for name in ("train", "test")]


def written(folder, split, rows):
    """Embeddings typed by hand."""
    store = FeatureStore(folder, "k")
    folder.mkdir(parents=True, exist_ok=True)
    for path, some in store.shards(split):
        values = torch.tensor(rows, dtype=torch.float16)[some.start : some.stop]
        store.save(values, path, store.stamp(split, some))


def test_the_nearest_is_the_one_at_the_smallest_angle_and_the_first_of_equals(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "CHUNK", 2)
    train, test = splits
    written(tmp_path, train, [[1, 0], [0, 1], [0.6, 0.8], [0, 1], [-1, 0], [0, -1], [-1, 0], [1, 0]])
    written(tmp_path, test, [[0.8, 0.6], [0, 1], [-1, 0], [1, 0], [0, -1]])
    table = neighbours.nearest(tmp_path, "k", train, test)
    assert table["image_id"].tolist() == [f"test_{i:02d}" for i in range(5)]
    assert table["train_id"].tolist() == ["train_02", "train_01", "train_04", "train_00", "train_05"]
    assert table["similarity"].tolist() == pytest.approx([0.96, 1, 1, 1, 1], abs=1e-3)


def test_missing_embeddings_are_counted(splits, tmp_path):
    train, test = splits
    written(tmp_path, train, [[1, 0]] * 8)
    with pytest.raises(StageError, match="5 of 5 test images have no visual features. Run the captioning cell"):
        neighbours.nearest(tmp_path, "k", train, test)
    with pytest.raises(StageError, match="8 of 8 train"):
        neighbours.nearest(tmp_path, "another key", train, test)


def test_an_embedding_is_the_mean_of_the_queries_with_length_one(base, splits, tmp_path):
    neighbours.embed(base, splits, STATISTICS, 3, tmp_path / "n" / "k", "k")
    found = load_file(tmp_path / "n" / "k" / "test-00000.safetensors")["features"]
    assert (found.shape, found.dtype) == ((5, 128), torch.float16)
    with torch.no_grad():
        seen = features.see(base, splits[1], range(5), STATISTICS).mean(1)
    expected = (seen / seen.norm(dim=1, keepdim=True)).numpy()
    np.testing.assert_allclose(found.float().numpy(), expected, atol=5e-4)


def test_ranks_share_the_shards_and_a_lost_one_is_made_again(base, splits, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "SHARD", 2)
    one, two = tmp_path / "n" / "one", tmp_path / "n" / "two"
    neighbours.embed(base, splits, STATISTICS, 2, one, "k")
    assert "visual features of 13 images" in capsys.readouterr().out
    for rank, files in ((0, 2 + 2), (1, 4 + 3)):
        neighbours.embed(base, splits, STATISTICS, 2, two, "k", rank, 2)
        assert len(list(two.iterdir())) == files
    names = sorted(path.name for path in one.iterdir())
    assert len(names) == 4 + 3
    assert {n: (one / n).read_bytes() for n in names} == {n: (two / n).read_bytes() for n in names}
    (one / names[0]).unlink()
    before = (one / names[1]).stat().st_mtime_ns
    neighbours.embed(base, splits, STATISTICS, 2, one, "k")
    assert (one / names[0]).read_bytes() == (two / names[0]).read_bytes()
    assert (one / names[1]).stat().st_mtime_ns == before


def test_features_that_training_has_kept_are_used(base, splits, tmp_path):
    """The preset decoder has seen the training images already; the test images it has not."""
    store = FeatureStore(tmp_path / features.PLACE / "k", "k")
    store.compute(base, splits[:1], STATISTICS, 4, torch.float32)
    for path, _ in store.shards(splits[0]):  # so that it shows where they come from
        kept = load_file(path)["features"]
        save_file({"features": torch.ones_like(kept)}, path, metadata=store.stamp(splits[0], range(8)))
    folder = tmp_path / neighbours.PLACE / "k"
    neighbours.embed(base, splits, STATISTICS, 4, folder, "k")
    found = load_file(folder / "train-00000.safetensors")["features"].float()
    assert found.numpy() == pytest.approx(np.full((8, 128), 128**-0.5), abs=1e-3)
    assert load_file(folder / "test-00000.safetensors")["features"].float().std() > 0.01


def test_a_captioning_that_asks_for_neighbours_finds_them_with_the_base_model(
    base, prepared_folder, splits, tiny_folder, tmp_path
):
    from tests.test_generate import randomised

    adapter, output = tmp_path / "adapter", tmp_path / "work" / "04"
    output.mkdir(parents=True)
    randomised(model.load_base(tiny_folder, "float32"), "vision").save_pretrained(adapter)
    how = {"beams": 1, "batch_size": 3, "max_new_tokens": 2, "min_new_tokens": 1, "no_repeat_ngram": 3}
    write_json(output / "job.json", {"prepared": str(prepared_folder), "adapter": str(adapter), "split": "test",
                                     "output": str(output), "neighbours": True, "config": how})  # fmt: skip
    generate.main(output / "job.json")
    place = neighbours.locate(output.parent, read_json(prepared_folder / "preprocess.json"))
    found = neighbours.nearest(*place, *splits)
    neighbours.embed(base, splits, STATISTICS, 3, tmp_path / "n" / "k", "k")
    assert found.equals(neighbours.nearest(tmp_path / "n" / "k", "k", *splits))
