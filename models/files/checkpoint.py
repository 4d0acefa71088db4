"""Checkpoints: trained weights and everything that shaped them, in files that execute nothing when opened.

    run/checkpoint-N/temporal/adapter_model.safetensors     the motion adapter, with adapter_config.json: a PEFT folder
    run/checkpoint-N/spatial/{i}/adapter_model.safetensors  the appearance adapter of reference clip i, likewise
    run/checkpoint-N/embeddings.safetensors                 in place of both, for Motion Inversion
    run/checkpoint-N/training_state.pt                      optimizers and step, read back with weights_only

Every safetensors header holds the preset, rank, alpha, step, architecture and the full config. LoRA states are
{"<module>.lora_A.weight": [r in], "<module>.lora_B.weight": [out r]}; PEFT's prefix exists on disk only. Folders
appear complete or not at all. The authors' folders are read through models/files/release.py.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.errors import UserError, shown
from configs.files import atomic_path, remove
from models.backbones import architecture
from models.files import release
from models.files.fit import check_fit
from models.files.header import CUSTOM, LAYOUT, Header, check_embeddings, check_rank, read_header
from models.files.modelspec import LARGEST_THUMBNAIL, without_spec
from models.files.peft import ADAPTER_FILE, read_adapter, write_adapter
from models.files.tensors import State, names_in, read_tensors, write_tensors
from models.files.training_state import TRAINING_STATE
from models.targets import APPEARANCE

EMBEDDINGS_FILE = "embeddings.safetensors"
MARGIN = 64 * 1024 + LARGEST_THUMBNAIL  # bytes for headers and folders beside the tensors of a checkpoint


@dataclass
class Checkpoint:
    """What inference needs of a training run. `scale` is alpha / rank.

    `preset` and `rank` are None for embeddings, `preset` also where the layers are those of none.
    `config` holds the keys of the stored configuration, checked by the schema and never completed by its defaults;
    `info` the header's other texts.
    """

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

    @property
    def shape(self) -> str:
        """The preset, "custom" for a LoRA of other layers, or "embeddings"."""
        return self.preset or (CUSTOM if self.kind == "lora" else self.kind)


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

    `info` goes into the headers: preset, rank and alpha (default: rank) shape a LoRA, anything else is kept as it is.
    Raises UserError, writing nothing, where a weight is not finite, and OSError where the disk is full.
    """
    for name, state in {"motion": motion, **{f"appearance of clip {i}": s for i, s in enumerate(appearance)}}.items():
        _refuse_broken(name, state, run_dir)
    folder = Path(run_dir) / f"checkpoint-{step}"
    header = {key: str(value) for key, value in info.items() if value is not None}
    header |= {"format": "pt", "layout": LAYOUT, "kind": kind, "step": str(step)}
    if config_yaml is not None:
        header["config"] = config_yaml
    header["clips"] = str(len(appearance))
    if "rank" in header:
        header.setdefault("alpha", header["rank"])
    needs = _bytes_of([motion, appearance, training_state]) + MARGIN
    with atomic_path(folder, needs) as part:
        part.mkdir()
        if kind == "embeddings":
            write_tensors(motion, part / EMBEDDINGS_FILE, header)
        else:
            write_adapter(part / "temporal", motion, header)
        for place, state, texts in appearance_parts(appearance, header):
            write_adapter(part / place, state, texts)
        if training_state is not None:
            torch.save(training_state, part / TRAINING_STATE)
    if limit:
        prune(run_dir, limit)
    return folder


def _refuse_broken(part: str, state: State, run_dir: str | Path) -> None:
    for name, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"training: {name} of the {part} holds numbers that are not finite, so it was not saved; the"
                f" checkpoints made before are kept in {run_dir}; lower learning_rate"
            )


