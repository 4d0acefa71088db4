"""Checkpoints: trained weights and everything that shaped them, in files that execute nothing when opened.

    run/checkpoint-N/temporal/adapter_model.safetensors     the motion adapter, with adapter_config.json: a PEFT folder
    run/checkpoint-N/spatial/{i}/adapter_model.safetensors  the appearance adapter of reference clip i, likewise
    run/checkpoint-N/embeddings.safetensors                 in place of both, for Motion Inversion
    run/checkpoint-N/training_state.pt                      optimizers and step, read back with weights_only

Every safetensors header holds the preset, rank, alpha, step, architecture and the full config. LoRA states are
{"<module>.lora_A.weight": [r in], "<module>.lora_B.weight": [out r]}; PEFT's prefix exists on disk only. Folders
appear complete or not at all. The authors' folders are read through models/files/release.py.
"""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from configs.errors import UserError
from configs.files import atomic_path
from models.files import release
from models.files.peft import ADAPTER_FILE, State, read_adapter, read_tensors, write_adapter, write_tensors
from models.lora import targets

EMBEDDINGS_FILE, TRAINING_STATE = "embeddings.safetensors", "training_state.pt"
LAYOUT = "1"  # of our headers; raise it when a key changes its meaning


@dataclass
class Checkpoint:
    """What inference needs of a training run. `scale` is alpha / rank; `preset` and `rank` are None for embeddings."""

    path: Path
    index: int
    kind: str  # "lora" | "embeddings"
    preset: str | None
    rank: int | None
    scale: float
    motion: State
    appearance: list[State] = field(default_factory=list)
    config: dict[str, Any] | None = None
    info: dict[str, str] = field(default_factory=dict)


def save_checkpoint(
    run_dir: str | Path,
    step: int,
    *,
    motion: State,
    appearance: list[State],
    kind: str,
    config_yaml: str | None,
    info: Mapping[str, Any],
    training_state: dict[str, Any] | None = None,
    limit: int | None = None,
) -> Path:
    """Write `run_dir/checkpoint-{step}` (replacing one of that name), keep the newest `limit`, return the folder.

    `info` goes into the headers: preset, rank and alpha (default: rank) shape a LoRA, anything else is told as it is.
    """
    folder = Path(run_dir) / f"checkpoint-{step}"
    header = {key: str(value) for key, value in info.items() if value is not None}
    header |= {"format": "pt", "layout": LAYOUT, "kind": kind, "step": str(step)}
    if config_yaml is not None:
        header["config"] = config_yaml
    header["clips"] = str(len(appearance))
    if "rank" in header:
        header.setdefault("alpha", header["rank"])
    with atomic_path(folder) as part:
        part.mkdir()
        if kind == "embeddings":
            write_tensors(motion, part / EMBEDDINGS_FILE, header)
        else:
            write_adapter(part / "temporal", motion, header)
        for clip, state in enumerate(appearance):
            write_adapter(part / "spatial" / str(clip), state, header | {"preset": release.APPEARANCE})
        if training_state is not None:
            torch.save(training_state, part / TRAINING_STATE)
    if limit:
        prune(run_dir, limit)
    return folder


def _runs_near(folder: Path) -> str:
    runs = sorted(path.name for path in folder.glob("train_*") if path.is_dir())
    return f"; there is {', '.join(runs[-3:])} in {folder}, the last is the newest" if runs else ""


