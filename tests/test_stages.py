"""A stage folder exists for its readers when its manifest is there, whole, and never before."""

import json
import os
import shutil
from pathlib import Path

import pytest

from utils import stages
from utils.stages import StageError, open_stage, seal_stage, start_stage

# sha256 of the three bytes "abc", from FIPS 180-2.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_every_stage_needs_only_stages_before_it():
    names = list(stages.STAGES)
    assert names == sorted(names)
    for number, name in enumerate(names):
        assert set(stages.STAGES[name].needs) <= set(names[:number])


def test_the_manifest_says_what_was_made_from_what(tmp_path, finish):
    first = finish(tmp_path, "01_filter", {"source": "sample"}, files={"report.json": "{}"})
    second = finish(tmp_path, "02_preprocess", {"share": 99}, (first,), {"a/b.txt": "abc"}, {"train": 3})
    manifest = json.loads((tmp_path / "02_preprocess" / "manifest.json").read_text())
    assert manifest == second.manifest
    assert manifest["stage"] == "02_preprocess"
    assert manifest["config"] == {"share": 99}
    assert manifest["inputs"] == {"01_filter": first.fingerprint}
    assert manifest["counts"] == {"train": 3}
    assert manifest["files"] == {"a/b.txt": {"sha256": ABC, "bytes": 3}}
    assert set(manifest["git"]) == {"commit", "dirty"}
    assert {"torch", "transformers", "pillow"} <= set(manifest["versions"])


def test_what_is_named_as_no_part_of_the_result_is_left_out(tmp_path):
    folder = start_stage(tmp_path, "03_train_lora", {})
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-10.bin").write_text("much")
    (folder / "run.json").write_text("{}")
    assert list(seal_stage(folder, {}, ignore=("checkpoints",)).manifest["files"]) == ["run.json"]


def test_a_stage_killed_while_it_is_sealed_does_not_exist(tmp_path, monkeypatch):
    folder = start_stage(tmp_path, "01_filter", {})
    (folder / "records.parquet").write_text("whole")

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "sha256_file", killed)
    with pytest.raises(KeyboardInterrupt):
        seal_stage(folder, {})
    with pytest.raises(StageError, match="unfinished"):
        open_stage("01_filter", tmp_path, roots=())


def test_the_manifest_is_written_after_every_other_file(tmp_path, monkeypatch):
    folder = start_stage(tmp_path, "01_filter", {})
    (folder / "records.parquet").write_text("whole")
    steps, hash_file, write = [], stages.sha256_file, stages.write_json
    monkeypatch.setattr(stages, "sha256_file", lambda path: (steps.append(path.name), hash_file(path))[1])
    monkeypatch.setattr(
        stages, "write_json", lambda path, value: (steps.append(path.name), write(path, value))
    )
    seal_stage(folder, {})
    assert steps == ["records.parquet", "manifest.json"]
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "records.parquet"]


# AttributeError.
@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"files": []}', '{"files": {}}', '{"files": {"a": 1}}', "\ufffd"]
)
def test_a_folder_with_a_broken_manifest_does_not_exist(tmp_path, finish, text):
    folder = finish(tmp_path, "01_filter").path
    (folder / "manifest.json").write_text(text)
    with pytest.raises(StageError, match="Stage 01_filter is unfinished"):
        open_stage("01_filter", tmp_path, roots=())


def test_a_manifest_that_is_no_text_does_not_count(tmp_path, finish):
    folder = finish(tmp_path, "01_filter").path
    (folder / "manifest.json").write_bytes(b"\xff\xfe\x00")
    assert stages.read_manifest(folder, "01_filter") is None


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("shorter")])
def test_a_folder_whose_file_is_gone_or_has_another_size_does_not_exist(tmp_path, finish, spoil):
    stage = finish(tmp_path, "01_filter", files={"records.parquet": "the whole table"})
    spoil(stage.path / "records.parquet")
    with pytest.raises(StageError, match="unfinished"):
        open_stage("01_filter", tmp_path, roots=())


def test_a_manifest_of_another_stage_does_not_count(tmp_path, finish):
    finish(tmp_path, "01_filter").path.rename(tmp_path / "02_preprocess")
    with pytest.raises(StageError):
        open_stage("02_preprocess", tmp_path, roots=())


