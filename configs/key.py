"""How a configuration key is declared, as a dataclass field: default, help, limits, and what it shapes."""

from dataclasses import MISSING, field
from typing import Any, Literal, get_args

MOST_STEPS = 999  # DDIM's 1000 timesteps start at 1 (steps_offset), so a thousand steps would ask for timestep 1000
MOST_FRAMES = 4096
LEAST_CUTOFF = 0.001  # of a low band: a thousandth of the highest frequency is the whole frame of any model
SIDE = {"low": 8, "high": 8192, "multiple": 8}  # pixels of a video's width or height
EVERY = {"low": 1, "high": 10**9}  # a count of training steps
TEXT = {"text": True}  # what the text encoder reads: any sign may stand in it
Shapes = Literal["training", "clips", "steps", "nothing"]


def key(default: Any, help: str, shapes: Shapes, **limits: Any) -> Any:
    """A dataclass field with its line of help and limits: low, high (inclusive), above (exclusive), multiple, text.

    `shapes` says which numbers of a training the value can change, and so what becomes of it where a training goes on
    from a checkpoint (models/training/resume.py): "training" what is learned, and must stay; "clips" what it is learned
    from, which is compared itself; "steps" the steps to come, if only in rounding; "nothing" none of these.
    """
    metadata = {"help": help, "shapes": shapes, **limits}
    if isinstance(default, list) or default is list:
        return field(default_factory=default if default is list else lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(schema: type, help: str) -> Any:
    """A dataclass field that holds the keys of another dataclass."""
    return field(default_factory=schema, metadata={"help": help})


def type_words(entry: Any) -> str:
    """The values a key takes, in words: its type or its choices."""
    choices = [
        value for part in (entry.type, *get_args(entry.type)) for value in get_args(part) if isinstance(value, str)
    ]
    if choices:
        return " | ".join(choices)
    name = entry.type.__name__ if type(entry.type) is type else str(entry.type)
    return name.replace(" | None", " or null")


def default_of(entry: Any) -> Any:
    """A key's default, a new one each time."""
    return entry.default if entry.default_factory is MISSING else entry.default_factory()


def default_text(entry: Any) -> str:
    """A key's default as YAML writes it."""
    value = default_of(entry)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value) or '""'
