"""Where a configuration's values come from: YAML files in order, each over its base, and perhaps a fallback over it.

A layer is one file's keys. `base` names a file that comes below the one that names it. `fallback` names one that comes
over it when the model folder which that same file gives does not exist; a hub id, a model named elsewhere and one given
on the command line are never replaced.
"""

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.errors import UserError, printable, shown
from configs.fields import SECTIONS
from configs.limits import did_you_mean
from configs.paths import ROOT, download_of, exists, is_hub_id, locate
from configs.plain import read_yaml

MODEL, BASE, FALLBACK = "pretrained_model_path", "base", "fallback"
MOST_BASES = 16


@dataclass
class Layer:
    """One file's values by dotted key. `chain` is the number of the --config file it belongs to."""

    origin: str
    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    chain: int = 0


def brief(name: str) -> str:
    """A file's name in a message, without quotes: the end of a long one, which tells it from others."""
    return printable(name if len(name) <= 80 else f"...{name[-77:]}")


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys. What is no section of the schema stays one value, whatever it holds."""
    found = {}
    for name, value in values.items():
        path = f"{prefix}{name}"
        found |= leaves(value, f"{path}.") if path in SECTIONS and isinstance(value, dict) else {path: value}
    return found


def read_chains(names: list[str], errors: list[str]) -> list[Layer]:
    """The layers of the --config files `names`, lowest first. What cannot be read becomes a sentence in `errors`."""
    layers = []
    for chain, name in enumerate(names):
        layers += _read(name, locate(name), errors, chain, above=())
    return layers


def with_fallback(layers: list[Layer], errors: list[str], default_model: str) -> tuple[list[Layer], str | None]:
    """The layers with the fallback that applies, directly over the file that names it, and a warning about it.

    Files after that one still win, except for the model that is missing.
    """
    model, given_by, named = default_model, None, None
    for number, layer in enumerate(layers):
        if layer.values.get(MODEL) is not None:
            model, given_by = layer.values[MODEL], layer.chain
        if FALLBACK in layer.values:
            named = (number, model) if given_by in (None, layer.chain) else None
    if named is None or not (isinstance(model, str) and isinstance(named[1], str)):
        return layers, None
    number, given = named
    fallback = layers[number].values[FALLBACK]
    same = os.path.normpath(model) == os.path.normpath(given)
    if not same or not isinstance(fallback, str) or is_hub_id(given) or locate(given).exists():
        return layers, None
    at = layers[number]
    small = _read(fallback, _beside(at.path, fallback), errors, at.chain, (), f"{brief(at.origin)}: {FALLBACK}: ")
    if small and not any(isinstance(layer.values.get(MODEL), str) for layer in small):
        errors.append(f"{brief(fallback)}: gives no {MODEL}, and {brief(at.origin)} names it as {FALLBACK}; add one")
    later = [
        Layer(layer.origin, layer.path, {k: v for k, v in layer.values.items() if k != MODEL}, layer.chain)
        for layer in layers[number + 1 :]
    ]
    command = download_of(given)
    warning = (
        f"warning: no model folder at {brief(given)}; falling back to {brief(fallback)}: a toy model, which exercises "
        "the whole pipeline; its results say nothing about real clips"
        + (f" (`{command}` gets the real model)" if command else "")
    )
    return [*layers[: number + 1], *small, *later], warning


def _read(
    name: str, path: Path, errors: list[str], chain: int, above: tuple[Path, ...], asked_by: str = ""
) -> list[Layer]:
    """A file's layer over those of its base; `above` are the files whose base it is, `asked_by` opens a sentence."""
    try:
        if not exists(path):
            raise UserError(_missing(name))
        values = read_yaml(path, brief(name))
        if not isinstance(values, dict | type(None)):  # None: nothing but comments
            kind = type(values).__name__
            raise UserError(f"{brief(name)}: holds a {kind} in place of keys and values; write `key: value` lines")
        layer = Layer(name, path, leaves(values or {}), chain)
        base = layer.values.pop(BASE, None)
        if base is None:
            return [layer]
        if not isinstance(base, str):
            raise UserError(f"{brief(name)}: {BASE}: {shown(base)} is no file name; name one YAML file")
        below, above = _beside(path, base), (*above, path.resolve())
        if below.resolve() in above or len(above) > MOST_BASES:
            way = brief(" -> ".join(file.name for file in (*above, below)))
            raise UserError(f"{brief(name)}: {BASE}: files without end or in a circle ({way}); take one {BASE} out")
    except UserError as error:
        errors.append(asked_by + str(error))
        return []
    return [*_read(base, below, errors, chain, above, f"{asked_by}{brief(name)}: {BASE}: "), layer]


def _beside(file: Path, name: str) -> Path:
    """The file `name` in the folder of the file that names it, else from the working directory or the repository."""
    beside = file.parent / os.path.expanduser(name)
    return beside if exists(beside) else locate(name)


def _missing(name: str) -> str:
    known = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml"))
    return f"{brief(name)}: no such configuration file{did_you_mean(difflib.get_close_matches(name[:80], known, 1))}"
