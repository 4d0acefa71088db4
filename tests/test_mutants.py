"""The checks of test_keys are worth something: each of eleven defects, put in alone, is caught by one of them."""

import subprocess
import sys

from conftest import ROOT
from mutants import MUTANTS


def test_every_defect_is_caught():
    done = subprocess.run([sys.executable, str(ROOT / "tests/mutants.py")], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if "| `" in line]
    assert len(rows) == sum(len(mutant.keys) for mutant in MUTANTS) and len(MUTANTS) == 11
    assert not any("not caught" in row for row in rows)
