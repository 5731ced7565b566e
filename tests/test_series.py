"""The series checks everything before it starts a kernel, and the notebooks' files are handled whole."""

import base64
import io

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from utils import notebooks, runtime, series, stages
from utils.config import ConfigError, configure
from utils.stages import STAGES, StageError

SAMPLE = {"train": 2, "valid": 1, "test": 1}


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch):
    """No test here may start a kernel; the machine has no GPU."""

    def execute(name, parameters, target):
        pytest.fail(f"a kernel was started for {name} with {parameters}")

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(runtime, "gpus", lambda: ())


@pytest.fixture
def work(tmp_path):
    return tmp_path / "work"


@pytest.fixture
def stopped(capsys):
    """Return a function: arguments -> the one sentence on which the series stops."""

    def run(*arguments):
        assert series.main([str(argument) for argument in arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("\nStopped: ")
        assert err.count("\n") == 2
        assert "Traceback" not in err
        return err.removeprefix("\nStopped: ").strip()

    return run


@pytest.fixture
def all_done(work, finish):
    """Finish all five stages with the notebooks' defaults for the sample, by hand."""
    done = {}
    for name, stage in STAGES.items():
        settings = configure(name, notebooks.parameters_of(name) | {"SOURCE": "sample"}, "sample")
        inputs = tuple(done[need] for need in stage.needs)
        done[name] = finish(work, name, settings.json(), inputs, counts=SAMPLE)
    return done


def options(*arguments):
    return series.parse_arguments(list(arguments))


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("2e-4", 2e-4), ("None", None), ("True", True), ("decoder", "decoder"), ("'decoder'", "decoder"),
     ("('RGB', 'L')", ("RGB", "L")), ("a/b c", "a/b c"), ("", ""), ("x=y", "x=y")],
)  # fmt: skip
def test_values_are_python_literals_and_bare_words_stand_for_themselves(text, value):
    assert series.literal(text) == value


def test_parameters_of_the_command_line_are_collected(work):
    given = series.overrides(options("--set", "RANK=8", "--set", "PRESET=decoder", "--set", "IMAGE_MODES=None",
                                     "--source", "sample", "--procs", "1", "--work", str(work)))  # fmt: skip
    assert given == {
        "RANK": 8,
        "PRESET": "decoder",
        "IMAGE_MODES": None,
        "SOURCE": "sample",
        "PROCS": 1,
        "WORK": str(work),
        "FRESH": False,
    }


def test_a_value_may_hold_an_equals_sign(work):
    given = series.overrides(options("--work", str(work), "--set", "MODEL_ID=folder=1/model"))
    assert given["MODEL_ID"] == "folder=1/model"


def test_a_source_of_the_callers_folder_is_handed_on_as_an_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert series.overrides(options("--source", "mine"))["SOURCE"] == str(tmp_path / "mine")
    assert series.overrides(options("--set", "SOURCE=mine"))["SOURCE"] == str(tmp_path / "mine")


def test_a_model_of_the_callers_folder_is_handed_on_as_an_absolute_path(tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert series.overrides(options("--set", "MODEL_ID=my-model"))["MODEL_ID"] == str(tmp_path / "my-model")


def test_the_work_folder_may_be_set_like_any_parameter(work):
    assert series.overrides(options("--set", f"WORK={work}"))["WORK"] == str(work)


def test_fresh_may_be_set_like_any_parameter(all_done, work):
    with pytest.raises(pytest.fail.Exception, match="a kernel was started for 01_filter"):
        series.main(["--work", str(work), "--source", "sample", "--set", "FRESH=True"])


@pytest.mark.parametrize(
    ("only", "names"),
    [(None, list(STAGES)), ("01", ["01_filter"]), ("2,1", ["01_filter", "02_preprocess"]),
     ("04, 05", ["04_evaluate", "05_caption_demo"])],
)  # fmt: skip
def test_stages_are_chosen_by_number_and_run_in_order(only, names):
    assert series.chosen(only) == names


@pytest.mark.parametrize(("only", "number"), [("6", "06"), ("01,all", "all"), ("", "00")])
def test_a_number_that_no_stage_has_is_refused(only, number):
    with pytest.raises(ConfigError, match=f"there is no stage {number}; there are 01, 02, 03, 04, 05"):
        series.chosen(only)


def test_an_unknown_parameter_stops_with_the_known_ones(stopped, work):
    message = stopped("--work", work, "--set", "RANKS=8")
    assert message.startswith("No notebook has a parameter RANKS; there are: ALPHA, BATCH_SIZE, BEAMS,")


def test_a_parameter_without_a_value_stops(stopped, work):
    assert stopped("--work", work, "--set", "RANK") == "--set RANK: write it as NAME=VALUE."


def test_an_unknown_stage_stops(stopped, work):
    assert (
        stopped("--work", work, "--only", "7")
        == "--only 7: there is no stage 07; there are 01, 02, 03, 04, 05."
    )


def test_a_bad_value_stops_before_any_stage(stopped, work):
    message = stopped("--work", work, "--source", "sample", "--set", "RANK=0")
    assert message.startswith("RANK is 0: give a ")


def test_a_missing_source_stops(stopped, work):
    assert stopped("--work", work, "--source", "/nowhere/rocov2").startswith(
        "There is no folder /nowhere/rocov2."
    )


def test_a_folder_that_is_no_release_stops(stopped, work, tmp_path):
    assert f"{tmp_path} has no train_captions.csv" in stopped("--work", work, "--source", tmp_path)


def test_a_csv_without_the_captions_column_stops(stopped, work, release_folder):
    root = release_folder()
    (root / "valid_captions.csv").write_text("ID,Text\nvalid_1,MR.\n")
    assert "valid_captions.csv has no column Caption (it has: ID, Text)" in stopped(
        "--work", work, "--source", root
    )


def test_a_work_folder_that_is_a_file_stops(stopped, work):
    work.write_text("")
    assert stopped("--work", work) == f"The work folder {work} is a file. Choose a folder: --work DIR (WORK)."


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [(("--only", "02"), "01_filter"), (("--only", "03", "--source", "sample"), "02_preprocess")],
)
def test_a_stage_before_its_input_stops_and_names_the_notebook(stopped, work, arguments, missing):
    message = stopped("--work", work, *arguments)
    assert message.startswith(f"Stage {missing} is not there in ")
    assert f"Run notebooks/{missing}.ipynb first" in message


