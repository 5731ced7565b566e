"""A sealed folder counts only when every file in it is as it was when it was finished."""

import os
import subprocess
import sys

import pytest

from utils import sealed
from utils.files import read_json, write_json


@pytest.fixture
def folder(tmp_path):
    """A sealed folder of two files, one of them in a folder."""
    return make(tmp_path / "whole")


def make(final, text="weights", **facts):
    stage = sealed.staging(final)
    (stage / "deep").mkdir()
    (stage / "a.txt").write_text(text)
    (stage / "deep" / "b.txt").write_text("moments")
    sealed.seal(stage, final, facts)
    return final


def flip(path, place=0):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_the_seal_lists_sizes_and_hashes_and_keeps_facts(tmp_path):
    folder = make(tmp_path / "whole", text="abc", step=3, contract={"rank": 8})
    seal = read_json(folder / "sealed.json")
    assert list(seal["files"]) == ["a.txt", "deep/b.txt"]
    # sha256 of "abc", the example of FIPS 180-2
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert seal["files"]["a.txt"] == {"sha256": abc, "bytes": 3}
    assert sealed.facts(folder) == {"step": 3, "contract": {"rank": 8}}
    assert sealed.trouble(folder) is None
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda f: (f / "a.txt").unlink(), "a.txt is missing"),
        (lambda f: flip(f / "a.txt"), "a.txt has changed"),
        (lambda f: (f / "a.txt").write_text("weigh"), "a.txt has changed"),
        (lambda f: (f / "deep" / "b.txt").write_text(""), "deep/b.txt has changed"),
        (lambda f: (f / "sealed.json").unlink(), "not sealed"),
        (lambda f: (f / "sealed.json").write_text("{"), "sealed.json is unreadable"),
        (lambda f: (f / "sealed.json").write_text("[]"), "sealed.json is unreadable"),
        (lambda f: write_json(f / "sealed.json", {"files": {}}), "sealed.json is unreadable"),
        (lambda f: (f / "x.bin").write_text("pickle"), "holds a file that was not sealed: x.bin"),
        (lambda f: (f / "x").symlink_to("nowhere"), "holds a file that was not sealed: x"),
        (lambda f: (f / "deep" / "sealed.json").write_text("{}"),
         "holds a file that was not sealed: deep/sealed.json"),
    ],
)  # fmt: skip
def test_every_damage_has_its_reason(folder, damage, reason):
    damage(folder)
    assert sealed.trouble(folder) == reason


def test_a_folder_that_is_not_there_is_not_sealed(tmp_path):
    assert sealed.trouble(tmp_path / "gone") == "not sealed"
    (tmp_path / "file").write_text("")
    assert sealed.trouble(tmp_path / "file") == "not sealed"


def test_a_flipped_bit_anywhere_in_the_seal_is_found(folder):
    """A bit flipped in the contract looked like another contract: the run refused to fall back."""
    size = (folder / "sealed.json").stat().st_size
    for place in range(size - 1):  # the last byte is the newline behind the JSON
        flip(folder / "sealed.json", place)
        assert sealed.trouble(folder) is not None, place
        flip(folder / "sealed.json", place)
    assert sealed.trouble(folder) is None


def test_without_hashes_only_names_and_sizes_count(folder):
    flip(folder / "a.txt")
    assert sealed.trouble(folder, hashes=False) is None
    (folder / "a.txt").write_text("longer than before")
    assert sealed.trouble(folder, hashes=False) == "a.txt has changed"


def test_what_was_there_under_the_name_is_replaced(tmp_path):
    final = make(make(tmp_path / "whole"), text="newer")
    assert (final / "a.txt").read_text() == "newer"
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]
    (tmp_path / "file").write_text("in the way")
    assert sealed.trouble(make(tmp_path / "file")) is None


def test_a_stage_that_a_kill_left_is_not_taken_up(tmp_path):
    stage = sealed.staging(tmp_path / "whole")
    (stage / "left over.bin").write_text("half")
    assert stage == sealed.staging(tmp_path / "whole") == tmp_path / ".stage-whole"
    assert list(stage.iterdir()) == []


def test_a_failure_before_the_rename_leaves_the_old_folder(folder, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    stage = sealed.staging(folder)
    (stage / "a.txt").write_text("newer")
    monkeypatch.setattr(sealed, "to_disk", full)
    with pytest.raises(OSError, match="No space"):
        sealed.seal(stage, folder, {})
    assert sealed.trouble(folder) is None
    assert (folder / "a.txt").read_text() == "weights"


def test_every_file_and_folder_is_on_the_disk_before_the_rename_and_the_name_after(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(sealed, "to_disk", lambda path: done.append(path.name))
    monkeypatch.setattr(os, "rename", lambda one, two: done.append(f"{one.name} -> {two.name}"))
    make(tmp_path / "whole")
    before, after = done[: done.index(".stage-whole -> whole")], done[done.index(".stage-whole -> whole") :]
    assert sorted(before) == [".stage-whole", "a.txt", "b.txt", "deep", "sealed.json"]
    assert before[-1] == ".stage-whole"
    assert after[1:] == [tmp_path.name]


def test_discarding_renames_first_and_takes_what_a_kill_left_with_it(tmp_path, monkeypatch):
    make(tmp_path / "whole")
    deleted = []
    with monkeypatch.context() as patch:
        patch.setattr(sealed.shutil, "rmtree", lambda path: deleted.append(path.name))
        sealed.discard(tmp_path / "whole")  # as if killed on the way
    assert deleted == [".del-whole"]
    assert [p.name for p in tmp_path.iterdir()] == [".del-whole"]
    make(tmp_path / "whole")
    sealed.discard(tmp_path / "whole")
    sealed.discard(tmp_path / "whole")  # gone already
    assert list(tmp_path.iterdir()) == []


def test_tidying_deletes_left_overs_alone(folder, tmp_path):
    for name in (".stage", ".stage-checkpoint-5", ".del-checkpoint-4"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "x").write_text("half")
    sealed.tidy(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["whole"]
    sealed.tidy(tmp_path / "not there")


def test_sealing_needs_no_torch():
    code = "import sys; from utils import sealed; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
