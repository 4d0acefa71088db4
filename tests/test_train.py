import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

import train
from configs import files
from configs.errors import UserError
from configs.schema import to_yaml
from infer.video import read_video
from models import methods
from models.backbone import Backbone
from models.files.checkpoint import list_checkpoints, load_checkpoint
from models.files.training_state import load_training_state
from models.training import objective
from models.training.journal import memory_gb
from models.training.optimizer import MOST_SKIPPED, DualPathOptimizer, NotFinite

from conftest import ROOT


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


def test_a_run_leaves_everything_a_person_needs(tiny_config, tmp_path):
    done = command(tiny_config(checkpointing_steps=1, validation_steps=2), tmp_path)
    assert done.returncode == 0, done.stderr
    folder = type(tmp_path)(done.stdout.strip())
    assert done.stdout.count("\n") == 1 and folder.is_dir(), "stdout is one line, the run folder"
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
    assert "tap: 68 layers, 17 temporal transformers" in done.stderr
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


def test_a_loss_that_is_not_finite_stops_with_step_and_timestep(tiny_config, tmp_path):
    done = command(
        tiny_config(learning_rate=1e30, max_train_steps=20, validation_data={"sample_preview": False}), tmp_path
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "loss is nan at step" in done.stderr and "timestep" in done.stderr


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
    folder = train.run(tiny_config(max_train_steps=1))
    (folder / "log.jsonl").unlink()  # no reason to stop
    train.run(tiny_config(max_train_steps=2, resume_from_checkpoint=str(folder), learning_rate=0.25))
    assert "changed since the checkpoint: learning_rate 0.0005 → 0.25" in capsys.readouterr().err
    stored = (folder / "config.yaml").read_text()
    assert train.run(tiny_config(max_train_steps=1, resume_from_checkpoint=str(folder))) == folder
    assert "nothing is left to do: 2 of 1 steps" in capsys.readouterr().err
    assert (folder / "config.yaml").read_text() == stored


def test_a_resumed_run_takes_its_rates_from_its_own_configuration(tiny_config):
    method = SimpleNamespace(p=[torch.nn.Parameter(torch.ones(2))])
    made = []
    for rate, precision in ((1.0, False), (1e-3, True)):
        cfg = tiny_config(learning_rate=rate, lr_scheduler="linear", max_train_steps=10, adam_beta1=0.5 + rate / 10)
        made.append(DualPathOptimizer(cfg, method.p, [], motion_lr=rate, half=precision, device=torch.device("cpu")))
    first, second = made
    for _ in range(4):
        method.p[0].grad = torch.ones(2)
        first.step()
    second.load_state_dict(first.state_dict())  # from a run without a loss scale into one with it
    (group,) = second.optimizers[0].param_groups
    assert group["lr"] == pytest.approx(1e-3 * 0.6) == second.learning_rate and group["betas"][0] == pytest.approx(
        0.5001
    )
    assert second.scaler.get_scale() > 1


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
        read_video(
            next((train.run(tiny_config(**quick, learning_rate=rate, pli_threshold=tau)) / "previews").rglob("*.mp4"))
        )
        for rate, tau in ((1e-6, 999), (0.5, 999), (0.5, None))
    )
    assert torch.equal(slow, fast) and not torch.equal(fast, adapted)


def test_dry_run_tells_and_writes_nothing(tiny_config, tmp_path):
    done = command(tiny_config(), tmp_path, "--dry-run")
    assert done.returncode == 0, done.stderr
    for told in (
        "lora_rank: 4",
        "tap: 68 layers",
        "skip from down_blocks.2.attentions.1, x1.1",
        "GB for a training step",
    ):
        assert told in done.stdout
    assert not (tmp_path / "train").exists() and not (tmp_path / "cache").exists()


def test_images_train_the_looks_only(tiny_config, tmp_path):
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
    of_video, of_image = load_checkpoint(folder).appearance
    assert any(t.any() for name, t in of_image.items() if "lora_B" in name)
    assert not any(t.any() for name, t in of_video.items() if "lora_B" in name)


