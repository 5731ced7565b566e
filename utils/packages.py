"""Install what the notebooks need and the machine lacks, before torch is imported."""

import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement

from utils.stages import REPO

# Kaggle's and Colab's builds of these fit their drivers and each other: they are never replaced.
NEVER = {"torch", "numpy", "protobuf"}
SERIES_ONLY = "# Runs the notebooks"  # what follows this line is for `python -m utils.series` alone


def requirements() -> list[Requirement]:
    """Read what the notebooks need from ``requirements.txt``."""
    text = (REPO / "requirements.txt").read_text().partition(SERIES_ONLY)[0]
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    return [Requirement(line) for line in lines if line]


def unmet(wanted: list[Requirement]) -> list[str]:
    """Return the requirements that no installed version satisfies, without the never-replaced ones."""
    missing = []
    for requirement in wanted:
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        met = version is not None and requirement.specifier.contains(version, prereleases=True)
        if not met and requirement.name not in NEVER:
            missing.append(str(requirement))
    return missing


def install_missing() -> None:
    """Install what is missing and say so in one line.

    Raises:
        RuntimeError: torch was imported before, or pip failed; holds pip's last line.
    """
    missing = unmet(requirements())
    if not missing:
        print("packages: all there")
        return
    if "transformers" in sys.modules:
        raise RuntimeError("Restart the kernel and run this cell first: packages must be installed "
                           "before transformers is imported.")  # fmt: skip
    command = [sys.executable, "-m", "pip", "install", "-q", *missing]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"pip could not install {', '.join(missing)}: {lines[-1]} Turn the internet "
                           f"on, or install them by hand.")  # fmt: skip
    print(f"packages: installed {', '.join(missing)}")
