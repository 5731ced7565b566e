"""From what the language model is shown of an image to a caption, and how probable the model finds it."""

from dataclasses import dataclass

import torch
from peft import PeftModel

from utils.dataset import Layout

SCORED = 8  # captions whose logits are held at a time: 60 MB in fp16 at 77 tokens of OPT's 50,272


@dataclass(frozen=True)
class Decoding:
    """How a caption is searched for. Never sampled: a score must be repeatable.

    ``beams``: 1 is greedy. ``max_new_tokens``, ``min_new_tokens``: without image tokens and prompt; before
    the least number the end is forbidden. ``no_repeat_ngram``: runs of this many tokens that may not come
    twice, 0 for no such rule.
    """

    beams: int
    max_new_tokens: int
    min_new_tokens: int = 0
    no_repeat_ngram: int = 0

    def __post_init__(self):
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"No caption has at least {self.min_new_tokens} and at most {self.max_new_tokens} tokens: "
                f"lower MIN_NEW_TOKENS, or raise MAX_NEW_TOKENS."
            )


@dataclass(frozen=True)
class Captions:
    """The captions of a batch.

    ``token_logprobs``: natural logarithms, one list a caption, with its end where it has one. ``cut``: it
    reached the limit without an end.
    """

    texts: list[str]
    token_logprobs: list[list[float]]
    cut: list[bool]

    @property
    def logprobs(self) -> list[float]:
        """The log-probability of each caption: the sum over its tokens."""
        return [round(sum(tokens), 5) for tokens in self.token_logprobs]

    def columns(self, name: str) -> dict[str, list]:
        """Return the columns of a part, for the system ``name``."""
        return {name: self.texts, f"{name}_logprob": self.logprobs,
                f"{name}_token_logprobs": self.token_logprobs, f"{name}_cut": self.cut}  # fmt: skip


@torch.no_grad()  # inference mode would leave tensors that training cannot use
def caption(
    adapted: PeftModel, tokenizer, layout: Layout, prefix: torch.Tensor, decoding: Decoding
) -> Captions:
    """Caption a batch of images.

    Args:
        adapted: BLIP-2 with its adapter, switched on or off.
        tokenizer: the model's own.
        layout: BLIP-2's token layout.
        prefix: what stands in place of the image tokens, (B, queries, OPT's width).
        decoding: how to search.
    """
    new = search(adapted, layout, prefix, decoding)
    ended = (new == layout.newline_id).any(1)
    # After its end a caption is padded, and the padding means nothing.
    kept = torch.where(ended, (new == layout.newline_id).int().argmax(1) + 1, new.shape[1]).tolist()
    logprobs = log_probabilities(adapted, layout, prefix, new, kept)
    texts = [" ".join(text.split()) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]
    tokens = [[round(value, 5) for value in row[:end]] for row, end in zip(logprobs, kept, strict=True)]
    return Captions(texts, tokens, (~ended).tolist())


def search(adapted: PeftModel, layout: Layout, prefix: torch.Tensor, decoding: Decoding) -> torch.Tensor:
    """Return the new tokens of each caption, (B, T), padded behind their ends."""
    model, prompt = adapted.get_base_model(), layout.prompt(len(prefix)).to(prefix.device)
    found = model.language_model.generate(
        input_ids=prompt, inputs_embeds=embedded(model, prompt, prefix),
        attention_mask=torch.ones_like(prompt), do_sample=False, num_beams=decoding.beams,
        max_new_tokens=decoding.max_new_tokens, min_new_tokens=decoding.min_new_tokens,
        no_repeat_ngram_size=decoding.no_repeat_ngram,
        eos_token_id=layout.newline_id, pad_token_id=layout.pad_id,
    )  # fmt: skip
    return found[:, prompt.shape[1] :]


def embedded(model, ids: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of ``ids`` (B, T), with ``prefix`` where the image tokens of the prompt are."""
    embeddings = model.get_input_embeddings()(ids)
    return torch.cat([prefix.to(embeddings.dtype), embeddings[:, prefix.shape[1] :]], dim=1)


def log_probabilities(
    adapted: PeftModel, layout: Layout, prefix: torch.Tensor, new: torch.Tensor, kept: list[int]
) -> list[list[float]]:
    """Return the model's own log-probability of each new token, whatever the search forbade.

    One forward pass over the finished captions: keeping the search's scores instead would take
    beams x vocabulary numbers for every token. What is said of tokens beyond ``kept`` means nothing.

    Args:
        adapted: BLIP-2 with its adapter.
        layout: BLIP-2's token layout.
        prefix: see :func:`caption`.
        new: tokens (B, T).
        kept: tokens of each caption, with its end.
    """
    model, lengths = adapted.get_base_model(), torch.tensor(kept, device=new.device)
    ids = torch.cat([layout.prompt(len(new)).to(new.device), new], dim=1)
    places = torch.arange(ids.shape[1], device=new.device)
    attended = (places < (ids.shape[1] - new.shape[1] + lengths)[:, None]).long()
    rows: list[list[float]] = []
    for some in torch.arange(len(new), device=new.device).split(SCORED):
        logits = model.language_model(
            inputs_embeds=embedded(model, ids[some], prefix[some]), attention_mask=attended[some],
            logits_to_keep=new.shape[1] + 1, use_cache=False,
        ).logits  # fmt: skip
        # Caption by caption: in fp32 the logits take twice their room.
        for row, tokens in zip(logits[:, :-1], new[some], strict=True):
            rows.append(row.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0].tolist())
    return rows
