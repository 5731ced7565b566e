"""The same pairs from every source, and a sentence where there is none."""

import httpx
import huggingface_hub
import pytest

from tests.six_pairs import EXPECTED, picture, write_folder, write_shards
from utils.hub import HubError
from utils.rocov2 import PUBLISHED, SourceError, Store, check_source, open_release, open_store

FIRST, SECOND = (f"data/train-0000{n}-of-00002.parquet" for n in (0, 1))
NO_HUB = "^no/such is no folder here, and the hub gave no such data set"


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_folders_and_shards_give_the_same_table(tmp_path, write):
    pairs = open_release(str(write(tmp_path)), tmp_path).pairs
    assert pairs.columns.tolist() == ["image_id", "split", "source", "caption", "cuis"]
    assert pairs.index.tolist() == [0, 1, 2, 3, 4, 5]
    found = {name: [type(value).__name__ for value in pairs[name]] for name in pairs}
    assert found == {
        "image_id": ["str"] * 6, "split": ["str"] * 6, "source": ["str"] * 6, "cuis": ["list"] * 6,
        "caption": ["str", "NoneType", "str", "str", "str", "str"],
    }  # fmt: skip
    for name in ("image_id", "caption", "cuis"):
        assert pairs[name].tolist() == EXPECTED[name]


def test_shards_go_before_captions_files_beside_them(tmp_path):
    write_shards(write_folder(tmp_path))
    assert open_release(str(tmp_path), tmp_path).pairs["source"][0] == f"{FIRST}#0"


def test_the_published_pairs_are_those_of_the_paper():
    assert sum(PUBLISHED["pairs"].values()) == 79_789


@pytest.mark.parametrize(
    "source", ["/nowhere/at/all", "just_a_word", "a/b/c", "https://host/a", "../nowhere"]
)
def test_what_is_neither_folder_nor_name_is_refused_at_once(source, tmp_path):
    for call in (check_source, lambda source: open_store(source, tmp_path, 1)):
        with pytest.raises(SourceError, match=f"^There is no folder {source}"):
            call(source)


@pytest.mark.parametrize("source", ["sample", "eltorio/ROCOv2-radiology"])
def test_names_are_taken_without_asking_the_hub(source, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", None)
    assert check_source(source) is None


@pytest.mark.parametrize("write", [write_folder, write_shards])
def test_a_folder_with_a_release_is_taken(tmp_path, write):
    assert check_source(str(write(tmp_path))) is None


def test_a_folder_without_a_release_is_refused_at_once(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "test_captions.csv").write_text("ID;Caption\n")
    with pytest.raises(SourceError, match=r"test_captions\.csv has no column ID and no column Caption"):
        check_source(str(tmp_path))


def test_the_folder_above_a_release_is_refused_and_the_right_one_named(tmp_path):
    inner = write_folder(tmp_path / "some" / "rocov2")
    for call in (check_source, lambda source: open_release(source, tmp_path)):
        with pytest.raises(SourceError) as caught:
            call(str(tmp_path / "some"))
        assert str(caught.value) == (
            f"{tmp_path}/some has no train_captions.csv. Give --source (SOURCE) the folder of the release that "
            f"holds {{train,valid,test}}_captions.csv and the images: {inner}, for example."
        )


@pytest.mark.parametrize(
    "error", [httpx.ConnectError("no route"), httpx.ReadTimeout("late"), OSError("offline")]
)
def test_a_hub_that_cannot_be_reached_is_a_sentence(tmp_path, monkeypatch, error):
    def fail(*args, **options):
        raise error

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)
    with pytest.raises(HubError, match=NO_HUB) as caught:
        open_release("no/such", tmp_path)
    assert type(error).__name__ in str(caught.value)


def test_a_store_of_files_gives_files_and_one_of_shards_their_bytes(tmp_path):
    write_shards(write_folder(tmp_path))
    store = open_store(str(tmp_path), tmp_path / "work", 1)
    assert store == Store(tmp_path)
    blobs = list(store.blobs(["valid/R_valid_000001.jpg", f"{SECOND}#0", "test/R_test_000002.jpg"]))
    assert blobs[::2] == [f"{tmp_path}/valid/R_valid_000001.jpg", f"{tmp_path}/test/R_test_000002.jpg"]
    assert blobs[1].read() == picture("R_train_000003")


class OneAtATime:
    """A hub with room for one shard on the disk."""

    def __init__(self, shards, folder):
        self.shards, self.folder, self.fetched = shards, folder, []
        self.sizes = dict.fromkeys((FIRST, SECOND), 1)

    def there(self):
        return sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*.parquet"))

    def fits(self, name):
        return len({*self.there(), name}) == 1

    def fetch(self, name):
        assert self.fits(name)
        if name not in self.there():
            self.fetched.append(name)
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes((self.shards / name).read_bytes())

    def drop(self, name):
        (self.folder / name).unlink(missing_ok=True)


def test_a_shard_that_is_asked_for_takes_the_place_of_the_one_before(tmp_path):
    hub = OneAtATime(write_shards(tmp_path / "hub"), tmp_path / "raw")
    blobs = Store(hub.folder, hub).blobs([f"{FIRST}#1", f"{FIRST}#0", f"{SECOND}#0", f"{FIRST}#0"])
    assert (next(blobs).read(), next(blobs).read()) == (picture("R_train_000002"), picture("R_train_000001"))
    assert (hub.fetched, hub.there()) == ([FIRST], [FIRST])  # the next is fetched when it is asked for
    assert [blob.read() for blob in blobs] == [picture("R_train_000003"), picture("R_train_000001")]
    assert (hub.fetched, hub.there()) == ([FIRST, SECOND, FIRST], [FIRST])
