"""What only a CUDA device, or the real ZeroScope weights, can show. Each test skips itself with a reason."""

import json
import subprocess
import sys

import pytest
import torch

import train
from infer import options
from infer.generate import generate
from infer.video import read_video

from conftest import ROOT

ZEROSCOPE = ROOT / "models/zeroscope_v2_576w"
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
needs_weights = pytest.mark.skipif(
    not ZEROSCOPE.is_dir(), reason=f"no ZeroScope weights in {ZEROSCOPE.relative_to(ROOT)}"
)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_and_sampling_run_on_cuda(tiny_config, tmp_path, precision):
    folder = train.run(tiny_config(device="cuda", mixed_precision=precision, gradient_checkpointing=True))
    (video,) = generate(options.parse(["-cf", str(folder), "-p", "a horse", "-r", "1", "-o", str(tmp_path / "out")]))
    assert read_video(video).shape == (4, 3, 64, 64)


@pytest.mark.gpu
@needs_gpu
def test_a_seed_gives_nearly_the_same_video_on_cuda_and_cpu(tiny_config, tmp_path):
    folder = train.run(tiny_config())
    videos = []
    for device in ("cpu", "cuda"):
        words = [
            "-cf",
            str(folder),
            "-p",
            "a horse",
            "-r",
            "1",
            "-o",
            str(tmp_path / device),
            "-d",
            device,
            "--precision",
            "no",
            "--quality",
            "10",
        ]
        videos += [read_video(path).int() for path in generate(options.parse(words))]
    assert (videos[0] - videos[1]).abs().float().mean() < 1


@pytest.mark.gpu
@needs_gpu
def test_zeroscope_trains_in_eight_gigabytes():
    """The full architecture with random weights, 16 frames of 384x384: the measured peak, not the counted one."""
    done = subprocess.run(
        [sys.executable, "scripts/bench.py", "--model", "zeroscope"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["peak_bytes"] < 8e9


@pytest.mark.gpu
@pytest.mark.weights
@needs_gpu
@needs_weights
def test_zeroscope_learns_and_samples(tmp_path):
    from configs.schema import load

    cfg, _ = load(
        [
            "--config",
            str(ROOT / "configs/car.yaml"),
            f"output_dir={tmp_path}",
            "max_train_steps=2",
            "inversion_steps=5",
            "validation_data.sample_preview=false",
        ],
        description="",
    )
    folder = train.run(cfg)
    (video,) = generate(
        options.parse(["-cf", str(folder), "-p", "a horse runs", "-r", "1", "-s", "3", "-o", str(tmp_path)])
    )
    assert read_video(video).shape == (16, 3, 384, 384)
