"""What a configuration may hold: limits of single keys, and keys that contradict each other."""

import difflib
from typing import Any

from omegaconf import DictConfig

SOURCE_KEYS = {"single_video": "single_video_path", "folder": "path", "json": "json_path", "image": "image_dir"}
SIDES = ("down", "mid", "up")


def beyond(path: str, value: Any, limits: dict[str, Any]) -> list[str]:
    """What is wrong with a key's value by the limits in its field's metadata: one sentence, or none."""
    if value is None:
        return []
    wrong = [
        text
        for name, text, holds in (
            ("low", "at least", lambda edge: value >= edge),
            ("high", "at most", lambda edge: value <= edge),
            ("above", "more than", lambda edge: value > edge),
            ("multiple", "a multiple of", lambda edge: value % edge == 0),
        )
        if name in limits and not holds(limits[name])
        for text in [f"{text} {limits[name]}"]
    ]
    return [f"{path}: {value} must be {' and '.join(wrong)}"] if wrong else []


def contradictions(cfg: DictConfig) -> list[str]:
    """Values that are fine alone and not together, a sentence each."""
    wrong = []
    if not cfg.dataset_types:
        wrong.append(f"dataset_types: empty; name one or more of {', '.join(SOURCE_KEYS)}")
    for kind in cfg.dataset_types:
        if kind not in SOURCE_KEYS:
            close = difflib.get_close_matches(kind, SOURCE_KEYS, 1) or list(SOURCE_KEYS)
            wrong.append(f"dataset_types: {kind!r} is unknown{did_you_mean(close)}")
        elif cfg.train_data[SOURCE_KEYS[kind]] is None and cfg.cached_latent_dir is None:
            wrong.append(
                f"train_data.{SOURCE_KEYS[kind]}: not set, and dataset_types asks for {kind}; point it at your data"
            )
    for side in cfg.embeddings.blocks:
        if side not in SIDES:
            wrong.append(f"embeddings.blocks: {side!r} is unknown; there are {', '.join(SIDES)}")
    if cfg.min_timestep > cfg.max_timestep:
        wrong.append(f"min_timestep: {cfg.min_timestep} is above max_timestep {cfg.max_timestep}; swap or widen them")
    return wrong


def did_you_mean(names: list[str]) -> str:
    """The end of a sentence about a wrong name; empty without a near one."""
    return f"; did you mean {' or '.join(names)}?" if names else ""
