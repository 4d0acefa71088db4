"""LoRA files of Wan's trainers and user interfaces: the same matrices under other names, with an alpha for each layer.

    ours, diffusers  blocks.0.attn1.to_q.lora_A.weight
    ComfyUI          diffusion_model.blocks.0.self_attn.q.lora_A.weight      ...q.alpha
    musubi-tuner     lora_unet_blocks_0_self_attn_q.lora_down.weight         ..._q.alpha

One file holds one adapter; the appearance adapters of the reference clips lie in `spatial/{i}/`. Nothing is computed on
the way there and back: matrices and alphas keep every bit, and our header travels along.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from configs.errors import UserError, shown
from models.files.checkpoint import Checkpoint, appearance_parts
from models.files.diffusers_lora import checkpoint_of_peft, clips_beside, header_of
from models.files.header import read_header
from models.files.peft import check_pairs
from models.files.tensors import State, read_tensors, write_tensors

FILE = "lora.safetensors"
_LAYERS = {  # ours inside a block -> Wan's own name, which both dialects use
    **{f"{ours}.{kind}": f"{theirs}.{letter}"
       for ours, theirs in (("attn1", "self_attn"), ("attn2", "cross_attn"))
       for kind, letter in (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "o"))},
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
}  # fmt: skip


class Dialect(NamedTuple):
    """How a kind of file spells a layer (`prefix` and `dot` between its words) and its two matrices."""

    prefix: str
    dot: str
    down: str
    up: str

    def layer(self, block: str, part: str) -> str:
        return self.prefix + f"blocks.{block}.{part}".replace(".", self.dot)


DIALECTS = {
    "comfyui": Dialect("diffusion_model.", ".", "lora_A", "lora_B"),
    "musubi": Dialect("lora_unet_", "_", "lora_down", "lora_up"),
}

_MATRICES = {"lora_A": "lora_A", "lora_down": "lora_A", "lora_B": "lora_B", "lora_up": "lora_B"}  # programs mix them
ENDINGS = {f".{word}.weight": ours for word, ours in _MATRICES.items()} | {".alpha": "alpha"}


def write_dialect(name: str, checkpoint: Checkpoint, folder: Path) -> None:
    """Write `lora.safetensors` files of the dialect `name` into `folder`, which must exist.

    Raises UserError for an adapter that is no diffusion transformer's.
    """
    header = header_of(checkpoint)
    _write(name, checkpoint, checkpoint.motion, folder, header)
    for place, state, texts in appearance_parts(checkpoint.appearance, header):
        _write(name, checkpoint, state, folder / place, texts)


def _write(name: str, checkpoint: Checkpoint, state: State, folder: Path, header: Mapping[str, str]) -> None:
    dialect, tensors = DIALECTS[name], {}
    for key, tensor in state.items():
        layer, _, matrix = key.removesuffix(".weight").rpartition(".")
        found = re.fullmatch(r"blocks\.(\d+)\.(.+)", layer)
        if found is None or found[2] not in _LAYERS:
            raise UserError(
                f"{checkpoint.path}: adapts {layer}, which no Wan transformer has, so it has no place in a {name} file;"
                " write peft or diffusers"
            )
        theirs = dialect.layer(found[1], _LAYERS[found[2]])
        tensors[f"{theirs}.{dialect.down if matrix == 'lora_A' else dialect.up}.weight"] = tensor
        if matrix == "lora_A":
            tensors[f"{theirs}.alpha"] = _alpha_of(checkpoint.scale, len(tensor), tensor.dtype)
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / FILE, header)


def _alpha_of(scale: float, rank: int, dtype: torch.dtype) -> torch.Tensor:
    """The alpha of this scale, in the precision of its matrices as trainers store it, or in the next that gives it."""
    found = (torch.tensor(scale * rank, dtype=kind) for kind in (dtype, torch.float32, torch.float64))
    return next(alpha for alpha in found if alpha.dtype == torch.float64 or alpha.item() / rank == scale)


def dialect_of(names: list[str]) -> str | None:
    """The dialect of a file with tensors of these names, None where it is none."""
    starts = {name: f"{dialect.prefix}blocks" for name, dialect in DIALECTS.items()}
    return next((name for name, start in starts.items() if names and all(n.startswith(start) for n in names)), None)


def read_dialect(path: Path) -> Checkpoint | None:
    """The adapters of a file of either dialect, or of a folder as `write_dialect` makes it; None for another file.

    Raises UserError for layers that no block of a Wan transformer has and for a file that is damaged.
    """
    file = path / FILE if path.is_dir() else path
    tensors, header = read_tensors(file)
    name = dialect_of(list(tensors))
    if name is None:
        return None
    state, config = _named(file, DIALECTS[name], tensors)
    checkpoint = checkpoint_of_peft(file, state, header, config)
    for clip in range(clips_beside(file, read_header({"clips": header.get("clips", "0")}, file))):
        part = file.parent / "spatial" / str(clip) / FILE
        checkpoint.appearance.append(_named(part, DIALECTS[name], read_tensors(part)[0])[0])
    return checkpoint


def _named(file: Path, dialect: Dialect, tensors: State) -> tuple[State, dict[str, Any]]:
    """Our state, and PEFT's description of its scale: alpha is the rank where the file holds none."""
    ours = {dialect.layer("N", theirs): part for part, theirs in _LAYERS.items()}
    state, alphas = {}, {}
    for key, tensor in tensors.items():
        layer, matrix = next(
            ((key.removesuffix(end), side) for end, side in ENDINGS.items() if key.endswith(end)), (key, None)
        )
        number = re.match(rf"{re.escape(dialect.prefix)}blocks[._](\d+)[._]", layer)
        part = number and ours.get(layer.replace(f"blocks{dialect.dot}{number[1]}", f"blocks{dialect.dot}N", 1))
        if not part or matrix is None:
            raise UserError(f"{file}: {shown(key)} is no LoRA matrix of a Wan transformer's block; give another file")
        name = f"blocks.{number[1]}.{part}"
        if matrix == "alpha":
            alphas[name] = _alpha(tensor, key, file)
        else:
            state[f"{name}.{matrix}.weight"] = tensor
    check_pairs(state, file)
    ranks = {key.removesuffix(".lora_A.weight"): len(t) for key, t in state.items() if key.endswith("lora_A.weight")}
    alphas = {name: alphas.get(name, rank) for name, rank in ranks.items()}
    widest = max(ranks, key=ranks.__getitem__)
    return dict(sorted(state.items())), {"r": ranks[widest], "lora_alpha": alphas[widest], "alpha_pattern": alphas}


def _alpha(tensor: torch.Tensor, key: str, file: Path) -> float:
    """The one number that it has to be."""
    if tensor.numel() != 1:
        raise UserError(f"{file}: {shown(key)} holds {tensor.numel()} numbers where one is needed; give another file")
    return float(tensor)
