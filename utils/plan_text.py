"""The plan as the table that the notebook and ``python -m utils.train --plan`` print."""

from utils.choice import USABLE


def table(planned, disk_free: float | None = None) -> str:
    """Lay a plan out as text. ``disk_free``: GB, where it is known."""
    lines = [title(planned), ""]
    lines += [f"  {name:<34}{size:6.2f} GiB" for name, size in planned.parts.items() if size >= 0.005]
    usable = "" if planned.request.card.is_cpu else f", {USABLE * planned.memory:.2f} of them planned with"
    lines += [f"  {'predicted peak':<34}{planned.peak:6.2f} GiB of {planned.memory:.2f}{usable}", ""]
    return "\n".join([*lines, *batch_lines(planned), *time_lines(planned), *disk_lines(planned, disk_free)])


def title(planned) -> str:
    """Say what is trained on what."""
    asked = planned.request
    each = "for each rank" if asked.card.is_cpu else "on each GPU"
    return (
        f"Plan: {asked.config.name_or_path or 'BLIP-2'}, preset {asked.adaptation.preset}, "
        f"r={asked.adaptation.rank}, {asked.dtype}, {asked.ranks} x {asked.card.name}; memory {each}, "
        f"frozen weights {planned.weights:.2f} GiB"
    )


def batch_lines(planned) -> list[str]:
    """Say how a step is cut, and what is checkpointed."""
    asked, lengths = planned.request, planned.request.lengths
    layers = asked.config.text_config.num_hidden_layers
    width, usual = asked.columns(lengths.longest), asked.columns(lengths.p95)
    return [
        f"  batch   {asked.global_batch} pairs = micro-batch {planned.micro_batch} x {asked.ranks} ranks "
        f"x {planned.accumulation}; {planned.checkpointed_layers} of {layers} layers of OPT checkpointed",
        f"  width   {width} columns at the longest caption ({lengths.longest} tokens); {usual} at the 95th "
        f"percentile ({lengths.p95} tokens), where the peak is {planned.usual_peak:.2f} GiB",
    ]


def time_lines(planned) -> list[str]:
    """Say the steps, and the hours where they can be estimated."""
    if planned.hours is None:
        return [f"  time    {planned.steps:,} steps; hours are not known until the run has measured its rate"]
    parts = ", ".join(f"{name} {value:.1f}" for name, value in planned.times.items())
    return [
        f"  time    {planned.steps:,} steps, about {planned.hours:.1f} h ({parts}): an estimate from assumed "
        f"rates, without the captions generated at evaluations"
    ]


def disk_lines(planned, free: float | None) -> list[str]:
    """Say what the disk must hold."""
    parts = ", ".join(f"{name} {size:.2f}" for name, size in planned.disk.items())
    total = sum(planned.disk.values())
    there = "" if free is None else f"; {free:.1f} GB free{'' if free >= total else ': TOO LITTLE'}"
    return [f"  disk    {total:.1f} GB ({parts}){there}"]
