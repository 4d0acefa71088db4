"""A few hundred malformed inputs, the same on every run: one sentence or a right result, and nothing else.

`python scripts/fuzz.py --minutes 30` tries more; what it finds goes into scripts/fuzzing/found.py and is tried here.
"""

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from configs.errors import UserError
from scripts import fuzz
from scripts.fuzzing import trial
from scripts.fuzzing.areas import AREAS, Area
from scripts.fuzzing.found import FOUND
from scripts.fuzzing.ground import Broken, Ground
from scripts.fuzzing.trial import try_area
from scripts.fuzzing.values import SECRET, plain

from conftest import ROOT

EXAMPLES = 30


@pytest.fixture(scope="module")
def ground():
    ground = Ground()
    yield ground
    ground.close()


@pytest.mark.parametrize("area", AREAS, ids=lambda area: area.name)
def test_malformed_input_is_one_sentence_or_a_right_result(area, ground):
    tally = try_area(ground, area, EXAMPLES)
    assert tally.broken is None and tally.refused + tally.accepted >= EXAMPLES * area.share


def test_every_case_that_was_found_belongs_to_an_area():
    assert FOUND.keys() <= {area.name for area in AREAS}


def test_whole_files_are_accepted(ground):
    """A judge that refuses everything would prove nothing."""
    names = {area.name: area for area in AREAS}
    for name, case in {
        "configuration": ("seed: 3\n", ["lora_rank=4"]),
        "checkpoint header": {"alpha": "4"},
        "stored configuration": {"seed": 4},
        "embeddings header": {"frames": "8"},
        "tensors": ("run", "half", 0, False),
        "damaged files": ("clip.mp4", (1.0, [])),
        "training state": [],
        "conversion": ({"lora_alpha": 4}, "ours"),
        "model folder": ("unet/config.json", '{"norm_num_groups": 2}'),
        "clip lists": ("list.json", '[{"video": "clip.mp4", "prompt": "x"}]'),
        "prompts": "a horse",
        "flags": [("--num-steps", "3")],
        "sidecars": '{"prompt": "x", "seed": 1}',
    }.items():
        assert ground.judge(names[name].attempt, case), name


def leak(ground, _):
    print(os.environ[SECRET])


def write_secret(ground, _):
    (ground.out / "x").write_text(os.environ[SECRET])


def write_outside(ground, _):
    (ground.work / "executed").touch()


def write_and_refuse(ground, _):
    (ground.out / "x").touch()
    raise UserError("no")


def leave_half(ground, _):
    (ground.out / ".x.abcdef-1.part").touch()


def crash(ground, _):
    raise KeyError("x")


def leave(ground, _):
    raise SystemExit(2)


def colour(ground, _):
    print("\x1b[31m")


def spin(ground, _):
    began = time.process_time()
    while time.process_time() - began < 0.2:
        pass


@pytest.mark.parametrize(
    "attempt",
    [leak, write_secret, write_outside, write_and_refuse, leave_half, crash, leave, colour, spin],
    ids=lambda f: f.__name__,
)
def test_the_judge_sees_each_breach(attempt, ground, monkeypatch):
    monkeypatch.setattr("scripts.fuzzing.ground.MOST_SECONDS", 0.1 if attempt is spin else 10)
    with pytest.raises(Broken):
        ground.judge(attempt, None)
    tally = try_area(ground, Area("x", plain, attempt), 3)
    assert tally.broken is not None


def test_a_wrong_result_is_a_breach(ground):
    def wrong(ground, case):
        assert case is None, "not right"

    assert try_area(ground, Area("x", plain, wrong), 20).broken[1].startswith("a wrong result: not right")


def test_the_command_ends_once_every_area_that_was_asked_for_is_broken(monkeypatch, capsys):
    monkeypatch.setattr(trial, "try_area", lambda *_: trial.Tally(1, 0, ("case", "no")))
    monkeypatch.setattr("scripts.fuzzing.ground.Ground", lambda: SimpleNamespace(close=lambda: None))
    began = time.monotonic()
    with pytest.raises(SystemExit) as stopped:
        fuzz.main(["--minutes", "0.05", "--area", "prompts", "--area", "sidecars"])
    result = json.loads(capsys.readouterr().out)
    assert stopped.value.code == 1 and result["broken"].keys() == {"prompts", "sidecars"} and result["seeds"] == [0, 0]
    assert time.monotonic() - began < 3


def test_the_command_counts_and_ends_in_json():
    words = [sys.executable, "scripts/fuzz.py", "--minutes", "0", "--area", "prompts", "--area", "sidecars"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and result["broken"] == {} and result["cases"] >= 40
    wrong = subprocess.run([*words, "--area", "x"], cwd=ROOT, capture_output=True, text=True)
    assert wrong.returncode == 2 and "there are configuration" in wrong.stderr
