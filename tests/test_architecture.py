"""The arrows between the rooms: configs <- data, models <- infer <- train.py <- scripts."""

import ast
import subprocess
import sys
from itertools import permutations

import pytest

from conftest import ROOT

MAY_IMPORT = {
    "configs": {"configs"},
    "data": {"configs", "data"},
    "models": {"configs", "models"},
    "infer": {"configs", "data", "models", "infer"},
    "train": {"configs", "data", "models", "infer", "train"},  # train.py imports itself after --help has answered
    "scripts": {"configs", "data", "models", "infer", "train", "scripts"},
}
ROOMS = set(MAY_IMPORT) | {"tests"}
FILES = sorted(p for room in MAY_IMPORT for p in (ROOT / room).rglob("*.py")) + [ROOT / "train.py"]


def room_of(path):
    """The room at the top of the tree that a file lies in, however deep; train.py is a room of its own."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_file_of_every_room_is_looked_at():
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout: what belongs to the project is not known")
    project = {ROOT / name for name in tracked.stdout.split() if not name.startswith("tests/")}
    assert project <= set(FILES) and len(project) > 200


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    room = room_of(path)
    wrong = {name for name in imports(path) if name.split(".")[0] in ROOMS - MAY_IMPORT[room]}
    assert not wrong, f"{path.name} of {room} imports {wrong}"


WALLS = [  # (files in here, must not import what is in there): rooms inside rooms, by dotted prefix
    ("train", "infer.measure"),
    ("infer", "infer.measure"),
    ("infer", "infer.training"),
    ("models", "models.training"),
    ("models.files", "models.methods"),
    ("models.files", "models.customization"),
    *(
        (f"scripts.{here}", f"scripts.{there}")
        for here, there in permutations(("artefacts", "authors", "pocket", "studio"), 2)
    ),
    ("scripts.artefacts", "scripts.conversion"),
    ("scripts.artefacts", "scripts.benchmark"),
    ("scripts.artefacts", "scripts.showcase"),
    ("scripts.showcase", "scripts.artefacts"),
    ("scripts.showcase", "infer.measure"),
]


def inside(name, prefix):
    return f"{name}.".startswith(f"{prefix}.")


@pytest.mark.parametrize("here, there", WALLS, ids=" -x- ".join)
def test_walls_inside_rooms_stand(here, there):
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in FILES}
    near = {name: p for name, p in modules.items() if inside(name, here) and not inside(name, there)}
    assert near and any(inside(name, there) for name in modules), "the wall stands between no files"
    wrong = {name: found for name, p in near.items() if (found := [i for i in imports(p) if inside(i, there)])}
    assert not wrong


def test_configuration_needs_neither_torch_nor_diffusers():
    heavy = {"torch", "diffusers", "transformers", "peft", "accelerate"}
    found = {name.split(".")[0] for path in (ROOT / "configs").rglob("*.py") for name in imports(path)}
    assert not found & heavy


# train.py has its slow imports below the command, which has ended the process by then
COMMANDS = [path for path in FILES if "\n@command\n" in path.read_text() and path.name != "train.py"]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_command_begins_before_its_slow_imports(path):
    """Ctrl-C while they last is then one line, not a traceback."""
    code = f"import runpy, sys; runpy.run_path({str(path)!r}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "omegaconf", "torch", "diffusers"} & set(done.stdout.split())


@pytest.mark.parametrize("path", [p for p in COMMANDS if p.name != "chain.py"], ids=lambda p: p.name)
def test_a_wrong_flag_is_one_sentence(path):
    done = subprocess.run([sys.executable, path, "--no-such-flag"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_wrong_flag_of_a_subcommand_names_the_nearest():
    words = [sys.executable, ROOT / "scripts/convert.py", "inspect", "somewhere", "--modl", "a_folder"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stderr
    assert "did you mean --model?" in told and told.count("\n") == 1


def test_every_text_is_written_and_read_as_utf_8():
    """Whatever the machine's locale: prompts, captions and file names are in any language."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            opens = name == "open" and any(
                isinstance(a, ast.Constant) and a.value in ("a", "w", "r") for a in node.args
            )
            text = isinstance(node.func, ast.Attribute) and name in ("read_text", "write_text")
            if opens or text:
                assert "encoding" in {k.arg for k in node.keywords}, f"{path}: {ast.unparse(node)}"


def test_no_file_executes_what_it_loads():
    """Every torch.load says weights_only=True; nothing unpickles by itself."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "load":
                owner = ast.unparse(node.func.value)
                assert owner not in ("pickle", "dill", "joblib"), path
                if owner == "torch":
                    given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    assert given.get("weights_only") == "True", f"{path}: {ast.unparse(node)}"
