"""All that scripts/bench.py times on one model: training steps, sampling, encoders, inversion and a whole video."""

import statistics
import sys
from contextlib import ExitStack

import torch
from omegaconf import DictConfig

from models.training import memory
from scripts.benchmark.clock import Timing, device_seconds, matmul_rate, median_seconds, timed
from scripts.benchmark.steps import BASELINES, MODELS, Architecture, Step

Numbers = dict[str, float | str | dict | None]


def measure(
    model: str, device: torch.device, *, repeats: int, against: str | None, cfg: DictConfig, video_steps: int
) -> Numbers:
    """The timed numbers of the JSON document; `against` names the baseline to alternate with, if any."""
    architecture = MODELS[model]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    ours = Step(architecture, device, dtype, checkpointing=cfg.gradient_checkpointing, cfg=cfg)
    baseline = BASELINES[against](architecture, device) if against else None
    training = {"baseline": against, **_training(ours, baseline, device, repeats)}
    half = _half_precision(architecture, device, repeats, cfg)
    flop = memory.count_flop_by_dtype(lambda: Step(architecture, "meta", dtype, checkpointing=False).gradients(0))
    rates = {name: matmul_rate(device, getattr(torch, name)) for name in flop}
    at_best = sum(count / rates[name] for name, count in flop.items())
    return {
        "dtype": str(dtype).removeprefix("torch."),
        **training,
        "train_step_fp16_s": half,
        "train_flop": sum(flop.values()),
        "train_flop_by_dtype": flop,
        "matmul_flop_s": rates,
        "train_share": at_best / training["train_step_s"],
        **_sampling(ours, device, dtype, repeats, video_steps),
    }


def _training(ours: Step, baseline: Step | None, device: torch.device, repeats: int) -> Numbers:
    """Steps of both in turn, after one of each that warms up."""
    steps = [step for step in (ours, baseline) if step]
    times: dict[Step, list[Timing]] = {step: [] for step in steps}
    first = {step: timed(lambda step=step: step.train(0), device).wall for step in steps}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(1, repeats + 1):
        for step in steps:
            times[step].append(timed(lambda step=step, number=number: step.train(number), device))
            name = "ours" if step is ours else "baseline"
            print(f"{name} {number}: {times[step][-1].wall:.3f} s", file=sys.stderr)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" and not baseline else None
    ratios = [
        theirs.comparable(device) / mine.comparable(device)
        for theirs, mine in zip(times[baseline] if baseline else [], times[ours])
    ]
    seconds = statistics.median(timing.wall for timing in times[ours])
    return {
        "train_step_s": seconds,
        "compile_s": first[ours] - seconds if ours.cfg.compile != "off" else None,
        "train_host_s": statistics.median(timing.host for timing in times[ours]),
        "train_device_s": device_seconds(lambda: ours.train(repeats + 1), device),
        "peak_bytes": peak,
        "baseline_ratio": statistics.median(ratios) if ratios else None,
    }


def _half_precision(architecture: Architecture, device: torch.device, repeats: int, cfg: DictConfig) -> float | None:
    """Seconds of a training step with the frozen model in fp16; None on a CPU, which emulates it."""
    if device.type == "cpu":
        return None
    step = Step(architecture, device, torch.float16, checkpointing=cfg.gradient_checkpointing, cfg=cfg)
    return median_seconds(lambda: step.train(1), device, repeats)


def _sampling(ours: Step, device: torch.device, dtype: torch.dtype, repeats: int, video_steps: int) -> Numbers:
    """A sampling step, a step of inversion, each encoder, and one video from its prompt to its frames."""
    ours.unet.eval()
    backbone = ours.encoders(dtype)
    side = ours.architecture.side * backbone.vae_factor
    frames = torch.randint(256, (ours.architecture.frames, 3, side, side), dtype=torch.uint8)
    tokens = torch.zeros(1, ours.text.shape[1], dtype=torch.long, device=device)

    def video() -> None:
        for _ in range(2):  # the prompt and the negative prompt
            backbone.text_encoder(tokens)
        backbone.decode_video(ours.sample(video_steps))

    with torch.no_grad(), ExitStack() as stack:
        found = {
            "inversion_step_s": median_seconds(ours.invert, device, repeats),
            "text_encoder_s": median_seconds(lambda: backbone.text_encoder.to(device)(tokens), device, repeats),
            "vae_encode_s": median_seconds(lambda: backbone.encode_video(frames), device, repeats),
            "vae_decode_s": median_seconds(lambda: backbone.decode_video(ours.latents), device, repeats),
        }
        stack.enter_context(ours.method.sampling())
        return {
            "sample_s": median_seconds(ours.sample, device, repeats),
            **found,
            "video_s": timed(video, device).wall,
            "video_steps": video_steps,
        }
