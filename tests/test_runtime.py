"""How a command imports what is slow (configs/runtime.py)."""

import ast
import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from configs.runtime import note, slow_imports

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (ROOT / "train.py", ROOT / "infer/infer.py", *(ROOT / "scripts").glob("*.py"))
PROBE = """
import gc, os, sys
from configs.runtime import slow_imports
with slow_imports():
    import {module}
    print(gc.isenabled(), end=" ")
print(gc.isenabled(), gc.get_freeze_count() > 10_000, os.environ.get("OMP_WAIT_POLICY"))
"""


def probe(module: str, env: dict[str, str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(module=module)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_nothing_imported_is_searched_for_garbage_during_the_import_or_after_it():
    assert probe("torch", {}) == ["False", "True", "True", "PASSIVE"]
    assert probe("torch", {"OMP_WAIT_POLICY": "ACTIVE"})[-1] == "ACTIVE"


def test_an_import_that_fails_leaves_the_collector_on(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(gc, "freeze", lambda: None)  # what this process holds now is not for ever
    with pytest.raises(ImportError), slow_imports():
        assert not gc.isenabled()
        raise ImportError
    assert gc.isenabled()


def test_garbage_of_a_process_that_has_torch_already_is_not_kept_for_ever():
    import torch  # noqa: F401

    frozen = gc.get_freeze_count()
    with slow_imports():
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_every_command_imports_what_is_slow_in_its_block(path):
    """A command that answers --help at once, and imports quickly after it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    last = next((n for n, node in enumerate(tree.body) if isinstance(node, ast.If)), len(tree.body))
    nodes = list(ast.walk(ast.Module(tree.body[:last], [])))  # train.py goes on below its command, which has ended
    imports = lambda found: {node for node in found if isinstance(node, ast.Import | ast.ImportFrom)}
    blocks = [n for n in nodes if isinstance(n, ast.With) and ast.unparse(n.items[0]) == "slow_imports()"]
    inside = set().union(*(imports(ast.walk(block)) for block in blocks))
    before = [node for node in imports(nodes) - inside if node.lineno < max(block.lineno for block in blocks)]
    named = [node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in before]
    code = "import sys\n" + "".join(f"import {name}\n" for name in named) + "print(*sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert inside and not {"torch", "diffusers", "transformers"} & set(done.stdout.split())


def test_a_note_stands_on_a_line_of_its_own_whatever_bar_is_running(capsys):
    with tqdm(total=2, ncols=40):
        note("a note")
    assert "\ra note\n" in capsys.readouterr().err