@pytest.fixture(scope="module")
def backbone(tiny_pipeline):
    return Backbone.load(tiny_pipeline)


def gradients(parameters):
    return [None if p.grad is None else p.grad.clone() for p in parameters]


def test_each_pass_trains_its_own_adapter_only(backbone, tiny_config):
    method = methods.attach(backbone.unet, tiny_config(lora_unet_dropout=0.0), clips=2, latent_size=(4, 8, 8))
    generator = torch.Generator().manual_seed(0)
    for p in (*method.motion_parameters, *method.appearance_parameters):
        p.data += 0.05 * torch.randn(p.shape, generator=generator)  # away from up = 0, where some gradients vanish
    latents, text = torch.randn(1, 4, 4, 8, 8, generator=generator), torch.randn(1, 6, 32, generator=generator)
    draw = objective.draw(0, 1, latents, spatial_probability=1.0)
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
        plain = fresh.unet(z, 500, text).sample
        method = methods.attach(
            fresh.unet, tiny_config(appearance_highway={"use": "off"}), clips=1, latent_size=(4, 8, 8)
        )
        assert torch.equal(fresh.unet(z, 500, text).sample, plain)
        with method.temporal_pass(0, with_appearance=True), method.sampling():
            assert torch.equal(fresh.unet(z, 500, text).sample, plain)


def test_every_clip_comes_once_in_an_epoch():
    orders = [[objective.clip_order(7, 5 * epoch + i, 5) for i in range(5)] for epoch in range(4)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders) and len(set(map(tuple, orders))) > 1


def test_the_scheduler_decides_what_is_predicted():
    z, noise, t = torch.randn(1, 4, 2, 8, 8), torch.randn(1, 4, 2, 8, 8), torch.tensor([300])
    assert objective.target(DDIMScheduler(), z, noise, t) is noise
    velocity = objective.target(DDIMScheduler(prediction_type="v_prediction"), z, noise, t)
    assert not torch.equal(velocity, noise)


def records(folder):
    return list(map(json.loads, (folder / "log.jsonl").read_text().splitlines()))


def test_the_log_tells_the_gradient_norm_of_each_path_and_the_memory(tiny_config):
    quick = dict(spatial_path_probability=1.0, validation_data={"sample_preview": False})
    first, second = records(train.run(tiny_config(**quick)))
    for record in (first, second):
        assert record["grad_norm_motion"] > 0 and record["grad_norm_appearance"] > 0 and record["memory_gb"] > 0.05
        assert "fp16_scale" not in record
    (clipped, _) = records(train.run(tiny_config(**quick, max_grad_norm=1e-9)))
    assert clipped["grad_norm_motion"] == first["grad_norm_motion"], "before clipping"
    (without, _) = records(train.run(tiny_config(**{**quick, "spatial_path_probability": 0.0})))
    assert "grad_norm_appearance" not in without


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move(tiny_config, monkeypatch):
    """A finite loss says nothing of its gradient: one infinite number there would make every weight nan."""
    step, methods_seen = train.training_step, []

    def overflowing(predict, scheduler, method, *args, **kwargs):
        losses = step(predict, scheduler, method, *args, **kwargs)
        methods_seen.append(method)
        if len(methods_seen) == 2:
            method.motion_parameters[0].grad[0, 0] = float("inf")
        return losses

    monkeypatch.setattr(train, "training_step", overflowing)
    with pytest.raises(UserError, match="the motion path's gradient is inf at step 2, timestep .*no weight was moved"):
        train.run(tiny_config(checkpointing_steps=1, spatial_path_probability=1.0))
    method = methods_seen[0]
    (folder,) = type(ROOT)(tiny_config().output_dir).iterdir()
    assert list(list_checkpoints(folder)) == [1]
    kept, (motion, (appearance,)) = load_checkpoint(folder, 1), method.state()
    assert all(torch.equal(kept.motion[name], motion[name]) for name in motion)
    assert all(torch.equal(kept.appearance[0][name], appearance[name]) for name in appearance), "the other path, too"


