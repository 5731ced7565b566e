"""The committed notebooks, read as files: their skeleton, their size, their outputs, their links."""

import ast
import itertools
import json
import re
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest

from utils import config, notebooks
from utils.stages import REPO, REPOSITORY, STAGES

NAMES = list(STAGES)
NO_FIELD = {"WORK", "FRESH", "PROCS", "HOURS", "REPORT_TO"}  # where and how, not what


def load(name):
    return nbformat.read(REPO / "notebooks" / f"{name}.ipynb", as_version=4)


def code(name):
    return [cell.source for cell in load(name).cells if cell.cell_type == "code"]


def prose(name):
    return [cell.source for cell in load(name).cells if cell.cell_type == "markdown"]


def outputs(name):
    return [output for cell in load(name).cells for output in cell.get("outputs", [])]


def test_the_notebooks_are_the_stages_and_no_others():
    assert sorted(p.stem for p in (REPO / "notebooks").glob("*.ipynb")) == NAMES


def test_the_set_up_cell_is_the_same_in_all_and_knows_the_repository():
    assert {code(name)[0] for name in NAMES} == {code(NAMES[0])[0]}
    assert f'"{REPOSITORY}"' in code(NAMES[0])[0]


@pytest.mark.parametrize("name", NAMES)
class TestEachNotebook:
    def test_is_valid(self, name):
        nbformat.validate(load(name))

    def test_begins_with_title_badges_what_goes_in_and_out_and_the_notice(self, name):
        first = prose(name)[0]
        assert first.startswith(f"# RadiGlow {name[:2]} · ")
        assert (
            f"https://kaggle.com/kernels/welcome?src={REPOSITORY}/blob/main/notebooks/{name}.ipynb" in first
        )
        path = REPOSITORY.removeprefix("https://github.com/")
        assert f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{name}.ipynb" in first
        assert re.search(r"^\*\*.+ → .+\*\* · .*(CPU|T4|GPU).* · .+minute", first, re.MULTILINE)
        assert "Not for clinical use" in first

    def test_installs_before_anything_else_is_imported(self, name):
        assert "packages.install_missing()" in code(name)[0]
        assert not re.search(r"import (torch|transformers|peft)", code(name)[0])

    def test_has_one_cell_of_literal_parameters_that_the_configuration_knows(self, name):
        parameters = notebooks.parameters_of(name)
        known = {field.name.upper() for field in fields(config.CONFIGS[name])}
        assert set(parameters) - NO_FIELD <= known
        # the source of a later stage comes from stage 01's manifest
        assert known - set(parameters) <= {"SOURCE"}

    def test_defines_nothing_and_stays_thin(self, name):
        tree = [ast.parse(source) for source in code(name)]
        assert not any(isinstance(n, ast.ClassDef | ast.FunctionDef) for t in tree for n in ast.walk(t))
        lines = [source.count("\n") + 1 for source in code(name)]
        assert max(lines) <= 20
        assert sum(lines) <= 150

    def test_imports_only_what_exists(self, name):
        tree = ast.parse("\n".join(code(name)))
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "utils"
                 for a in n.names]  # fmt: skip
        assert names, "nothing of utils is used"
        for module in names:
            assert (REPO / "utils" / f"{module}.py").is_file(), module

    def test_uses_no_shell_and_no_line_magic(self, name):
        assert not any(re.search(r"^\s*[!%]", source, re.MULTILINE) for source in code(name))

    def test_every_step_is_told_before_it_is_run(self, name):
        kinds = [cell.cell_type for cell in load(name).cells]
        assert "code code code code" not in " ".join(kinds)

    def test_is_executed_in_order_and_without_errors(self, name):
        cells = [c for c in load(name).cells if c.cell_type == "code"]
        counts = [c.execution_count for c in cells]
        # the parameters of the run that made the outputs were a cell of their own
        assert all(a < b for a, b in itertools.pairwise(counts))
        assert not [o for o in outputs(name) if o.output_type == "error"]
        assert [o for o in outputs(name) if "image/png" in o.get("data", {})], "no picture"

    def test_carries_no_widget_no_path_of_a_machine_and_no_secret(self, name):
        text = (REPO / "notebooks" / f"{name}.ipynb").read_text()
        assert "widgets" not in json.loads(text)["metadata"]
        assert "application/vnd.jupyter.widget" not in text
        assert not re.search(r"/(home|root|Users|tmp|work/main|kaggle/working)/[\w.]", text)
        assert not re.search(r"hf_[A-Za-z0-9]{20}", text)

    def test_warns_of_nothing(self, name):
        assert not [o.text for o in outputs(name) if "Warning" in o.get("text", "")]

    def test_is_under_one_megabyte(self, name):
        assert (REPO / "notebooks" / f"{name}.ipynb").stat().st_size < 1_000_000

    def test_links_lead_somewhere(self, name):
        for target in re.findall(r"\]\(([^)]+)\)", "\n".join(prose(name))):
            if not target.startswith("http"):
                assert (REPO / "notebooks" / target).is_file(), target

    def test_ends_with_what_one_has_now(self, name):
        assert prose(name)[-1].startswith("## What you have now")


def test_no_notebook_repeats_code_of_another_but_the_set_up():
    lines = [line.strip() for name in NAMES for source in code(name)[2:] for line in source.splitlines()]
    long = [line for line in lines if len(line) > 60]
    assert {line for line in long if long.count(line) > 2} == set()


def test_readme_lists_exactly_the_notebooks():
    readme = (REPO / "README.md").read_text()
    listed = re.findall(r"\(notebooks/(\w+)\.ipynb\)", readme)
    assert sorted(set(listed)) == NAMES


def test_readme_links_lead_somewhere():
    readme = (REPO / "README.md").read_text()
    local = [t for t in re.findall(r"\]\(([^)#]+)\)", readme) if not t.startswith("http")]
    assert len(local) >= 6
    assert [t for t in local if not (REPO / t).exists()] == []


def test_readme_shows_the_two_commands_that_ci_runs():
    readme, ci = (REPO / "README.md").read_text(), (REPO / ".ci" / "run").read_text()
    for command in ("python -m utils.series", "python -m pytest"):
        assert re.search(rf"^{re.escape(command)}$", readme, re.MULTILINE), command
        assert command in ci


def test_readme_maps_every_module():
    readme = (REPO / "README.md").read_text()
    for path in sorted(Path(REPO / "utils").glob("*.py")):
        if path.name != "__init__.py":
            assert f"`{path.name}`" in readme, path.name


def test_the_top_level_holds_what_it_should():
    import subprocess

    tracked = subprocess.run(["git", "-C", str(REPO), "ls-files"], capture_output=True, text=True, check=True)
    top = {line.split("/")[0] for line in tracked.stdout.splitlines()}
    visible = {name for name in top if not name.startswith(".")}
    assert visible <= {"notebooks", "utils", "requirements.txt", "README.md", "tests", "LICENSE"}


def test_readmes_figures_are_those_of_notebook_04():
    pages = [o.data["text/html"] for o in outputs("04_evaluate") if "text/html" in o.get("data", {})]
    page = next(page for page in pages if "<th>BLEU-1</th>" in page)
    rows = re.findall(r"<tr>\s*<th>(.+?)</th>((?:\s*<td>.*?</td>)+)", page)
    shown = {name: re.findall(r"<td>(.*?)</td>", cells) for name, cells in rows}
    readme = (REPO / "README.md").read_text().splitlines()
    told = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in readme if " [0." in line]
    assert len(shown) == 12
    assert {name: cells for name, *cells in told} | {"unique captions": shown["unique captions"]} == shown
