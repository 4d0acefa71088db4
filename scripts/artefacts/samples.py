"""The videos of one training under one choice of flags: which there are, and which are missing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEEDS = 4  # of noise for each reference clip, the same in every variant ...
TOGETHER = 4  # ... as many prompts share one and are sampled at once


@dataclass(frozen=True)
class Samples:
    """Videos of every prompt with these flags of infer/infer.py, in `folder`; noise from `SEEDS` seeds on.

    `watched` is the reference clip whose path decides from which checkpoint (plateau.py); empty: the flags say it.
    """

    folder: str
    flags: list[str]
    prompts: list[str]
    first_seed: int = 0
    watched: str = ""

    def missing(self) -> Iterator[tuple[int, list[str]]]:
        """(seed, prompts) of the videos that are not in the folder yet."""
        there = {(prompt, seed) for _, prompt, seed in sidecars(Path(self.folder))}
        for start in range(0, len(self.prompts), TOGETHER):
            seed = self.first_seed + start // TOGETHER % SEEDS
            prompts = [p for p in self.prompts[start : start + TOGETHER] if (p, seed) not in there]
            if prompts:
                yield seed, prompts


def sidecars(folder: Path) -> Iterator[tuple[dict, str, int]]:
    """(sidecar, prompt, seed) of every complete video in `folder`; a damaged sidecar counts as none."""
    for path in sorted(folder.glob("*.json")):
        notes = _read(path)
        if notes and (folder / notes["video"]).exists():
            yield notes, notes["prompt"], notes["seed"]


def clear_damaged(folder: Path) -> None:
    """Delete the sidecars in `folder` that cannot be read, whose videos are then sampled again under the same names."""
    for path in folder.glob("*.json"):
        if _read(path) is None:
            path.unlink()


def _read(path: Path) -> dict | None:
    """A sidecar; None where it is damaged."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return notes if {"video", "prompt", "seed"} <= notes.keys() else None
    except (ValueError, AttributeError, RecursionError):
        return None
