"""The model card that goes with an adapter: what it is for, what it is not for, how it was made."""

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

| | |
|---|---|
| base model | {base}, {quantisation} |
| data | {source}, image modes {modes}: {train} training, {valid} validation pairs |
| trained | preset `{preset}`, {variant}, rank {rank}, alpha {alpha}; {trainable:,} parameters |
| run | {processes} processes, {dtype}, global batch {batch}; {ended} at step {steps} of {planned} |
| kept | step {best_step}, chosen by {selected} |
| validation loss | {loss} |

Licence: ROCOv2's images and captions carry their own licences, many of them non-commercial. Treat the
adapter as non-commercial. Made with {repository}.
"""


def public_name(name: str) -> str:
    """Return a hub id or "sample" as it is, and of a folder its name alone: a card is shared."""
    return Path(name).name if Path(name).is_dir() else name


def write_card(path: Path, filtered: dict, prepared: StageFolder, run: dict) -> None:
    """Write the card of an adapter.

    Args:
        path: ``README.md`` in the adapter's folder.
        filtered: the configuration of stage 01 (source, image_modes).
        prepared: stage 02.
        run: what ``run.json`` of stage 03 holds.
    """
    counts = prepared.manifest["counts"]
    source, loss = filtered["source"], run["best_validation_loss"]
    modes = filtered["image_modes"]
    text = CARD.format(
        base=public_name(read_json(prepared.path / "preprocess.json")["model_id"]),
        quantisation=run["quantisation"],
        source=public_name(source),
        modes=", ".join(modes) if modes else "all",
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
    path.write_text(text, encoding="utf-8")
