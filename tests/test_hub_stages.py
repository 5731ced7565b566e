"""Stages 01 and 02 over a hub's shards, few at a time: what they give from the same shards on the disk."""

import time
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from PIL import Image

from tests.fake_hub import FakeHub
from utils import filtering, parts, prepare
from utils.hub import HubError
from utils.rocov2 import open_release, open_store

pytestmark = pytest.mark.slow
HUB = {"train": "train", "valid": "validation", "test": "test"}
MODES = {"train": ["RGB"] * 15, "valid": ["RGB", "L", "RGB", "RGB", "RGB"],
         "test": ["RGB", "RGB", "L", "L", "L"]}  # fmt: skip
ROWS = 4  # images of a part; a train shard holds 5, the others 3
DROPPED = [
    ("train_03", "image damaged"), ("train_06", "caption missing"), ("train_08", "image unreadable"),
    ("train_12", "copy of a test image"), ("train_14", "ID repeated"), ("valid_02", "mode L"),
    ("test_03", "mode L"), ("test_04", "mode L"), ("test_05", "mode L"),
]  # fmt: skip
PREPARED = {
    "images-test-00000.parquet": ["test_01", "test_02"],
    "images-train-00000.parquet": ["train_01", "train_02", "train_04", "train_05"],
    "images-train-00001.parquet": ["train_07", "train_09", "train_10", "train_11"],
    "images-train-00002.parquet": ["train_13", "train_14"],
    "images-valid-00000.parquet": ["valid_01", "valid_03", "valid_04", "valid_05"],
}


def shard(split, number, count):
    return f"data/{HUB[split]}-{number:05d}-of-{count:05d}.parquet"


TRAIN = [shard("train", number, 3) for number in range(3)]
VALID = [shard("valid", number, 2) for number in range(2)]
TEST = [shard("test", number, 2) for number in range(2)]


def release(encode):
    """(split, id, bytes, caption) of each pair: some that stay, and one for each reason to go."""
    noise = np.random.default_rng(0)
    rows = []
    for split, modes in MODES.items():
        for number, mode in enumerate(modes, 1):
            image = Image.fromarray(noise.integers(0, 256, (48, 48, 3), dtype=np.uint8)).convert(mode)
            rows.append([split, f"{split}_{number:02d}", encode(image), f"CT {number}, {split}."])
    by_id = {row[1]: row for row in rows}
    by_id["train_03"][2] = by_id["train_03"][2][:2000]
    by_id["train_06"][3] = None
    by_id["train_08"][2] = b""
    by_id["train_12"][2] = by_id["test_01"][2]
    by_id["train_15"][1:3] = by_id["train_14"][1:3]
    return rows


def write_shards(root, rows):
    (root / "data").mkdir(parents=True)
    for split, size in (("train", 5), ("valid", 3), ("test", 3)):
        some = [
            # The hub's copy writes a missing caption as text; an absent image has no bytes.
            {"image": {"bytes": data, "path": None} if data else None, "image_id": image_id,
             "caption": caption or "nan", "cui": ["C0040405"]}
            for of, image_id, data, caption in rows if of == split
        ]  # fmt: skip
        starts = range(0, len(some), size)
        for number, start in enumerate(starts):
            table = pa.Table.from_pylist(some[start : start + size])
            pq.write_table(table, root / shard(split, number, len(starts)), row_group_size=2)
    return root


def write_folder(root, rows):
    for split in MODES:
        (root / split).mkdir(parents=True)
        of = [row for row in rows if row[0] == split]
        for _, image_id, data, _ in of:
            (root / split / f"{image_id}.png").write_bytes(data)
        captions = "".join(f'{image_id},"{caption or ""}"\n' for _, image_id, _, caption in of)
        (root / f"{split}_captions.csv").write_text(f"ID,Caption\n{captions}")
        concepts = "".join(f"{image_id},C0040405\n" for _, image_id, _, _ in of)
        (root / f"{split}_concepts.csv").write_text(f"ID,CUIs\n{concepts}")
    return root


@pytest.fixture
def rows(encode, monkeypatch):
    monkeypatch.setattr(parts, "ROWS", ROWS)
    return release(encode)