def test_the_message_names_the_notebook_to_run_or_attach(tmp_path):
    with pytest.raises(StageError) as caught:
        open_stage("02_preprocess", tmp_path, roots=())
    assert "Stage 02_preprocess is not there" in str(caught.value)
    assert "Run notebooks/02_preprocess.ipynb first" in str(caught.value)
    assert "Add Input > Notebook Output" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ["01_filter", "my-data/anything", "notebooks/user/slug/01_filter", "notebooks/u/s/radiglow/01_filter"],
)
def test_a_stage_is_found_by_its_manifest_wherever_it_is_mounted(tmp_path, finish, place):
    mount = tmp_path / "input"
    made = finish(tmp_path / "elsewhere", "01_filter")
    (mount / place).parent.mkdir(parents=True, exist_ok=True)
    made.path.rename(mount / place)
    found = open_stage("01_filter", tmp_path / "work", roots=(mount,))
    assert found.path == mount / place
    assert found.fingerprint == made.fingerprint


def test_the_work_folder_comes_before_mounts_and_the_newest_mount_first(tmp_path, finish):
    for age, name in enumerate(("newer", "older")):
        mounted = finish(tmp_path / "input" / name, "01_filter", {"from": name})
        os.utime(mounted.path / "manifest.json", (10**9 - age, 10**9 - age))
    roots = (tmp_path / "input",)
    assert open_stage("01_filter", tmp_path / "work", roots).manifest["config"] == {"from": "newer"}
    finish(tmp_path / "work", "01_filter", {"from": "work"})
    os.utime(tmp_path / "work" / "01_filter" / "manifest.json", (1, 1))
    assert open_stage("01_filter", tmp_path / "work", roots).manifest["config"] == {"from": "work"}


def test_an_unfinished_folder_of_our_own_gives_way_to_a_finished_mount(tmp_path, finish):
    start_stage(tmp_path / "work", "01_filter", {})
    mounted = finish(tmp_path / "input" / "slug", "01_filter")
    assert open_stage("01_filter", tmp_path / "work", (tmp_path / "input",)).path == mounted.path


def test_other_projects_on_the_mounts_are_passed_over(tmp_path, finish):
    foreign = tmp_path / "input" / "game"
    foreign.mkdir(parents=True)
    (foreign / "manifest.json").write_text('{"name": "a browser game", "files": {}}')
    mounted = finish(tmp_path / "input" / "slug", "01_filter")
    assert open_stage("01_filter", tmp_path, (tmp_path / "input",)).path == mounted.path


@pytest.mark.parametrize("finished", [True, False])
def test_changed_parameters_over_an_old_folder_are_refused_in_words(tmp_path, finished):
    folder = start_stage(tmp_path, "01_filter", {"image_modes": ["RGB"], "source": "sample"})
    (folder / "records.parquet").write_text("long work")
    if finished:
        seal_stage(folder, {})
    with pytest.raises(StageError) as caught:
        start_stage(tmp_path, "01_filter", {"image_modes": None, "source": "sample"})
    assert "IMAGE_MODES was ['RGB'] and is now None." in str(caught.value)
    assert "SOURCE" not in str(caught.value)
    assert "--fresh" in str(caught.value)
    assert "FRESH = True" in str(caught.value)


def test_a_stage_is_not_mixed_with_another_input(tmp_path, finish):
    old = finish(tmp_path, "01_filter", files={"records.parquet": "old"})
    (start_stage(tmp_path, "02_preprocess", {}, (old,)) / "images.parquet").write_text("long work")
    shutil.rmtree(old.path)
    new = finish(tmp_path, "01_filter", files={"records.parquet": "new"})
    with pytest.raises(StageError, match="an input stage was made anew since"):
        start_stage(tmp_path, "02_preprocess", {}, (new,))


def test_a_folder_in_which_nothing_was_made_binds_nobody(tmp_path):
    start_stage(tmp_path, "01_filter", {"source": "a mistake"})
    folder = start_stage(tmp_path, "01_filter", {"source": "sample"})
    (folder / "records.parquet").write_text("whole")
    assert seal_stage(folder, {}).manifest["config"] == {"source": "sample"}


def test_a_stage_that_made_no_file_can_be_sealed(tmp_path):
    stage = seal_stage(start_stage(tmp_path, "05_caption_demo", {"examples": 8}), {"pictures": 0})
    assert stage.manifest["config"] == {"examples": 8}
    assert open_stage("05_caption_demo", tmp_path, ()).fingerprint == stage.fingerprint