def list_checkpoints(folder: str | Path) -> dict[int, Path]:
    """Checkpoint folders by step, ascending: those in the run `folder`, and `folder` itself where it is one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder{_runs_near(folder.parent)}")
    found = {}
    if any((folder / part).exists() for part in ("temporal", "spatial", EMBEDDINGS_FILE, release.EMBEDDINGS_FILE)):
        found[_step_of(folder)] = folder
    for path in folder.glob("checkpoint-*"):
        if path.is_dir() and (step := path.name.removeprefix("checkpoint-")).isdecimal():
            found[int(step)] = path
    return dict(sorted(found.items()))


def _step_of(path: Path) -> int:
    names = [path.resolve().name, *(file.name for file in (path / "temporal" / "lora").glob("*_unet.pt"))]
    steps = [re.fullmatch(r"checkpoint-(\d+)|(\d+)_unet\.pt", name) for name in names]
    return next((int(step[1] or step[2]) for step in steps if step), 0)


def load_checkpoint(
    folder: str | Path,
    index: int | None = None,
    *,
    preset: str | None = None,
    rank: int | None = None,
    unet: nn.Module | None = None,
    motion_needed: bool = True,
) -> Checkpoint:
    """The checkpoint of step `index` (default: the last) in `folder`, ours or the authors'.

    `preset` and `rank` are what the caller expects: a file without names is read as `preset`, and a checkpoint of
    another preset or rank is an error. `unet` (on any device, meta too) gives names to such files and is checked
    against the names and shapes of all. Without `motion_needed` a folder of appearance adapters alone will do: its
    preset is "appearance". Raises UserError for anything missing, damaged or not fitting.
    """
    found = list_checkpoints(folder)
    if not found:
        raise UserError(
            f"{folder}: holds no checkpoint-N folder"
            f"{_runs_near(Path(folder)) or '; give the folder that train.py named'}"
        )
    index = max(found) if index is None else index
    if index not in found:
        raise UserError(f"{folder}: no checkpoint-{index}; there are {', '.join(map(str, found))}")
    checkpoint = _read(found[index], index, preset, unet, motion_needed)
    if checkpoint.kind == "embeddings" and (preset or (rank and not checkpoint.rank)):
        raise UserError(
            f"{checkpoint.path}: holds the embeddings of Motion Inversion, which have no temporal preset and no"
            " rank; leave those out"
        )
    if preset not in (None, checkpoint.preset):
        raise UserError(f"{checkpoint.path}: trained with the temporal preset {checkpoint.preset}, {preset} was asked")
    if rank not in (None, checkpoint.rank):
        raise UserError(f"{checkpoint.path}: has rank {checkpoint.rank}, rank {rank} was asked")
    if unet is not None:
        check_fit(checkpoint, unet)
    return checkpoint


def check_fit(checkpoint: Checkpoint, unet: nn.Module) -> None:
    """Raise UserError, naming both architectures, unless every layer of `checkpoint` is in `unet` at its width."""
    for state in [checkpoint.motion, *checkpoint.appearance]:
        if state:
            _check_fit(state, unet, checkpoint)


def _read(path: Path, index: int, preset: str | None, unet: nn.Module | None, motion_needed: bool) -> Checkpoint:
    if (path / EMBEDDINGS_FILE).is_file():
        motion, header = read_tensors(path / EMBEDDINGS_FILE)
        return from_header(path, index, "embeddings", motion, appearance_states(path, header.get("clips")), header)
    if (path / "temporal" / ADAPTER_FILE).is_file():
        motion, header = read_adapter(path / "temporal")
        return from_header(path, index, "lora", motion, appearance_states(path, header.get("clips")), header)
    if (path / release.EMBEDDINGS_FILE).is_file():
        motion = release.read_embeddings(path / release.EMBEDDINGS_FILE)
        return Checkpoint(path, index, "embeddings", None, None, 1.0, motion, info={})
    if (path / "temporal" / "lora").is_dir():
        return _read_positional(path, index, preset, unet)
    if not motion_needed and (path / "spatial" / "lora").is_dir():
        return _read_positional(path, index, release.APPEARANCE, unet)
    if not motion_needed and (path / "spatial").is_dir():
        states = appearance_states(path, None)
        header = read_tensors(path / "spatial" / "0" / ADAPTER_FILE)[1] if states else {}
        return from_header(path, index, "lora", {}, states, header)
    held = ", ".join(sorted(entry.name for entry in path.iterdir())) or "nothing"
    raise UserError(f"{path}: no motion weights there (found {held}); the checkpoint is incomplete, use another")


def _read_positional(path: Path, index: int, asked: str | None, unet: nn.Module | None) -> Checkpoint:
    if unet is None:
        raise UserError(f"{path}: the authors' files hold no layer names; name the model they were trained on")
    preset, motion, appearance = release.read_lora(path, unet, asked)
    rank = max(
        tensor.shape[0]
        for state in [motion, *appearance]
        for name, tensor in state.items()
        if name.endswith("lora_A.weight")
    )
    info = {"architecture": release.architecture(unet)}
    if asked is None and preset == release.ASSUMED:
        info["assumed"] = f"{path} names no layers: read as the preset {preset}, which the authors' code writes"
    return Checkpoint(path, index, "lora", preset, rank, 1.0, motion, appearance, info=info)


def appearance_states(path: Path, clips: str | None) -> list[State]:
    """The LoRA states in `path/spatial/{i}`, as many as the header's `clips` says; UserError where one is missing."""
    folders = sorted((path / "spatial").glob("[0-9]*"), key=lambda folder: int(folder.name))
    expected = len(folders) if clips is None else int(clips)
    if [folder.name for folder in folders] != [str(clip) for clip in range(expected)]:
        raise UserError(
            f"{path}/spatial: {len(folders)} appearance adapters, {expected} were written; the checkpoint is"
            " incomplete, use another"
        )
    return [read_adapter(folder)[0] for folder in folders]


