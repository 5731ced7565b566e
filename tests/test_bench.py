"""The benches tell figure, baseline, ratio and bar, and fail where a bar is missed."""

import json
import sys

import pytest

from tests.bench import __main__ as bench
from tests.bench import data, whole
from tests.bench.lines import Line, as_json, table

FASTER = Line("reading", 900.0, "images/s", 8, "the usual way", 100.0)
SLOWER = Line("writing", 150.0, "images/s", 2, "the usual way", 100.0)
SMALL = Line("size", 36.1, "kB", 40, most=True)
TOLD = Line("size of others", 5.0, "kB", None)


def test_the_ratio_is_held_against_the_bar_and_a_value_where_there_is_no_baseline():
    assert [line.figure for line in (FASTER, SLOWER, SMALL)] == [9, 1.5, 36.1]
    assert [line.met for line in (FASTER, SLOWER, SMALL, TOLD)] == [True, False, True, True]
    assert not Line("size", 40.1, "kB", 40, most=True).met
    assert not Line("memory", 1.2, "GiB", 1.1, "few images", 1.0, most=True).met


def test_the_table_says_what_was_missed():
    assert table([FASTER, SLOWER, SMALL, TOLD]).splitlines() == [
        "measured        ours          baseline                     ratio   bar",
        "reading         900 images/s  the usual way  100 images/s  9.00 x  >= 8 x  ok",
        "writing         150 images/s  the usual way  100 images/s  1.50 x  >= 2 x  MISSED",
        "size            36.1 kB                                            <= 40   ok",
        "size of others  5 kB",
    ]


def test_the_line_of_json_holds_every_figure_and_the_machine():
    told = json.loads(as_json("data", [FASTER, TOLD]))
    assert (told["bench"], [line["figure"] for line in told["lines"]]) == ("data", [9, 5])
    assert told["lines"][0]["theirs"] == 100
    assert told["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("lines", "options", "code"),
    [([FASTER], ["--check"], 0), ([FASTER, SLOWER], ["--check"], 1), ([FASTER, SLOWER], [], 0)],
)
def test_a_missed_bar_fails_where_it_is_asked_for(lines, options, code, monkeypatch, capsys):
    monkeypatch.setattr(data, "run", lambda scale: lines)
    monkeypatch.setattr(sys, "argv", ["bench", "data", *options])
    assert bench.main() == code
    *rows, last = capsys.readouterr().out.splitlines()
    assert rows == table(lines).splitlines()
    assert json.loads(last)["bench"] == "data"


@pytest.mark.slow
def test_a_small_stand_in_for_the_whole_release_is_judged_alike_from_its_three_layouts():
    lines = {line.what: line for line in whole.run(0.004)}
    assert all(line.met for line in lines.values())
    assert lines["records that differ, hub from zenodo"].ours == 0
    assert lines["of 317 pairs, without a reason"].ours == 0