def test_a_failing_notebook_stops(stopped, work, release_folder, monkeypatch, capsys):
    def fail(name, parameters, target):
        raise notebooks.NotebookError("notebook 01_filter, cell 3 (Data) failed with KeyError: 'x'")

    monkeypatch.setattr(notebooks, "execute", fail)
    assert series.main(["--work", str(work), "--source", str(release_folder())]) == 2
    assert capsys.readouterr() == (
        "[1/5] 01_filter: running\n", "\nStopped: notebook 01_filter, cell 3 (Data) failed with KeyError: 'x'\n",
    )  # fmt: skip


def test_interrupting_says_how_to_go_on(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(series, "run", interrupt)
    assert series.main([]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_where_all_is_done_there_is_nothing_to_do(all_done, work, capsys):
    assert series.main(["--work", str(work), "--source", "sample"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [f"[{n}/5] {name}: finished before, kept" for n, name in enumerate(STAGES, 1)]
    assert lines[5] == "Nothing to do: every stage is finished with these parameters."
    assert lines[6].split() == ["stage", "seconds", "key", "figures"]
    assert lines[7].split(maxsplit=2) == ["01_filter", "kept", "train 2, valid 1, test 1"]
    assert lines[12].startswith("Results: ")
    assert str(work) not in lines[12]


def test_the_first_stage_that_is_not_there_is_run_with_its_own_parameters(all_done, work, monkeypatch):
    (all_done["03_train_lora"].path / "manifest.json").unlink()
    ran = []

    def execute(name, parameters, target):
        ran.append((name, parameters, target))
        raise notebooks.NotebookError("enough")

    monkeypatch.setattr(notebooks, "execute", execute)
    series.main(["--work", str(work), "--source", "sample", "--procs", "1", "--set", "BEAMS=1"])
    assert ran == [
        (
            "03_train_lora",
            {"PROCS": 1, "WORK": str(work), "FRESH": False},
            work / "notebooks" / "03_train_lora.ipynb",
        )
    ]


def test_a_stage_that_its_time_budget_stopped_goes_on_and_ends_the_series_until_it_is_finished(
    all_done, work, monkeypatch, capsys
):
    trained, ran, states = all_done["03_train_lora"], [], [stages.STOPPED, stages.STOPPED, stages.FINISHED]

    def execute(name, parameters, target):
        ran.append(name)
        manifest = stages.read_json(trained.path / "manifest.json")
        stages.write_json(trained.path / "manifest.json", manifest | {"state": states.pop(0)})
        return target

    monkeypatch.setattr(notebooks, "execute", execute)
    command = ["--work", str(work), "--source", "sample"]
    execute("first session", {}, None)
    assert series.main(command) == 2
    assert "Stage 03_train_lora was stopped by its time budget. The same command goes on." in (
        capsys.readouterr().err
    )
    assert series.main(command) == 0
    assert ran == ["first session", "03_train_lora", "03_train_lora"]


def test_changed_parameters_stop_before_the_old_stage_is_touched(all_done, work, capsys):
    assert series.main(["--work", str(work), "--source", "sample", "--set", "RANK=4"]) == 2
    assert "RANK was 16 and is now 4." in capsys.readouterr().err
    assert stages.read_manifest(work / "03_train_lora", "03_train_lora") is not None


def test_a_stage_is_done_only_as_wanted_and_from_the_same_inputs(work, finish):
    first = finish(work, "01_filter", {"source": "sample"})
    assert series.is_done("01_filter", {"source": "sample"}, work)
    assert not series.is_done("02_preprocess", {"share": 99}, work)
    stages.start_stage(work, "02_preprocess", {"share": 99}, (first,))
    assert not series.is_done("02_preprocess", {"share": 99}, work)
    finish(work, "02_preprocess", {"share": 99}, (first,))
    assert series.is_done("02_preprocess", {"share": 99}, work)
    with pytest.raises(StageError, match="SHARE was 99 and is now 50"):
        series.is_done("02_preprocess", {"share": 50}, work)
    with pytest.raises(StageError, match="Stage 03_train_lora is not there"):
        series.is_done("04_evaluate", {}, work)


def test_the_key_figures_are_one_line():
    assert series.figures({"train": 12345, "cider": "0.1 -> 0.9"}) == "train 12,345, cider 0.1 -> 0.9"


# The notebooks as files.


def printed(text, name="stdout"):
    return new_output("stream", text=text, name=name)


@pytest.mark.parametrize(
    ("pieces", "settled"),
    [
        (["a\n", "b\n"], "a\nb\n"),
        (["10%\r", "50%\r", "100%\n"], "100%\n"),
        (["\r 0/3", "\r 3/3", "\ndone\n"], " 3/3\ndone\n"),
        (["100%\r\n", "next"], "100%\nnext"),
        (["last state\r"], "last state"),
        (["", ""], ""),
    ],
)
def test_a_rewritten_line_is_kept_as_last_seen(pieces, settled):
    cell = new_code_cell("run()", outputs=[printed(piece) for piece in pieces])
    notebooks.settle_outputs(new_notebook(cells=[new_markdown_cell("text"), cell]))
    assert [(output.name, output.text) for output in cell.outputs] == [("stdout", settled)]


def test_pictures_and_the_other_stream_keep_their_places():
    picture = new_output("display_data", {"image/png": "x"})
    cell = new_code_cell(
        "run()", outputs=[printed("a"), printed("b"), printed("c", "stderr"), picture, printed("d")]
    )
    notebooks.settle_outputs(new_notebook(cells=[cell]))
    assert [output.get("text", "picture") for output in cell.outputs] == ["ab", "c", "picture", "d"]


def test_widgets_are_left_out_and_the_stream_around_them_is_one():
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "bar"}
    cell = new_code_cell("run()", outputs=[printed("a"), new_output("display_data", view), printed("b")])
    notebooks.settle_outputs(new_notebook(cells=[cell]))
    assert [output.text for output in cell.outputs] == ["ab"]


def test_a_place_is_named_by_the_last_heading_above_it():
    book = new_notebook(cells=[
        new_code_cell("# not a heading"), new_markdown_cell("# Title\ntext\n## Data\nmore"), new_code_cell("# comment"),
        new_markdown_cell("no heading here"), new_code_cell("x"),
    ])  # fmt: skip
    assert notebooks.title_above(book, 4) == "Data"
    assert notebooks.title_above(book, 1) == "top"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An own folder of notebooks in place of the repository's."""
    monkeypatch.setattr(notebooks, "FOLDER", tmp_path)
    return tmp_path


def tagged(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags)})


def test_parameters_are_read_without_running_anything(folder):
    source = 'RANK = 16  # of LoRA\nMODES = ("RGB",)\nRATE = 2e-4\n"""text"""\nWORK = "auto"\nNONE = None'
    book = new_notebook(cells=[new_code_cell("1 / 0"), tagged(source, "parameters")])
    nbformat.write(book, folder / "01_x.ipynb")
    assert notebooks.parameters_of("01_x") == {
        "RANK": 16,
        "MODES": ("RGB",),
        "RATE": 2e-4,
        "WORK": "auto",
        "NONE": None,
    }


@pytest.mark.parametrize("count", [0, 2])
def test_a_notebook_has_exactly_one_cell_of_parameters(folder, count):
    nbformat.write(
        new_notebook(cells=[tagged("A = 1", "parameters") for _ in range(count)]), folder / "01_x.ipynb"
    )
    with pytest.raises(notebooks.NotebookError, match=f"this one has {count}"):
        notebooks.parameters_of("01_x")


def test_every_notebook_of_the_series_declares_what_its_stage_is_made_with():
    for name in STAGES:
        parameters = notebooks.parameters_of(name)
        assert {"WORK", "FRESH"} <= set(parameters)
        assert configure(name, parameters | {"SOURCE": "sample"}, "sample").json()


def test_publishing_drops_what_belongs_to_one_run_alone(folder, tmp_path):
    cells = [
        new_markdown_cell("# Title"), tagged("RANK = 16", "parameters"), tagged("RANK = 4", "injected-parameters"),
        new_code_cell("train()", execution_count=7, outputs=[printed("done\n")], metadata={
            "execution": {"iopub.status.busy": "2026"}, "papermill": {}, "collapsed": False}),
    ]  # fmt: skip
    metadata = {"widgets": {"state": {"1": "x"}}, "papermill": {"input_path": "/home/me"},
                "kernelspec": {"display_name": "mine", "name": "mine"}, "language_info": {"version": "3.11.7", "name": "python"}}  # fmt: skip
    executed = tmp_path / "executed.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=metadata), executed)
    notebooks.publish("03_x", executed)
    book = nbformat.read(folder / "03_x.ipynb", as_version=4)
    nbformat.validate(book)
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }  # fmt: skip
    assert [(cell.id, cell.source, cell.metadata) for cell in book.cells] == [
        ("03-00", "# Title", {}), ("03-01", "RANK = 16", {"tags": ["parameters"]}), ("03-02", "train()", {}),
    ]  # fmt: skip
    assert [output.text for output in book.cells[2].outputs] == ["done\n"]


