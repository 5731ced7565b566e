"""What is installed stays; torch and numpy stay whatever their version."""

import subprocess
from importlib import metadata

import pytest
from packaging.requirements import Requirement

from utils import packages

INSTALLED = {"torch": "2.1.0", "numpy": "1.0", "protobuf": "1.0", "transformers": "5.0.0", "pandas": "2.3.3",
             "peft": "0.22.0rc1", "huggingface_hub": "2.0.1"}  # fmt: skip


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Pretend that exactly ``INSTALLED`` is installed, and that nothing may be run."""

    def version(name):
        if name not in INSTALLED:
            raise metadata.PackageNotFoundError(name)
        return INSTALLED[name]

    def forbidden(*args, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(subprocess, "run", forbidden)


@pytest.mark.parametrize(
    ("wanted", "missing"),
    [
        ("pandas>=2.2", []),
        ("pandas", []),
        ("transformers>=5.19,<5.24", ["transformers<5.24,>=5.19"]),
        ("huggingface_hub>=1.31,<2", ["huggingface_hub<2,>=1.31"]),
        ("peft>=0.21", []),  # installed is 0.22.0rc1, a pre-release
        ("bitsandbytes", ["bitsandbytes"]),
        ("torch>=2.10", []),
        ("numpy>=2", []),
        ("protobuf>=5", []),
    ],
)
def test_only_what_no_installed_version_satisfies_is_missing(wanted, missing):
    assert packages.unmet([Requirement(wanted)]) == missing


def test_torch_and_numpy_are_not_replaced_even_where_they_are_absent(monkeypatch):
    monkeypatch.setattr(metadata, "version", {}.__getitem__)
    monkeypatch.setattr(packages.metadata, "PackageNotFoundError", KeyError)
    wanted = [Requirement(name) for name in ("torch", "numpy", "protobuf", "pandas")]
    assert packages.unmet(wanted) == ["pandas"]


def test_what_only_the_series_needs_is_not_asked_for_in_a_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "REPO", tmp_path)
    (tmp_path / "requirements.txt").write_text(
        "# the notebooks\npandas>=2.2  # tables\n\ntorch>=2.10\n# Runs the notebooks in order.\npapermill>=2.6\n"
    )
    assert [str(r) for r in packages.requirements()] == ["pandas>=2.2", "torch>=2.10"]


def test_the_repositorys_own_file_has_both_parts():
    text = (packages.REPO / "requirements.txt").read_text()
    assert text.count(packages.SERIES_ONLY) == 1
    names = {r.name for r in packages.requirements()}
    assert {"torch", "transformers", "peft", "bitsandbytes", "datasets"} <= names
    assert names.isdisjoint({"papermill", "nbclient", "nbconvert"})
    assert "papermill" in text.partition(packages.SERIES_ONLY)[2]


def want(monkeypatch, *lines):
    monkeypatch.setattr(packages, "requirements", lambda: [Requirement(line) for line in lines])


def test_nothing_is_installed_where_all_is_there(monkeypatch, capsys):
    want(monkeypatch, "pandas>=2.2", "torch>=2.10")
    packages.install_missing()
    assert capsys.readouterr().out == "packages: all there\n"


def pip(monkeypatch, code, stderr=""):
    """Stand in for pip; return the list of its commands."""
    commands = []
    monkeypatch.setattr(packages.sys, "modules", {})

    def run(command, **options):
        commands.append(command[1:])
        return subprocess.CompletedProcess(command, code, "", stderr)

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def test_only_the_missing_are_installed(monkeypatch, capsys):
    want(monkeypatch, "pandas>=2.2", "bitsandbytes>=0.50,<0.51", "torch>=2.10")
    commands = pip(monkeypatch, 0)
    packages.install_missing()
    assert commands == [["-m", "pip", "install", "-q", "bitsandbytes<0.51,>=0.50"]]
    assert capsys.readouterr().out == "packages: installed bitsandbytes<0.51,>=0.50\n"


@pytest.mark.parametrize(
    ("stderr", "reason"), [("WARNING: x\nERROR: no route\n", "ERROR: no route"), ("", "no message")]
)
def test_a_failing_pip_says_its_last_line(monkeypatch, stderr, reason):
    want(monkeypatch, "bitsandbytes")
    pip(monkeypatch, 1, stderr)
    with pytest.raises(RuntimeError, match=f"^pip could not install bitsandbytes: {reason}"):
        packages.install_missing()


def test_nothing_is_installed_under_an_imported_transformers(monkeypatch):
    want(monkeypatch, "bitsandbytes")
    monkeypatch.setattr(packages.sys, "modules", {"transformers": None})
    with pytest.raises(RuntimeError, match="^Restart the kernel"):
        packages.install_missing()
