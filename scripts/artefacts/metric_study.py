"""What published motion-fidelity metrics are worth: each against the exact truth, on pairs of known relation.

The pairs are those of scripts/artefacts/relations.py. Every metric is run twice, on exact tracks (the world knows where
each point goes) and on tracks of the classical tracker, so that what a definition cannot see and what a tracker loses
are told apart. One JSON file a reference is kept; started again, the study goes on where it stopped.
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from configs.files import atomic_path
from configs.schema import ROOT
from infer.measure.agreement import displacement_agreement
from infer.measure.clip_scores import MetricUnavailable, load_clip, temporal_consistency
from infer.measure.motion_fidelity import lucas_kanade, motion_fidelity
from infer.measure.mtbench import follow, grid_points, mtbench_code, mtbench_paper, whole_grid
from infer.measure.statistics import Estimate, difference, share_or_mean
from scripts.artefacts.relations import MOTIONS, RELATIONS, Pair, Shown, pairs

SEEDS, SMOKE_SEEDS, SMOKE_MOTIONS = 4, 1, 2
GRID = 24  # points a side over the frame; DMT's and MTBench's scripts take 55 and 50 on frames of hundreds of pixels
SIZE = (64, 64)
SAME_TRUTH = 1.0  # pixels of 64: pairs whose path errors differ by less are not put in order
TIE = 1e-6
EXACT, CLASSICAL, PIXELS = "exact tracks", "classical tracker", "pixels"
SOURCES = (  # what the stored rows depend on
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

Key = tuple[str, str]  # (metric, tracking)


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
        scores[f"clip_consistency/{PIXELS}"] = temporal_consistency(clip, pair.shown.frames)[0]
    return {
        "motion": pair.motion,
        "reference": f"{pair.motion}-{pair.seed}",
        "relation": pair.relation,
        "path_error": pair.path_error,
        "timing_error": pair.timing_error,
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
                temporary.write_text(json.dumps(found))
            say(f"[{number}/{len(wanted)}] {motion}, appearance {seed}: {len(found)} pairs measured")
        rows += json.loads(path.read_text())
    return rows


def fingerprint(clip_path: str | None) -> str:
    """Eight hex digits that change with the code that makes a row, and with the CLIP that is used."""
    digest = hashlib.sha256(str(clip_path).encode())
    for name in SOURCES:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()[:8]


@dataclass(frozen=True)
class Worth:
    """What one metric is worth with one kind of tracks; estimates are over references, intervals over motions."""

    rank_path: Estimate  # Spearman's with minus the path error
    rank_timing: Estimate  # ... with minus the timing error
    wrong: Estimate  # share of pairs ordered wrongly
    wrong_without_pan: Estimate
    relations: dict[str, Estimate]  # mean score
    missed: dict[str, Estimate]  # share of references in which the relation scores at or above the same path
    unmeasured: int


def keys_of(rows: Iterable[dict]) -> list[Key]:
    """(metric, tracking) of every score in the rows, exact tracks first."""
    found = dict.fromkeys(key for row in rows for key in row["scores"])
    names = [*METRICS, "clip_consistency"]
    split = [tuple(key.split("/")) for key in found]
    return sorted(split, key=lambda key: ((EXACT, CLASSICAL, PIXELS).index(key[1]), names.index(key[0])))


def worth(rows: list[dict], key: Key) -> Worth:
    """All statistics of one metric with one kind of tracks."""
    by_reference = grouped(rows)
    motions = [found[0]["motion"] for found in by_reference.values()]

    def over_references(value: Callable[[list[dict]], float | bool]) -> Estimate:
        return share_or_mean([value(found) for found in by_reference.values()], motions)

    return Worth(
        over_references(lambda found: rank(found, key, "path_error")),
        over_references(lambda found: rank(found, key, "timing_error")),
        over_references(lambda found: wrong_share(found, key)),
        over_references(lambda found: wrong_share([r for r in found if r["relation"] != "camera pan"], key)),
        {
            name: share_or_mean([row["scores"][label(key)] for row in scored], [row["motion"] for row in scored])
            for name in RELATIONS
            if (scored := [r for r in rows if r["relation"] == name and label(key) in r["scores"]])
        },
        {name: found for name in RELATIONS if (found := missed_share(by_reference, key, name))},
        sum(label(key) not in row["scores"] for row in rows),
    )


def wrong_shares(rows: list[dict], key: Key) -> dict[tuple[str, str], float]:
    """(motion, reference) -> share of its pairs that are ordered wrongly, for paired differences of two metrics."""
    return {(found[0]["motion"], name): wrong_share(found, key) for name, found in grouped(rows).items()}


def lead(rows: list[dict], one: Key, other: Key) -> Estimate:
    """How much smaller a share `one` orders wrongly than `other`, paired by reference."""
    return difference(wrong_shares(rows, other), wrong_shares(rows, one), group_of=lambda name: name[0])


def grouped(rows: Iterable[dict]) -> dict[str, list[dict]]:
    by_reference: dict[str, list[dict]] = {}
    for row in rows:
        by_reference.setdefault(row["reference"], []).append(row)
    return by_reference


def label(key: Key) -> str:
    return "/".join(key)


def rank(rows: list[dict], key: Key, error: str) -> float:
    """Spearman's correlation of the score with minus an error over a reference's pairs; 0 where either is constant."""
    scored = [(row["scores"][label(key)], -row[error]) for row in rows if label(key) in row["scores"]]
    scores, errors = np.array(scored).T.round(9) if scored else (np.zeros(1), np.zeros(1))
    if len(scored) < 3 or np.ptp(scores) == 0 or np.ptp(errors) == 0:
        return 0.0
    return float(spearmanr(scores, errors).statistic)


def wrong_share(rows: list[dict], key: Key) -> float:
    """Share of pairs of a reference's partners that the metric puts in the wrong order of path error.

    A tie, and a partner that cannot be measured, count as half: a metric that says nothing would guess.
    """
    wrong = []
    for i, one in enumerate(rows):
        for other in rows[:i]:
            gap = one["path_error"] - other["path_error"]
            if abs(gap) <= SAME_TRUTH:
                continue
            scores = [row["scores"].get(label(key)) for row in (one, other)]
            if None in scores or abs(scores[0] - scores[1]) < TIE:
                wrong.append(0.5)
            else:
                wrong.append(float((scores[0] > scores[1]) == (gap > 0)))
    return float(np.mean(wrong)) if wrong else 0.5


def missed_share(by_reference: dict[str, list[dict]], key: Key, relation: str) -> Estimate | None:
    """Share of references in which a truly different partner scores at or above the same path; None without one."""
    hits, motions = [], []
    for found in by_reference.values():
        named = {row["relation"]: row for row in found}
        one, same = named.get(relation), named.get("same path")
        if one is None or same is None or one["path_error"] - same["path_error"] <= SAME_TRUTH:
            continue
        scores = [row["scores"].get(label(key)) for row in (one, same)]
        if None not in scores:
            hits.append(bool(scores[0] >= scores[1] - TIE))
            motions.append(one["motion"])
    return share_or_mean(hits, motions) if hits else None
