"""What the graded measures give where the answer is known: floor, ceiling and repeatability, before and after the VAE.

The floor is a clip that the world draws exactly as its prompt asks, against a reference clip of the same motion in
another appearance. The ceiling of appearance and leakage is the reference clip itself under that prompt, that of timing
the motion which the words alone name, that of noise, edges and flicker a grain of `GRAIN` levels on the floor's clip.
The repeatability is the standard deviation over drawings of one prompt that differ in size, place and tint.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs.errors import UserError
from configs.files import atomic_path
from data.world import BACKGROUNDS, COLOURS, PATHS, RETIMINGS, SHAPES, Scene, WorldClip, reference_clip, render
from infer.measure.statistics import mean
from infer.measure.world_definitions import GRADED, WORLD_DEFINITIONS
from infer.measure.world_scores import ReferenceClips, world_scores
from models.backbone import Backbone
from scripts.artefacts.results_file import markdown_table, put_section

NAME, TITLE = "measures", "Graded measures: floor, ceiling, repeatability (toy world)"
MOTIONS = (*RETIMINGS, *PATHS)
REPEATS, GRAIN = 4, 8.0
GRAINY = ("background_noise", "edge_error", "flicker")  # measures that a grain disturbs, whatever scene is shown
TIMED = ("correlation", "rmse", "motion_quality", "timing_error", "speed_error")
Scores = dict[str, list[list[float]]]  # measure -> for every prompt the values of its drawings
Decode = Callable[[torch.Tensor], torch.Tensor]


def scenes(smoke: bool) -> list[tuple[Scene, WorldClip]]:
    """One prompt for every held-out motion, and the reference clip of that motion, which shares no name with it."""
    found = []
    for number, motion in enumerate(MOTIONS[: 2 if smoke else None]):
        reference = reference_clip(motion)
        there = reference.scene.shape, reference.scene.colour, reference.scene.background
        appearance = [
            [name for name in names if name != shown][number % (len(names) - 1)]
            for names, shown in zip((SHAPES, COLOURS, BACKGROUNDS), there)
        ]
        found.append((Scene(*appearance, motion), reference))
    return found


def measure(known: list[tuple[Scene, WorldClip]], through: Decode) -> tuple[Scores, Scores, float]:
    """(floor, ceiling, CPU milliseconds a video) of clips that `through` (nothing, or the VAE) has changed."""
    floor: Scores = {name: [] for name in GRADED}
    ceiling: Scores = {name: [] for name in GRADED}
    seconds, videos = 0.0, 0

    def score(frames: torch.Tensor, prompt: str, reference: WorldClip) -> dict:
        nonlocal seconds, videos
        frames, began = through(frames), time.process_time()
        found = world_scores(frames, prompt, ReferenceClips((reference.frames,), (reference.prompt,)))
        seconds, videos = seconds + time.process_time() - began, videos + 1
        return found

    for number, (scene, reference) in enumerate(known):
        drawn = [replace(scene, seed=5000 + REPEATS * number + repeat) for repeat in range(REPEATS)]
        lows = [score(render(one).frames, one.caption, reference) for one in drawn]
        copied = score(reference.frames, scene.caption, reference)
        named = replace(scene, motion="wander" if scene.motion in PATHS else scene.direction, seed=5000 + number)
        timed = score(render(named).frames, scene.caption, reference)
        grain = GRAIN * torch.randn(reference.frames.shape, generator=torch.Generator().manual_seed(number))
        grainy = score((render(drawn[0]).frames + grain).round().clamp(0, 255).byte(), scene.caption, reference)
        for name in GRADED:
            if values := [low[name] for low in lows if low.get(name) is not None]:
                floor[name].append(values)
            high = grainy if name in GRAINY else timed if name in TIMED else copied
            if high.get(name) is not None:
                ceiling[name].append([high[name]])
    return floor, ceiling, 1000 * seconds / videos


def through_vae(backbone: Backbone) -> Decode:
    """Frames uint8 [f c h w] as the model's VAE gives them back."""
    return lambda frames: backbone.decode_video(backbone.encode_video(frames))


def make(folder: Path, results: Path, *, model: Path, smoke: bool, provenance: str) -> Path:
    """Measure, write `folder`/table.md and this study's section of `results`; returns the table."""
    try:
        backbone = Backbone.load(str(model), torch.float32, torch.device("cpu"))
    except UserError as error:
        raise UserError(
            f"measures: its second half goes through the VAE of a model of the toy world; {error}"
        ) from None
    known = scenes(smoke)
    found = measure(known, lambda frames: frames), measure(known, through_vae(backbone))
    text = body(found, smoke, provenance)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(f"# {TITLE}\n\n{text}", encoding="utf-8")
    put_section(results, (NAME, "world"), TITLE, text)
    return folder / "table.md"


def body(found: tuple, smoke: bool, provenance: str) -> str:
    """What table.md and the section of RESULTS.md say; `found` is `measure` of clips as drawn and after the VAE."""
    columns = ("floor", "floor, VAE", "ceiling", "ceiling, VAE", "repeatability", "repeatability, VAE")
    rows = [["measure", *columns]]
    for name in GRADED:
        cells = [*(_middle(part[0][name]) for part in found), *(_middle(part[1][name]) for part in found)]
        rows.append([WORLD_DEFINITIONS[name].heading, *cells, *(_repeatability(part[0][name]) for part in found)])
    cost = max(part[2] for part in found)
    lines = [
        "SMOKE RUN, the numbers mean nothing." if smoke else "",
        f"{len(found[0][0]['flicker'])} prompts, one for each held-out motion, {REPEATS} drawings each. Floor: a clip "
        "drawn as its prompt asks, against a reference clip of the same motion in another appearance. Ceiling: of "
        "appearance and leakage the reference clip itself under that prompt; of motion what the words alone name; of "
        f"noise, edges and flicker a grain of {GRAIN:g} levels. Repeatability: standard deviation over drawings of one "
        f"prompt. Brackets are 95 % intervals over prompts. All scores of a video take {cost:.0f} ms of CPU.",
        markdown_table(rows),
        provenance,
    ]
    return "\n\n".join(line for line in lines if line) + "\n"


def _middle(values: list[list[float]]) -> str:
    return str(mean([float(np.mean(of)) for of in values])) if values else "–"


def _repeatability(values: list[list[float]]) -> str:
    """Pooled over prompts."""
    spreads = [np.var(of, ddof=1) for of in values if len(of) > 1]
    return f"{np.sqrt(np.mean(spreads)):.3f}" if spreads else "–"
