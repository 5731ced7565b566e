"""BERTScore: as the library gives it, resumed by parts, and what is said where the model is not to be had."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from utils import bertscore
from utils.availability import MetricUnavailable
from utils.bertscore import bertscore_measures
from utils.stages import REPO, read_json, write_json

REFERENCES = ["CT of the left lung.", "MR of the brain, day 12", "the knee", "...", "CT", "", "Left lung and brain."]
TUNED = ["CT of the right lung.", "brain", "The knee!", "", "", "x-ray", "MR of the knee and of the left lung"]
BASE = ["a picture"] * 7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of a random DeBERTa of two layers, whose tokenizer knows the bytes alone."""
    from tokenizers import pre_tokenizers
    from transformers import DebertaConfig, DebertaModel

    folder = tmp_path_factory.mktemp("deberta")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *letters]
    write_json(folder / "vocab.json", {word: i for i, word in enumerate(words)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "DebertaTokenizer"})
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
    DebertaModel(DebertaConfig(vocab_size=len(words), relative_attention=True, pos_att_type=["c2p", "p2c"],
                               position_biased_input=False, **shape)).save_pretrained(folder)  # fmt: skip
    return str(folder)


@pytest.fixture
def job(tmp_path, model):
    pd.DataFrame({"reference": REFERENCES, "base": BASE, "tuned": TUNED}).to_parquet(tmp_path / "pairs.parquet")

    def job(**changes):
        write_json(tmp_path / "job.json", {
            "pairs": str(tmp_path / "pairs.parquet"), "output": str(tmp_path), "systems": ["base", "tuned"],
            "model": model, "layers": 2, "batch_size": 4, "device": "cpu", **changes,
        })  # fmt: skip
        return tmp_path / "job.json"

    return job


@pytest.fixture
def loads(monkeypatch):
    """Count how often a model is loaded."""
    found, real = [], bertscore.scorer_of
    monkeypatch.setattr(bertscore, "scorer_of", lambda *given: found.append(1) or real(*given))
    return found


def test_both_scores_are_those_of_the_library_with_the_evaluators_settings(job, model, tmp_path):
    from bert_score import BERTScorer

    bertscore.main(job())
    found = bertscore_measures(tmp_path, "tuned")
    scorer = BERTScorer(model_type=model, num_layers=2, idf=True, nthreads=0, device="cpu")
    scorer._tokenizer.model_max_length = 512
    scorer._tokenizer.build_inputs_with_special_tokens = lambda ids: [1, 2]
    scorer.compute_idf(["ct of the left lung", "mr of the brain day number", "the knee", "", "ct", "", "left lung and brain"])
    full = [0, 1, 2, 6]
    texts = [["ct of the right lung", "brain", "the knee", "mr of the knee and of the left lung"],
             ["ct of the left lung", "mr of the brain day number", "the knee", "left lung and brain"]]  # fmt: skip
    for metric, idf in (("bertscore_f1_idf", True), ("bertscore_f1", False)):
        scorer._idf = idf
        assert found[metric].each[full] == pytest.approx(scorer.score(*texts)[2].numpy(), abs=1e-6), metric
        assert found[metric].each[2] == pytest.approx(1, abs=1e-6)
    assert not np.allclose(found["bertscore_f1"].each, found["bertscore_f1_idf"].each, atol=1e-3)


def test_two_empty_captions_score_one_and_an_empty_one_nothing(job, tmp_path):
    bertscore.main(job())
    for measure in bertscore_measures(tmp_path, "tuned").values():
        assert measure.each[[3, 4, 5]].tolist() == [1, 0, 0]
        assert (measure.n, measure.value) == (7, pytest.approx(measure.each.mean()))


def test_every_caption_is_scored_beside_its_own_reference_whatever_the_parts(job, tmp_path, monkeypatch):
    bertscore.main(job())
    whole = {system: bertscore_measures(tmp_path, system)["bertscore_f1"].each for system in ("base", "tuned")}
    monkeypatch.setattr(bertscore, "PART", 2)
    for rank in "10":  # two ranks, one after the other
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        bertscore.main(job())
    assert len(list(tmp_path.glob("bertscore-*.json"))) == 4
    for system, each in whole.items():
        assert bertscore_measures(tmp_path, system)["bertscore_f1"].each == pytest.approx(each, abs=1e-6)


def test_finished_parts_are_kept_and_the_model_is_not_loaded_for_nothing(job, tmp_path, monkeypatch, loads, capsys):
    monkeypatch.setattr(bertscore, "PART", 4)
    bertscore.main(job())
    expected = bertscore_measures(tmp_path, "tuned")["bertscore_f1"].each
    first, second = (bertscore.part_path(tmp_path, number) for number in (0, 1))
    before = first.stat().st_mtime_ns
    second.unlink()  # as if a kill had lost it
    with pytest.raises(MetricUnavailable, match="^not computed: its process ended too early$"):
        bertscore_measures(tmp_path, "tuned")
    bertscore.main(job())
    assert first.stat().st_mtime_ns == before
    assert bertscore_measures(tmp_path, "tuned")["bertscore_f1"].each.tolist() == expected.tolist()
    bertscore.main(job())
    assert "nothing to do" in capsys.readouterr().out
    assert len(loads) == 2


