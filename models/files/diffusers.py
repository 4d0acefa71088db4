"""LoRA files of other libraries: PEFT folders, and diffusers' `pytorch_lora_weights.safetensors`.

Both are read into, and written from, the states of models/files/checkpoint.py. What we write carries our header too,
so that preset and config survive the way there and back. One file holds one adapter: the motion adapter lies in the
folder itself, the appearance adapters of the reference clips in `spatial/{i}/`.

A stock pipeline loads the diffusers file once its U-Net can hold adapters, which today's class can not by itself:

    class UNet3DConditionModel(diffusers.UNet3DConditionModel, diffusers.loaders.PeftAdapterMixin): pass
    pipe.unet.__class__ = UNet3DConditionModel
    pipe.load_lora_weights(folder)
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from peft.utils.other import get_pattern_key

from configs.errors import UserError
from models.files.checkpoint import LAYOUT, Checkpoint, appearance_states, from_header
from models.files.peft import (
    ADAPTER_CONFIG,
    ADAPTER_FILE,
    State,
    check_pairs,
    peft_config,
    read_adapter,
    read_tensors,
    write_adapter,
    write_tensors,
)
from models.files.release import APPEARANCE
from models.lora import PRESETS

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
DIFFUSERS_PREFIX, DIFFUSERS_METADATA = "unet.", "lora_adapter_metadata"


def header_of(checkpoint: Checkpoint) -> dict[str, str]:
    """What a safetensors header says of a LoRA checkpoint, whatever file it came from."""
    rank = checkpoint.rank
    header = {key: value for key, value in checkpoint.info.items() if key != "assumed"}
    header |= {"rank": str(rank), "alpha": repr(checkpoint.scale * rank), "layout": LAYOUT}
    header |= {"step": str(checkpoint.index), "kind": "lora", "clips": str(len(checkpoint.appearance)), "format": "pt"}
    if checkpoint.preset is not None:
        header["preset"] = checkpoint.preset
    if checkpoint.config is not None:
        header["config"] = yaml.safe_dump(checkpoint.config, sort_keys=False)
    return header


def preset_of(state: State) -> str | None:
    """The preset whose layer kinds are exactly those of `state`, None where there is none."""
    parts = {name.split(".transformer_blocks.")[-1].split(".", 1)[1].rsplit(".lora_", 1)[0] for name in state}
    spatial = not any("temp_attentions" in name or name.startswith("transformer_in") for name in state)
    presets = (name for name, kinds in PRESETS.items() if set(kinds) == parts and (name == APPEARANCE) == spatial)
    return next(presets, None)


def write_peft(checkpoint: Checkpoint, folder: Path) -> None:
    """Write PEFT folders into `folder`, which must exist."""
    header = header_of(checkpoint)
    write_adapter(folder, checkpoint.motion, header)
    for clip, state in enumerate(checkpoint.appearance):
        write_adapter(folder / "spatial" / str(clip), state, header | {"preset": APPEARANCE})


def read_peft(folder: Path) -> Checkpoint:
    """The adapter of a PEFT folder, ours or anybody's, with one scale for all layers.

    Layers whose alpha / rank differs from the adapter's own have the difference multiplied into their up matrices.
    Raises UserError for adapters that are more than a plain LoRA.
    """
    state, header = read_adapter(folder)
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no readable {ADAPTER_CONFIG} beside the weights ({error})") from error
    return _foreign(folder, state, header, config)


def _foreign(path: Path, state: State, header: dict[str, str], config: Mapping[str, Any]) -> Checkpoint:
    if not isinstance(config, Mapping):
        raise UserError(f"{path}: its adapter configuration is a {type(config).__name__}, not keys and values")
    if config.get("use_dora") or config.get("peft_type", "LORA") != "LORA":
        raise UserError(f"{path}: is no plain LoRA (found {config.get('peft_type')}, DoRA {config.get('use_dora')})")
    try:
        rank, alpha = int(config["r"]), float(config["lora_alpha"])
        patterns = {str(key): float(value) for key, value in (config.get("alpha_pattern") or {}).items()}
        if rank < 1 or not math.isfinite(alpha) or alpha == 0:
            raise ValueError(f"r={rank}, lora_alpha={alpha:g}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: its adapter configuration gives no usable r, lora_alpha and alpha_pattern ({error});"
            " copy it again from where the weights came from"
        ) from error
    root = math.sqrt if config.get("use_rslora") else float
    scale = alpha / root(rank)
    for name in [name for name in state if name.endswith(".lora_B.weight")]:
        layer = name.removesuffix(".lora_B.weight")
        r = state[name].shape[1]
        ratio = patterns.get(_pattern(path, patterns, layer), alpha) / root(r) / scale
        if not math.isclose(ratio, 1):
            state[name] = state[name] * ratio
    if "layout" not in header:
        header = {"preset": preset_of(state)} if preset_of(state) else {}
    header |= {"rank": str(rank), "alpha": repr(scale * rank)}
    folder = path if path.is_dir() else path.parent
    appearance = appearance_states(folder, header.get("clips")) if (folder / ADAPTER_FILE).is_file() else []
    return from_header(path, int(header.get("step", 0)), "lora", state, appearance, header)


def _pattern(path: Path, patterns: Mapping[str, float], layer: str) -> str:
    """The pattern that is `layer`'s: the first to match its name or the end of it, as PEFT looks them up."""
    try:
        return get_pattern_key(list(patterns), layer)
    except re.error as error:
        raise UserError(f"{path}: alpha_pattern holds what is no regular expression ({error})") from error


