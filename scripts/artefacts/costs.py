"""What each variant of an artefact costs beside what it reaches: training, forwards and CPU seconds a video, memory."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

import torch
from diffusers import DDIMScheduler

from infer.guidance import GuidanceSettings, MotionGuidance
from infer.sampler import classifier_free_guidance
from models.backbone import predictor
from models.backbones import kind_of
from models.outline import latent_size_of, skeleton
from models.placement import parameter_bytes
from models.training.journal import read_log
from models.training.memory import PeakBytes
from scripts.artefacts.plan import Cell
from scripts.artefacts.plateau import watching_seconds
from scripts.artefacts.samples import sidecars

HEADER = ["cost", "training, CPU s a clip", "forwards a video", "CPU s a video", "memory of a sampling step, MB"]
GUIDED = ("updates", "target")  # of the settings of guidance, those that the memory of a step depends on


@dataclass(frozen=True)
class VariantCost:
    """What a variant costs, as means over its clips and videos; None where it is nothing or was not noted.

    `training` counts CPU seconds up to the checkpoint that was sampled, with the previews that chose it where it was
    watched, and belongs to all variants of a run; `sampling` is CPU seconds of a video, `memory` the counted bytes of a
    sampling step (models/training/memory.py).
    """

    training: float | None
    forwards: float | None
    sampling: float | None
    memory: int


def variant_costs(cells: list[Cell], model: str) -> dict[str, VariantCost]:
    """Variant -> its cost, for every variant that has videos; `model` is where the folder of their model is now."""
    costs = {}
    for name in dict.fromkeys(cell.variant.name for cell in cells):
        folders = {cell.samples.folder: cell.chain.run_folder for cell in cells if cell.variant.name == name}
        noted = {folder: [found for found, *_ in sidecars(Path(folder))] for folder in folders}
        notes = [found for each in noted.values() for found in each]
        if not notes:
            continue
        ran = [(folder, run) for folder, run in folders.items() if run and noted[folder]]
        trained = [_training(run, noted[folder][0]) for folder, run in ran]
        watching = [watching_seconds(Path(folder)) for folder, _ in ran]
        trained = [None if cost is None else cost + more for cost, more in zip(trained, watching)]
        costs[name] = VariantCost(
            _mean(trained),
            _mean([found.get("forwards") for found in notes]),
            _mean([found.get("cpu_seconds") for found in notes]),
            _step_bytes(model, *_shape(notes[0]["settings"])),
        )
    return costs


def cost_table(costs: dict[str, VariantCost]) -> list[list[str]]:
    """The costs as a table of words, the header first; none without costs."""
    rows = [
        [
            name,
            "none" if cost.training is None else f"{cost.training:.0f}",
            "–" if cost.forwards is None else f"{cost.forwards:.0f}",
            "–" if cost.sampling is None else f"{cost.sampling:.2f}",
            f"{cost.memory / 1e6:.1f}",
        ]
        for name, cost in costs.items()
    ]
    return [HEADER, *rows] if rows else []


def _training(run: Path, notes: dict) -> float | None:
    """CPU seconds of a run until the checkpoint that a video was sampled from; None where its adapter was off."""
    used = [source for source in notes.get("sources", []) if source["strength"]]
    if not used:
        return None
    records = read_log(run / "log.jsonl")
    until = used[0]["index"]
    return sum(found.get("cpu_seconds", found["seconds"]) for found in records if found["step"] <= until)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _shape(settings: dict) -> tuple:
    """What decides the memory of a step: frames, height, width, guidance scale, and motion guidance if there is any."""
    guided = tuple(settings[f"guide_{name}"] for name in GUIDED) if "guide" in settings else None
    return settings["num_frames"], settings["height"], settings["width"], settings["guidance_scale"], guided


@cache
def _step_bytes(model: str, frames: int, height: int, width: int, scale: float, guided: tuple | None) -> int:
    """Most bytes alive in a sampling step of the plain model in fp32, its weights included; counted on meta tensors.

    The prompt has as many tokens as those of the published models.
    """
    network = skeleton(model)
    kind = kind_of(network)
    kind.prepare(network)
    size = latent_size_of(model, frames, height, width)
    z = torch.empty(1, network.config.in_channels, *size, device="meta")
    text, empty = torch.empty(2, 1, kind.text_length(), kind.text_width(network), device="meta").unbind(0)
    step = classifier_free_guidance(predictor(network), text, empty, scale=scale)
    if guided is not None:
        settings = GuidanceSettings(steps=1, **dict(zip(GUIDED, guided, strict=True)))
        step = MotionGuidance(
            z, step, classifier_free_guidance(predictor(network), empty), DDIMScheduler(), settings, [0]
        ).steer
    with PeakBytes() as watch, torch.no_grad():
        step(z, torch.tensor(901))
    return watch.peak + parameter_bytes(network)
