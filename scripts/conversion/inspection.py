"""What a file, run or model folder is, one fact a line; control characters in a file's texts are escaped."""

from pathlib import Path

import torch

from configs.errors import UserError, printable, shown
from models.backbones import architecture
from models.files import release
from models.files.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from models.files.dialects import FILE as DIALECT_FILE
from models.files.diffusers_lora import DIFFUSERS_FILE
from models.files.modelspec import PREFIXES, THUMBNAIL
from models.files.peft import ADAPTER_FILE
from models.files.tensors import read_pickle
from models.outline import skeleton
from scripts.conversion.reading import read

MOST_LETTERS, MOST_LINES = 200, 400


def inspect(path: Path, model: str | None) -> list[str]:
    """What is at `path`, one fact a line, each short and without control characters."""
    facts = [printable(fact) for fact in _facts(path, model)]
    rest = [f"and {len(facts) - MOST_LINES} more"] if len(facts) > MOST_LINES else []
    return [f if len(f) <= MOST_LETTERS else f"{f[:MOST_LETTERS]}..." for f in facts[:MOST_LINES]] + rest


def _facts(path: Path, model: str | None) -> list[str]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / "model_index.json").is_file():
        return ["pipeline folder", architecture(skeleton(path))]
    if path.suffix == ".pt" and path.name != release.EMBEDDINGS_FILE:
        return _inspect_pickle(path, model)
    if path.is_file() or any((path / name).is_file() for name in (ADAPTER_FILE, DIFFUSERS_FILE, DIALECT_FILE)):
        return _describe(read(path, None, model))
    found = list_checkpoints(path)
    if not found:
        raise UserError(f"{path}: no checkpoint, LoRA or pipeline there")
    lines = [f"run folder, checkpoints {', '.join(map(str, found))}; the last:"] if len(found) > 1 else []
    last = found[max(found)]
    if (file := release.lora_file(last, "temporal")) is None:
        return lines + _describe(load_checkpoint(last))
    sides = [file, release.lora_file(last, "spatial")]
    return lines + [
        f"{side.relative_to(path)}: {line}" for side in sides if side for line in _inspect_pickle(side, model)
    ]


def _inspect_pickle(path: Path, model: str | None) -> list[str]:
    content = read_pickle(path)
    if isinstance(content, dict):
        held = {name: list(v.shape) if isinstance(v, torch.Tensor) else shown(v) for name, v in content.items()}
        return ["dict of the release, such as its cached latents", *(f"{name}: {what}" for name, what in held.items())]
    tensors, unet = release.read_list(path), skeleton(model)
    ranks = sorted({down.shape[0] for down in tensors[1::2]})
    fits = [f"{name}" + (f" ({n} clips)" if n > 1 else "") for name, n in release.identify(tensors, unet).items()]
    known = (
        f"fits {' or '.join(fits)} on {architecture(unet)}"
        if fits
        else (f"fits no preset on {architecture(unet)}" + ("" if model else "; name its model with --model"))
    )
    return [
        f"positional list of the release or MotionDirector, {len(tensors) // 2} layers, rank"
        f" {'/'.join(map(str, ranks))}, widths {release.widths(tensors)}",
        known,
    ]


def _brief(key: str, value: str) -> str:
    """A header's text for a line; of a thumbnail its kind and size, since nobody reads a picture's letters."""
    if key != THUMBNAIL:
        return value
    kind = value.removeprefix("data:").split(";")[0] if value.startswith("data:") else "no data URL"
    return f"{kind[:40]}, {len(value):,} letters"


def _describe(checkpoint: Checkpoint) -> list[str]:
    size = sum(tensor.numel() for tensor in checkpoint.motion.values())
    lines = [f"{checkpoint.kind} checkpoint of step {checkpoint.index}, {size:,} motion parameters"]
    if checkpoint.kind == "lora":
        layers = len(checkpoint.motion) // 2
        lines += [
            f"preset: {checkpoint.preset or 'none of ours'}, {layers} layers, rank {checkpoint.rank}, scale"
            f" {checkpoint.scale:g}",
            f"appearance adapters: {len(checkpoint.appearance)}",
        ]
    lines += [
        f"{key}: {_brief(key, value)}"
        for key, value in sorted(checkpoint.info.items(), key=lambda item: (item[0].startswith(PREFIXES), item))
        if key not in ("preset", "rank")
    ]
    return lines + [f"config: {'in the header' if checkpoint.config else 'none'}"]
