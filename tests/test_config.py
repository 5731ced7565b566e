"""Parameters that cannot work are refused by name; what is left open suits the machine."""

import json

import pytest

from utils import config, runtime
from utils.config import ConfigError

TRAIN = {
    "preset": "connector", "variant": "lora", "rank": 16, "alpha": 32, "dropout": 0.05, "learning_rate": 1e-3,
    "epochs": 2, "global_batch": 32, "micro_batch": 4, "evaluations": 10, "generated": 64,
    "select": "eval_loss", "patience": 3, "seed": 0,
}  # fmt: skip
EVALUATE = {
    "beams": 5, "batch_size": 8, "max_new_tokens": None, "min_new_tokens": 1, "no_repeat_ngram": 3,
    "resamples": 1000, "bertscore": "auto", "cui_mapping": "auto", "seed": 0,
}  # fmt: skip
FILTER = {"source": "sample", "image_modes": ("RGB",), "min_words": 1, "max_words": None, "pixels": True}
PREPROCESS = {"source": "sample", "model_id": "sample", "caption_percentile": 99}
DEMO = {"examples": 8, "beams": 1}


def train(**changes):
    return config.TrainConfig(**TRAIN | changes)


@pytest.fixture
def machine(monkeypatch):
    """Return a function that lets the configuration believe in a machine."""
    return lambda name: monkeypatch.setattr(runtime, "hardware", lambda: name)


@pytest.mark.parametrize(
    ("make", "good", "name", "value"),
    [
        *[(config.FilterConfig, FILTER, "image_modes", v) for v in ("RGB", (), ("rgb",), ["RGB", "grey"])],
        *[(config.FilterConfig, FILTER, "min_words", v) for v in (0, -1, 1.5, "2", None, True)],
        *[(config.FilterConfig, FILTER, "max_words", v) for v in (0, -5, 99.0, "all", False)],
        *[(config.FilterConfig, FILTER, "pixels", v) for v in (None, 0, 1, "True")],
        *[(config.PreprocessConfig, PREPROCESS, "caption_percentile", v) for v in (0, -1, 100.5, float("nan"))],
        *[(config.TrainConfig, TRAIN, name, v) for v in ("all", "", None)
          for name in ("preset", "variant", "select")],
        *[(config.TrainConfig, TRAIN, "generated", v) for v in (-1, 1.5, "some", None)],
        *[(config.TrainConfig, TRAIN, "dropout", v) for v in (-0.1, 1, float("nan"))],
        *[(config.TrainConfig, TRAIN, name, v) for v in (0, -1)
          for name in ("rank", "alpha", "learning_rate", "epochs", "global_batch", "micro_batch",
                       "evaluations", "patience")],
        *[(config.EvaluateConfig, EVALUATE, name, v) for v in (0, -1, 1.5, "5") for name in ("beams", "batch_size")],
        *[(config.EvaluateConfig, EVALUATE, name, v) for v in (-1, 1.5, "3", None, True)
          for name in ("min_new_tokens", "no_repeat_ngram", "resamples", "seed")],
        *[(config.EvaluateConfig, EVALUATE, name, v) for v in ("", " ", 5, False) for name in ("bertscore", "cui_mapping")],
        (config.DemoConfig, DEMO, "examples", 0),
    ],
)  # fmt: skip
def test_a_value_that_cannot_work_is_refused_by_the_parameters_name(make, good, name, value):
    make(**good)
    with pytest.raises(ConfigError) as caught:
        make(**good | {name: value})
    assert str(caught.value).startswith(f"{name.upper()} is {value!r}: ")
    assert "\n" not in str(caught.value)


def test_bounds_of_words_between_which_nothing_lies_are_refused():
    config.FilterConfig(**FILTER | {"min_words": 5, "max_words": 5})
    with pytest.raises(ConfigError) as caught:
        config.FilterConfig(**FILTER | {"min_words": 5, "max_words": 4})
    assert str(caught.value) == "MAX_WORDS 4 is below MIN_WORDS 5: nothing would stay."


