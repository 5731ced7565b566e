"""Cached visual features: the same loss as with the picture, computed once, never taken for others."""

import pickle

import pytest
import torch
from safetensors import safe_open

from utils import features, model
from utils.dataset import Collator, PreparedSplit, normalise
from utils.features import FeatureSplit, FeatureStore
from utils.stages import read_json

STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3}


@pytest.fixture
def base(tiny_folder):
    return model.load_base(tiny_folder, "float32")


@pytest.fixture
def split(prepared_folder):
    return PreparedSplit(prepared_folder, "train")


def computed(folder, base, *splits, size=3, rank=0, ranks=1, key="k1"):
    store = FeatureStore(folder, key)
    store.compute(base, list(splits), STATISTICS, size, base.language_projection.weight.dtype, rank, ranks)
    return store


def losses(base, tiny_folder, split, store):
    """The training loss of the decoder preset on the pictures, and on their cached features."""
    adapted = model.add_lora(base, "decoder", 4, 8, 0.0).eval()
    layout = model.layout_of(base.config, model.load_tokenizer(tiny_folder))
    batch = Collator(layout)([split[i] for i in range(8)])
    pixels = normalise(batch.pop("pixels"), STATISTICS["mean"], STATISTICS["std"])
    cached = FeatureSplit(split, store)
    seen = torch.stack([cached[i]["features"] for i in range(8)])
    with torch.no_grad():
        online = adapted(pixel_values=pixels, **batch).loss.item()
        features.drop_visual(adapted.get_base_model())
        return online, adapted(pixel_values=seen, **batch).loss.item()


def test_cached_features_give_the_loss_of_the_pictures(base, split, tiny_folder, tmp_path):
    online, cached = losses(base, tiny_folder, split, computed(tmp_path, base, split))
    assert cached == pytest.approx(online, abs=1e-5)


def test_features_in_fp16_give_the_loss_of_a_model_in_fp16(tiny_folder, split, tmp_path):
    base = model.load_base(tiny_folder, "float16")
    for parameter in base.language_projection.parameters():
        assert parameter.dtype == torch.float16
    store = computed(tmp_path, base, split)
    cached = FeatureSplit(split, store)
    assert cached.features(0).dtype == torch.float16
    layout = model.layout_of(base.config, model.load_tokenizer(tiny_folder))
    batch = Collator(layout)([split[i] for i in range(8)])
    pixels = normalise(batch.pop("pixels"), STATISTICS["mean"], STATISTICS["std"])
    seen = torch.stack([cached[i]["features"] for i in range(8)])
    with torch.no_grad(), torch.autocast("cpu", torch.float16):
        online = base(pixel_values=pixels, **batch).loss.item()
        features.drop_visual(base)
        assert base(pixel_values=seen, **batch).loss.item() == pytest.approx(online, abs=1e-5)


def test_without_its_visual_part_the_model_captions_from_features(base, split, tiny_folder, tmp_path):
    from utils.generate import decode

    tokenizer = model.load_tokenizer(tiny_folder)
    layout = model.layout_of(base.config, tokenizer)
    adapted = model.add_lora(base, "decoder", 4, 8, 0.0).eval()
    cached = FeatureSplit(split, computed(tmp_path, base, split))
    pixels = torch.stack([split.pixels(i) for i in range(3)])
    expected = decode(adapted, tokenizer, layout, normalise(pixels, *STATISTICS.values()), 1, 6)
    features.drop_visual(base)
    assert not any("vision" in name or "qformer" in name for name, _ in adapted.named_parameters())
    seen = torch.stack([cached.features(i) for i in range(3)])
    texts, logprobs = decode(adapted, tokenizer, layout, seen, 1, 6)
    assert texts == expected[0]
    assert logprobs == pytest.approx(expected[1], abs=1e-4)


def test_an_image_takes_its_queries_times_their_width(base, split, tmp_path):
    store = computed(tmp_path, base, split)
    assert FeatureSplit(split, store).features(5).shape == (16, 128)
    assert store.bytes_of(base) == 16 * 128 * 4


def test_shards_of_two_ranks_are_those_of_one_and_a_lost_one_is_made_again(
    base, prepared_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(features, "SHARD", 3)  # 8 and 4 images are 3 and 2 shards
    splits = [PreparedSplit(prepared_folder, name) for name in ("train", "valid")]
    for rank in (0, 1):
        computed(tmp_path / "two", base, *splits, rank=rank, ranks=2)
    store = computed(tmp_path / "one", base, *splits)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == [*(f"train-0000{n}.safetensors" for n in range(3)),
                     *(f"valid-0000{n}.safetensors" for n in range(2))]  # fmt: skip
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    before = {name: (tmp_path / "one" / name).stat().st_mtime_ns for name in names}
    (tmp_path / "one" / names[1]).write_bytes(b"cut off")
    assert [path.name for path, _ in store.missing(splits[0])] == [names[1]]
    computed(tmp_path / "one", base, *splits)
    changed = [n for n in names if (tmp_path / "one" / n).stat().st_mtime_ns != before[n]]
    assert changed == [names[1]]
    assert (tmp_path / "one" / names[1]).read_bytes() == (tmp_path / "two" / names[1]).read_bytes()


def test_features_of_another_model_or_of_other_images_count_for_nothing(base, split, tmp_path):
    computed(tmp_path, base, split)
    assert FeatureStore(tmp_path, "k1").missing(split) == []
    assert len(FeatureStore(tmp_path, "k2").missing(split)) == 1
    split.table.loc[0, "image_id"] = "another"
    assert len(FeatureStore(tmp_path, "k1").missing(split)) == 1


def test_features_of_another_session_are_read_where_they_are_mounted_once_they_are_whole(
    base, prepared_folder, tmp_path, monkeypatch
):
    splits = [PreparedSplit(prepared_folder, name) for name in ("train", "valid")]
    own, mounted = tmp_path / "work" / "features" / "k1", tmp_path / "input" / "radiglow-03" / "features" / "k1"
    monkeypatch.setattr(features, "KAGGLE_INPUT", tmp_path / "input")
    computed(mounted, base, splits[0])
    assert features.find_features("k1", splits, tmp_path / "work") == own
    computed(mounted, base, *splits)
    assert features.find_features("k1", splits, tmp_path / "work") == mounted
    assert features.find_features("k2", splits, tmp_path / "work").name == "k2"
    own.mkdir(parents=True)  # begun here: goes on here
    assert features.find_features("k1", splits, tmp_path / "work") == own


def test_the_key_names_model_and_preprocessing(prepared_folder):
    settings = read_json(prepared_folder / "preprocess.json") | {"resample": "bicubic (Pillow)"}
    key = features.key_of("blip2-abc-nf4-float16", settings)
    assert key == features.key_of("blip2-abc-nf4-float16", settings | {"token_limit": 5})
    others = [features.key_of("blip2-abd-nf4-float16", settings)]
    others += [features.key_of("blip2-abc-nf4-float16", settings | {k: 0})
               for k in ("size", "mean", "std", "resample")]  # fmt: skip
    assert len({key, *others}) == 6


def test_a_shard_says_what_it_holds(base, split, tmp_path):
    store = computed(tmp_path, base, split)
    with safe_open(tmp_path / "train-00000.safetensors", framework="pt") as file:
        assert file.metadata() == store.stamp(split, range(8))


def test_a_loaders_worker_opens_the_files_itself(base, split, tmp_path):
    cached = FeatureSplit(split, computed(tmp_path, base, split))
    first = cached[0]["features"]
    assert torch.equal(pickle.loads(pickle.dumps(cached))[0]["features"], first)