@pytest.fixture
def repository(rows, tmp_path):
    return write_shards(tmp_path / "repository", rows)


@pytest.fixture
def fake(repository, monkeypatch, tmp_path):
    for module in (_http, file_download):  # the library waits before it asks again: not here
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with FakeHub(repository) as hub:
        yield hub.patch(monkeypatch)


def opened(work, room):
    """The release of the fake hub, with room on the disk for the ``room`` largest shards."""
    release = open_release("some/rocov2", work)
    release.store.hub.budget = sum(sorted(release.store.hub.sizes.values())[-room:])
    release.store.hub.pauses = ()
    return release


def stages(release, work, procs=2):
    """Run both stages; return the records as rows without their source, and the shards of images."""
    for name in ("01", "02"):
        (work / name).mkdir(parents=True, exist_ok=True)
    records = filtering.audit(release, work / "01", procs)
    records = filtering.apply_rules(records, filtering.rules_for(records, ("RGB",)))
    rejects = prepare.prepare_images(records, release.store, work / "02", procs)
    assert rejects == {}  # what is damaged did not get so far
    return records.drop(columns="source").to_dict("records"), images(work / "02")


def images(folder):
    return {path.name: pq.read_table(path).to_pylist() for path in sorted(folder.glob("*.parquet"))}


def in_this_process(monkeypatch):
    """Write parts one after the other, without worker processes and without a hub."""

    def write_parts(parts, write, procs, title, hub):
        assert hub is None
        for part in parts:
            write(part)

    for module in (filtering, prepare):
        monkeypatch.setattr(module, "write_parts", write_parts)


def raw_files(work):
    return {p.relative_to(work / "raw").as_posix() for p in (work / "raw").rglob("*") if p.is_file()}


class Watched(list):
    """The log of a fake hub; at every request it looks at the bytes of shards, whole or not, on the disk."""

    def __init__(self, hub, work):
        self.hub, self.work, self.most = hub, work, 0

    def append(self, entry):
        super().append(entry)
        shards = [n for n in raw_files(self.work) if n.endswith((".parquet", ".incomplete"))]
        held = sum((self.work / "raw" / name).stat().st_size for name in shards)
        coming = next((size for name, size in self.hub.sizes.items() if entry[0].endswith(name)), 0)
        self.most = max(self.most, held + coming, self.hub.on_disk())


def fetched(log):
    """The shards that were fetched, each as often as it was, in their order."""
    return ["data/" + request.rpartition("/")[2] for request, _ in log if request.startswith("GET /cdn")]


def test_shards_of_the_hub_give_what_the_same_pairs_on_the_disk_give(
    fake, rows, repository, tmp_path, monkeypatch
):
    work = tmp_path / "work"
    release = opened(work, room=2)
    hub = release.store.hub
    assert raw_files(work) == set()  # captions were read, and nothing kept
    fake.log = Watched(hub, work)
    records, shards = stages(release, work)
    # Stage 02 has no use for the second test shard: none of its images is kept.
    assert fetched(fake.log) == [*TRAIN, *VALID, *TEST, *TRAIN, *VALID, TEST[0]]
    assert max(hub.sizes.values()) < fake.log.most <= hub.budget
    assert raw_files(work) == set()
    assert [(r["image_id"], r["reason"]) for r in records if not r["keep"]] == DROPPED
    assert {name: [row["image_id"] for row in rows] for name, rows in shards.items()} == PREPARED
    assert {(r["modality"], *r["cuis"]) for r in records} == {("CT", "C0040405")}

    in_this_process(monkeypatch)
    write_folder(tmp_path / "files", rows)
    for name in ("repository", "files"):
        found = stages(open_release(str(tmp_path / name), work), tmp_path / f"work of {name}")
        assert found == (records, shards)


