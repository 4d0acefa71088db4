"""Measure a folder of samples of the toy world by their JSON sidecars: motion, appearance, leakage.

    python scripts/evaluate.py outputs/infer
    python scripts/evaluate.py outputs/base --reference data/examples/pocket_there_and_back.mp4

Each sidecar tells the prompt, and the configuration of the checkpoint that made the sample, hence the reference clip;
samples of the untouched model need --reference. Without a reference the motion is right if it is the one that the
prompt names. The last line is JSON: motion_success, appearance_accuracy, leakage, n, and correlation and rmse (pixels
of 64) where there is a reference. Metrics that need no truth (CLIP and others) are those of scripts/metrics.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from configs.errors import UserError, command
from configs.schema import from_dict
from data.detectors import Reading, compare_paths, read_clip
from data.sources import load_clips
from data.world import parse_prompt
from infer.video import read_video


def read_sidecars(folder: Path) -> list[tuple[Path, dict]]:
    """(video, sidecar) of every sample in `folder`, sorted. Raises UserError where there is none."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            sidecar = json.loads(path.read_text())
        except ValueError:
            raise UserError(f"{path}: not JSON; remove it or sample again") from None
        if isinstance(sidecar, dict) and {"video", "prompt"} <= sidecar.keys():
            found.append((folder / sidecar["video"], sidecar))
    if not found:
        raise UserError(f"{folder}: no samples with JSON sidecars there; make some with infer/infer.py --output_dir {folder}")
    return found


class References:
    """The reference clip of each sample, read once per clip."""

    def __init__(self, given: Path | None):
        self.given, self.known = given and read_clip(read_video(given)), {}

    def of(self, sidecar: dict) -> Reading | None:
        config = sidecar.get("config")
        if self.given or not config:
            return self.given
        key = json.dumps([config["train_data"], config["dataset_types"]], sort_keys=True)
        if key not in self.known:
            self.known[key] = [read_clip(clip.frames) for clip in load_clips(from_dict(config), snap=8)]
        clips = self.known[key]
        return clips[min((sidecar.get("reference") or {}).get("clip", 0), len(clips) - 1)]


def measure_sample(found: Reading, prompt: str, reference: Reading | None) -> dict[str, float | bool]:
    """One sample: motion (against the reference, else the prompt), appearance (shape, colour and background all as the
    prompt says), and which looks of the reference show although the prompt asks for others."""
    wanted = parse_prompt(prompt)
    hits = found.matches(wanted)
    row = {"appearance": all(hits.get(key, True) for key in ("shape", "colour", "background"))} | {
        key: value for key, value in hits.items() if key != "motion"
    }
    if reference is None:
        return row | {"motion": hits.get("motion", False)}
    path = compare_paths(found.trajectory, reference.trajectory)
    leaks = {
        f"leaked_{key}": getattr(reference, key) not in (None, wanted[key]) and getattr(found, key) == getattr(reference, key)
        for key in ("colour", "background")
    }
    leaks["leaked_window"] = reference.window and found.window and not wanted["window"]
    return row | {"motion": path.pop("success")} | path | leaks | {"leak": any(leaks.values())}


def summarise(rows: list[dict[str, float | bool]]) -> dict[str, float | int]:
    """Means over samples under the names of the module's docstring."""
    names = {"motion": "motion_success", "appearance": "appearance_accuracy", "leak": "leakage"}
    facts = {"motion_success": 0.0, "appearance_accuracy": 0.0, "leakage": 0.0, "n": len(rows)}
    for key in dict.fromkeys(key for row in rows for key in row):
        facts[names.get(key, key)] = round(float(np.mean([row[key] for row in rows if key in row])), 4)
    return facts


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="videos with JSON sidecars, as infer/infer.py writes them")
    parser.add_argument("--reference", type=Path, help="measure motion and leakage against this clip")
    args = parser.parse_args(argv)
    references, rows = References(args.reference), []
    for video, sidecar in read_sidecars(args.folder):
        row = measure_sample(read_clip(read_video(video)), sidecar["prompt"], references.of(sidecar))
        print(f"{video.name}: " + ", ".join(f"{key} {float(value):.3g}" for key, value in row.items()), file=sys.stderr)
        rows.append(row)
    print(json.dumps(summarise(rows)))


if __name__ == "__main__":
    main()
