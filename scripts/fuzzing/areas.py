"""What is tried, area by area: a strategy for cases, and an attempt that gives one to the functions of the commands.

An attempt that comes through checks that its result is right; what "right" means stands in its last lines. A case is
plain data, so that one that was ever found can be kept as it is (scripts/fuzzing/found.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy

from scripts.fuzzing import checkpoints, folders, requests
from scripts.fuzzing.ground import Ground
from scripts.fuzzing.values import texts


@dataclass(frozen=True)
class Area:
    """`cases` are tried by `attempt`, with `share` of the examples that a usual area gets."""

    name: str
    cases: SearchStrategy[Any]
    attempt: Callable[[Ground, Any], None]
    share: float = 1.0


AREAS = [
    Area("configuration", requests.configurations, requests.configuration, share=2),
    Area("checkpoint header", checkpoints.header, checkpoints.checkpoint_header),
    Area("stored configuration", checkpoints.stored, checkpoints.stored_configuration),
    Area("embeddings header", checkpoints.sizes, checkpoints.embeddings_header),
    Area("tensors", checkpoints.tensor_cases, checkpoints.tensors),
    Area("damaged files", checkpoints.damage_cases, checkpoints.damaged_files, share=3),
    Area("training state", checkpoints.state_cases, checkpoints.state_file),
    Area("conversion", folders.conversion_cases, folders.conversion, share=0.5),
    Area("model folder", folders.model_cases, folders.model_folder, share=0.7),
    Area("clip lists", requests.clip_cases, requests.clip_lists),
    Area("prompts", texts, requests.prompts, share=0.5),
    Area("flags", requests.flag_cases, requests.flags),
    Area("sidecars", requests.sidecar_cases, requests.sidecars),
]
