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
        for seed, prompts in self._batches():
            lacking = [prompt for prompt in prompts if (prompt, seed) not in there]
            if lacking:
                yield seed, lacking

    def wanted(self) -> set[tuple[str, int]]:
        """(prompt, seed) of every video: the folder may hold others, of a time when the list of prompts was another."""
        return {(prompt, seed) for seed, prompts in self._batches() for prompt in prompts}

    def _batches(self) -> Iterator[tuple[int, list[str]]]:
        for start in range(0, len(self.prompts), TOGETHER):
            yield self.first_seed + start // TOGETHER % SEEDS, self.prompts[start : start + TOGETHER]


def sidecars(folder: Path) -> Iterator[tuple[dict, str, int]]:
    """(sidecar, prompt, seed) of every complete video in `folder`; a damaged sidecar counts as none."""
    for path in _notes(folder):
        notes = _read(path)
        if notes and (folder / notes["video"]).exists():
            yield notes, notes["prompt"], notes["seed"]


def clear_damaged(folder: Path) -> None:
    """Delete what is no whole video in `folder`, so that it is sampled again under the same name: sidecars that cannot
    be read, and videos without one, which a killed process leaves."""
    for path in _notes(folder):
        if _read(path) is None:
            path.unlink()
    for video in folder.glob("[!.]*.mp4"):
        if not video.with_suffix(".json").exists():
            video.unlink()


def _notes(folder: Path) -> list[Path]:
    """The sidecars in `folder`; a name that begins with a dot is of one that was being written."""
    return sorted(folder.glob("[!.]*.json"))


def _read(path: Path) -> dict | None:
    """A sidecar; None where it is damaged."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        return notes if {"video", "prompt", "seed"} <= notes.keys() else None
    except (ValueError, AttributeError, RecursionError):
        return None