def test_a_large_picture_is_published_lighter_and_a_small_one_as_it_is():
    """Four galleries of radiographs made a notebook of 1.9 MB, which GitHub takes long to show."""

    def picture(side):
        noise = np.random.default_rng(0).integers(0, 256, (side, side), np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).convert("RGB").save(buffer, "PNG")
        return base64.b64encode(buffer.getvalue()).decode()

    outputs = [{"data": {"image/png": picture(side)}} for side in (16, 300)] + [{"text": "done"}]
    before = [output.get("data", {}).get("image/png", "") for output in outputs]
    notebooks.lighten(outputs)
    assert outputs[0]["data"]["image/png"] == before[0]
    after = outputs[1]["data"]["image/png"]
    assert len(after) < 0.9 * len(before[1])
    assert Image.open(io.BytesIO(base64.b64decode(after))).size == (300, 300)


def test_a_failing_cell_is_explained_by_its_place_and_its_error():
    book = new_notebook(cells=[new_markdown_cell("## Data"), new_code_cell("x")])
    error = notebooks.CellExecutionError("traceback", "KeyError", "'caption'")
    assert (
        notebooks.explain("01_x", book, 1, error)
        == "notebook 01_x, cell 2 (Data) failed with KeyError: 'caption'"
    )
    assert "the kernel died" in notebooks.explain("01_x", book, 1, notebooks.DeadKernelError("gone"))


