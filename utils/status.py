"""Where a training run is, in words, from the lines of its ``log.jsonl``."""

import math

MEASURED = 20  # steps from which on the measured rate says more than the plan
WIDTH = 24  # of the bar, in letters


def evaluations(lines: list[dict]) -> list[dict]:
    """Return the lines that hold an evaluation."""
    return [line for line in lines if known(line, "eval_loss") or known(line, "eval_cider")]


def known(line: dict, name: str) -> bool:
    """Tell whether a line holds a figure of this name that is a number."""
    return line.get(name) is not None and not math.isnan(line[name])


def bar(step: int, steps: int | None) -> str:
    """Return a bar of letters: it stands on any page, also where HTML is taken out."""
    if not steps:
        return ""
    done = WIDTH * min(step, steps) // steps
    return "█" * done + "░" * (WIDTH - done)


def place(lines: list[dict], steps: int | None) -> list[str]:
    """Say where the run is: step, passes over the training pairs, time over all sessions."""
    last = lines[-1]
    said = [f"step {last['step']:,}" + (f" of {steps:,}" if steps else "")]
    said += [f"{last['epoch']:.1f} passes"] if known(last, "epoch") else []
    return said + ([f"{duration(last['seconds'])} of training"] if known(last, "seconds") else [])


def quality(lines: list[dict]) -> list[str]:
    """Say how good the run is: the newest loss and scores, with the best evaluation where it was another."""
    said = [
        newest(lines, "loss", "loss {:.3f}"),
        newest(lines, "eval_loss", "validation loss {:.3f}") + best(lines, "eval_loss", min),
        newest(lines, "eval_cider", "CIDEr {:.3f}") + best(lines, "eval_cider", max),
        newest(lines, "eval_rouge_l", "ROUGE-L {:.3f}"),
    ]
    return [text for text in said if text]


def best(lines: list[dict], name: str, choose) -> str:
    """Write the best figure of this name and its step, nothing where it is the newest."""
    rows = [line for line in lines if known(line, name)]
    chosen = choose(rows, key=lambda line: line[name]) if rows else None
    if chosen is None or chosen[name] == rows[-1][name]:
        return ""
    return f" (best {chosen[name]:.3f} at step {chosen['step']:,})"


def newest(lines: list[dict], name: str, form: str) -> str:
    """Write the newest figure of this name, nothing where there is none."""
    rows = [line for line in lines if known(line, name)]
    return form.format(rows[-1][name]) if rows else ""


def load(lines: list[dict]) -> list[str]:
    """Say what the machine does: images a second, memory and utilisation of each GPU."""
    said = [newest(lines, "images_per_s", "{:,.1f} images/s")]
    for name, form in (("memory_gib", "memory {} GiB"), ("gpu_util", "GPUs {} % busy")):
        rows = [line[name] for line in lines if line.get(name)]
        said += [form.format(", ".join(f"{figure:g}" for figure in rows[-1]))] if rows else []
    return [text for text in said if text]


def time_left(lines: list[dict], steps: int | None, hours: float | None) -> str:
    """Say how long the run takes from here to its last step, with its evaluations.

    At this session's own rate, since another may have had other GPUs; before ``MEASURED`` steps of it
    by the plan's estimate.

    Args:
        lines: of the log.
        steps: planned for the whole run, None where that is not known.
        hours: planned for the whole run, None where there is no plan.
    """
    own = [line for line in lines if line.get("session", 1) == lines[-1].get("session", 1)]
    first, last = own[0], own[-1]
    if not steps:
        return ""
    left, measured = max(0, steps - last["step"]), last["step"] - first["step"]
    if measured >= MEASURED:
        return f"about {duration(left * (last['seconds'] - first['seconds']) / measured)} to the last step"
    if hours is None:
        return f"time to the last step: known after {MEASURED} steps"
    return f"about {duration(3600 * hours * left / steps)} to the last step (estimate from the plan)"


def duration(seconds: float) -> str:
    """Write seconds as people say them: "45 s", "12 min", "2 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
