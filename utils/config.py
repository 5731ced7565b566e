"""One frozen dataclass a stage. The notebooks' parameter cells hold the defaults, not this file.

``None`` and "auto" stand for "what suits this machine": they are replaced when the object is made,
so that what a manifest records is what was run.
"""

import math
from dataclasses import asdict, dataclass, fields

from utils import runtime

PRESETS = ("decoder", "connector", "vision")
VARIANTS = ("lora", "rslora", "dora", "lora+")
MEASURES = ("eval_loss", "eval_cider")  # by which the best checkpoint is chosen
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr")
# What suits a machine where a parameter says None. The rows for GPUs are chosen by arithmetic from
# the sizes of the model and the cards; none of them has been measured on a T4. The micro-batch is not
# among them: utils/plan.py derives it from the card's memory.
PROFILES = {
    "cpu": {"global_batch": 32, "epochs": 10, "learning_rate": 2e-3, "beams": 5, "batch_size": 32},
    "t4": {"global_batch": 32, "epochs": 2, "learning_rate": 2e-4, "beams": 5},
    "t4x2": {"global_batch": 32, "epochs": 2, "learning_rate": 2e-4, "beams": 5},
    "gpu": {"global_batch": 32, "epochs": 2, "learning_rate": 2e-4, "beams": 5},
}
FUSED_ROWS = 64  # batch x beams up to which bitsandbytes multiplies by 4-bit weights without unpacking them


class ConfigError(ValueError):
    """A parameter has a value that cannot work; the message says which and what can."""


