"""All that scripts/bench.py times on one model: training steps, sampling, encoders, inversion and a whole video."""

import statistics
import time

import torch
from omegaconf import DictConfig

from models.backbone import allow_tf32
from models.threads import use_threads
from scripts.benchmark.clock import (
    Numbered,
    Timing,
    alternated,
    device_name,
    device_seconds,
    matmul_rate,
    median_seconds,
    median_timing,
    peak_bytes,
    ratio,
    timed,
)
from scripts.benchmark.steps import BASELINES, MODELS, Architecture, Step, count_flop

Numbers = dict[str, float | str | dict | None]


def measure(
    model: str, device: torch.device, *, repeats: int, against: str | None, cfg: DictConfig, video_steps: int
) -> Numbers:
    """The timed numbers of the JSON document; `against` names the baseline to alternate with, if any.

    Sets the number of threads of this process, and on CUDA the precision of fp32 products, as the commands do.
    """
    allow_tf32(device)
    architecture = MODELS[model]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    half = _half_precision(architecture, device, repeats, cfg)  # first: a small card holds one model
    ours = Step(architecture, device, dtype, checkpointing=cfg.gradient_checkpointing, cfg=cfg)
    threads = use_threads(ours.unet, device, cfg.threads)
    first = timed(lambda: ours.train(0), device).wall
    peak = peak_bytes(lambda: ours.train(1), device)  # before a baseline lies beside it
    # the stock step differs in its layers alone; the others recompute activations and keep all weights on the device
    alike = {"checkpointing": cfg.gradient_checkpointing, "memory": cfg.memory} if against == "stock" else {}
    baseline = BASELINES[against](architecture, device, **alike) if against else None
    training = _training(ours, baseline, device, repeats)
    sampling = _sampling(ours, baseline, device, dtype, repeats, video_steps)
    of_training, of_sampling = count_flop(architecture, dtype)
    rates = {name: matmul_rate(device, getattr(torch, name)) for name in of_training | of_sampling}

    def share(flop: dict[str, int], name: str) -> float:
        seconds = (training | sampling)[f"{name}_cpu_s" if device.type == "cpu" else f"{name}_s"]
        return sum(count / rates[dtype] for dtype, count in flop.items()) / seconds

    return {
        "device": device_name(device),
        "threads": threads,
        "dtype": str(dtype).removeprefix("torch."),
        "compile": cfg.compile,
        "memory": cfg.memory,
        "checkpointing": bool(cfg.gradient_checkpointing),
        "baseline": against,
        **training,
        "compile_s": first - training["train_step_s"] if cfg.compile != "off" else None,
        "peak_bytes": peak,
        "train_step_fp16_s": half,
        "train_flop": sum(of_training.values()),
        "train_flop_by_dtype": of_training,
        "train_share": share(of_training, "train_step"),
        "sample_flop": sum(of_sampling.values()),
        "sample_share": share(of_sampling, "sample"),
        "matmul_flop_s": rates,
        **sampling,
    }


def _training(ours: Step, baseline: Step | None, device: torch.device, repeats: int) -> Numbers:
    """Steps of both in turn."""
    queued = []

    def train(number: int) -> None:
        began = time.perf_counter()
        ours.gradients(number)
        queued.append(time.perf_counter() - began)
        ours.optimizer.step()  # reads the gradients' norms, so that the host waits for all that it has queued

    beside = Numbered(baseline.train) if baseline else None
    _, step, baseline_ratio = _in_turn({"training step": Numbered(train)}, beside, device, repeats)
    return {
        "train_step_s": step.wall,
        "train_step_cpu_s": step.cpu,
        "train_host_s": statistics.median(queued[1:]),
        "train_device_s": device_seconds(lambda: ours.train(repeats + 1), device),
        "baseline_ratio": baseline_ratio,
    }


def _half_precision(architecture: Architecture, device: torch.device, repeats: int, cfg: DictConfig) -> float | None:
    """Seconds of a training step with the frozen model in fp16; None on a CPU, which emulates it."""
    if device.type == "cpu":
        return None
    step = Step(architecture, device, torch.float16, checkpointing=cfg.gradient_checkpointing, cfg=cfg)
    return median_seconds(lambda: step.train(1), device, repeats)


@torch.no_grad()
def _sampling(
    ours: Step, baseline: Step | None, device: torch.device, dtype: torch.dtype, repeats: int, video_steps: int
) -> Numbers:
    """A sampling step, a step of inversion, each encoder, and one video from its prompt to its frames."""
    for step in (ours, baseline):
        if step:
            step.unet.eval()
    backbone = ours.encoders(dtype)
    side = ours.architecture.side * backbone.vae_factor
    frames = torch.randint(256, (ours.architecture.frames, 3, side, side), dtype=torch.uint8)
    tokens = torch.zeros(1, ours.text.shape[1], dtype=torch.long, device=device)

    def video() -> None:
        for _ in range(2):  # the prompt and the negative prompt
            backbone.text_encoder(tokens)
        backbone.decode_video(ours.sample(video_steps))

    found = _sampling_steps(ours, baseline, device, repeats) | {
        "inversion_step_s": median_seconds(ours.invert, device, repeats),
        "text_encoder_s": median_seconds(lambda: backbone.text_encoder.to(device)(tokens), device, repeats),
        "vae_encode_s": median_seconds(lambda: backbone.encode_video(frames), device, repeats),
        "vae_decode_s": median_seconds(lambda: backbone.decode_video(ours.latents), device, repeats),
    }
    with ours.sampling():
        return {**found, "video_s": timed(video, device).wall, "video_steps": video_steps}


def _sampling_steps(ours: Step, baseline: Step | None, device: torch.device, repeats: int) -> Numbers:
    """Steps of the customized model, of the same model without LoRA and highway, and of the baseline, in turn."""
    works = {
        "sampling step": Numbered(lambda _: ours.sample(), ours.sampling),
        "the plain model's": Numbered(lambda _: ours.sample()),
    }
    beside = Numbered(lambda _: baseline.sample(), baseline.sampling) if baseline else None
    times, step, baseline_ratio = _in_turn(works, beside, device, repeats)
    with ours.sampling():
        busy = device_seconds(ours.sample, device)
    return {
        "sample_s": step.wall,
        "sample_cpu_s": step.cpu,
        "sample_host_s": step.host,
        "sample_device_s": busy,
        "customized_ratio": ratio(times["sampling step"], times["the plain model's"], device),
        "sample_ratio": baseline_ratio,
    }


def _in_turn(
    works: dict[str, Numbered], baseline: Numbered | None, device: torch.device, repeats: int
) -> tuple[dict[str, list[Timing]], Timing, float | None]:
    """(timings of all, the median of the first, how many times as long the baseline takes as the first)."""
    times = alternated(works | ({"the baseline's": baseline} if baseline else {}), device, repeats)
    first = times[next(iter(works))]
    return times, median_timing(first), ratio(times["the baseline's"], first, device) if baseline else None