def _bytes_of(content: Any) -> int:
    """How many bytes the tensors in nested containers take."""
    if isinstance(content, torch.Tensor):
        return content.numel() * content.element_size()
    inside = content.values() if isinstance(content, Mapping) else content if isinstance(content, list | tuple) else ()
    return sum(_bytes_of(value) for value in inside)


def _runs_near(folder: Path) -> str:
    runs = sorted(path.name for path in folder.glob("train_*") if path.is_dir())
    return f"; there is {', '.join(runs[-3:])} in {folder}, the last is the newest" if runs else ""


def _refuse_foreign(path: Path) -> None:
    """Raise UserError where `path` is, or holds, a LoRA in the format of another program, with the command for it."""
    for file in [path] if path.is_file() else sorted(path.glob("*.safetensors")):
        if any("lora" in name for name in names_in(file)):
            raise UserError(
                f"{path}: a LoRA in the format of another program; `python scripts/convert.py ours {file} OUT` makes it"
                " a checkpoint"
            )


def list_checkpoints(folder: str | Path) -> dict[int, Path]:
    """Checkpoint folders by step, ascending: those in the run `folder`, and `folder` itself where it is one."""
    folder = Path(folder)
    if folder.name in ("", ".."):  # "." is its own parent, and a checkpoint's run is its folder's parent
        folder = Path(os.path.abspath(folder))
    if not folder.is_dir():
        _refuse_foreign(folder)
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
    network: nn.Module | None = None,
    motion_needed: bool = True,
) -> Checkpoint:
    """The checkpoint of step `index` (default: the last) in `folder`, ours or the authors'.

    `preset` and `rank` are what the caller expects: a file without names is read as `preset`, and a checkpoint of
    another preset or rank is an error. `network` (on any device, meta too) gives names to such files and is checked
    against the names and shapes of all. Without `motion_needed` a folder of appearance adapters alone will do: its
    preset is "appearance". Raises UserError for anything missing, damaged or not fitting.
    """
    found = list_checkpoints(folder)
    if not found:
        _refuse_foreign(Path(folder))
        raise UserError(
            f"{folder}: holds no checkpoint-N folder"
            f"{_runs_near(Path(folder)) or '; give the folder that train.py named'}"
        )
    index = max(found) if index is None else index
    if index not in found:
        raise UserError(f"{folder}: no checkpoint-{index}; there are {', '.join(map(str, found))}")
    checkpoint = _read(found[index], index, preset, network, motion_needed)
    if checkpoint.kind == "embeddings" and (preset or (rank and not checkpoint.rank)):
        raise UserError(
            f"{checkpoint.path}: holds the embeddings of Motion Inversion, which have no temporal preset and no"
            " rank; leave those out"
        )
    if preset not in (None, checkpoint.shape):
        raise UserError(f"{checkpoint.path}: has the temporal preset {checkpoint.shape}, {preset} was asked")
    if rank not in (None, checkpoint.rank):
        raise UserError(f"{checkpoint.path}: has rank {checkpoint.rank}, rank {rank} was asked")
    if network is not None:
        check_fit(checkpoint, network)
    return checkpoint


