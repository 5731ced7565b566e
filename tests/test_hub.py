"""Shards come from the hub whole or not at all, few at a time; the hub here is on this machine."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http

from tests.fake_hub import ALWAYS, FakeHub
from utils import hub as hub_module
from utils.hub import HubError, HubShards
from utils.stages import StageError

TRAIN, TEST = "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"
WORDS = ["image_id", "caption", "cui"]


def write_shard(path, seed, rows=30, image=50_000):
    """A shard in the schema of the hub's copy, 1.5 MB unless told, in row groups of 10."""
    noise = np.random.default_rng(seed)
    table = pa.Table.from_pylist([
        {"image": {"bytes": noise.bytes(image), "path": None}, "image_id": f"{seed}_{row}",
         "caption": f"CT {row}.", "cui": ["C0040405"]}
        for row in range(rows)
    ])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=10)


def write_repository(root, seed=0):
    write_shard(root / TRAIN, seed)
    write_shard(root / TEST, seed + 1)
    (root / "README.md").write_text("words")
    return root


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture
def fake(repository, monkeypatch, tmp_path):
    for module in (_http, file_download):  # the library waits too: not here
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub(repository) as hub:
        yield hub.patch(monkeypatch)


@pytest.fixture
def shards(fake, tmp_path):
    """The data set of the fake hub; what was asked of it to get this far is forgotten."""
    shards = HubShards("some/rocov2", tmp_path / "raw", pauses=(0, 0))
    fake.log.clear()
    return shards


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def refusal(call, *arguments):
    with pytest.raises(HubError) as caught:
        call(*arguments)
    return str(caught.value)


def test_the_parquet_files_are_named_in_order_with_their_sizes(shards, repository, fake):
    assert list(shards.sizes.items()) == [(n, (repository / n).stat().st_size) for n in (TEST, TRAIN)]
    assert shards.revision == fake.commit


def test_what_is_pushed_later_changes_nothing(shards, fake, repository, tmp_path):
    first = fake.commit
    second = fake.push(write_repository(tmp_path / "newer", seed=7))
    assert shards.fetch(TRAIN).read_bytes() == (repository / TRAIN).read_bytes()
    assert shards.read_columns(TEST, ["image_id"])["image_id"][0].as_py() == "1_0"
    newest, pinned = (HubShards("some/rocov2", tmp_path, revision).revision for revision in (None, first))
    assert (newest, pinned) == (second, first)


def test_captions_are_read_without_the_images_and_nothing_is_kept(shards, fake, repository):
    assert shards.schema(TRAIN).names == ["image", *WORDS]
    assert shards.read_columns(TRAIN, WORDS) == pq.read_table(repository / TRAIN, columns=WORDS)
    assert 0 < fake.sent("GET /cdn") < 0.1 * shards.sizes[TRAIN]
    assert len(fake.requests("GET /cdn")) == 1 + 3  # the footer, and each row group
    assert files(shards.folder) == []


def test_a_fetched_shard_has_the_hubs_bytes_and_nothing_is_left_beside_it(
    shards, repository, monkeypatch, capfd
):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # makes the library show its bars here too
    path = shards.fetch(TRAIN)
    assert path == shards.folder / TRAIN
    assert path.read_bytes() == (repository / TRAIN).read_bytes()
    assert files(shards.folder) == [TRAIN]
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_shard_is_fetched_and_hashed_once(shards, fake, monkeypatch):
    shards.fetch(TRAIN)
    asked = list(fake.log)
    monkeypatch.setattr(hub_module, "sha256_file", None)
    shards.fetch(TRAIN)
    assert fake.log == asked


def test_a_shard_that_somebody_else_deleted_is_fetched_again(shards, fake):
    shards.fetch(TRAIN).unlink()
    assert shards.fetch(TRAIN).is_file()
    assert len(fake.requests("GET /cdn")) == 2


def test_a_whole_shard_of_an_earlier_process_is_not_fetched_again(shards, fake, tmp_path):
    shards.fetch(TRAIN)
    later = HubShards("some/rocov2", tmp_path / "raw")
    fake.log.clear()
    assert later.fetch(TRAIN) == tmp_path / "raw" / TRAIN
    assert fake.log == []


@pytest.mark.parametrize("damage", ["half", "wrong"])
def test_a_damaged_shard_of_an_earlier_process_is_replaced(shards, repository, damage):
    data = (repository / TRAIN).read_bytes()
    (shards.folder / "data").mkdir(parents=True)
    (shards.folder / TRAIN).write_bytes(data[:1000] if damage == "half" else b"x" + data[1:])
    assert shards.fetch(TRAIN).read_bytes() == data


def test_what_a_killed_process_left_half_way_is_removed(shards, tmp_path):
    half = shards.folder / f"{hub_module.PART}1234/.cache/huggingface/download/half.incomplete"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    HubShards("some/rocov2", tmp_path / "raw")
    assert files(shards.folder) == []


