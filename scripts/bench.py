"""How long a training step and a sampling step take, and how many bytes they need.

    python scripts/bench.py --model mid --baseline          # seconds on this machine, and the plain dual-path step's
    python scripts/bench.py --model zeroscope --memory      # peak bytes, counted on the meta device: no weights, no GPU

Models have random weights: `pocket` is the shipped architecture, `mid` has 64/128/256/256 channels at 16 frames of
16x16 latents, `zeroscope` is the full one at 16 frames of 48x48 latents. The last line of stdout is one JSON document:

    train_step_s     seconds of one step: both passes, both optimizers
    sample_s         seconds of one guided sampling step (conditional and unconditional), adapters merged
    peak_bytes       peak of a training step: measured on CUDA, else counted (frozen model, adapters, their gradients
                     and AdamW's moments, activations; without the CUDA context); --memory counts in bf16 with
                     checkpointing, the default
    baseline_ratio   the plain step's time over ours, in CPU time on a CPU; the median of alternating pairs
    train_share      the step's model FLOPs per second over the device's measured matmul rate

The baseline is the dual path as MotionDirector describes it and nothing more: fp32, text encoder in every step,
checkpointing on, every adapter gathering gradients in both passes.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a step several times slower on a busy CPU

import torch
from diffusers import DDIMScheduler, UNet3DConditionModel
from omegaconf import DictConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from configs import schema
from configs.errors import UserError, command
from infer.sampler import guide, sample
from models import lora, methods
from models.backbone import ZEROSCOPE, choose_device, predictor
from models.hooks import bypass_single_frames, checkpoint_activations
from models.training import memory, objective
from models.training.optimizer import DualPathOptimizer
from train import training_step

TOKENS = 77


@dataclass(frozen=True)
class Architecture:
    """What differs from ZeroScope's U-Net, the clip's latents, and whether our step needs to recompute activations."""

    unet: dict
    frames: int
    side: int  # latent height and width
    text_layers: int
    checkpointing: bool  # where activations would not fit beside the model


MODELS = {
    "pocket": Architecture(
        dict(block_out_channels=(32, 64, 128, 128), layers_per_block=1, cross_attention_dim=64, attention_head_dim=16,
             norm_num_groups=4),
        frames=8, side=8, text_layers=2, checkpointing=False),
    "mid": Architecture(
        dict(block_out_channels=(64, 128, 256, 256), cross_attention_dim=256, attention_head_dim=32),
        frames=16, side=16, text_layers=6, checkpointing=False),
    "zeroscope": Architecture({}, frames=16, side=48, text_layers=23, checkpointing=True),
}  # fmt: skip


class Step:
    """Our training step and sampling step on a random model: what train.py and the sampler run, without files.

    `cfg` chooses the method; its data and model are not looked at. The default is TAP.
    """

    def __init__(
        self,
        architecture: Architecture,
        device: torch.device | str,
        dtype: torch.dtype,
        *,
        checkpointing: bool | None = None,
        cfg: DictConfig | None = None,
    ):
        self.device = torch.device(device)
        self.cfg = cfg or schema.from_dict({"train_data": {"single_video_path": "random"}})
        with self.device:
            self.unet = UNet3DConditionModel.from_config({**ZEROSCOPE, **architecture.unet})
            self.latents = torch.randn(1, 4, architecture.frames, architecture.side, architecture.side)
            self.text = torch.randn(1, TOKENS, self.unet.config.cross_attention_dim)
        torch.nn.Module.to(self.unet, dtype).requires_grad_(False).train()  # diffusers' own `to` warns in vain
        self.predict = predictor(self.unet)
        self.base_bytes = memory.parameter_bytes(self.unet)
        bypass_single_frames(self.unet)
        self.method = methods.attach(self.unet, self.cfg, clips=1, latent_size=tuple(self.latents.shape[2:]))
        if architecture.checkpointing if checkpointing is None else checkpointing:
            checkpoint_activations(self.unet)
        self.scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        self.optimizer = DualPathOptimizer(
            self.cfg,
            self.method.motion_parameters,
            self.method.appearance_parameters,
            motion_lr=self.cfg.learning_rate if self.cfg.method == "lora" else self.cfg.embeddings.learning_rate,
            half=dtype == torch.float16,
            device=self.device,
        )

    def gradients(self, number: int) -> None:
        """Both passes; the spatial one always runs, so that steps compare."""
        if self.device.type == "meta":
            timestep = torch.empty(1, dtype=torch.long, device="meta")
            draw = objective.Draw(self.latents, timestep, frame=0, anchor=0, spatial=True)
        else:
            draw = objective.draw(0, number, self.latents)._replace(spatial=True)
        training_step(
            self.predict, self.scheduler, self.method, self.latents, self.text, draw, backward=self.optimizer.backward
        )

    def train(self, number: int) -> None:
        self.gradients(number)
        self.optimizer.step()

    def sample(self) -> None:
        """One guided denoising step; enter `method.sampling()` and eval mode first."""
        sample(guide(self.predict, self.text, self.text, scale=12.0), self.scheduler, self.latents, steps=1)


class PlainStep(Step):
    """The dual-path step as MotionDirector describes it, without our savings."""

    def __init__(self, architecture: Architecture, device: torch.device | str):
        super().__init__(architecture, device, torch.float32, checkpointing=True)
        width = self.unet.config.cross_attention_dim
        config = CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=architecture.text_layers,
            num_attention_heads=max(1, width // 64),
        )
        self.text_encoder = CLIPTextModel(config).to(self.device).requires_grad_(False)
        self.tokens = torch.zeros(1, TOKENS, dtype=torch.long, device=self.device)
        parameters = (self.method.motion_parameters, self.method.appearance_parameters)
        self.optimizers = [torch.optim.AdamW(group, lr=5e-4, weight_decay=1e-2) for group in parameters]

    def train(self, number: int) -> None:
        draw, (motion, appearance) = (
            objective.draw(0, number, self.latents),
            (self.method.motion, self.method.appearance[0]),
        )
        text = self.text_encoder(self.tokens)[0]
        z_t = self.scheduler.add_noise(self.latents, draw.noise, draw.timestep)
        frame = slice(draw.frame, draw.frame + 1)
        adapters = [motion, appearance]
        with lora.active(adapters, on=[appearance], trainable=adapters):
            prediction = self.predict(z_t[:, :, frame], draw.timestep, text)
            objective.spatial_loss(prediction, draw.noise[:, :, frame]).backward()
        with lora.active(adapters, on=adapters, trainable=adapters):
            prediction = self.predict(z_t, draw.timestep, text)
            sum(objective.temporal_loss(prediction, draw.noise, draw.anchor)).backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def count_bytes(
    architecture: Architecture,
    *,
    checkpointing: bool | None = True,
    dtype: torch.dtype = torch.bfloat16,
    cfg: DictConfig | None = None,
) -> int:
    """Peak bytes of a training step, counted on the meta device."""
    step = Step(architecture, "meta", dtype, checkpointing=checkpointing, cfg=cfg)
    with memory.PeakBytes() as counted:
        step.gradients(0)
    learned = 4 * sum(p.numel() for p in (*step.method.motion_parameters, *step.method.appearance_parameters))
    return step.base_bytes + 3 * learned + counted.peak  # weights and AdamW's moments; gradients are in the count


def count_flop(architecture: Architecture) -> int:
    """Floating-point operations of a training step without recomputation, counted on the meta device."""
    step = Step(architecture, "meta", torch.bfloat16, checkpointing=False)
    with FlopCounterMode(display=False) as counter:
        step.gradients(0)
    return counter.get_total_flops()


def seconds(work: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Wall seconds of `work` and the seconds to compare by: CPU time on a CPU, which other programs do not stretch."""
    wall, busy = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elapsed = time.perf_counter() - wall
    return elapsed, time.process_time() - busy if device.type == "cpu" else elapsed


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The device's best measured rate of a large square matrix product, in FLOP per second."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / min(seconds(lambda: a @ a, device)[0] for _ in range(5))