def test_unfinished_work_with_the_same_parameters_is_kept_and_fresh_removes_it(tmp_path):
    folder = start_stage(tmp_path, "02_preprocess", {"share": 99})
    (folder / "images-train-00000.parquet").write_text("long work")
    assert start_stage(tmp_path, "02_preprocess", {"share": 99}) == folder
    assert (folder / "images-train-00000.parquet").read_text() == "long work"
    assert start_stage(tmp_path, "02_preprocess", {"share": 50}, fresh=True) == folder
    assert [p.name for p in folder.iterdir()] == ["pending.json"]


# table of the same size passes for the one that the manifest was made of.
def test_a_finished_stage_that_is_being_written_again_does_not_exist(tmp_path, finish):
    finish(tmp_path, "03_train_lora", files={"adapter.safetensors": "weights A"})
    folder = start_stage(tmp_path, "03_train_lora", {})
    (folder / "adapter.safetensors").write_text("weights B")
    with pytest.raises(StageError, match="unfinished"):
        open_stage("03_train_lora", tmp_path, roots=())


def test_the_same_content_keeps_its_fingerprint_whatever_the_clock_and_the_commit(
    tmp_path, finish, monkeypatch
):
    first = finish(tmp_path / "a", "01_filter", {"source": "sample"}, counts={"train": 1})
    monkeypatch.setattr(stages, "git_state", lambda: {"commit": "another", "dirty": True})
    monkeypatch.setattr(stages, "versions", lambda: {"torch": "9.9"})
    again = finish(tmp_path / "b", "01_filter", {"source": "sample"}, counts={"train": 1})
    os.utime(again.path / "result.txt", (1, 1))
    assert open_stage("01_filter", tmp_path / "b", ()).fingerprint == first.fingerprint


@pytest.mark.parametrize("change", [{"config": {"source": "other"}}, {"files": {"result.txt": "other"}}])
def test_other_parameters_or_files_change_the_fingerprint(tmp_path, finish, change):
    same = {"config": {"source": "sample"}, "files": {"result.txt": "done"}}
    one = finish(tmp_path / "a", "01_filter", **same)
    other = finish(tmp_path / "b", "01_filter", **same | change)
    assert one.fingerprint != other.fingerprint


def test_a_work_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "work").write_text("I was here first")
    for path in (tmp_path / "work", tmp_path / "work" / "below"):
        with pytest.raises(StageError, match="--work DIR"):
            stages.check_work(path)
    assert (tmp_path / "work").read_text() == "I was here first"


def test_a_work_folder_is_made_with_its_parents(tmp_path):
    assert stages.check_work(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_too_little_disk_is_refused_before_the_work_begins(tmp_path):
    stages.require_disk(tmp_path, 0, "Nothing")
    with pytest.raises(
        StageError, match=r"^The download needs about 1,000,000,000,000 MB and [\d,]+ MB are free in "
    ):
        stages.require_disk(tmp_path, 10**18, "The download")


def test_json_is_replaced_whole_and_leaves_no_other_file(tmp_path):
    path = tmp_path / "report.json"
    stages.write_json(path, {"kept": "Röntgen"})
    stages.write_json(path, {"kept": ["é", 1]})
    assert stages.read_json(path) == {"kept": ["é", 1]}
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_failed_write_leaves_the_old_json(tmp_path):
    path = tmp_path / "report.json"
    stages.write_json(path, {"kept": 1})
    with pytest.raises(TypeError):
        stages.write_json(path, {"kept": object()})
    assert stages.read_json(path) == {"kept": 1}


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/a/b/c/d", "c/d"), ("/a/b", "a/b"), ("/nowhere", "nowhere"), ("here/below", "here/below")],
)
def test_a_path_that_is_shown_is_never_absolute(tmp_path, monkeypatch, path, expected):
    monkeypatch.chdir(tmp_path)
    assert stages.short(path) == expected


def test_a_path_in_the_repository_is_shown_from_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert stages.short(stages.REPO / "work" / "01_filter") == "work/01_filter"


def test_a_finished_stage_whose_files_changed_is_refused_by_name(tmp_path, finish):
    """A cut-off adapter was sealed again as finished."""
    stage = finish(tmp_path, "01_filter")
    (stage.path / "result.txt").write_text("do")
    with pytest.raises(StageError, match=r"gone or changed .* --only 01,02,03,04,05 --fresh"):
        stages.start_stage(tmp_path, "01_filter", {})