def test_a_tuple_reaches_the_notebook_as_a_list(work, monkeypatch):
    """papermill wrote ('L',) as the text of a tuple, and notebook 01 refused what the user had typed."""
    seen = {}
    monkeypatch.setattr("utils.notebooks.execute", lambda name, parameters, target: seen.update(parameters))
    work.mkdir(exist_ok=True)
    series.run_stage("01_filter", {"IMAGE_MODES": ("L",), "WORK": str(work)}, work)
    assert seen["IMAGE_MODES"] == ["L"]


def test_two_runs_do_not_share_a_work_folder(tmp_path):
    with (
        series.alone_in(tmp_path),
        pytest.raises(series.StageError, match="Another run of the series works in"),
        series.alone_in(tmp_path),
    ):
        pytest.fail("the second run was let in")
    with series.alone_in(tmp_path):
        assert (tmp_path / ".lock").exists()


@pytest.mark.parametrize(
    ("setting", "name"),
    [("SOURCE=5", "SOURCE"), ("SOURCE=None", "SOURCE"), ("MODEL_ID=None", "MODEL_ID"), ("WORK=3", "WORK"),
     ("IMAGE_MODES=('RGB', ['a'])", "IMAGE_MODES"), ("EPOCHS=1e400", "EPOCHS"), ("MIN_WORDS=two", "MIN_WORDS"),
     ("MAX_WORDS=0", "MAX_WORDS"), ("PIXELS=yes", "PIXELS")],
)  # fmt: skip
def test_a_parameter_of_another_kind_is_one_sentence(setting, name, tmp_path, capsys):
    assert series.main(["--work", str(tmp_path / "w"), "--set", setting]) == 2
    assert f"Stopped: {name} is " in capsys.readouterr().err


def test_a_global_batch_that_does_not_divide_is_refused_before_anything_runs(tmp_path, capsys):
    assert series.main(["--work", str(tmp_path / "w"), "--procs", "3"]) == 2
    assert "GLOBAL_BATCH 32 is no multiple of MICRO_BATCH x PROCS" in capsys.readouterr().err