def _read(path: Path, index: int, preset: str | None, network: nn.Module | None, motion_needed: bool) -> Checkpoint:
    if (path / EMBEDDINGS_FILE).is_file():
        motion, texts = read_tensors(path / EMBEDDINGS_FILE)
        header = read_header(texts, path / EMBEDDINGS_FILE)
        check_embeddings(path / EMBEDDINGS_FILE, header, motion)
        return from_header(path, index, "embeddings", motion, appearance_states(path, header.clips), header)
    if (path / "temporal" / ADAPTER_FILE).is_file():
        motion, texts = read_adapter(path / "temporal")
        header = read_header(texts, path / "temporal" / ADAPTER_FILE)
        _check_ours(path, header, motion)
        return from_header(path, index, "lora", motion, appearance_states(path, header.clips), header)
    if (path / release.EMBEDDINGS_FILE).is_file():
        motion = release.read_embeddings(path / release.EMBEDDINGS_FILE)
        return Checkpoint(path, index, "embeddings", None, None, 1.0, motion, info={})
    if (path / "temporal" / "lora").is_dir():
        return _read_positional(path, index, preset, network)
    if not motion_needed and (path / "spatial" / "lora").is_dir():
        return _read_positional(path, index, APPEARANCE, network)
    if not motion_needed and (states := appearance_states(path, None)):
        file = path / "spatial" / "0" / ADAPTER_FILE
        header = read_header(read_tensors(file)[1], file)
        _check_ours(path, header, states[0])
        return from_header(path, index, "lora", {}, states, header)
    _refuse_foreign(path)
    held = ", ".join(shown(entry.name) for entry in sorted(path.iterdir())[:8]) or "nothing"
    raise UserError(f"{path}: no motion weights there (found {held}); the checkpoint is incomplete, use another")


def _check_ours(path: Path, header: Header, state: State) -> None:
    """Raise UserError where a header lacks what shapes a LoRA: without it the scale would be a guess."""
    if header.preset is None or header.rank is None:
        raise UserError(
            f"{path}: its header names no preset and rank, so it is no checkpoint of this project; turn it into one"
            " with `python scripts/convert.py ours`"
        )
    check_rank(path, header, state)


def _read_positional(path: Path, index: int, asked: str | None, network: nn.Module | None) -> Checkpoint:
    if network is None:
        raise UserError(f"{path}: the authors' files hold no layer names; name the model they were trained on")
    preset, motion, appearance = release.read_lora(path, network, asked)
    rank = max(
        tensor.shape[0]
        for state in [motion, *appearance]
        for name, tensor in state.items()
        if name.endswith("lora_A.weight")
    )
    info = {"architecture": architecture(network)}
    if asked is None and preset == release.ASSUMED:
        info["assumed"] = f"{path} names no layers: read as the preset {preset}, which the authors' code writes"
    return Checkpoint(path, index, "lora", preset, rank, 1.0, motion, appearance, info=info)


def appearance_parts(
    appearance: Sequence[State], header: dict[str, str]
) -> Iterator[tuple[str, State, dict[str, str]]]:
    """(folder inside the checkpoint's, state, header) of every clip's appearance adapter; `header` is the motion's."""
    texts = without_spec(header) | {"preset": APPEARANCE}
    return ((f"spatial/{clip}", state, texts) for clip, state in enumerate(appearance))


def appearance_states(path: Path, clips: int | None) -> list[State]:
    """The LoRA states in `path/spatial/{i}`, as many as the header's `clips` names; UserError where one is missing."""
    numbered = [folder for folder in (path / "spatial").glob("*") if re.fullmatch("[0-9]{1,9}", folder.name)]
    folders = sorted(numbered, key=lambda folder: int(folder.name))
    expected = len(folders) if clips is None else clips
    if [folder.name for folder in folders] != [str(clip) for clip in range(expected)]:
        raise UserError(
            f"{path}/spatial: {len(folders)} appearance adapters, {expected} were written; the checkpoint is"
            " incomplete, use another"
        )
    return [read_adapter(folder)[0] for folder in folders]


def from_header(
    path: Path, index: int, kind: str, motion: State, appearance: list[State], header: Header
) -> Checkpoint:
    """A Checkpoint whose preset, rank, scale and config are those of the safetensors header of its motion."""
    preset = header.preset if kind == "lora" and header.preset != CUSTOM else None
    return Checkpoint(
        path, index, kind, preset, header.rank, header.scale, motion, appearance, header.config, header.texts
    )


def prune(run_dir: str | Path, limit: int) -> None:
    """Remove all but the newest `limit` checkpoints of a run."""
    folders = [path for path in list_checkpoints(run_dir).values() if path != Path(run_dir)]
    for path in folders[:-limit]:
        remove(path)
