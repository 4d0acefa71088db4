import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import train
from configs.errors import UserError
from configs.schema import to_yaml
from data.cache import read_folder
from infer.video import read_frames
from models import methods, schedule
from models.backbone import Backbone
from models.files.checkpoint import list_checkpoints, load_checkpoint
from models.files.training_state import load_training_state
from models.training import objective, steps

from conftest import ROOT


@pytest.fixture
def main(tmp_path, monkeypatch, capfd):
    """train.py's own main with a configuration, in this process: (lines of stdout, stderr)."""

    def call(config, *words):
        path = tmp_path / "config.yaml"
        path.write_text(to_yaml(config))
        monkeypatch.setattr(sys, "argv", ["train.py", "--config", str(path), *words])
        train.main()
        printed = capfd.readouterr()
        return printed.out.splitlines(), printed.err

    return call


def command(config, tmp_path, *words, **options):
    """train.py in a process of its own, as a person runs it."""
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config))
    return subprocess.run(
        [sys.executable, "train.py", "--config", str(path), *words],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=300,
        **options,
    )


def weights(folder, step):
    found = load_checkpoint(folder, step)
    return {**found.motion, **{f"{i}.{k}": v for i, s in enumerate(found.appearance) for k, v in s.items()}}


def losses(folder):
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return {r["step"]: {k: v for k, v in r.items() if k.startswith("loss_")} for r in lines}


def test_a_run_leaves_everything_a_person_needs(tiny_config, tmp_path, main):
    (line,), printed = main(tiny_config(checkpointing_steps=1, validation_steps=2))  # stdout is one line
    folder = type(tmp_path)(line)
    assert folder.is_dir()
    assert list(list_checkpoints(folder)) == [1, 2]
    for name in (
        "config.yaml",
        "log.jsonl",
        "loss.png",
        "cached_latents/cached_0.safetensors",
        "previews/step-2/a_horse_is_running.mp4",
        "previews/step-2/sheet.png",
    ):
        assert (folder / name).stat().st_size > 0, name
    assert "tap: 68 layers, 17 temporal transformers" in printed
    assert load_checkpoint(folder, 2).config["train_data"]["single_video_prompt"] == "a car is running"


def test_ten_steps_are_five_steps_and_five_more_in_a_new_process(tiny_config, tmp_path):
    """Dropout, clip order, optimizer moments and schedule included: weights and losses are equal to the bit."""
    settings = dict(
        checkpointing_steps=5,
        lr_scheduler="cosine",
        lr_warmup_steps=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
        validation_data={"sample_preview": False},
        max_train_steps=10,
    )
    whole = train.run(tiny_config(**settings, output_dir=str(tmp_path / "whole")))
    kept = (whole / "log.jsonl").read_text(), weights(whole, 10)
    done = command(
        tiny_config(**settings),
        tmp_path,
        f"resume_from_checkpoint={whole}/checkpoint-5",
        f"output_dir={tmp_path / 'again'}",
    )
    assert done.returncode == 0, done.stderr
    resumed = type(tmp_path)(done.stdout.strip())
    assert resumed.parent.name == "again", "an earlier checkpoint starts a folder of its own"
    assert losses(whole) == losses(resumed) and list(losses(whole)) == list(range(1, 11))
    a, b = weights(whole, 10), weights(resumed, 10)
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert (whole / "log.jsonl").read_text() == kept[0] and all(torch.equal(a[n], kept[1][n]) for n in a), (
        "nothing lost"
    )


def test_a_caption_reaches_the_terminal_without_its_control_characters(tiny_config, capsys):
    quick = dict(max_train_steps=1, validation_data={"sample_preview": False})
    train.run(tiny_config(**quick, train_data={"single_video_prompt": "a\x1b[31m ramp"}))
    told = capsys.readouterr().err
    assert "clip 0: " in told and "frames 0.." in told and "[31m ramp" in told and "\x1b[31m" not in told


def test_latest_finds_the_last_run_and_the_same_command_goes_on(tiny_config, tmp_path):
    first = train.run(tiny_config(checkpointing_steps=1, max_train_steps=1))
    second = train.run(tiny_config(checkpointing_steps=1, max_train_steps=3, resume_from_checkpoint="latest"))
    assert second == first and list(list_checkpoints(first)) == [1, 2, 3]
    assert list(losses(first)) == [1, 2, 3]


