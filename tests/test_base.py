"""The 4-bit copy of the base model: made once, found again, and another file, commit or dtype is another."""

import os
import shutil
import types

import pytest
import torch

from utils import base, model
from utils.stages import StageError


@pytest.fixture
def place(tmp_path):
    return tmp_path / "work" / "base"


def folders(place):
    return sorted(p.name for p in place.iterdir() if p.is_dir())


def test_the_first_load_keeps_a_copy_that_later_loads_read_alone(tiny_folder, place, tmp_path, capsys):
    mine = tmp_path / "mine"
    shutil.copytree(tiny_folder, mine)
    first = model.load_base(str(mine), "float32", place=place)
    assert "kept the 4-bit copy" in capsys.readouterr().out
    (name,) = folders(place)
    assert name == base.copy_name(str(mine), None, "float32")
    for file in mine.glob("*.safetensors"):
        file.rename(file.with_suffix(".gone"))
        file.with_suffix(".gone").rename(file)  # the same file: its time of change stays
    again = model.load_base(str(mine), "float32", place=place)
    assert "kept" not in capsys.readouterr().out
    assert len(model.four_bit_linears(again)) == 18
    ours, theirs = again.state_dict(), first.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_copy_is_loaded_without_the_original(tiny_folder, place, monkeypatch):
    model.load_base(tiny_folder, "float32", place=place)
    read = []
    monkeypatch.setattr(model, "read_weights", lambda path, *rest, real=model.read_weights: (
        read.append(path), real(path, *rest))[1])  # fmt: skip
    model.load_base(tiny_folder, "float32", place=place)
    assert read == [str(place / folders(place)[0])]


@pytest.mark.parametrize("damage", ["a file is gone", "a file is cut off", "never finished"])
def test_a_damaged_copy_is_made_again(tiny_folder, place, damage):
    model.load_base(tiny_folder, "float32", place=place)
    copy = place / folders(place)[0]
    if damage == "a file is gone":
        (copy / "tokenizer.json").unlink()
    if damage == "a file is cut off":
        os.truncate(copy / "model.safetensors", 1000)
    if damage == "never finished":
        copy.rename(copy.with_name(f".stage-{copy.name}"))
    assert base.find_copy(copy.name, place) is None
    model.load_base(tiny_folder, "float32", place=place)
    assert base.find_copy(copy.name, place) == copy


def test_another_dtype_and_other_weights_are_another_copy(tiny_folder, tmp_path):
    mine = tmp_path / "mine"
    shutil.copytree(tiny_folder, mine)
    names = {base.copy_name(str(mine), None, dtype) for dtype in ("float16", "float32")}
    os.utime(mine / "model.safetensors", (1, 1))
    names.add(base.copy_name(str(mine), None, "float32"))
    names |= {base.copy_name("Salesforce/blip2-opt-2.7b", sha, "float16") for sha in ("a" * 40, "b" * 40)}
    assert len(names) == 5
    assert f"blip2-opt-2.7b-{'a' * 12}-nf4-float16" in names


def test_a_copy_of_another_session_is_read_where_it_is_mounted(tiny_folder, place, tmp_path, monkeypatch):
    model.load_base(tiny_folder, "float32", place=place)
    mounted = tmp_path / "input" / "notebooks" / "someone" / "radiglow-03" / "radiglow" / "base"
    mounted.parent.mkdir(parents=True)
    place.rename(mounted)
    monkeypatch.setattr(base, "KAGGLE_INPUT", tmp_path / "input")
    name = folders(mounted)[0]
    assert base.find_copy(name, place) == mounted / name
    model.load_base(tiny_folder, "float32", place=place)
    assert folders(place) == []


def test_another_rank_than_the_first_waits_for_the_copy_and_makes_none(tiny_folder, place, monkeypatch):
    """Transformers writes weights on rank 0 alone: a copy of rank 1, who came first, once held none."""
    name, waited = base.copy_name(tiny_folder, None, "float32"), []

    def first_rank_makes_it(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            monkeypatch.setenv("RANK", "0")
            model.load_base(tiny_folder, "float32", place=place)
            monkeypatch.setenv("RANK", "1")

    monkeypatch.setattr(base.time, "sleep", first_rank_makes_it)
    monkeypatch.setenv("RANK", "1")
    made = []
    monkeypatch.setattr(base, "keep_copy", lambda *a, real=base.keep_copy: (
        made.append(os.environ["RANK"]), real(*a)))  # fmt: skip
    assert len(model.four_bit_linears(model.load_base(tiny_folder, "float32", place=place))) == 18
    assert (len(waited), made) == (2, ["0"])
    assert (place / name / "model.safetensors").is_file()


def test_a_full_disk_is_told_before_a_copy_is_begun(tiny_folder, place, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(StageError, match="The 4-bit copy .* needs about"):
        model.load_base(tiny_folder, "float32", place=place)
    assert folders(place) == []


def test_a_folder_has_no_commit_and_a_hub_model_that_of_its_config(tiny_folder, tmp_path, monkeypatch):
    import huggingface_hub

    assert base.revision_of(tiny_folder) is None
    assert base.revision_of("sample") is None
    cached = tmp_path / "models--a--b" / "snapshots" / ("c" * 40) / "config.json"
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repo, name: str(cached))
    assert base.revision_of("a/b") == "c" * 40


def hub_with(monkeypatch, sizes, cached=()):
    """Let the hub know a model with files of these sizes, some of which are in its cache."""
    import huggingface_hub

    files = [types.SimpleNamespace(rfilename=name, size=size) for name, size in sizes.items()]
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info",
                        lambda self, *a, **k: types.SimpleNamespace(siblings=files))  # fmt: skip
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache",
                        lambda repo, name, revision: name if name in cached else None)  # fmt: skip


SHARDS = {"model-1.safetensors": 30_000_000, "model-2.safetensors": 20_000_000, "pytorch_model-1.bin": 10**15}


@pytest.mark.parametrize(("cached", "fits"), [((), False), (("model-1.safetensors",), True)])
def test_a_download_without_room_is_refused_before_it_begins(monkeypatch, tmp_path, cached, fits):
    """The hub holds the same weights a second time as .bin: they are neither loaded nor counted."""
    from huggingface_hub import constants

    hub_with(monkeypatch, SHARDS, cached)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 0, 40_000_000))
    if fits:
        base.require_download("a/b", "c" * 40)
    else:
        with pytest.raises(StageError, match="The download of a/b needs about 50 MB and 40 MB are free"):
            base.require_download("a/b", "c" * 40)


def test_without_internet_the_cache_has_to_do(monkeypatch):
    import httpx
    import huggingface_hub

    def unreachable(*a, **k):
        raise httpx.ConnectError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    base.require_download("a/b", "c" * 40)
