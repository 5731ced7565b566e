"""BERTScore's F1 with and without idf from one pass of the model over each text."""

import os

import numpy as np
import pandas as pd
import torch
from bert_score import BERTScorer
from bert_score.utils import get_bert_embedding, greedy_cos_idf, model2layers
from torch.nn.utils.rnn import pad_sequence

from utils.availability import MetricUnavailable

LONGEST = 512  # tokens of a text; what follows is left out
Encoded = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # embeddings (T, width), weights (T,), idf (T,)


class PairScorer:
    """The model of bert_score, with idf weights from the references.

    Args:
        model: folder, or name on the hub.
        layers: of the model, whose last output is taken; None for the library's choice for that model.
        references: normalised, all of them: a token weighs log((N + 1) / (references with it + 1)). What
            every reference has weighs nothing, so with idf a single pair scores 0.
        batch_size: of texts; halved where the GPU's memory is too small for it.
        device: None for this rank's GPU, or the CPU where there is none.

    Raises:
        OSError: the model is not there, and not to be had.
        ValueError: its folder holds no model, or the library knows no layer for it.
    """

    def __init__(
        self, model: str, layers: int | None, references: list[str], batch_size: int, device: str | None
    ):
        if layers is None and model not in model2layers:
            raise ValueError(f"bert_score knows no layer for {model}: say how many layers to take")
        if device is None and torch.cuda.is_available():
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        # nthreads=0: its pool would fork a process that has loaded CUDA.
        self.scorer = BERTScorer(model_type=model, num_layers=layers, idf=True, nthreads=0, device=device)
        self.batch_size, tokenizer = batch_size, self.scorer._tokenizer
        # transformers 5 knows no limit of DeBERTa's tokenizer, and lacks the method that the library calls
        # for an empty text.
        tokenizer.model_max_length = LONGEST
        tokenizer.build_inputs_with_special_tokens = lambda ids: tokenizer.encode("")
        self.scorer.compute_idf(references)

    def scores(self, pairs: pd.DataFrame) -> dict[str, list[list[float]]]:
        """Score normalised captions; return system -> [F1, F1 with idf] of each image.

        Two empty captions score 1, an empty and a non-empty one 0.

        Args:
            pairs: columns reference and one a system.

        Raises:
            MetricUnavailable: the GPU's memory does not hold a single text.
        """
        # The longest first: memory that is too small shows at once.
        texts = sorted({text for text in pairs.stack() if text.strip()}, key=lambda text: (-len(text), text))
        systems = pairs.columns.drop("reference")
        while True:
            try:
                known = self.encode(texts)
                return {system: self.matched(pairs["reference"], pairs[system], known) for system in systems}
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise MetricUnavailable(
                        f"not computed: the GPU's memory is too small for {self.scorer.model_type}"
                    ) from None
            # Outside of the handler, which holds the tensors of the failed batch.
            self.batch_size //= 2
            torch.cuda.empty_cache()

    def encode(self, texts: list[str]) -> dict[str, Encoded]:
        """Return the embeddings of each text's tokens, and their weights without and with idf."""
        known = {}
        for start in range(0, len(texts), self.batch_size):
            batch, scorer = texts[start : start + self.batch_size], self.scorer
            found = get_bert_embedding(batch, scorer._model, scorer._tokenizer, scorer._idf_dict,
                                       device=scorer.device)  # fmt: skip
            for text, embeddings, mask, idf in zip(batch, *(of.cpu() for of in found), strict=True):
                length = int(mask.sum())
                plain = torch.ones(length)
                plain[[0, -1]] = 0  # [CLS] and [SEP] are no words
                known[text] = embeddings[:length], plain, idf[:length]
        return known

    def matched(
        self, references: pd.Series, predictions: pd.Series, known: dict[str, Encoded]
    ) -> list[list[float]]:
        """Return [F1, F1 with idf] of each pair."""
        rows = list(zip(references, predictions, strict=True))
        scores = np.array([[float(not (a.strip() or b.strip()))] * 2 for a, b in rows])
        full = [i for i, (a, b) in enumerate(rows) if a.strip() and b.strip()]
        for start in range(0, len(full), self.batch_size):
            batch = full[start : start + self.batch_size]
            sides = [self.padded([known[rows[i][side]] for i in batch]) for side in (0, 1)]
            for column in (0, 1):
                reference, prediction = ((side[0], side[1], side[2 + column]) for side in sides)
                scores[batch, column] = greedy_cos_idf(*reference, *prediction)[2].cpu()
        return scores.tolist()

    def padded(self, side: list[Encoded]) -> list[torch.Tensor]:
        """Return embeddings (B, T, width), which are tokens (B, T), and both weights (B, T)."""
        embeddings, plain, idf = zip(*side, strict=True)
        tokens = [torch.ones(len(one), dtype=torch.bool) for one in plain]
        # The embeddings of the padding are divided by their length, so they may not be zero.
        filled = [pad_sequence(embeddings, batch_first=True, padding_value=2.0)]
        filled += [pad_sequence(of, batch_first=True) for of in (tokens, plain, idf)]
        return [of.to(self.scorer.device) for of in filled]