def demand(condition: bool, message: str) -> None:
    """Raise :class:`ConfigError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise ConfigError(message)


def is_number(value, low: float, high: float = math.inf) -> bool:
    """Tell whether ``value`` is a number with low <= value <= high."""
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


def demand_whole(config: "Config", *names: str, low: int = 1) -> None:
    """Raise :class:`ConfigError` unless each of the named fields is a whole number from ``low`` (1, 0) on."""
    for name in names:
        value, wanted = getattr(config, name), " above 0" if low else ", 0 or more"
        good = isinstance(value, int) and is_number(value, low)
        demand(good, f"{name.upper()} is {value!r}: give a whole number{wanted}.")


def demand_text(config: "Config", name: str) -> None:
    """Raise :class:`ConfigError` unless the named field is a text that says something."""
    value = getattr(config, name)
    good = isinstance(value, str) and value.strip() != ""
    demand(good, f"{name.upper()} is {value!r}: give a folder, a hub name, or 'auto'.")


class Config:
    """What the five dataclasses share: JSON out, machine defaults in."""

    def json(self) -> dict:
        """Return the fields as JSON values (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def fill(self, **values) -> None:
        """Set fields of the frozen object while it is being made."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def fill_from_profile(self) -> None:
        """Replace every None that the machine's profile has a value for."""
        profile = PROFILES[runtime.hardware()]
        self.fill(**{k: v for k, v in profile.items() if getattr(self, k, 0) is None})


@dataclass(frozen=True)
class FilterConfig(Config):
    """Notebook 01.

    ``image_modes``: Pillow modes to keep, or None for all. ``min_words``, ``max_words``: of a caption,
    max_words None for no bound. ``pixels``: whether images are decoded, to find damage and copies.
    """

    source: str
    image_modes: tuple[str, ...] | None
    min_words: int
    max_words: int | None
    pixels: bool

    def __post_init__(self):
        modes = self.image_modes
        if modes is not None:
            demand(
                isinstance(modes, tuple | list) and len(modes) > 0 and all(m in MODES for m in modes),
                f"IMAGE_MODES is {modes!r}: give a tuple of Pillow modes such as ('RGB', 'L') "
                f"(known: {', '.join(MODES)}), or None for all.",
            )
            self.fill(image_modes=tuple(modes))
        demand_whole(self, "min_words", *([] if self.max_words is None else ["max_words"]))
        good = self.max_words is None or self.max_words >= self.min_words
        demand(good, f"MAX_WORDS {self.max_words} is below MIN_WORDS {self.min_words}: nothing would stay.")
        demand(isinstance(self.pixels, bool), f"PIXELS is {self.pixels!r}: give True or False.")
        demand_text(self, "source")
        self.fill(source=runtime.choose_source(self.source))


@dataclass(frozen=True)
class PreprocessConfig(Config):
    """Notebook 02. ``caption_percentile``: captions longer than this share of train are cut."""

    source: str
    model_id: str
    caption_percentile: float

    def __post_init__(self):
        share = self.caption_percentile
        demand(is_number(share, 1e-9, 100), f"CAPTION_PERCENTILE is {share!r}: give a number in (0, 100].")
        demand_text(self, "model_id")
        self.fill(model_id=runtime.choose_model(self.model_id, self.source))


@dataclass(frozen=True)
class TrainConfig(Config):
    """Notebook 03. None takes the value of the machine's profile; of ``micro_batch``, the plan's.

    ``generated``: validation images that are captioned at each evaluation. ``select``: which of
    ``MEASURES`` chooses the adapter and counts against the ``patience``.
    """

    preset: str
    variant: str
    rank: int
    alpha: int
    dropout: float
    learning_rate: float | None
    epochs: float | None
    global_batch: int | None
    micro_batch: int | None
    evaluations: int
    generated: int
    select: str
    patience: int
    seed: int

    def __post_init__(self):
        self.fill_from_profile()
        for name, known in (("preset", PRESETS), ("variant", VARIANTS), ("select", MEASURES)):
            value = getattr(self, name)
            demand(value in known, f"{name.upper()} is {value!r}: choose one of {known}.")
        demand_whole(self, "rank", "alpha", "global_batch", "evaluations", "patience")
        if self.micro_batch is not None:
            demand_whole(self, "micro_batch")
        for name in ("learning_rate", "epochs"):
            value = getattr(self, name)
            demand(is_number(value, 1e-12), f"{name.upper()} is {value!r}: give a number above 0.")
        dropout = self.dropout
        demand(is_number(dropout, 0, 0.999), f"DROPOUT is {dropout!r}: give a number in [0, 1).")
        demand_whole(self, "seed", "generated", low=0)
        good = self.generated > 1 or self.select == "eval_loss"
        demand(good, f"SELECT is {self.select!r} and GENERATED {self.generated}: CIDEr needs captions.")

    def accumulation(self, procs: int, micro_batch: int) -> int:
        """Return the micro-batches that each of ``procs`` ranks adds up before a step.

        Raises:
            ConfigError: ``global_batch`` does not divide evenly.
        """
        per_pass = micro_batch * procs
        demand(
            self.global_batch % per_pass == 0,
            f"GLOBAL_BATCH {self.global_batch} is no multiple of MICRO_BATCH x PROCS = "
            f"{micro_batch} x {procs}: change one of the three.",
        )
        return self.global_batch // per_pass

    def steps(self, pairs: int) -> int:
        """Return the steps of ``epochs`` passes over ``pairs`` training pairs; the last is filled up."""
        return math.ceil(self.epochs * pairs / self.global_batch)


@dataclass(frozen=True)
class EvaluateConfig(Config):
    """Notebook 04. None takes the profile's value; of ``batch_size``, on GPUs, 64 // beams, at most 32.

    ``max_new_tokens``: None for stage 02's limit. ``no_repeat_ngram``: tokens of runs that may not repeat.
    ``resamples``, ``seed``: of the bootstrap. ``bertscore``: a model, ``cui_mapping``: a file; or None.
    """

    beams: int | None
    batch_size: int | None
    max_new_tokens: int | None
    min_new_tokens: int
    no_repeat_ngram: int
    resamples: int
    bertscore: str | None
    cui_mapping: str | None
    seed: int

    def __post_init__(self):
        self.fill_from_profile()
        demand_whole(self, "beams", *([] if self.max_new_tokens is None else ["max_new_tokens"]))
        if self.batch_size is None:
            self.fill(batch_size=min(32, max(1, FUSED_ROWS // self.beams)))
        demand_whole(self, "batch_size")
        demand_whole(self, "min_new_tokens", "no_repeat_ngram", "resamples", "seed", low=0)
        for name in ("bertscore", "cui_mapping"):
            if getattr(self, name) is not None:
                demand_text(self, name)
        told, most = f"{self.batch_size} x {self.beams} = {self.batch_size * self.beams}", FUSED_ROWS
        good = self.batch_size * self.beams <= most or runtime.hardware() == "cpu"
        demand(good, f"BATCH_SIZE x BEAMS is {told}: a GPU's fast 4-bit kernel takes {most} at most.")


@dataclass(frozen=True)
class DemoConfig(Config):
    """Notebook 05. ``examples``: pictures in the gallery."""

    examples: int
    beams: int | None

    def __post_init__(self):
        self.fill_from_profile()
        demand_whole(self, "examples", "beams")


CONFIGS = {
    "01_filter": FilterConfig,
    "02_preprocess": PreprocessConfig,
    "03_train_lora": TrainConfig,
    "04_evaluate": EvaluateConfig,
    "05_caption_demo": DemoConfig,
}


def configure(stage: str, parameters: dict, source: str) -> Config:
    """Build the configuration of ``stage`` from a notebook's parameters (upper-case names).

    Args:
        stage: a key of ``CONFIGS``.
        parameters: all parameters of the notebook; those that are no field (WORK, PROCS) are left out.
        source: the resolved source of stage 01, for the stages that do not declare SOURCE.
    """
    given = {"source": source, **{k.lower(): v for k, v in parameters.items()}}
    names = [field.name for field in fields(CONFIGS[stage])]
    return CONFIGS[stage](**{name: given[name] for name in names})