def test_a_process_that_is_killed_leaves_no_half_shard_under_the_name(fake, repository, tmp_path):
    fake.slow(seconds=60)
    call = f"from utils.hub import HubShards; HubShards('some/rocov2', {str(tmp_path)!r}).fetch({TRAIN!r})"
    process = subprocess.Popen([sys.executable, "-c", call])  # the fake's env was set by its patch
    for _ in range(200):
        if fake.requests("GET /cdn"):
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert [name for name in files(tmp_path) if name.startswith(hub_module.PART)]
    assert not (tmp_path / TRAIN).exists()
    fake.faults.clear()
    assert HubShards("some/rocov2", tmp_path).fetch(TRAIN).read_bytes() == (repository / TRAIN).read_bytes()
    assert [name for name in files(tmp_path) if name.startswith(hub_module.PART)] == []


def test_a_transfer_that_is_cut_goes_on_where_it_broke_off(shards, fake, repository, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    fake.cut(times=2)
    assert shards.fetch(TRAIN).read_bytes() == (repository / TRAIN).read_bytes()
    assert len(fake.requests("GET /cdn")) == 3
    assert fake.sent("GET /cdn") < 1.2 * shards.sizes[TRAIN]


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("where", ["HEAD", "GET /cdn", "tree", "resolve"])
def test_a_hub_that_is_busy_is_asked_again(shards, fake, repository, where, status):
    fake.answer(status, where, times=2)
    assert shards.read_columns(TRAIN, ["cui"]).num_rows == 30
    assert shards.fetch(TRAIN).read_bytes() == (repository / TRAIN).read_bytes()


def test_the_pauses_between_attempts_are_kept(shards, fake, monkeypatch):
    slept = []
    monkeypatch.setattr(hub_module, "time", SimpleNamespace(sleep=slept.append))
    shards.pauses = (1, 4, 16)
    fake.answer(503, "GET /cdn")
    refusal(shards.fetch, TRAIN)
    assert slept == [1, 4, 16]


def test_a_shard_that_comes_damaged_is_fetched_again(shards, fake, repository):
    fake.spoil()
    assert shards.fetch(TRAIN).read_bytes() == (repository / TRAIN).read_bytes()
    assert len(fake.requests("GET /cdn")) == 2


def test_a_shard_that_comes_damaged_again_is_refused_and_not_kept(shards, fake):
    fake.spoil(times=ALWAYS)
    message = refusal(shards.fetch, TRAIN)
    assert message.startswith(f"{TRAIN} of some/rocov2 came damaged twice")
    assert "run this again later, or attach the data" in message
    assert files(shards.folder) == []
    assert len(fake.requests("GET /cdn")) == 2


def test_a_copy_in_the_librarys_cache_is_used_but_not_trusted(shards, fake, repository):
    copy = Path(constants.HF_HUB_CACHE) / f"datasets--some--rocov2/snapshots/{fake.commit}" / TRAIN
    copy.parent.mkdir(parents=True)
    data = (repository / TRAIN).read_bytes()
    copy.write_bytes(data)
    assert shards.fetch(TRAIN).read_bytes() == data
    assert fake.requests("GET /cdn") == []
    shards.drop(TRAIN)
    copy.write_bytes(data[:-1] + b"x")
    assert shards.fetch(TRAIN).read_bytes() == data


def test_dropping_a_shard_frees_the_disk(shards, fake):
    shards.fetch(TRAIN)
    shards.fetch(TEST)
    assert shards.on_disk() == sum(shards.sizes.values())
    shards.drop(TRAIN)
    assert shards.on_disk() == shards.sizes[TEST]
    assert files(shards.folder) == [TEST]
    shards.drop(TRAIN)
    assert shards.fetch(TRAIN).is_file()
    assert len(fake.requests("GET /cdn")) == 3


def test_a_shard_fits_while_those_in_use_leave_room(shards):
    shards.budget = sum(shards.sizes.values()) - 1
    assert shards.fits(TRAIN)
    shards.fetch(TRAIN)
    assert shards.fits(TRAIN)
    assert not shards.fits(TEST)
    shards.drop(TRAIN)
    assert shards.fits(TEST)


def test_shards_of_an_earlier_process_make_room(shards, tmp_path):
    shards.fetch(TRAIN)
    later = HubShards("some/rocov2", tmp_path / "raw", budget=sum(shards.sizes.values()) - 1)
    assert later.fits(TEST)
    later.fetch(TEST)
    assert files(later.folder) == [TEST]


def test_shards_in_use_stay(shards):
    shards.fetch(TRAIN)
    shards.budget = sum(shards.sizes.values()) - 1
    shards.fetch(TEST)
    assert files(shards.folder) == [TEST, TRAIN]


def test_a_shard_over_the_budget_is_refused_before_it_is_fetched(shards, fake):
    shards.budget = 1_000_000
    message = refusal(shards.fetch, TRAIN)
    assert message.startswith(f"{TRAIN} of some/rocov2 has 2 MB, and at most 1 MB of shards")
    assert fake.log == []


def test_nothing_is_fetched_onto_a_disk_that_is_too_small(shards, fake, monkeypatch):
    monkeypatch.setattr("utils.stages.shutil.disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    with pytest.raises(StageError, match=f"{TRAIN} of some/rocov2 needs about 2 MB and 1 MB are free"):
        shards.fetch(TRAIN)
    assert fake.log == []


def test_a_disk_that_is_full_is_told_at_once(shards, fake, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download._chmod_and_move", full)
    message = refusal(shards.fetch, TRAIN)
    assert message.startswith(f"{TRAIN} of some/rocov2 cannot be kept in ")
    assert "(No space left on device). Free some space" in message
    assert len(fake.requests("GET /cdn")) == 1
    assert files(shards.folder) == []


@pytest.mark.parametrize("dataset_id", ["some/other", "some/roco--v2"])
def test_a_name_that_the_hub_does_not_know_is_a_sentence(fake, tmp_path, dataset_id):
    message = refusal(HubShards, dataset_id, tmp_path)
    assert message.startswith(f"{dataset_id} is no folder here, and the hub gave no such data set (")
    assert "Check the name, turn the internet on, or attach the data and give its folder" in message


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_hub_that_refuses_is_a_sentence(fake, tmp_path, status):
    fake.answer(status)
    assert "the hub gave no such data set (" in refusal(HubShards, "some/rocov2", tmp_path)


def test_a_commit_that_is_not_there_is_a_sentence(fake, tmp_path):
    message = refusal(HubShards, "some/rocov2", tmp_path, "a" * 40)
    assert "the hub gave no such data set (RevisionNotFoundError)" in message


def test_a_page_of_words_instead_of_an_answer_is_a_sentence(fake, tmp_path):
    fake.answer(200, body=b"<html>Log in to this network</html>")
    assert "the hub gave no such data set (JSONDecodeError)" in refusal(HubShards, "some/rocov2", tmp_path)


def test_no_connection_is_a_sentence(repository, tmp_path, monkeypatch):
    with FakeHub(repository) as gone:
        gone.patch(monkeypatch)
    message = refusal(HubShards, "some/rocov2", tmp_path)
    assert "the hub gave no such data set (ConnectError)" in message


@pytest.mark.parametrize("status", [401, 403, 404, 503])
@pytest.mark.parametrize("read", [False, True])
def test_a_hub_that_refuses_later_is_a_sentence(shards, fake, status, read):
    fake.answer(status)
    message = refusal(*((shards.read_columns, TRAIN, WORDS) if read else (shards.fetch, TRAIN)))
    assert message.startswith(f"The hub broke off at {TRAIN} of some/rocov2 (")
    assert "What is finished is kept: turn the internet on and run this again, or attach" in message
    assert files(shards.folder) == []


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("read", [False, True])
def test_a_hub_that_refuses_is_not_asked_again(shards, fake, monkeypatch, status, read):
    monkeypatch.setattr(hub_module, "time", None)
    fake.answer(status)
    refusal(*((shards.read_columns, TRAIN, WORDS) if read else (shards.fetch, TRAIN)))
    assert len(fake.requests()) == 1


@pytest.mark.parametrize("read", [False, True])
def test_a_connection_that_breaks_for_good_is_a_sentence(shards, fake, read):
    fake.cut(times=ALWAYS)
    message = refusal(*((shards.read_columns, TRAIN, WORDS) if read else (shards.fetch, TRAIN)))
    assert message.startswith(f"The hub broke off at {TRAIN} of some/rocov2 (RemoteProtocolError)")
    assert files(shards.folder) == []


def test_after_a_refusal_the_same_object_goes_on(shards, fake, repository):
    fake.answer(503, times=100)
    refusal(shards.read_columns, TRAIN, WORDS)
    refusal(shards.fetch, TRAIN)
    fake.faults.clear()
    assert shards.read_columns(TRAIN, WORDS).num_rows == 30
    assert shards.fetch(TRAIN).read_bytes() == (repository / TRAIN).read_bytes()


def test_after_a_refusal_a_new_object_asks_anew(shards, fake, tmp_path):
    fake.answer(404)
    refusal(shards.read_columns, TRAIN, WORDS)
    fake.faults.clear()
    assert HubShards("some/rocov2", tmp_path).read_columns(TRAIN, WORDS).num_rows == 30


def test_a_data_set_without_shards_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "README.md").write_text("words")
    with FakeHub(tmp_path / "a") as hub:
        hub.patch(monkeypatch)
        message = refusal(HubShards, "some/rocov2", tmp_path)
    assert message == "The hub data set some/rocov2 holds no parquet shards. Give another."


def test_a_file_that_is_no_parquet_is_left_to_the_reader(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "words.parquet").write_text("words " * 9)
    with FakeHub(tmp_path / "a") as hub:
        shards = HubShards("some/rocov2", tmp_path, pauses=()) if hub.patch(monkeypatch) else None
        with pytest.raises(pa.ArrowException):
            shards.schema("words.parquet")


def test_other_downloads_keep_the_librarys_own_ways(shards, monkeypatch):
    for before in (False, True):
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", before)
        shards.fetch(TRAIN)
        shards.drop(TRAIN)
        assert constants.HF_HUB_DISABLE_XET is before


def test_the_library_is_not_imported_before_it_is_needed():
    call = "import sys, utils.hub; sys.exit('huggingface_hub' in sys.modules or 'httpx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", call], check=False).returncode == 0