@pytest.mark.parametrize(
    ("make", "good", "name", "value"),
    [
        (config.FilterConfig, FILTER, "image_modes", 5),
        (config.PreprocessConfig, PREPROCESS, "caption_percentile", "most"),
        *[(config.TrainConfig, TRAIN, name, "many")
          for name in ("dropout", "rank", "alpha", "learning_rate", "epochs", "global_batch",
                       "micro_batch", "evaluations", "patience", "seed")],
        (config.TrainConfig, TRAIN, "rank", None),
        *[(config.TrainConfig, TRAIN, name, 1.5) for name in ("rank", "global_batch", "micro_batch")],
        *[(config.EvaluateConfig, EVALUATE, "max_new_tokens", v) for v in (0, -1, "x")],
        (config.DemoConfig, DEMO, "examples", "all"),
        (config.DemoConfig, DEMO, "beams", 0),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_is_refused_by_the_parameters_name(make, good, name, value):
    with pytest.raises(ConfigError, match=name.upper()):
        make(**good | {name: value})


OPEN = {"learning_rate": None, "epochs": None, "global_batch": None}


@pytest.mark.parametrize("name", list(config.PROFILES))
def test_what_is_left_open_comes_from_the_machines_profile(machine, name):
    machine(name)
    made, profile = train(**OPEN), config.PROFILES[name]
    assert {field: getattr(made, field) for field in OPEN} == {field: profile[field] for field in OPEN}
    made = config.EvaluateConfig(**EVALUATE | {"beams": None, "batch_size": None})
    batch = 32 if name == "cpu" else 12
    assert (made.beams, made.batch_size, made.max_new_tokens) == (profile["beams"], batch, None)


@pytest.mark.parametrize("name", list(config.PROFILES))
def test_captions_are_searched_with_five_beams_on_every_machine(machine, name):
    machine(name)
    assert config.EvaluateConfig(**EVALUATE | {"beams": None}).beams == 5
    assert config.DemoConfig(examples=8, beams=None).beams == 5


@pytest.mark.parametrize(("beams", "batch"), [(1, 32), (2, 32), (3, 21), (5, 12), (33, 1), (64, 1)])
def test_a_batch_that_is_left_open_fills_the_4_bit_kernel(machine, beams, batch):
    machine("t4")
    assert config.EvaluateConfig(**EVALUATE | {"beams": beams, "batch_size": None}).batch_size == batch


@pytest.mark.parametrize(("beams", "batch"), [(5, 13), (1, 65), (65, None)])
def test_a_batch_beyond_the_4_bit_kernel_is_refused_on_a_gpu_alone(machine, beams, batch):
    changes = {"beams": beams, "batch_size": batch}
    machine("t4x2")
    with pytest.raises(ConfigError, match=f"^BATCH_SIZE x BEAMS is {batch or 1} x {beams} = 65: .* 64 at most"):
        config.EvaluateConfig(**EVALUATE | changes)
    machine("cpu")
    config.EvaluateConfig(**EVALUATE | changes)


def test_extras_of_the_evaluation_can_be_left_out():
    made = config.EvaluateConfig(**EVALUATE | {"bertscore": None, "cui_mapping": None, "resamples": 0})
    assert (made.bertscore, made.cui_mapping, made.resamples) == (None, None, 0)


def test_what_is_given_stands_on_any_machine(machine):
    machine("t4x2")
    made = train(**OPEN | {"micro_batch": 8, "epochs": 0.5})
    assert (made.micro_batch, made.global_batch, made.epochs) == (8, 32, 0.5)


def test_a_micro_batch_that_is_left_open_stays_open_for_the_plan(machine):
    machine("t4x2")
    assert train(micro_batch=None).micro_batch is None


def test_the_best_by_cider_needs_captions():
    train(select="eval_cider", generated=2)
    with pytest.raises(ConfigError, match="SELECT is 'eval_cider' and GENERATED 0: CIDEr needs captions"):
        train(select="eval_cider", generated=0)


@pytest.mark.parametrize(("epochs", "pairs", "steps"), [(2, 64, 4), (2, 65, 5), (0.5, 64, 1), (1, 3, 1)])
def test_a_run_is_as_many_passes_as_asked_for_and_its_last_batch_is_filled_up(epochs, pairs, steps):
    assert train(epochs=epochs, global_batch=32).steps(pairs) == steps


@pytest.mark.parametrize(("procs", "passes"), [(1, 8), (2, 4), (8, 1)])
def test_the_global_batch_is_the_same_on_any_number_of_ranks(procs, passes):
    assert train(global_batch=32, micro_batch=None).accumulation(procs, 4) == passes


@pytest.mark.parametrize(("batch", "procs"), [(32, 3), (30, 1), (2, 1)])
def test_a_global_batch_that_does_not_divide_is_refused(batch, procs):
    with pytest.raises(ConfigError, match=f"GLOBAL_BATCH {batch} is no multiple .* 4 x {procs}:"):
        train(global_batch=batch).accumulation(procs, 4)


@pytest.mark.parametrize("name", ["t4", "t4x2", "gpu", "cpu"])
def test_every_profile_divides_evenly_on_its_machine(machine, name):
    machine(name)
    procs = 1 if name in ("t4", "gpu") else 2
    assert train(**OPEN).accumulation(procs, 16) >= 1


def test_a_notebooks_parameters_become_the_fields_and_the_rest_is_left_out():
    parameters = {k.upper(): v for k, v in TRAIN.items()} | {"WORK": "auto", "PROCS": 2, "FRESH": True}
    assert config.configure("03_train_lora", parameters, "sample") == train()


def test_the_source_of_stage_01_reaches_stages_that_do_not_declare_it():
    made = config.configure("02_preprocess", {"MODEL_ID": "sample", "CAPTION_PERCENTILE": 99}, "a/b")
    assert made.source == "a/b"


def test_a_declared_source_comes_before_the_one_handed_on():
    given = {k.upper(): v for k, v in FILTER.items()} | {"SOURCE": "mine/data", "IMAGE_MODES": None}
    made = config.configure("01_filter", given, "sample")
    assert (made.source, made.image_modes) == ("mine/data", None)


@pytest.mark.parametrize(
    ("make", "values"),
    [(config.FilterConfig, FILTER), (config.FilterConfig, FILTER | {"image_modes": None, "max_words": 90, "pixels": False}),
     (config.PreprocessConfig, PREPROCESS), (config.TrainConfig, TRAIN),
     (config.EvaluateConfig, EVALUATE), (config.DemoConfig, DEMO)],
)  # fmt: skip
def test_a_configuration_goes_through_json_and_back(make, values):
    made = make(**values)
    written = made.json()
    read = json.loads(json.dumps(written))
    assert read == written
    assert make(**read) == made


def test_a_configuration_cannot_be_changed_after_it_was_checked():
    with pytest.raises(AttributeError):
        train().rank = 0


def test_json_values_equal_what_the_manifest_will_read_back():
    assert config.FilterConfig(**FILTER | {"image_modes": ("RGB", "L")}).json() == {
        "source": "sample", "image_modes": ["RGB", "L"], "min_words": 1, "max_words": None, "pixels": True,
    }  # fmt: skip
