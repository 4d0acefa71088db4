"""Any adapter file or folder as one Checkpoint: ours, PEFT's, diffusers', Wan's dialects, and three releases'."""

from pathlib import Path

from configs.errors import UserError
from models.backbones import architecture
from models.files import release
from models.files.checkpoint import Checkpoint, load_checkpoint
from models.files.dialects import FILE as DIALECT_FILE
from models.files.dialects import read_dialect
from models.files.diffusers_lora import DIFFUSERS_FILE, is_diffusers, read_diffusers, read_peft
from models.files.peft import ADAPTER_FILE
from models.outline import skeleton
from models.targets import targets


def read(source: Path, index: int | None = None, model: str | None = None, preset: str | None = None) -> Checkpoint:
    """Any of the formats above as a Checkpoint. `model` names layers where the file does not (default: ZeroScope)."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.suffix == ".pt":
        return _read_pickle(source, model, preset)
    if source.name == DIFFUSERS_FILE or (source / DIFFUSERS_FILE).is_file():
        return read_diffusers(source)
    if source.name == ADAPTER_FILE or (source / ADAPTER_FILE).is_file():
        return read_peft(source.parent if source.is_file() else source)
    if source.suffix == ".safetensors" or (source / DIALECT_FILE).is_file():
        if (checkpoint := read_dialect(source)) is not None:
            return checkpoint
        if source.is_file() and is_diffusers(source):
            return read_diffusers(source)
    if source.is_file():
        raise UserError(
            f"{source}: expected a .pt, {ADAPTER_FILE}, or a LoRA file of diffusers, ComfyUI or musubi-tuner"
        )
    nameless = any(source.glob("**/lora/*_unet.pt"))
    unet = skeleton(model) if nameless or model else None
    return load_checkpoint(source, index, preset=preset, network=unet)


def _read_pickle(path: Path, model: str | None, preset: str | None) -> Checkpoint:
    if path.name == release.EMBEDDINGS_FILE:
        return load_checkpoint(path.parent)
    tensors, unet = release.read_list(path), skeleton(model)
    asked = preset
    preset, _ = release.choose_preset(path, tensors, unet, asked)
    (motion,) = release.name_tensors(tensors, targets(unet, preset))
    info = {"architecture": architecture(unet)}
    if asked is None and preset == release.ASSUMED:
        info["assumed"] = f"{path} names no layers"
    step, rank = path.name.split("_")[0], max(down.shape[0] for down in tensors[1::2])
    return Checkpoint(path, int(step) if step.isdecimal() else 0, "lora", preset, rank, 1.0, motion, info=info)