@pytest.fixture
def overflowing(monkeypatch):
    """fp16's loss scale on a CPU, whose frozen model is fp32, and motion gradients that overflow in given steps."""
    step = train.training_step

    def overflow(*steps, scale=2.0**16):
        made = []

        def make(*args, half, **kwargs):
            made.append(DualPathOptimizer(*args, half=True, **kwargs))
            made[0].scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
            made[0].scaler.scale(torch.zeros(1))
            return made[0]

        def run(predict, scheduler, method, *args, **kwargs):
            losses = step(predict, scheduler, method, *args, **kwargs)
            if made[0].schedules[0].last_epoch + 1 in steps:
                method.motion_parameters[0].grad[0, 0] = float("inf")
            return losses

        monkeypatch.setattr(train, "DualPathOptimizer", make)
        monkeypatch.setattr(train, "training_step", run)

    return overflow


SCALED = dict(checkpointing_steps=1, spatial_path_probability=0.0, validation_data={"sample_preview": False})


def test_a_skipped_step_of_fp16_is_logged_and_moves_nothing(tiny_config, overflowing):
    overflowing(2)
    folder = train.run(tiny_config(**SCALED, max_train_steps=3))
    logged = records(folder)
    assert [record["fp16_skipped"] for record in logged] == [False, True, False]
    assert [record["fp16_scale"] for record in logged] == [2.0**16, 2.0**15, 2.0**15]
    assert [record["grad_norm_motion"] is None for record in logged] == [False, True, False]
    first, second, third = (weights(folder, step) for step in (1, 2, 3))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(third[name], second[name]) for name in first)


def test_a_run_whose_every_step_is_skipped_stops_with_a_sentence(tiny_config, overflowing):
    overflowing(1, 2)
    with pytest.raises(UserError, match="gradient overflowed fp16 in every step.*at step 2"):
        train.run(tiny_config(**SCALED, max_train_steps=2))


def test_twenty_skipped_steps_in_a_row_are_an_error(tiny_config):
    p = torch.nn.Parameter(torch.ones(2))
    optimizer = DualPathOptimizer(tiny_config(), [p], [], motion_lr=0.1, half=True, device=torch.device("cpu"))
    for _ in range(MOST_SKIPPED - 1):
        p.grad = torch.full((2,), float("inf"))
        assert optimizer.step().skipped
    p.grad = torch.full((2,), float("inf"))
    with pytest.raises(NotFinite, match="in each of 20 steps, down to a loss scale of 0.125"):
        optimizer.step()
    assert torch.equal(p, torch.ones(2))


def test_fp16s_scale_and_its_growth_survive_a_resume(tiny_config, overflowing):
    overflowing(2)
    whole = train.run(tiny_config(**SCALED, max_train_steps=5))
    overflowing(2, scale=1.0)  # what the checkpoint holds is believed, not this
    words = dict(max_train_steps=5, resume_from_checkpoint=str(whole / "checkpoint-3"))
    resumed = train.run(tiny_config(**SCALED, **words))
    scales = [record["fp16_scale"] for record in records(whole)]
    assert scales == [2.0**16, 2.0**15, 2.0**15, 2.0**15, 2.0**16] == [r["fp16_scale"] for r in records(resumed)]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole, 5).values(), weights(resumed, 5).values()))


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


def test_what_a_killed_run_left_half_written_is_cleared_away(tiny_config):
    quick = dict(validation_data={"sample_preview": False})
    folder = train.run(tiny_config(**quick, max_train_steps=1))
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive = (folder / f".checkpoint-9.{files._place()}-{pid}.part" for pid in (ended.pid, os.getpid()))
    for part in (dead, alive):
        part.mkdir()
        (part / "adapter").write_bytes(b"half")
    train.run(tiny_config(**quick, max_train_steps=2, resume_from_checkpoint=str(folder)))
    assert not dead.exists() and alive.exists()


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
    monkeypatch.setattr(Backbone, "load", lambda *args: remember(load(*args)))

    def remember(backbone):
        layers.extend(map(weakref.ref, backbone.unet.modules()))
        return backbone

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