def test_a_hub_that_goes_away_in_the_middle_costs_no_finished_part(fake, tmp_path):
    work = tmp_path / "work"
    (work / "01").mkdir(parents=True)
    release = opened(work, room=2)
    fake.answer(503, TRAIN[2])
    with pytest.raises(HubError) as caught:
        filtering.audit(release, work / "01", 2)
    assert str(caught.value).startswith(f"The hub broke off at {TRAIN[2]} of some/rocov2 (")
    assert "What is finished is kept" in str(caught.value)
    # The third shard was asked for once there was room, that is when the first was done with.
    done = sorted((work / "01" / "parts").iterdir())
    assert [path.name for path in done] == ["pixels-train-00000.parquet", "pixels-train-00001.parquet"]
    assert raw_files(work) == {TRAIN[1]}

    fake.faults.clear()
    before = [path.stat().st_mtime_ns for path in done]
    release = opened(work, room=2)  # as another process would
    fake.log = Watched(release.store.hub, work)
    records = filtering.audit(release, work / "01", 2)
    assert fetched(fake.log) == [TRAIN[2], *VALID, *TEST]  # the second is still there
    assert fake.log.most <= release.store.hub.budget
    assert [path.stat().st_mtime_ns for path in done] == before
    assert raw_files(work) == set()
    assert records["mode"].tolist() == [
        *["RGB"] * 7, None, *["RGB"] * 7, "RGB", "L", "RGB", "RGB", "RGB", "RGB", "RGB", "L", "L", "L",
    ]  # fmt: skip

    fake.log.clear()
    assert filtering.audit(release, work / "01", 2).equals(records)
    assert fake.log == []


def test_a_shard_stays_until_its_last_part_is_done_and_goes_before_the_next_comes(
    fake, tmp_path, monkeypatch
):
    monkeypatch.setattr(parts, "ROWS", 1)
    (tmp_path / "01").mkdir()
    release = opened(tmp_path, room=1)
    fake.log = Watched(release.store.hub, tmp_path)
    records = filtering.audit(release, tmp_path / "01", 1, pixels=False)
    assert fetched(fake.log) == [*TRAIN, *VALID, *TEST]
    assert fake.log.most == release.store.hub.budget
    assert records["width"].notna().sum() == 24  # of 25 pairs; one file is empty


@pytest.mark.parametrize("again", ["first", None])
def test_a_store_is_of_the_commit_that_is_asked_for(fake, repository, tmp_path, again):
    commits = {"first": fake.commit, None: fake.push(repository)}
    store = open_store("some/rocov2", tmp_path, 1, commits["first"] if again else None)
    assert store.hub.revision == commits[again]
    assert store.root == store.hub.folder == tmp_path / "raw"
    assert fake.requests("GET /cdn") == []  # which pairs there are is not read


def test_shards_fetched_for_a_look_make_room_for_those_that_the_work_needs(fake, tmp_path):
    """The pictures of notebook 01 left their shards: three lay on the disk where two fit."""
    (tmp_path / "01").mkdir()
    release = opened(tmp_path, room=2)
    hub = release.store.hub
    for name in TEST:
        hub.fetch(name)
    fake.log = Watched(hub, tmp_path)
    filtering.audit(release, tmp_path / "01", 1, pixels=False)
    assert fake.log.most <= hub.budget


def test_nothing_raw_is_left_where_nothing_is_left_to_do(fake, tmp_path):
    (tmp_path / "01").mkdir()
    release = opened(tmp_path, room=2)
    first = filtering.audit(release, tmp_path / "01", 1, pixels=False)
    release.store.hub.fetch(TEST[1])  # a look at a picture, or a run that was killed
    assert filtering.audit(release, tmp_path / "01", 1, pixels=False).equals(first)
    assert raw_files(tmp_path) == set()


def test_shards_fetched_for_a_look_are_cleared_and_files_of_ones_own_are_not(fake, repository, tmp_path):
    store = opened(tmp_path, room=2).store
    assert len(list(store.blobs([f"{name}#0" for name in (*TRAIN, *TEST)]))) == 5
    assert raw_files(tmp_path) <= {*TRAIN, *TEST}
    assert store.hub.on_disk() <= store.hub.budget
    store.clear()
    assert raw_files(tmp_path) == set()
    open_store(str(repository), tmp_path, 1).clear()
    assert (repository / TRAIN[0]).is_file()
