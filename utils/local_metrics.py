"""The metrics as Hugging Face ``evaluate`` has them: ``evaluate.combine([Bleu(), Rouge()])``, without a hub.

``evaluate.load("rouge")`` downloads code; these classes are the code. Each takes captions as
``predictions`` and ``references``, a string each, and returns a flat dictionary of floats on officially
normalised text. They raise the errors of the functions that they call.
"""

import datasets
import evaluate

from utils import meteor, metrics, overlap


class LocalMetric(evaluate.Metric):
    """A metric of two lists of captions. Captions stay in memory: processes share no cache file."""

    def __init__(self, **options):
        super().__init__(**{"keep_in_memory": True, **options})

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            inputs_description="predictions and references: a caption an image, in the same order",
            features=datasets.Features({"predictions": text, "references": text}),
        )


class Bleu(LocalMetric):
    """Corpus BLEU: bleu_1 to bleu_4, each 0 to 1; see ``utils.metrics.bleu``."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return metrics.bleu(references, predictions)


class Cider(LocalMetric):
    """CIDEr-D: cider, the mean over images, 0 to 10; see ``utils.metrics.cider``."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"cider": metrics.cider(references, predictions)[0]}


class Rouge(LocalMetric):
    """ROUGE F1: rouge_1 and rouge_l, means over images, 0 to 1; see ``utils.metrics.rouge``."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {name: float(mean) for name, mean in metrics.rouge(references, predictions).mean().items()}


class Chrf(LocalMetric):
    """Corpus chrF: chrf, 0 to 1; see ``utils.overlap.chrf_measure``."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        metrics.check_texts(references, predictions)
        texts = ([metrics.normalise(text) for text in side] for side in (references, predictions))
        return {"chrf": overlap.chrf_measure(*texts).value}


class Meteor(LocalMetric):
    """METEOR 1.5: meteor, 0 to 1; needs Java; see ``utils.meteor``."""

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:
        return {"meteor": meteor.meteor_measure(references, predictions).value}