@pytest.mark.parametrize("change", ["layers", "captions"])
def test_scores_of_another_model_or_other_captions_are_not_taken(job, tmp_path, loads, change):
    bertscore.main(job())
    if change == "captions":
        pd.read_parquet(tmp_path / "pairs.parquet").assign(base="b").to_parquet(tmp_path / "pairs.parquet")
    bertscore.main(job(layers=1) if change == "layers" else job())
    assert len(loads) == 2


@pytest.mark.parametrize("which", ["empty folder", "no folder and no network", "no layer"])
def test_a_model_that_is_not_to_be_had_is_said_and_a_later_run_computes_it(job, tmp_path, monkeypatch, which):
    (tmp_path / "nothing").mkdir()
    change = {"no layer": {"layers": None}, "empty folder": {"model": str(tmp_path / "nothing")}}.get(which)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    bertscore.main(job(**(change or {"model": "nobody/deberta"})))
    with pytest.raises(MetricUnavailable, match=r"^not computed: weights not available \(.+\)$"):
        bertscore_measures(tmp_path, "base")
    bertscore.main(job())
    assert bertscore_measures(tmp_path, "base")["bertscore_f1"].n == 7


def memory_for(monkeypatch, most):
    """Let batches of more than ``most`` texts find no memory; return the sizes that were tried."""
    from utils import bertscorer

    tried, real = [], bertscorer.get_bert_embedding

    def embed(texts, *given, **options):
        tried.append(len(texts))
        if len(texts) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(texts, *given, **options)

    monkeypatch.setattr(bertscorer, "get_bert_embedding", embed)
    return tried


def test_a_batch_too_large_for_the_memory_is_halved(job, tmp_path, monkeypatch):
    tried = memory_for(monkeypatch, 2)
    bertscore.main(job(batch_size=8))
    assert tried[:4] == [8, 4, 2, 2]
    assert bertscore_measures(tmp_path, "tuned")["bertscore_f1"].n == 7


def test_a_memory_too_small_for_one_text_is_said_and_the_same_job_is_tried_again(job, tmp_path, monkeypatch):
    tried = memory_for(monkeypatch, 0)
    bertscore.main(job(batch_size=4))
    assert tried == [4, 2, 1]
    with pytest.raises(MetricUnavailable, match="^not computed: the GPU's memory is too small for "):
        bertscore_measures(tmp_path, "tuned")
    monkeypatch.undo()
    bertscore.main(job(batch_size=4))
    assert bertscore_measures(tmp_path, "tuned")["bertscore_f1"].n == 7


def test_a_caption_that_is_no_text_is_refused(job, tmp_path):
    path = job()
    pd.DataFrame({"reference": ["a", None], "base": ["b", "b"], "tuned": ["c", "c"]}).to_parquet(tmp_path / "pairs.parquet")
    with pytest.raises(ValueError, match="1 of 2 references are not text"):
        bertscore.main(path)


def test_without_a_job_there_are_no_scores(tmp_path):
    with pytest.raises(MetricUnavailable, match="^not computed: no process was started for it$"):
        bertscore_measures(tmp_path, "base")


@pytest.mark.parametrize(("gpus", "cached"), [((), False), (("T4",), False), ((), True)])
def test_by_itself_it_is_computed_where_there_is_a_gpu_or_the_weights_are(monkeypatch, gpus, cached):
    monkeypatch.setattr(bertscore.runtime, "gpus", lambda: gpus)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: "/cache/file" if cached else None)
    if gpus or cached:
        assert bertscore.wanted("auto") == "microsoft/deberta-xlarge-mnli"
    else:
        with pytest.raises(MetricUnavailable, match="no GPU here; set BERTSCORE = 'microsoft/deberta-xlarge-mnli' to"):
            bertscore.wanted("auto")
    assert bertscore.wanted("roberta-large") == "roberta-large"  # asked for, so computed anywhere
    with pytest.raises(MetricUnavailable, match="BERTSCORE is None"):
        bertscore.wanted(None)


@pytest.mark.slow
@pytest.mark.parametrize("there", [True, False])
def test_the_process_ends_well_whether_the_model_is_there_or_not(job, tmp_path, there):
    path = job() if there else job(model="nobody/deberta")
    done = subprocess.run([sys.executable, "-m", "utils.bertscore", str(path)], cwd=REPO, text=True,
                          env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert ("status" in read_json(bertscore.part_path(tmp_path, 0))) == (not there)
    assert ("weights not available" in done.stdout) == (not there)
