"""Where a run is, in words that are true of its log."""

import pytest

from utils import status


def line(step, seconds, session=1, **figures):
    return {"step": step, "seconds": seconds, "session": session, **figures}


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (45.4, "45 s"), (89, "89 s"), (90, "2 min"), (3540, "59 min"), (3599, "1 h 00 min"),
     (7500, "2 h 05 min"), (36000, "10 h 00 min")],
)  # fmt: skip
def test_a_duration_is_written_as_people_say_it(seconds, said):
    assert status.duration(seconds) == said


def test_the_time_left_counts_the_evaluations_between_the_steps():
    """100 steps took 100 s and an evaluation 20 s: 300 more take 360 s, not 300."""
    lines = [line(0, 1.0, eval_loss=3.0), line(50, 51.0, loss=1.0), line(100, 121.0, eval_loss=2.0)]
    assert status.time_left(lines, 400, None) == "about 6 min to the last step"


def test_the_time_left_is_measured_in_this_session_alone():
    """The session before ran on one GPU, at a tenth of the speed."""
    lines = [line(0, 0.0), line(100, 1000.0), line(110, 1020.0, 2), line(130, 1040.0, 2)]
    assert status.time_left(lines, 180, None) == "about 50 s to the last step"


def test_before_twenty_steps_the_time_left_is_the_plans_and_says_so():
    lines = [line(0, 0.0), line(100, 1000.0), line(110, 1020.0, 2), line(129, 1040.0, 2)]
    said = status.time_left(lines, 258, 4.0)
    assert said == "about 2 h 00 min to the last step (estimate from the plan)"
    assert status.time_left(lines, 258, None) == "time to the last step: known after 20 steps"


def test_no_time_is_invented_where_nobody_knows_the_last_step():
    assert status.time_left([line(0, 0.0), line(100, 10.0)], None, 4.0) == ""


def test_at_the_last_step_no_time_is_left():
    assert status.time_left([line(0, 0.0), line(100, 10.0)], 100, None) == "about 0 s to the last step"


@pytest.mark.parametrize(
    ("step", "full"), [(0, 0), (1, 0), (99, 23), (100, 24), (120, 24)]
)  # only the last step fills it
def test_the_bar_is_full_at_the_last_step_and_no_earlier(step, full):
    assert status.bar(step, 100) == "█" * full + "░" * (24 - full)
    assert status.bar(step, None) == ""


def test_the_best_evaluation_is_named_where_it_is_not_the_newest():
    lines = [
        line(0, 0.0, eval_loss=3.0, eval_cider=0.1, eval_rouge_l=0.2),
        line(10, 1.0, eval_loss=0.5, eval_cider=1.25, eval_rouge_l=0.4),
        line(15, 1.5, loss=0.25),
        line(20, 2.0, eval_loss=0.75, eval_cider=1.5, eval_rouge_l=0.3),
    ]
    assert status.quality(lines) == [
        "loss 0.250", "validation loss 0.750 (best 0.500 at step 10)", "CIDEr 1.500", "ROUGE-L 0.300",
    ]  # fmt: skip
    assert status.quality(lines[:1]) == ["validation loss 3.000", "CIDEr 0.100", "ROUGE-L 0.200"]
    assert status.quality([line(0, 0.0)]) == []


def test_the_place_is_told_with_what_the_log_holds():
    lines = [line(1240, 754.0, epoch=2.04)]
    assert status.place(lines, 5600) == ["step 1,240 of 5,600", "2.0 passes", "13 min of training"]
    assert status.place([{"step": 3}], None) == ["step 3"]


def test_the_load_names_each_gpu_and_leaves_out_what_is_not_measured():
    on_gpus = [line(1, 1.0, images_per_s=11.26, memory_gib=[12.9, 12.75], gpu_util=[97, 95])]
    assert status.load(on_gpus) == ["11.3 images/s", "memory 12.9, 12.75 GiB", "GPUs 97, 95 % busy"]
    assert status.load([line(1, 1.0, memory_gib=[1.31])]) == ["memory 1.31 GiB"]


def test_an_evaluation_is_known_by_its_loss_or_its_score():
    lines = [line(1, 1.0, loss=1.0), line(2, 2.0, eval_loss=1.0), line(3, 3.0, eval_cider=0.0)]
    assert [found["step"] for found in status.evaluations(lines)] == [2, 3]