def from_header(path: Path, index: int, kind: str, motion: State, appearance: list[State], header: dict) -> Checkpoint:
    """A Checkpoint whose preset, rank, scale and config are read from the safetensors header of its motion."""
    rank = int(header["rank"]) if "rank" in header else None
    scale = float(header["alpha"]) / rank if rank and "alpha" in header else 1.0
    config = yaml.safe_load(header["config"]) if "config" in header else None
    info = {key: value for key, value in header.items() if key != "config"}
    preset = header.get("preset") if kind == "lora" else None
    return Checkpoint(path, index, kind, preset, rank, scale, motion, appearance, config, info)


def _check_fit(state: State, unet: nn.Module, checkpoint: Checkpoint) -> None:
    modules = dict(unet.named_modules())
    asked = [_trained_width(name, tensor) for name, tensor in state.items()]  # (layer, axis of its weight, width)
    weights = [getattr(modules.get(layer), "base_layer", modules.get(layer)) for layer, _, _ in asked]
    weights = [getattr(module, "weight", None) for module in weights]
    fits = all(w is not None and w.shape[axis] == width for w, (_, axis, width) in zip(weights, asked, strict=True))
    if fits and checkpoint.preset is not None:  # a shallower model's layers are all here, but not all that are here
        preset = checkpoint.preset if state is checkpoint.motion else release.APPEARANCE
        fits = {layer for layer, _, _ in asked} == set(targets(unet, preset))
    if not fits:
        layer, _, width = asked[0]
        trained_on = checkpoint.info.get("architecture", f"a {layer} of width {width}")
        raise UserError(
            f"{checkpoint.path}: does not fit this model: trained on {trained_on}; the model has"
            f" {release.architecture(unet)}; give the model it was trained on"
        )


def _trained_width(name: str, tensor: torch.Tensor) -> tuple[str, int, int]:
    """The linear layer a tensor of a checkpoint asks for; embeddings ask for their attention's to_q."""
    if name.endswith(".weight"):
        axis = 0 if name.endswith("lora_B.weight") else 1
        return name.removesuffix(".weight").rsplit(".", 1)[0], axis, tensor.shape[axis]
    return f"{name.removesuffix('.value').replace('.query_key', '.attn1')}.to_q", 1, tensor.shape[-1]


def load_training_state(path: str | Path) -> dict[str, Any]:
    """Optimizers and step of the checkpoint folder `path`, as `save_checkpoint` was given them."""
    file = Path(path) / TRAINING_STATE
    if not file.is_file():
        raise UserError(f"{path}: has no {TRAINING_STATE}, so training cannot go on from it; sampling can use it")
    return release.read_pickle(file)


def prune(run_dir: str | Path, limit: int) -> None:
    """Remove all but the newest `limit` checkpoints of a run."""
    folders = [path for path in list_checkpoints(run_dir).values() if path != Path(run_dir)]
    for path in folders[:-limit]:
        shutil.rmtree(path)
