"""What a training and a video cost: from the runs that are there, else from scripts/artefacts/measured.yaml."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

from configs.plain import read_yaml

STORED = Path(__file__).parent / "measured.yaml"


@dataclass(frozen=True)
class Prices:
    """Seconds of a process's start, a training, a video (times `guided` with motion guidance) and its measuring.

    They are seconds of one CPU core for PocketScope and of one card for a larger model. `source` says where they are
    from.
    """

    start: float
    training: float
    video: float
    guided: float
    measuring: float
    source: str

    def sampling(self, count: int, flags: Iterable[str] = ()) -> float:
        """Seconds to sample `count` videos with these flags of infer/infer.py."""
        return count * self.video * (self.guided if "--guide" in flags else 1.0)

    def of_videos(self, count: int, flags: Iterable[str] = ()) -> float:
        """Seconds to sample and measure them."""
        return self.sampling(count, flags) + count * self.measuring


def stored_prices(world: bool) -> Prices:
    """Those of the table, for a model of the toy world or for a large one."""
    return Prices(**read_yaml(STORED)["pocket" if world else "zeroscope"], source="the stored table")


def measured_prices(world: bool, runs: Path, samples: Path) -> Prices:
    """The stored ones, with training and video from the logs of `runs` and the sidecars of `samples` where there are
    any. A log that was cut off, or a damaged sidecar, does not count."""
    prices = stored_prices(world)
    trained, sampled = [], []
    for log in runs.glob("*/train_*/log.jsonl"):
        if any(log.parent.glob("checkpoint-*")):
            trained += [sum(row.get("cpu_seconds", row["seconds"]) for row in rows)] if (rows := _lines(log)) else []
    for notes in samples.glob("*/*.json"):
        found = _lines(notes, whole=True)
        if found and found[0].get("cpu_seconds") and "guide" not in found[0].get("settings", {}):
            sampled.append(found[0]["cpu_seconds"])
    sources = [f"{len(trained)} trainings"] * bool(trained) + [f"{len(sampled)} videos"] * bool(sampled)
    return replace(
        prices,
        training=mean(trained) if trained else prices.training,
        video=mean(sampled) if sampled else prices.video,
        source=f"{' and '.join(sources)} made before" if sources else prices.source,
    )


def stored_spread(one_training: bool) -> dict[str, float]:
    """Role -> standard deviation over reference clips of the difference between two samplings of one training, or
    between two trainings on one clip, which is larger."""
    return read_yaml(STORED)["spread"]["one training" if one_training else "two trainings"]


def _lines(path: Path, whole: bool = False) -> list[dict]:
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(part) for part in ([text] if whole else text.splitlines())]
    except (OSError, ValueError):
        return []