def test_a_signal_saves_and_says_how_to_go_on(tiny_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config(max_train_steps=500)))
    process = subprocess.Popen(
        [sys.executable, "train.py", "--config", str(path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    logs = tmp_path / "train"
    deadline = time.time() + 120
    while not any(p.stat().st_size for p in logs.glob("*/log.jsonl")) and time.time() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    (folder,) = logs.iterdir()
    assert process.returncode == 128 + signal.SIGTERM and stdout == ""
    assert f"resume_from_checkpoint={folder}" in stderr and "Traceback" not in stderr
    (step,) = list_checkpoints(folder)
    assert load_training_state(folder / f"checkpoint-{step}")["step"] == step == max(losses(folder))


def test_old_checkpoints_are_removed_beyond_the_limit(tiny_config):
    folder = train.run(tiny_config(checkpointing_steps=1, max_train_steps=3, checkpoints_total_limit=2))
    assert list(list_checkpoints(folder)) == [2, 3]


def test_resuming_with_another_preset_is_refused(tiny_config):
    folder = train.run(tiny_config())
    with pytest.raises(UserError, match="trained with temporal_preset tap"):
        train.run(tiny_config(temporal_preset="tap_key", resume_from_checkpoint=str(folder)))


def test_resuming_on_another_clip_or_caption_is_refused_and_nothing_is_lost(tiny_config):
    folder = train.run(tiny_config(max_train_steps=1))
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for data in ({"single_video_prompt": "something else"}, {"sample_start_idx": 3, "frame_step": 2}):
        with pytest.raises(UserError, match="learned from other clips or captions"):
            train.run(tiny_config(max_train_steps=2, resume_from_checkpoint=str(folder), train_data=data))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept


def test_resuming_tells_what_changed_and_when_nothing_is_left(tiny_config, capsys):
    folder = train.run(tiny_config(max_train_steps=1, lr_scheduler="linear"))
    (folder / "log.jsonl").unlink()  # no reason to stop
    resumed = dict(resume_from_checkpoint=str(folder), lr_scheduler="linear")
    train.run(tiny_config(max_train_steps=2, learning_rate=0.25, **resumed))
    printed = capsys.readouterr().err
    assert "changed since the checkpoint: learning_rate 0.0005 → 0.25\n" in printed
    assert "max_train_steps 1 → 2 changes the linear schedule" in printed and "jumps to 0.125 in step 2" in printed
    stored = (folder / "config.yaml").read_text()
    assert train.run(tiny_config(max_train_steps=1, **resumed)) == folder
    printed = capsys.readouterr().err
    assert "nothing is left to do: 2 of 1 steps" in printed and "schedule" not in printed
    assert (folder / "config.yaml").read_text() == stored


def test_the_logged_timestep_is_the_mean_of_all_that_a_step_drew(tiny_config, monkeypatch):
    drawn, real = [], train.training_step
    monkeypatch.setattr(train, "training_step", lambda *a, **k: drawn.append(a[5].timestep.tolist()) or real(*a, **k))
    folder = train.run(
        tiny_config(
            max_train_steps=1,
            timesteps_per_step=2,
            gradient_accumulation_steps=2,
            threads=1,
            validation_data={"sample_preview": False},
        )
    )
    (record,) = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    assert len(set(sum(drawn, []))) > 2 and record["timestep"] == sum(sum(drawn, [])) / 4


def test_no_prompts_mean_no_previews(tiny_config):
    folder = train.run(tiny_config(validation_steps=1, max_train_steps=1, validation_data={"prompt": []}))
    assert not (folder / "previews").exists()


def test_a_log_cut_short_by_a_crash_does_not_stop_a_resume(tiny_config):
    folder = train.run(tiny_config(max_train_steps=1))
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 2, "loss_tem')
    train.run(tiny_config(max_train_steps=2, resume_from_checkpoint=str(folder)))
    assert list(losses(folder)) == [1, 2]


def test_previews_follow_phased_integration(tiny_config):
    """Above every timestep the preview is the plain model's, whatever the adapters learned."""
    quick = dict(max_train_steps=1, validation_steps=1, validation_data={"noise_prior": 0.0})
    slow, fast, adapted = (
        read_frames(
            next((train.run(tiny_config(**quick, learning_rate=rate, pli_threshold=tau)) / "previews").rglob("*.mp4"))
        )
        for rate, tau in ((1e-6, 999), (0.5, 999), (0.5, None))
    )
    assert torch.equal(slow, fast) and not torch.equal(fast, adapted)


def test_dry_run_tells_and_writes_nothing(tiny_config, tmp_path, main):
    lines, _ = main(tiny_config(), "--dry-run")
    for told in (
        "lora_rank: 4",
        "tap: 68 layers",
        "skip from down_blocks.2.attentions.1, x1.1",
        "GB for a training step",
    ):
        assert told in "\n".join(lines)
    assert not (tmp_path / "train").exists() and not (tmp_path / "cache").exists()


def test_images_train_the_appearance_only(tiny_config, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    iio.imwrite(images / "red.png", np.full((64, 64, 3), (200, 30, 30), np.uint8))
    folder = train.run(
        tiny_config(
            dataset_types=["single_video", "image"],
            max_train_steps=4,
            validation_data={"sample_preview": False},
            train_data={"image_dir": str(images), "single_img_prompt": "a red wall"},
        )
    )
    found = load_checkpoint(folder)
    assert len(found.appearance) == 2, "one appearance adapter per reference"
    assert all(any(t.any() for name, t in state.items() if "lora_B" in name) for state in found.appearance)
    steps = losses(folder).values()
    assert any("loss_temporal" not in step for step in steps) and any("loss_temporal" in step for step in steps)


def test_an_image_runs_the_spatial_pass_even_where_videos_skip_it(tiny_config, tmp_path):
    image = tmp_path / "red.png"
    iio.imwrite(image, np.full((64, 64, 3), (200, 30, 30), np.uint8))
    folder = train.run(
        tiny_config(
            dataset_types=["single_video", "image"],
            spatial_path_probability=0.0,
            validation_data={"sample_preview": False},
            train_data={"image_dir": str(image), "single_img_prompt": "a red wall"},
        )
    )
    assert [clip.inversion is None for clip in read_folder(folder / "cached_latents")] == [False, True]
    of_video, of_image = load_checkpoint(folder).appearance
    assert any(t.any() for name, t in of_image.items() if "lora_B" in name)
    assert not any(t.any() for name, t in of_video.items() if "lora_B" in name)


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return Backbone.load(tiny_pipeline)


def gradients(parameters):
    return [None if p.grad is None else p.grad.clone() for p in parameters]


def test_each_pass_trains_its_own_adapter_only(backbone, tiny_config):
    method = methods.attach(backbone.network, tiny_config(lora_unet_dropout=0.0), clips=2, latent_size=(4, 8, 8))
    generator = torch.Generator().manual_seed(0)
    for p in (*method.motion_parameters, *method.appearance_parameters):
        p.data += 0.05 * torch.randn(p.shape, generator=generator)  # away from up = 0, where some gradients vanish
    latents, text = torch.randn(1, 4, 4, 8, 8, generator=generator), torch.randn(1, 6, 32, generator=generator)
    draw = objective.draw_step(0, 1, latents, spatial_probability=1.0)
    told = train.training_step(backbone.predict, backbone.scheduler, method, latents, text, draw, clip=1)
    first, second = (list(adapter.parameters()) for adapter in method.appearance)
    assert set(told) == {"spatial", "temporal", "debiased"}
    assert all(p.grad is None for p in first), "the other clip's adapter is untouched"
    assert all(p.grad is not None for p in (*second, *method.motion_parameters))

    # the temporal loss reaches the appearance adapter in the forward pass, but leaves no gradient there
    both = gradients(second)
    for p in (*second, *method.motion_parameters):
        p.grad = None
    with method.spatial_pass(1):
        i = slice(draw.frame, draw.frame + 1)
        z_t = backbone.scheduler.add_noise(latents, draw.noise, draw.timestep)
        loss = objective.spatial_loss(backbone.predict(z_t[:, :, i], draw.timestep, text), draw.noise[:, :, i])
        loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(second, both))
    assert all(p.grad is None for p in method.motion_parameters)


def test_an_attached_method_starts_as_the_plain_model(backbone, tiny_config):
    z, text = torch.randn(1, 4, 4, 8, 8), torch.randn(1, 6, 32)
    fresh = Backbone.load(backbone.path)
    with torch.no_grad():
        plain = fresh.network(z, 500, text).sample
        method = methods.attach(
            fresh.network, tiny_config(appearance_highway={"use": "off"}), clips=1, latent_size=(4, 8, 8)
        )
        assert torch.equal(fresh.network(z, 500, text).sample, plain)
        with method.temporal_pass(0, with_appearance=True), method.sampling():
            assert torch.equal(fresh.network(z, 500, text).sample, plain)


def test_every_clip_comes_once_in_an_epoch():
    orders = [[objective.clip_order(7, 5 * epoch + i, 5) for i in range(5)] for epoch in range(4)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders) and len(set(map(tuple, orders))) > 1


def test_the_scheduler_decides_what_is_predicted():
    z, noise, t = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 4, 2, 8, 8), torch.tensor([300])
    assert schedule.target(DDIMScheduler(), z, noise, t) is noise
    velocity = schedule.target(DDIMScheduler(prediction_type="v_prediction"), z, noise, t)
    assert not torch.equal(velocity, noise)


def test_whoever_stops_a_training_does_not_wait_for_previews(tmp_path):
    """The checkpoint is made at once; Slurm's grace period is no time for videos."""
    sampled, saved = [], []
    previews = SimpleNamespace(after=lambda step: sampled.append(step) or {}, thumbnail=lambda step: None)
    journal = SimpleNamespace(log=lambda *_, **__: None, previews=lambda *_: None, pause=lambda: None)
    training = SimpleNamespace(
        cfg=SimpleNamespace(max_train_steps=4, checkpointing_steps=9), method=None, optimizer=None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "save", lambda cfg, method, optimizer, folder, step, previews: saved.append(step))
        for step, stopped in ((2, 0), (3, 2)):
            steps.record(training, tmp_path, journal, previews, step, steps.Done({}, None, 0.1, 1.0, stopped), 0.0)
    assert (sampled, saved) == ([2], [3])
