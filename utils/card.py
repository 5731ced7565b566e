"""The model card that goes with an adapter: what it is for and what not, how it was made, what it scores."""

from pathlib import Path

from utils.stages import REPOSITORY, StageFolder, read_json

CARD = """---
base_model: {base}
library_name: peft
pipeline_tag: image-to-text
tags: [radiology, blip2, lora, research-only]
---
# RadiGlow adapter for {base}

A LoRA adapter that makes BLIP-2 caption radiographs in the manner of ROCOv2.

**For research and teaching only. Not for clinical use.** The model states findings and sides that are
not in the picture, in fluent sentences. Nobody may be diagnosed or treated by it.

## How it was made

| | |
|---|---|
| base model | {base}, {quantisation} |
| data | {source}, image modes {modes}: {train} training, {valid} validation pairs |
| trained | preset `{preset}`, {variant}, rank {rank}, alpha {alpha}; {trainable:,} parameters |
| run | {processes} processes, {dtype}, global batch {batch}; {ended} at step {steps} of {planned} |
| kept | step {best_step}, chosen by {selected} |
| validation loss | {loss} |

## Intended use

Research on captioning of medical images, and teaching: how an adapter changes a model, how captions are
scored, how they go wrong.

## Out of scope

Clinical use of any kind: diagnosis, triage, reporting, second reading. Images of other kinds than figures
of the open literature. Any statement about a patient.

## Limits

- Captions invent findings, sides, ages and histories; a fluent one is no more likely to be true.
- ROCOv2's captions were written for readers of an article: they tell what the picture does not show
  (history, outcome) and leave out what it does. Its modalities and regions are very unevenly common.
- Scores compare with one reference caption. They do not measure truth.

## Licences

ROCOv2's images and captions carry their own licences, many of them non-commercial. Treat the
adapter as non-commercial; the base model's own licence holds besides. Made with {repository}.
"""
SCORES = """
## Scores

{images:,} images of the {split} split (image modes {modes}), {decoding}; 95 % intervals by a paired bootstrap
over images. Text normalised as the ImageCLEFmedical Caption evaluator does, unless it says raw.

{table}
"""


def public_name(name: str) -> str:
    """Return a hub id or "sample" as it is, and of a folder its name alone: a card is shared."""
    return Path(name).name if Path(name).is_dir() else name


def modes_told(modes: list[str] | None) -> str:
    """Name the image modes that were kept."""
    return ", ".join(modes) if modes else "all"


def card_text(prepared: StageFolder, run: dict) -> str:
    """Return the card of an adapter before its evaluation.

    Args:
        prepared: stage 02.
        run: what ``run.json`` of stage 03 holds.
    """
    counts, settings = prepared.manifest["counts"], read_json(prepared.path / "preprocess.json")
    loss = run["best_validation_loss"]
    return CARD.format(
        base=public_name(settings["model_id"]),
        quantisation=run["quantisation"],
        source=public_name(settings["source"]),
        modes=modes_told(settings["image_modes"]),
        train=counts["train"],
        valid=counts["valid"],
        preset=run["preset"],
        variant=run["variant"],
        rank=run["lora"]["rank"],
        alpha=run["lora"]["alpha"],
        trainable=run["trainable_parameters"],
        processes=run["processes"],
        dtype=run["dtype"],
        batch=run["global_batch"],
        steps=run["steps"],
        planned=run["planned_steps"],
        ended=run["ended"],
        best_step=run["best_step"],
        selected=run["selected"],
        loss="not measured" if loss is None else f"{loss:.4f} nats per token",
        repository=REPOSITORY,
    )


def scores_text(written: dict, table: str) -> str:
    """Return the card's section of scores.

    Args:
        written: what ``metrics.json`` holds.
        table: the scores, laid out in Markdown.
    """
    settings = written["settings"]
    beams = settings["decoding"]["beams"]
    return SCORES.format(
        images=settings["images"], split=settings["split"], modes=modes_told(settings["image_modes"]),
        decoding="greedy decoding" if beams == 1 else f"{beams} beams", table=table,
    )  # fmt: skip
