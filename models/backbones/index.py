"""A pipeline's model_index.json, which names its class, its parts and, of Wan 2.2, the boundary between two experts."""

import time
from functools import cache
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from configs.paths import is_hub_id
from configs.plain import read_json

PATIENCE = 60.0  # seconds in which an index is not asked for again after it failed: without a network that takes 23 s
_failed: dict[str, float] = {}  # hub id -> when


def read_index(model: str | Path) -> dict[str, Any]:
    """The index of a pipeline folder or hub id, or the config.json of a network's own folder; empty where none is."""
    folder = Path(model)
    if folder.is_dir():
        files = (folder / "model_index.json", folder / "config.json")
        found = next((read_json(file) for file in files if file.is_file()), {})
    elif is_hub_id(str(model)) and time.monotonic() - _failed.get(str(model), -PATIENCE) >= PATIENCE:
        try:
            found = _of_hub(str(model))
        except (OSError, ValueError):  # whoever loads it words this
            found, _failed[str(model)] = {}, time.monotonic()
    else:
        found = {}
    return dict(found) if isinstance(found, dict) else {}


@cache  # each call is a request, and a command asks some twenty times; an error is not kept
def _of_hub(model: str) -> Any:
    return DiffusionPipeline.load_config(model)
