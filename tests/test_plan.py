"""The lines that come before any cost: one plan for each clip, at the rate that the model will play."""

import importlib.util
import json
import re

import imageio.v3 as iio
import numpy as np
import pytest
import torch

import train
from configs.errors import UserError
from infer.training.plan import check, latent_size_of_clips, plan, playing_rate
from models.training import memory

from conftest import config_of
from scenes import pan


def test_a_dry_run_and_a_run_open_with_the_plan_and_its_warnings(tiny_config, tmp_path, capfd):
    still = tmp_path / "still.mp4"
    iio.imwrite(still, pan(8, step=0), plugin="FFMPEG", fps=8, quality=9, macro_block_size=2)
    cfg = tiny_config(train_data={"single_video_path": str(still)}, max_train_steps=1)
    lines = plan(cfg)
    assert [line.split(":")[0] for line in lines] == ["plan", "warning"] and "hardly any motion" in lines[1]
    assert "\n".join(lines) in train.dry_run(cfg) and not (tmp_path / "train").exists()
    train.run(cfg)
    printed = capfd.readouterr().err
    assert printed.index(lines[1]) < printed.index("clip 0:")


def test_videos_play_as_chosen_else_as_the_model_does(tiny_config):
    cfg = tiny_config()
    assert "train_data.fps" not in cfg.chosen
    assert playing_rate(cfg, {}) == 8 and playing_rate(cfg, {"fps": 5}) == 5
    assert playing_rate(tiny_config(train_data={"fps": 2}), {"fps": 5}) == 2
    assert playing_rate(tiny_config(train_data={"fps": 0}), {}) == 8


def test_the_models_own_size_is_what_a_clip_is_compared_with(tiny_config, tiny_pipeline):
    sampling = tiny_pipeline / "sampling.json"
    sampling.write_text(json.dumps({"width": 128, "height": 128}))
    try:
        assert "4 times fewer pixels than the 128x128" in plan(tiny_config())[1]
    finally:
        sampling.unlink()
    assert len(plan(tiny_config())) == 1


def test_images_cached_clips_and_many_clips(tiny_config, tmp_path, monkeypatch):
    image = tmp_path / "red.png"
    iio.imwrite(image, np.full((64, 64, 3), 90, np.uint8))
    cfg = tiny_config(
        dataset_types=["single_video", "image"], train_data={"image_dir": str(image), "single_img_prompt": "red"}
    )
    told = plan(cfg)
    assert [line.split(": ")[-1] for line in told][1] == "an image, for the appearance alone"
    assert not any("images alone" in line for line in told)
    alone = tiny_config(dataset_types=["image"], train_data=dict(cfg.train_data) | {"single_video_path": None})
    assert plan(alone)[-1].startswith("warning: images alone teach no motion")
    monkeypatch.setattr("infer.training.plan.MOST_CLIPS", 1)
    assert plan(cfg)[1] == "plan: and 1 more, which were not looked at"
    assert "cached in" in plan(tiny_config(cached_latent_dir="somewhere"))[0]


def test_memory_is_counted_for_the_clip_that_is_cached(tiny_config, tiny_wan, clip_file, tmp_path):
    """The sizes of train_data are of no effect then, and need not suit the model."""
    run = train.run(config_of(tiny_wan, clip_file, tmp_path, {"train_data": {"n_sample_frames": 5}}))
    changed = {"cached_latent_dir": str(run / "cached_latents"), "train_data": {"n_sample_frames": 9, "width": 128}}
    cfg = config_of(tiny_wan, clip_file, tmp_path, changed)
    assert latent_size_of_clips(cfg) == (2, 8, 8) and "memory      " in train.dry_run(cfg)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [("output_dir", "/proc/x", "name another folder"), ("report_to", "wandb", "report_to: wandb is not installed")],
)
def test_a_dry_run_refuses_what_a_run_refuses(key, value, sentence, tiny_config, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    for call in (train.run, train.dry_run):
        with pytest.raises(UserError, match=sentence):
            call(tiny_config(**{key: value}))


def test_a_models_default_that_contradicts_what_was_chosen_is_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(train.backbones.unet3d, "defaults", lambda model: {"min_timestep": 875})  # as Wan 2.2's
    for call in (train.run, train.dry_run):
        with pytest.raises(UserError, match="^min_timestep: 875 is above max_timestep 500"):
            call(tiny_config(max_timestep=500))


def test_a_dry_run_on_a_cpu_says_what_a_gpu_would_need(tiny_config):
    """It is often made on a laptop, for the card of tomorrow; a GPU holds the frozen model in half of the bytes."""
    counted = {}
    for precision in ("no", "fp16"):
        told = train.dry_run(tiny_config(mixed_precision=precision, device="cpu"))
        counted[precision] = re.findall(r"^(memory     |on a GPU   ) (\d+\.\d+ GB .*)$", told, re.MULTILINE)
    assert [place for place, _ in counted["no"]] == ["memory     "], "a GPU would need the same"
    (_, here), (place, there) = counted["fp16"]
    assert here == counted["no"][0][1] and place == "on a GPU   " and there.endswith(", in fp16") and here not in there


def test_a_dry_run_counts_single_frames_for_images_and_the_state_of_the_optimizer(tiny_config, tmp_path, monkeypatch):
    image = tmp_path / "red.png"
    iio.imwrite(image, np.full((64, 64, 3), 90, np.uint8))
    given, real = [], memory.training_bytes
    monkeypatch.setattr(memory, "training_bytes", lambda *words: given.append(real(*words)) or given[-1])
    data = {"image_dir": str(image), "single_img_prompt": "red"}
    images = dict(dataset_types=["image"], train_data=data, optimizer="prodigy", learning_rate=1.0)
    for cfg in (tiny_config(), tiny_config(**images)):
        monkeypatch.setattr("infer.training.plan.check_optimizer", lambda cfg: None)  # Prodigy may not be installed
        train.dry_run(cfg)
    videos, images = given
    assert images.activations < videos.activations / 2
    assert 12 * images.trained == 20 * videos.trained


def test_a_clip_that_is_missing_ends_the_dry_run(tiny_config):
    with pytest.raises(UserError, match="no such file"):
        train.dry_run(tiny_config(train_data={"single_video_path": "nowhere.mp4"}))


def test_more_sequences_than_cuda_takes_are_refused_before_anything_is_loaded(tiny_config, monkeypatch):
    many = tiny_config(timesteps_per_step=2, train_data={"width": 2048, "height": 2048})  # 256 x 256 latent pixels each
    check(many)
    monkeypatch.setattr("infer.training.plan.choose_device", lambda asked: torch.device("cuda"))
    with pytest.raises(UserError, match="timesteps_per_step: 2 of 2048 x 2048 are 131,072 sequences .* smaller clips"):
        check(many)
    with pytest.raises(UserError, match="8 of 1024 x 1024 are 131,072 sequences .* use 3 or fewer"):
        check(tiny_config(timesteps_per_step=8, train_data={"width": 1024, "height": 1024}))
