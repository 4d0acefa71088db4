"""Trackers: what reaches them, that nothing leaves the machine unasked, and what is said of one that is absent."""

import importlib.util
import io
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
from accelerate import PartialState
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from configs.errors import UserError
from models.training.trackers import Tracker, check_tracker, start_tracker


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "car.mp4"
    frames = np.arange(4 * 16 * 16 * 3, dtype=np.uint8).reshape(4, 16, 16, 3)
    iio.imwrite(path, frames, plugin="FFMPEG", fps=8, macro_block_size=2)
    return path


def test_tensorboard_gets_losses_norms_rates_and_previews_that_play(tiny_config):
    cfg = tiny_config(report_to="tensorboard", max_train_steps=2, validation_steps=2)
    run = train.run(cfg)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    curves = {"loss/spatial", "loss/temporal", "loss/debiased", "grad_norm/motion", "grad_norm/appearance"}
    assert set(events.Tags()["scalars"]) >= curves | {"lr", "seconds", "memory_gb"} - {"loss/spatial"}
    assert [event.step for event in events.Scalars("loss/temporal")] == [1, 2]
    assert events.Scalars("lr")[0].value == pytest.approx(cfg.learning_rate)
    (image,) = events.Images("preview/a horse is running")
    playing = Image.open(io.BytesIO(image.encoded_image_string))
    assert image.step == 2 and playing.n_frames == 4 and playing.size == (64, 64)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_an_absent_tracker_is_refused_before_anything_is_loaded(name, tiny_config, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else found(asked))
    with pytest.raises(UserError, match=f"report_to: {name} is not installed; `pip install {name}`"):
        train.run(tiny_config(report_to=name, pretrained_model_path="nowhere"))
    assert not (tmp_path / "train").exists()
    check_tracker("none")


@pytest.fixture
def pretended(monkeypatch):
    """Modules in the place of wandb and trackio that keep what they are given."""
    PartialState()

    def make(name, fails=False):
        module, kept = ModuleType(name), []

        def init(**given):
            if fails:
                raise ConnectionError("no account\nis known")
            kept.append(given)
            return SimpleNamespace(
                log=lambda values, step: kept.append((step, values)), finish=lambda: kept.append("end")
            )

        module.__spec__, module.init = ModuleSpec(name, None), init
        module.Video = lambda path, format: ("video", path, format)
        module.config = SimpleNamespace(update=lambda values, **_: kept.append(values))
        monkeypatch.setitem(sys.modules, name, module)
        return kept

    return make


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_get_the_same_through_their_own_module(name, pretended, video, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    kept = pretended(name)
    tracker = start_tracker(name, tmp_path, {"seed": 3}, done=0)
    tracker.log(1, {"loss/temporal": 0.5})
    tracker.videos(1, {"a car": video})
    tracker.close()
    opened, config, *rest = kept
    assert opened["name"] == tmp_path.name and config == {"seed": 3}
    assert opened.get("mode") == ("offline" if name == "wandb" else None)
    assert rest == [(1, {"loss/temporal": 0.5}), (1, {"preview/a car": ("video", str(video), "mp4")}), "end"]
    monkeypatch.setenv("WANDB_MODE", "online")
    start_tracker(name, tmp_path, {}, done=0)
    assert kept[-2].get("mode") == ("online" if name == "wandb" else None)


def test_a_tracker_that_does_not_start_ends_in_one_sentence(pretended, tmp_path):
    pretended("wandb", fails=True)
    with pytest.raises(UserError, match="report_to: wandb cannot be started .no account is known.; set it up"):
        start_tracker("wandb", tmp_path, {}, done=0)


def test_a_tracker_that_does_not_finish_is_a_note_after_the_error_that_ended_the_training(
    pretended, tiny_config, monkeypatch, capsys
):
    pretended("wandb")
    monkeypatch.setattr(Tracker, "log", lambda *_: (_ for _ in ()).throw(KeyError("the first error")))
    monkeypatch.setattr("accelerate.tracking.WandBTracker.finish", lambda self: 1 / 0)
    with pytest.raises(KeyError, match="the first error"):
        train.run(tiny_config(report_to="wandb", max_train_steps=1, validation_data={"sample_preview": False}))
    printed = capsys.readouterr().err
    assert "note: report_to: wandb did not finish (division by zero)" in printed
    assert "loss plot: " in printed


def test_a_tracker_that_fails_under_way_is_one_note_and_the_training_goes_on(
    pretended, tiny_config, monkeypatch, capsys
):
    pretended("wandb")
    asked = []
    monkeypatch.setattr("accelerate.tracking.WandBTracker.log", lambda self, *_, **__: asked.append(1) or 1 / 0)
    run = train.run(tiny_config(report_to="wandb", max_train_steps=2, validation_data={"sample_preview": False}))
    assert (run / "checkpoint-2").is_dir() and len(asked) == 1
    assert capsys.readouterr().err.count("note: report_to: wandb stopped (division by zero); log.jsonl holds") == 1


def test_the_old_key_for_trackers_means_the_new_one(tiny_config, capsys):
    assert tiny_config().report_to == "none" and tiny_config(logger="none").report_to == "none"
    assert tiny_config(logger="tensorboard").report_to == "tensorboard"
    assert tiny_config(logger=False).report_to == tiny_config(report_to=False).report_to == "none"
    assert "report_to names it" in capsys.readouterr().err
