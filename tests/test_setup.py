"""What is installed, and when: every import is declared, and an environment that is up to date is used as it is."""

import ast
import re
import subprocess
import sys

import pytest

from conftest import ROOT

NAMES = {
    "cv2": "opencv-python-headless",
    "imageio_ffmpeg": "imageio-ffmpeg",
    "PIL": "pillow",
    "scenedetect": "scenedetect-headless",
    "yaml": "pyyaml",
}
OURS = {"configs", "data", "models", "infer", "scripts", "train", "conftest"}
OPTIONAL = {
    "bitsandbytes",
    "hypothesis",
    "prodigyopt",
    "selenium",
    "submitit",
    "xformers",
}  # their absence is one sentence
THROUGH = {
    "functorch": "torch",
    "huggingface_hub": "diffusers",
    "starlette": "gradio",
    "tokenizers": "transformers",
    "torchvision": "torch",
}


def declared(name):
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    return {re.split(r"[=~;<>\[ ]", line)[0].lower() for line in lines if line}


def imported(paths):
    """Top-level names of what the files import, wherever in the file."""
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module.split(".")[0]


def undeclared(paths, names):
    found = set(imported(paths)) - OURS - OPTIONAL - sys.stdlib_module_names
    local = {path.stem for path in paths}  # tests import each other by name
    return {name for name in found - local if NAMES.get(name, THROUGH.get(name, name)).lower() not in names}


def test_every_import_of_the_project_is_declared():
    paths = [p for room in ("configs", "data", "models", "infer", "scripts") for p in (ROOT / room).rglob("*.py")]
    assert (
        undeclared([*paths, ROOT / "train.py"], declared("requirements.txt") | declared("requirements-app.txt"))
        == set()
    )


def test_every_import_of_the_tests_is_declared():
    names = declared("requirements.txt") | declared("requirements-dev.txt")
    assert undeclared(list((ROOT / "tests").rglob("*.py")), names) == set()


@pytest.fixture
def place(tmp_path):
    """A repository with the installing script alone, whose Python only writes down what it is asked to do."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "setup.sh").write_text((ROOT / "scripts" / "setup.sh").read_text())
    for name in ("requirements.txt", "requirements-dev.txt"):
        (tmp_path / name).write_text(name)
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\necho "$@" >> "$LOG"\n[ "$2" = venv ] && mkdir -p "$3/bin" && cp "$0" "$3/bin/python"\nexit 0\n'
    )
    python.chmod(0o755)
    return tmp_path


def asked(place, requirements=""):
    """The lines that sourcing scripts/setup.sh runs Python with, its question for the version left out."""
    log = place / "log"
    log.unlink(missing_ok=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "LOG": str(log),
        "PYTHON": str(place / "python"),
        "REQUIREMENTS": requirements,
    }
    command = ["bash", "-eu", "-c", ". scripts/setup.sh"]
    subprocess.run(command, cwd=place, env=environment, check=True, capture_output=True)
    return [line for line in log.read_text().splitlines() if not line.startswith("-c")]


def test_only_what_changed_is_installed_again(place):
    install = "-m pip install --quiet --requirement="
    assert asked(place) == ["-m venv .venv", f"{install}requirements.txt"]
    assert asked(place) == []
    assert asked(place, "requirements-dev.txt") == [f"{install}requirements-dev.txt"]
    assert asked(place, "requirements-dev.txt") == [] and asked(place) == []
    (place / "requirements.txt").write_text("another")
    assert asked(place, "requirements-dev.txt") == [f"{install}requirements.txt"]


def test_the_tests_environment_has_both_files():
    assert "requirements-dev.txt" in (ROOT / "scripts" / "test.sh").read_text()