def write_diffusers(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` files into `folder`, which must exist."""
    header = header_of(checkpoint)
    _write_diffusers(checkpoint.motion, folder, header)
    for clip, state in enumerate(checkpoint.appearance):
        _write_diffusers(state, folder / "spatial" / str(clip), header | {"preset": APPEARANCE})


def _write_diffusers(state: State, folder: Path, header: Mapping[str, str]) -> None:
    config = peft_config(state, int(header["rank"]), float(header["alpha"]))
    metadata = json.dumps({DIFFUSERS_PREFIX + key: value for key, value in config.items()}, sort_keys=True)
    tensors = {DIFFUSERS_PREFIX + name: tensor for name, tensor in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / DIFFUSERS_FILE, {**header, DIFFUSERS_METADATA: metadata})


def read_diffusers(path: Path) -> Checkpoint:
    """The adapters of a diffusers LoRA file, or of a folder of them as `write_diffusers` makes it.

    Without diffusers' metadata in the header the scale is 1, as diffusers itself assumes.
    """
    file = path / DIFFUSERS_FILE if path.is_dir() else path
    state, header, config = _read_diffusers(file)
    checkpoint = _foreign(file, state, header, config)
    clips = range(int(header.get("clips", 0)))
    checkpoint.appearance = [_read_diffusers(file.parent / "spatial" / str(clip) / DIFFUSERS_FILE)[0] for clip in clips]
    return checkpoint


def _read_diffusers(file: Path) -> tuple[State, dict[str, str], dict[str, Any]]:
    tensors, header = read_tensors(file)
    state = {name.removeprefix(DIFFUSERS_PREFIX): tensor for name, tensor in tensors.items()}
    check_pairs(state, file)
    metadata = header.pop(DIFFUSERS_METADATA, None)
    if metadata is not None:
        try:
            config = {key.removeprefix(DIFFUSERS_PREFIX): value for key, value in json.loads(metadata).items()}
        except (ValueError, AttributeError) as error:
            raise UserError(f"{file}: its {DIFFUSERS_METADATA} is no JSON object ({error}); copy it again") from error
        return state, header, config
    rank = max(tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_A.weight"))
    # every layer at its own rank: the scale is 1 throughout
    alphas = {name.removesuffix(".lora_A.weight"): t.shape[0] for name, t in state.items() if name.endswith("A.weight")}
    return state, header, {"r": rank, "lora_alpha": rank, "alpha_pattern": alphas}
