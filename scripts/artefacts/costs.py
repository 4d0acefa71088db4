"""What each variant of an artefact costs beside what it reaches: training, forwards and CPU seconds a video, memory."""

import json
from functools import cache
from pathlib import Path
from statistics import mean

import torch
from diffusers import DDIMScheduler

from infer.guidance import GuidanceSettings, MotionGuidance
from infer.sampler import guide
from models.backbone import predictor, skeleton
from models.placement import parameter_bytes
from models.training.memory import PeakBytes
from scripts.artefacts.chain import sidecars
from scripts.artefacts.plan import Cell

HEADER = ["cost", "training, s a clip", "forwards a video", "CPU s a video", "memory of a sampling step, MB"]
GUIDED = ("updates", "target")  # of the settings of guidance, those that the memory of a step depends on


def cost_rows(cells: list[Cell]) -> list[list[str]]:
    """A table, the header first, of every variant that has videos; a number that was not noted is a dash.

    Training is wall time and belongs to all variants of a run; memory is counted (models/training/memory.py).
    """
    rows = [HEADER]
    for name in dict.fromkeys(cell.variant.name for cell in cells):
        mine = [cell for cell in cells if cell.variant.name == name]
        notes = [found for folder in {cell.samples.folder for cell in mine} for found, *_ in sidecars(Path(folder))]
        if not notes:
            continue
        used = any(source["strength"] for source in notes[0].get("sources", []))
        runs = {cell.chain.run_folder for cell in mine if cell.chain.run_folder and used}
        trained = [
            sum(json.loads(line)["seconds"] for line in (run / "log.jsonl").read_text().splitlines()) for run in runs
        ]
        rows.append(
            [
                name,
                f"{mean(trained):.0f}" if trained else "none",
                _mean([found.get("forwards") for found in notes], ".0f"),
                _mean([found.get("cpu_seconds") for found in notes], ".2f"),
                f"{_step_bytes(notes[0]['model'], *_shape(notes[0]['settings'])) / 1e6:.1f}",
            ]
        )
    return rows


def _mean(values: list[float | None], digits: str) -> str:
    known = [value for value in values if value is not None]
    return format(mean(known), digits) if known else "–"


def _shape(settings: dict) -> tuple:
    """What decides the memory of a step: frames, height, width, guidance scale, and motion guidance if there is any."""
    guided = tuple(settings[f"guide_{name}"] for name in GUIDED) if "guide" in settings else None
    return settings["num_frames"], settings["height"], settings["width"], settings["guidance_scale"], guided


@cache
def _step_bytes(model: str, frames: int, height: int, width: int, scale: float, guided: tuple | None) -> int:
    """Most bytes alive in a sampling step of the plain model in fp32, its weights included; counted on meta tensors."""
    unet = skeleton(model)
    z = torch.empty(1, unet.config.in_channels, frames, height // 8, width // 8, device="meta")
    text, empty = torch.empty(2, 1, 77, unet.config.cross_attention_dim, device="meta").unbind(0)
    step = guide(predictor(unet), text, empty, scale=scale)
    if guided is not None:
        settings = GuidanceSettings(steps=1, **dict(zip(GUIDED, guided, strict=True)))
        step = MotionGuidance(z, step, guide(predictor(unet), empty), DDIMScheduler(), settings, [0]).steer
    with PeakBytes() as watch, torch.no_grad():
        step(z, torch.tensor(901))
    return watch.peak + parameter_bytes(unet)