def measure(
    name: str, device: torch.device, *, repeats: int, baseline: bool, checkpointing: bool | None
) -> dict[str, float | str | None]:
    """Time steps, ours and the baseline's in turn, after one warm-up each; the numbers of the JSON document."""
    architecture = MODELS[name]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    ours = Step(architecture, device, dtype, checkpointing=checkpointing)
    plain = PlainStep(architecture, device) if baseline else None
    steps = [step for step in (ours, plain) if step]
    times: dict[Step, list[tuple[float, float]]] = {step: [] for step in steps}
    for step in steps:
        step.train(0)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(1, repeats + 1):
        for step in steps:
            times[step].append(seconds(lambda step=step, number=number: step.train(number), device))
            print(f"{type(step).__name__} {number}: {times[step][-1][0]:.3f} s", file=sys.stderr)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" and not baseline else None
    ours.unet.eval()
    with ours.method.sampling():
        ours.sample()
        sampling = [seconds(ours.sample, device)[0] for _ in range(repeats)]
    train_step = statistics.median(wall for wall, _ in times[ours])
    rate, flop = matmul_rate(device, dtype), count_flop(architecture)
    pairs = zip(times[plain], times[ours]) if plain else ()
    ratios = [theirs / mine for (_, theirs), (_, mine) in pairs]
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "train_step_s": train_step,
        "sample_s": statistics.median(sampling),
        "peak_bytes": peak,
        "baseline_ratio": statistics.median(ratios) if ratios else None,
        "train_flop": flop,
        "matmul_flop_s": rate,
        "train_share": flop / train_step / rate,
    }


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="mid")
    parser.add_argument("--baseline", action="store_true", help="alternate with the plain step and print the ratio")
    parser.add_argument("--memory", action="store_true", help="only count bytes, on the meta device")
    parser.add_argument("--checkpointing", choices=("on", "off"), help="default: on for zeroscope only")
    parser.add_argument("--repeats", type=int, default=3, metavar="N")
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args(argv)
    if asked.repeats < 1:
        raise UserError(f"--repeats: {asked.repeats} measures nothing; give 1 or more")
    architecture, device = MODELS[asked.model], choose_device(asked.device)
    recompute = None if asked.checkpointing is None else asked.checkpointing == "on"
    result: dict = {
        "model": asked.model,
        "train_step_s": None,
        "sample_s": None,
        "peak_bytes": None,
        "baseline_ratio": None,
    }
    if not asked.memory:
        name = (
            torch.cuda.get_device_name(device)
            if device.type == "cuda"
            else f"{device.type}, {torch.get_num_threads()} threads"
        )
        result |= {"device": name} | measure(
            asked.model, device, repeats=asked.repeats, baseline=asked.baseline, checkpointing=recompute
        )
    if result["peak_bytes"] is None:
        dtype = torch.float32 if not asked.memory and device.type == "cpu" else torch.bfloat16
        counted = True if asked.memory and recompute is None else recompute
        result["peak_bytes"] = count_bytes(architecture, checkpointing=counted, dtype=dtype)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
