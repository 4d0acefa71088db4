"""A run among others: its folder, what a crash leaves, what stays in memory, and Ctrl-C before it begins."""

import errno
import gc
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
import weakref

import pytest
import torch

import train
from configs import files
from configs.errors import UserError
from models.backbone import Backbone
from models.files.checkpoint import list_checkpoints
from models.training.journal import Journal, memory_gb, read_log
from models.training.optimizer import Moved

from conftest import ROOT


def test_out_of_memory_keeps_the_last_checkpoint(tiny_config, monkeypatch):
    step, calls = train.training_step, []

    def greedy(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(*args, **kwargs)

    monkeypatch.setattr(train, "training_step", greedy)
    with pytest.raises(torch.OutOfMemoryError):  # one sentence in configs/errors.py
        train.run(tiny_config(checkpointing_steps=1, max_train_steps=5))
    (folder,) = type(ROOT)(tiny_config().output_dir).iterdir()
    monkeypatch.undo()
    assert list(list_checkpoints(folder)) == [1, 2]
    train.run(tiny_config(max_train_steps=3, resume_from_checkpoint=str(folder)))


def test_nothing_is_encoded_when_everything_is_cached(tiny_config, monkeypatch):
    quick = dict(max_train_steps=1, validation_data={"sample_preview": False})
    asked, real = [], Backbone.encode_text
    monkeypatch.setattr(Backbone, "encode_text", lambda self, prompts: asked.extend(prompts) or real(self, prompts))
    train.run(tiny_config(**quick))
    assert sorted(asked) == ["", "a car is running"]
    train.run(tiny_config(**quick))
    assert len(asked) == 2


def test_runs_of_one_moment_get_folders_of_their_own(tiny_config, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "train_now")
    quick = dict(max_train_steps=1, validation_data={"sample_preview": False})
    folders = [train.run(tiny_config(**quick)).name for _ in range(2)]
    assert folders == ["train_now", "train_now-2"]


def test_a_last_checkpoint_named_from_inside_its_run_goes_on_there(tiny_config, monkeypatch):
    quick = dict(checkpointing_steps=1, validation_data={"sample_preview": False})
    folder = train.run(tiny_config(**quick, max_train_steps=1))
    monkeypatch.chdir(folder)
    again = train.run(tiny_config(**quick, max_train_steps=2, resume_from_checkpoint="checkpoint-1"))
    assert again == folder.resolve() and list(list_checkpoints(folder)) == [1, 2]


def test_what_a_killed_run_left_half_written_is_cleared_away(tiny_config):
    quick = dict(validation_data={"sample_preview": False})
    folder = train.run(tiny_config(**quick, max_train_steps=1))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = (folder / f".checkpoint-9.{files._place()}-{pid}.part" for pid in (ended.pid, os.getpid()))
    for part in (dead, alive):
        part.mkdir()
        (part / "adapter").write_bytes(b"half")
    early = folder.with_name("train_killed_before_its_first_checkpoint") / "cached_latents" / dead.name
    early.mkdir(parents=True)
    train.run(tiny_config(**quick, max_train_steps=2, resume_from_checkpoint=str(folder)))
    assert not dead.exists() and not early.exists() and alive.exists()


def test_a_disk_that_is_full_from_the_start_leaves_no_cut_configuration(tiny_config, monkeypatch):
    real = files.Path.write_text

    def half(path, text, *how, **named):
        real(path, text[: len(text) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.Path, "write_text", half)
    with pytest.raises(files.NoSpace, match="config.yaml"):
        train.run(tiny_config())
    (folder,) = type(ROOT)(tiny_config().output_dir).iterdir()
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"prediction_type": "sample"}, {"num_train_timesteps": 500}])
def test_a_scheduler_that_cannot_be_trained_with_is_refused_before_anything_is_made(
    tiny_config, tiny_pipeline, tmp_path, monkeypatch, wrong
):
    monkeypatch.setattr("models.backbone.check_pipeline", lambda _: None)  # which looks at folders, not at a hub's
    model = shutil.copytree(tiny_pipeline, tmp_path / "model")
    file = model / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(UserError, match=next(iter(wrong)).removeprefix("num_train_")):
        train.run(tiny_config(pretrained_model_path=str(model)))
    assert not list((tmp_path / "train").glob("*")) and not list((tmp_path / "cache").glob("*"))


def test_ctrl_c_in_the_imports_is_one_line(tmp_path):
    """Whatever is slow is imported inside the command."""
    script = """
import builtins, runpy, sys
real = builtins.__import__
def stop(name, *args, **kwargs):
    if name == "torch":
        raise KeyboardInterrupt
    return real(name, *args, **kwargs)
builtins.__import__ = stop
sys.argv = ["train.py", "--config", "configs/quickstart.yaml"]
runpy.run_path("train.py", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, timeout=60, env={**os.environ}
    )
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_trained_model_is_freed_with_its_last_name(tiny_config, monkeypatch, checkpointing):
    layers, load = [], Backbone.load
    monkeypatch.setattr(Backbone, "load", lambda *args, **kwargs: remember(load(*args, **kwargs)))

    def remember(backbone):
        layers.extend(map(weakref.ref, backbone.network.modules()))
        return backbone

    importlib.import_module("matplotlib.figure")  # its first import leaves a cycle that holds the frames above it
    gc.collect()
    gc.disable()
    try:
        train.run(tiny_config(gradient_checkpointing=checkpointing, appearance_highway={"use": "training"}))
        assert len(layers) > 1000 and sum(layer() is not None for layer in layers) == 0
    finally:
        gc.enable()


def test_memory_on_cuda_is_the_peak_since_the_last_record(monkeypatch):
    reset = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3e9 - 1e9 * len(reset))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset.append)
    assert [memory_gb(torch.device("cuda")) for _ in range(2)] == [3.0, 2.0] and len(reset) == 2


def test_what_a_preview_needed_is_not_the_next_steps_memory(tmp_path, monkeypatch):
    peak = {"bytes": 0.0}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak["bytes"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update(bytes=0.0))
    journal = Journal(tmp_path, 0, 2, torch.device("cuda"))
    for step in (1, 2):
        peak["bytes"] = max(peak["bytes"], 5e9)
        journal.log(step, {"temporal": 1.0}, Moved({}, None, False), timestep=1.0, learning_rate=1.0)
        peak["bytes"] = 9e9  # the preview
        journal.pause()
    assert [record["memory_gb"] for record in read_log(journal.file)] == [5.0, 5.0]
    journal.close()
