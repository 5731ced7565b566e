"""An evaluation joins stages that belong together, and its test images were never trained on."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from utils import agreement, stages
from utils.images import to_png
from utils.imageshards import schema
from utils.model import ModelError
from utils.stages import StageError


def shard(folder, split, greys):
    rows = [{"image_id": f"{split}{n}", "split": split, "image": {"bytes": to_png(Image.new("L", (8, 8), grey)), "path": ""}}
            for n, grey in enumerate(greys)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows, schema=schema()), folder / f"images-{split}-00000.parquet")


def prepared_in(work, train=(1, 2), valid=(3,), test=(4, 5), model_id="sample"):
    folder = stages.start_stage(work, "02_preprocess", {"model_id": model_id})
    for split, greys in (("train", train), ("valid", valid), ("test", test)):
        shard(folder, split, greys)
    (folder / "preprocess.json").write_text(json.dumps({"model_id": model_id}))
    return stages.seal_stage(folder, {"test": len(test)})


def trained_in(work, prepared, base="sample", adapter_rank=4, rank=4):
    folder = stages.start_stage(work, "03_train_lora", {}, (prepared,))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": base, "r": adapter_rank})
    )
    (folder / "run.json").write_text(json.dumps({"lora": {"rank": rank}}))
    return stages.seal_stage(folder, {})


def test_stages_that_belong_together_pass(tmp_path):
    prepared = prepared_in(tmp_path)
    agreement.require_same_origin(prepared, trained_in(tmp_path, prepared))


def test_an_adapter_of_another_preprocessing_is_refused(tmp_path):
    trained = trained_in(tmp_path, prepared_in(tmp_path))
    (tmp_path / "other").mkdir()
    with pytest.raises(StageError, match="was trained on another preprocessing"):
        agreement.require_same_origin(prepared_in(tmp_path / "other", train=(7,)), trained)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"base": "Salesforce/blip2-opt-2.7b"}, "was trained on Salesforce/blip2-opt-2.7b, and the images were prepared for sample"),
     ({"adapter_rank": 8}, "has rank 8, and its run recorded rank 4")],
)  # fmt: skip
def test_an_adapter_of_another_base_or_rank_is_refused(tmp_path, changes, message):
    prepared = prepared_in(tmp_path)
    with pytest.raises(ModelError, match=message):
        agreement.require_same_origin(prepared, trained_in(tmp_path, prepared, **changes))


def test_a_test_split_that_was_not_trained_on_passes_and_says_with_what_it_was_compared(tmp_path):
    assert agreement.require_unseen(prepared_in(tmp_path)) == 3


@pytest.mark.parametrize("where", [{"train": (1, 5)}, {"valid": (5,)}])
def test_a_test_image_that_was_trained_or_validated_on_is_refused(tmp_path, where):
    other = "train1" if "train" in where else "valid0"
    with pytest.raises(StageError, match=f"^1 test images were also .*: test1 = {other}. Run notebook 01 with PIXELS = True"):
        agreement.require_unseen(prepared_in(tmp_path, **where))
