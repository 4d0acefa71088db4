"""What published motion-fidelity metrics are worth: each against the exact truth, on pairs of known relation.

The pairs are those of scripts/artefacts/relations.py. Every metric is run twice, on exact tracks (the world knows where
each point goes) and on tracks of the classical tracker, so that what a definition cannot see and what a tracker loses
are told apart. One JSON file a reference is kept; started again, the study goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from configs.files import atomic_path
from configs.paths import ROOT
from infer.measure.agreement import displacement_agreement
from infer.measure.clip_scores import MetricUnavailable, load_clip, temporal_consistency
from infer.measure.motion_fidelity import lucas_kanade, motion_fidelity
from infer.measure.mtbench import follow, grid_points, mtbench_code, mtbench_paper, whole_grid
from scripts.artefacts.relations import MOTIONS, Pair, Shown, pairs

SEEDS, SMOKE_SEEDS, SMOKE_MOTIONS = 4, 1, 2
GRID = 24  # points a side over the frame; DMT's and MTBench's scripts take 55 and 50 on frames of hundreds of pixels
SIZE = (64, 64)
EXACT, CLASSICAL, PIXELS = "exact tracks", "classical tracker", "pixels"
SOURCES = (  # what the stored rows depend on
    "data/shapes.py",
    "data/world.py",
    "infer/measure/agreement.py",
    "infer/measure/clip_scores.py",
    "infer/measure/motion_fidelity.py",
    "infer/measure/mtbench.py",
    "scripts/artefacts/metric_study.py",
    "scripts/artefacts/relations.py",
)


@dataclass(frozen=True)
class Metric:
    """`points`: which points it is given (`tracked`). `sees` says in words what the formula keeps and leaves out."""

    title: str
    points: str
    score: Callable
    published: bool
    sees: str


def _fidelity(definition: str) -> Callable:
    return lambda reference, shown: motion_fidelity(reference, shown, definition)


def _mtbench(**options) -> Callable:
    return lambda reference, shown: mtbench_code(reference, shown, SIZE, **options)


NO_SPEED = "every displacement is made a unit vector, so it leaves out how far a point moves"
METRICS = {
    "paper": Metric(
        "DMT (paper)", "frame", _fidelity("paper"), True, f"{NO_SPEED}; points that rest on the ground score 0"
    ),
    "dmt_code": Metric(
        "DMT (script)",
        "frame",
        _fidelity("dmt_code"),
        True,
        f"{NO_SPEED}; one direction only, so what the generated video lacks is left out",
    ),
    "paper_object": Metric(
        "DMT (paper), object's points", "object", _fidelity("paper"), True, f"{NO_SPEED}; the ground is not looked at"
    ),
    "dmt_code_object": Metric(
        "DMT (script), object's points",
        "object",
        _fidelity("dmt_code"),
        True,
        f"{NO_SPEED}; the ground is not looked at",
    ),
    "mtbench_code": Metric(
        "MTBench (script)",
        "box",
        _mtbench(),
        True,
        f"{NO_SPEED}; the start position counts as one more motion, and points are taken where the source's object was",
    ),
    "mtbench_code_frechet": Metric(
        "MTBench (script, with its Fréchet part)",
        "box",
        _mtbench(frechet=True),
        True,
        "half of it is a mean distance between all pairs of frames, which no order of frames changes",
    ),
    "mtbench_code_no_start": Metric(
        "MTBench (script, without the start)", "box", _mtbench(start=False), False, f"{NO_SPEED}; places do not count"
    ),
    "mtbench_paper": Metric(
        "MTBench (paper)",
        "box",
        lambda reference, shown: mtbench_paper(reference, shown, SIZE),
        True,
        "half of it is Fréchet's distance, which ignores timing and counts the place; the other half leaves out speed",
    ),
    "agreement": Metric(
        "displacement agreement (ours)",
        "frame",
        displacement_agreement,
        False,
        "displacements are compared as they are, a point weighs as much as it moves, and places do not count",
    ),
    "agreement_object": Metric(
        "displacement agreement (ours), object's points",
        "object",
        displacement_agreement,
        False,
        "the same; the ground is not looked at",
    ),
}
CLIP_METRIC = Metric(
    "CLIP consistency", "pixels", temporal_consistency, True, "only how alike neighbouring frames look; no reference"
)


def tracked(pair: Pair, tracking: str) -> dict[str, tuple]:
    """Point set -> (reference's, partner's) tracklets [n f 2].

    "frame" is a grid over the whole first frame (the classical tracker: its own corners), "object" a grid in the box of
    each clip's own object, "box" the grid points in the box of the reference's object, in both clips (MTBench).
    """
    both = (pair.reference, pair.shown)
    boxes = [grid_points(shown.clip.mask[0].numpy(), GRID) for shown in both]
    if tracking == EXACT:
        whole = whole_grid(*SIZE, GRID)
        frame = tuple(shown.tracks(whole) for shown in both)
        track = Shown.tracks
    else:
        frame = tuple(lucas_kanade(shown.frames) for shown in both)
        track = lambda shown, points: follow(shown.frames, points)
    return {
        "frame": frame,
        "object": tuple(track(shown, box) for shown, box in zip(both, boxes)),
        "box": tuple(track(shown, boxes[0]) for shown in both),
    }


def measure(pair: Pair, clip=None) -> dict:
    """One row: the pair, its true errors, and every score by "metric/tracking"; what cannot be had is left out."""
    scores, problems = {}, []
    for tracking in (EXACT, CLASSICAL):
        tracks = tracked(pair, tracking)
        for name, metric in METRICS.items():
            try:
                scores[f"{name}/{tracking}"] = metric.score(*tracks[metric.points])
            except MetricUnavailable as error:
                problems.append(f"{metric.title} on {pair.motion}, {pair.relation}: {error}")
    if clip is not None:
        scores[f"clip_consistency/{PIXELS}"] = temporal_consistency(clip.images(pair.shown.frames))[0]
    return {
        "motion": pair.motion,
        "reference": f"{pair.motion}-{pair.seed}",
        "relation": pair.relation,
        "path_error": pair.path_error,
        "progress_error": pair.progress_error,
        "scores": scores,
        "problems": problems,
    }


def collect(folder: Path, smoke: bool, clip_path: str | None, device: str, say: Callable[[str], None]) -> list[dict]:
    """All rows, one file of `folder` for each reference; a file made by the same code is not made again."""
    clip = load_clip(clip_path, device) if clip_path else None
    made_by = fingerprint(clip_path)
    motions = MOTIONS[:SMOKE_MOTIONS] if smoke else MOTIONS
    wanted = [(motion, seed) for seed in range(SMOKE_SEEDS if smoke else SEEDS) for motion in motions]
    rows = []
    for number, (motion, seed) in enumerate(wanted, 1):
        path = folder / f"{motion}-{seed}-{made_by}.json"
        if not path.exists():
            found = [measure(pair, clip) for pair in pairs(motion, seed)]
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps(found), encoding="utf-8")
            say(f"[{number}/{len(wanted)}] {motion}, appearance {seed}: {len(found)} pairs measured")
        rows += json.loads(path.read_text(encoding="utf-8"))
    return rows


def fingerprint(clip_path: str | None) -> str:
    """Eight hex digits that change with the code that makes a row, and with the CLIP that is used."""
    digest = hashlib.sha256(str(clip_path).encode())
    for name in SOURCES:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:8]
