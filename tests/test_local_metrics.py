"""The metrics as modules of ``evaluate``: the same figures, alone and combined, with no network to be had."""

import json
import os
import shutil
import subprocess
import sys

import evaluate
import pytest

from utils import meteor, metrics
from utils.availability import MetricUnavailable
from utils.local_metrics import Bleu, Chrf, Cider, Meteor, Rouge
from utils.stages import REPO

REFERENCES = ["CT of the left lung.", "MR of the whole brain.", "X-ray of 1 knee"]
PREDICTIONS = ["CT of the right lung.", "ultrasound", "X-ray of 2 knees"]
WITHOUT_JAVA = {"Bleu": Bleu, "Cider": Cider, "Rouge": Rouge, "Chrf": Chrf}


def expected():
    own = metrics.overlap_measures(REFERENCES, {"own": PREDICTIONS})["own"]
    names = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider", "rouge_1", "rouge_l", "chrf")
    return {name: pytest.approx(own[name].value) for name in names}


def test_combined_metrics_are_those_of_the_evaluation():
    combined = evaluate.combine([metric() for metric in WITHOUT_JAVA.values()])
    assert combined.compute(predictions=PREDICTIONS, references=REFERENCES) == expected()


@pytest.mark.parametrize("name", WITHOUT_JAVA)
def test_a_metric_works_alone_by_batches_and_again(name):
    metric, known = WITHOUT_JAVA[name](), expected()
    for reference, prediction in zip(REFERENCES, PREDICTIONS, strict=True):
        metric.add(prediction=prediction, reference=reference)
    first = metric.compute()
    assert first == {score: known[score] for score in first}
    assert metric.compute(predictions=PREDICTIONS, references=REFERENCES) == first
    assert (metric.name, all(type(value) is float for value in first.values())) == (name.lower(), True)


def test_meteor_is_the_one_of_the_evaluation_or_says_what_it_needs(monkeypatch):
    score = meteor.np.zeros(23)
    score[:4] = [4, 4, 0, 0]
    monkeypatch.setattr(meteor, "match_counts", lambda *_: meteor.np.array([score] * 3))
    assert Meteor().compute(predictions=PREDICTIONS, references=REFERENCES) == {"meteor": 0}
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(MetricUnavailable, match="needs Java"):
        Meteor().compute(predictions=PREDICTIONS, references=REFERENCES)


def test_two_metrics_at_once_do_not_meet_in_the_cache(tmp_path):
    first, second = (Rouge(cache_dir=str(tmp_path)) for _ in "ab")
    for metric, prediction in ((first, "knee"), (second, "lung")):
        metric.add(prediction=prediction, reference="knee")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [metric.compute()["rouge_1"] for metric in (first, second)] == [1, 0]


@pytest.mark.parametrize("metric", WITHOUT_JAVA.values())
def test_a_caption_that_is_no_text_is_refused(metric):
    with pytest.raises(ValueError, match="1 of 2 references are not text"):
        metric().compute(predictions=["a", "b"], references=["a", None])


def test_every_metric_says_what_it_is():
    for metric in (*WITHOUT_JAVA.values(), Meteor):
        assert metric().description == metric.__doc__
        assert set(metric().features) == {"predictions", "references"}


OFFLINE = """
import json, socket, sys
def refuse(*_):
    raise OSError("there is no network")
socket.socket.connect = socket.getaddrinfo = refuse
import evaluate
from utils.local_metrics import Bleu, Chrf, Cider, Rouge
references, predictions = json.loads(sys.argv[1])
combined = evaluate.combine([Bleu(), Cider(), Rouge(), Chrf()])
print(json.dumps(combined.compute(predictions=predictions, references=references)))
"""


@pytest.mark.slow
def test_two_processes_without_a_network_or_a_cache_combine_them_at_once(tmp_path):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", OFFLINE, json.dumps([REFERENCES, PREDICTIONS])]
    processes = [subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    for process in processes:
        assert json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) == expected()
