"""The set-up: what is declared, pinned, packaged and promised by `make` fits together."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGES = ("orchestrator", "workers", "search_spaces")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture(scope="module")
def pyproject(project: Path) -> dict[str, Any]:
    return tomllib.loads((project / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins(project: Path) -> list[Requirement]:
    lines = (project / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def declared(pyproject: dict[str, Any]) -> list[Requirement]:
    """Every dependency, those of the extras included, but for the project itself."""
    extras = pyproject["project"]["optional-dependencies"].values()
    lines = [*pyproject["project"]["dependencies"], *(line for extra in extras for line in extra)]
    return [needed for needed in map(Requirement, lines) if needed.name != "rankray"]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_tested_version_inside_its_range(
    pyproject: dict[str, Any], pins: list[Requirement], python: str
) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    for needed in declared(pyproject):
        applying = [
            pin
            for pin in pins
            if canonicalize_name(pin.name) == canonicalize_name(needed.name)
            and (pin.marker is None or pin.marker.evaluate(environment))
        ]
        assert len(applying) == 1, f"{needed.name} on Python {python}: {applying}"
        (exact,) = applying[0].specifier
        assert exact.operator == "=="
        assert needed.specifier.contains(exact.version), f"{applying[0]} is outside {needed}"


def test_the_constraints_name_no_place_to_download_from(project: Path) -> None:
    text = (project / "constraints.txt").read_text()

    assert not re.search(r"://|^-|@|\+", re.sub(r"^#.*$", "", text, flags=re.MULTILINE), re.MULTILINE)


def test_the_command_exists(pyproject: dict[str, Any]) -> None:
    module, name = pyproject["project"]["scripts"]["rankray"].split(":")

    assert callable(getattr(importlib.import_module(module), name))


def test_whatever_a_package_reads_at_run_time_is_packaged(project: Path, pyproject: dict[str, Any]) -> None:
    patterns = pyproject["tool"]["setuptools"]["package-data"]["*"]
    files = [
        file
        for package in PACKAGES
        for file in (project / package).rglob("*")
        if file.is_file() and file.suffix not in {".py", ".pyc"}
    ]

    assert {file.parent.name for file in files if file.name == "py.typed"} == set(PACKAGES)
    assert [file for file in files if not any(file.match(pattern) for pattern in patterns)] == []


def test_folders_with_code_are_packages(project: Path) -> None:
    folders = {file.parent for package in PACKAGES for file in (project / package).rglob("*.py")}

    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_torch_and_torchvision_fit_each_other() -> None:
    boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.1], [5.0, 5.0, 6.0, 6.0]])

    assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("search_spaces/costs.py", "import workers"),
        ("workers/evaluator.py", "import orchestrator"),
        ("search_spaces/costs.py", "import pyarrow"),
        ("orchestrator/searches/contract.py", "import ray"),
        ("orchestrator/searches/contract.py", "import torch"),
    ],
)
def test_an_import_that_goes_up_breaks_a_contract(project: Path, tmp_path: Path, file: str, line: str) -> None:
    for package in PACKAGES:
        shutil.copytree(project / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(project / "pyproject.toml", tmp_path)
    with open(tmp_path / file, "a") as stream:
        stream.write(f"\n{line}\n")

    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert checked.returncode == 1
    assert "1 broken" in checked.stdout


@needs_make
@pytest.mark.parametrize("python", ["false", "no-such-python"])
def test_make_says_which_python_it_needs(project: Path, tmp_path: Path, python: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(project / name, tmp_path)

    made = subprocess.run(
        ["make", "demo", f"PYTHON={python}"], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert made.returncode != 0
    assert f"RankRay needs Python 3.10 or later, and `{python}` is not that" in made.stderr
    assert not (tmp_path / ".venv").exists()


@needs_make
def test_make_says_when_torch_and_torchvision_do_not_fit(project: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(project / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\ntest "$1" = -m\n')  # installs whatever it is told to, and fails to import it
    python.chmod(0o755)

    made = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert made.returncode != 0
    assert "torch and torchvision in .venv do not fit each other" in made.stderr
    assert not (tmp_path / ".venv/.installed").exists()


@needs_make
def test_make_installs_once(project: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(project / name, tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in (".installed", "bin/python"):
        (tmp_path / ".venv" / name).touch()

    def planned() -> str:
        return subprocess.run(
            ["make", "-n", "demo"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert planned() == ".venv/bin/rankray demo"
    stamp = (tmp_path / ".venv/.installed").stat()
    later = (stamp.st_atime_ns, stamp.st_mtime_ns + 10**9)
    os.utime(tmp_path / "constraints.txt", ns=later)
    assert "pip install" in planned()


def test_ci_stops_at_the_first_failure_and_can_be_run(project: Path) -> None:
    script = project / ".ci/run"

    assert script.stat().st_mode & 0o111
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", script], check=True)
