"""Checkpoints of the paper's authors, of MotionDirector and of Motion Inversion, read without executing them.

The first two store `{temporal,spatial}/lora/{index}_unet.pt`: a pickled list [up, down, up, down, ...] in module order,
without names, rank or targets (as its training code writes them). up is [out, r], down is [r, in]. Names come from
`models.targets.targets` on the U-Net the file belongs to, which may live on the meta device (`skeleton`). With several
reference clips the release nests its appearance adapters, clip 0 outermost; walking the modules then meets, layer by
layer, clip 0, clip 1, ...: such files are interleaved per layer, and their number of tensors is a multiple of the
one-clip number.

Motion Inversion stores `motion_embed.pt`, a pickled dict of embeddings [1 or h*w, frames, C] by module name.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.errors import UserError, shown
from models.backbones import architecture, kind_of
from models.files.tensors import State, check_real, read_pickle
from models.outline import skeleton
from models.targets import APPEARANCE, targets

EMBEDDINGS_FILE = "motion_embed.pt"
EMBEDDING_NAMES = {"pos_embed": "query_key", "vSpatial": "value"}  # Motion Inversion's and ours
ASSUMED = "release"  # what an un-keyed file of the authors' layout is, where shapes allow several presets


def read_list(path: Path) -> list[torch.Tensor]:
    """The positional list of `path`: fp32 matrices, up before down, even in number."""
    content = read_pickle(path)
    if not isinstance(content, list) or not all(isinstance(t, torch.Tensor) and t.ndim == 2 for t in content):
        raise UserError(f"{path}: expected a list of LoRA matrices, found {_describe(content)}")
    if not content or len(content) % 2:
        raise UserError(
            f"{path}: {len(content)} tensors do not pair up as up and down; the file is incomplete or mixed"
        )
    for number, tensor in enumerate(content):
        check_real(tensor, f"tensor {number}", path, axes=2)
    return [tensor.detach().to(torch.float32) for tensor in content]


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dict with keys {', '.join(shown(key, 40) for key in list(content)[:4])}"
    return f"a {type(content).__name__}"


def layer_shapes(unet: nn.Module, preset: str) -> dict[str, tuple[int, int]]:
    """(out, in) of every layer that `preset` adapts, by module name, in the release's file order."""
    layers = {name: unet.get_submodule(name) for name in targets(unet, preset)}
    return {name: tuple(getattr(layer, "base_layer", layer).weight.shape) for name, layer in layers.items()}


def identify(tensors: Sequence[torch.Tensor], unet: nn.Module) -> dict[str, int]:
    """Presets whose count and shapes on `unet` this positional list has, with the number of adapters in it."""
    found = {}
    for preset in kind_of(unet).PRESETS:
        shapes = layer_shapes(unet, preset)
        adapters, rest = divmod(len(tensors), 2 * len(shapes))
        several = preset == APPEARANCE  # a run has one motion adapter, and one appearance adapter a reference clip
        if adapters and not rest and (several or adapters == 1) and _fits(tensors, shapes, adapters):
            found[preset] = adapters
    return found


def _fits(tensors: Sequence[torch.Tensor], shapes: Mapping[str, tuple[int, int]], adapters: int) -> bool:
    rank = max(down.shape[0] for down in tensors[1::2])
    pairs = zip(tensors[0::2], tensors[1::2], strict=True)
    expected = [(out, width, min(rank, out, width)) for out, width in shapes.values() for _ in range(adapters)]
    return all(
        up.shape == (out, r) and down.shape == (r, width)
        for (up, down), (out, width, r) in zip(pairs, expected, strict=True)
    )


def name_tensors(tensors: Sequence[torch.Tensor], names: Sequence[str], adapters: int = 1) -> list[State]:
    """Positional list -> one state {"<module>.lora_A.weight": [r in], "<module>.lora_B.weight": [out r]} an adapter."""
    states: list[State] = [{} for _ in range(adapters)]
    for layer, name in enumerate(names):
        for adapter, state in enumerate(states):
            up = 2 * (layer * adapters + adapter)
            state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"] = tensors[up + 1], tensors[up]
    return states


def list_tensors(states: Sequence[State], names: Sequence[str], scale: float = 1.0) -> list[nn.Parameter]:
    """The inverse of `name_tensors`, as the release pickles it: fp32 parameters, adapters interleaved per layer.

    The release has no alpha: a `scale` other than 1 is multiplied into up.
    """
    tensors = []
    for name in names:
        for state in states:
            up, down = state[f"{name}.lora_B.weight"].float(), state[f"{name}.lora_A.weight"].float()
            tensors += [up if scale == 1 else up * scale, down]
    return [nn.Parameter(tensor.detach().cpu().clone()) for tensor in tensors]


def choose_preset(path: Path, tensors: Sequence[torch.Tensor], unet: nn.Module, preset: str | None) -> tuple[str, int]:
    """(preset, adapters) of a motion file: what was asked if it fits, else the one that fits, else the release's.

    Raises UserError where nothing fits, where the file is not what was asked, and where several fit that the release
    did not write.
    """
    fits = identify(tensors, unet)
    motion = [name for name in fits if name != APPEARANCE]
    if preset is None and len(motion) > 1 and ASSUMED in motion:
        return ASSUMED, fits[ASSUMED]
    if preset is None and len(motion) == 1:
        return motion[0], fits[motion[0]]
    if preset in fits:
        return preset, fits[preset]
    found = f"{path}: {len(tensors)} tensors ({len(tensors) // 2} layers, widths {widths(tensors)})"
    if preset is None and motion:
        raise UserError(f"{found} fit the presets {', '.join(motion)} alike: name one of them as the temporal preset")
    if fits:
        raise UserError(
            f"{found} do not fit the preset {preset or 'of a motion adapter'}; they look like"
            f" {' or '.join(fits)}: name that as the temporal preset"
        )
    raise UserError(f"{found} do not fit this model ({architecture(unet)}): {_look_like(tensors)}")


def _look_like(tensors: Sequence[torch.Tensor]) -> str:
    fits = identify(tensors, skeleton())
    if fits:
        return f"they look like {' or '.join(fits)} on ZeroScope; give that model"
    return "no preset has this number of layers at these widths; tensors are missing, left over, or of another model"


def widths(tensors: Sequence[torch.Tensor]) -> str:
    """The layers' input widths in the order met, as a short text."""
    return "/".join(map(str, dict.fromkeys(down.shape[1] for down in tensors[1::2])))


def read_lora(path: Path, unet: nn.Module, preset: str | None) -> tuple[str, State, list[State]]:
    """(preset, motion state, appearance states) of a checkpoint folder in the release's layout.

    With the preset "appearance" the appearance alone is read, as MotionDirector does for images; the motion is {}.
    """
    side = "spatial" if preset == APPEARANCE else "temporal"
    motion_file, appearance_file = lora_file(path, "temporal"), lora_file(path, "spatial")
    if lora_file(path, side) is None:
        raise UserError(f"{path}: no {side}/lora/*_unet.pt there, the checkpoint is incomplete")
    motion = {}
    if preset != APPEARANCE:
        tensors = read_list(motion_file)
        preset, _ = choose_preset(motion_file, tensors, unet, preset)
        (motion,) = name_tensors(tensors, targets(unet, preset))
    if appearance_file is None:
        return preset, motion, []
    tensors = read_list(appearance_file)
    _, adapters = choose_preset(appearance_file, tensors, unet, APPEARANCE)
    return preset, motion, name_tensors(tensors, targets(unet, APPEARANCE), adapters)


def lora_file(path: Path, side: str) -> Path | None:
    """The `*_unet.pt` of one side ("temporal" or "spatial") of a checkpoint folder, None where there is none."""
    files = sorted((path / side / "lora").glob("*_unet.pt"))
    if len(files) > 1:
        raise UserError(f"{files[0].parent}: {len(files)} files end in _unet.pt, one was expected")
    return files[0] if files else None


def write_lora(
    folder: Path,
    index: int,
    unet: nn.Module,
    preset: str,
    motion: State,
    appearance: Sequence[State],
    scale: float = 1.0,
) -> None:
    """Write `{temporal,spatial}/lora/{index}_unet.pt` into `folder`, which must exist.

    `unet` gives the module order. Raises UserError, writing nothing, where a state is not the preset's.
    """
    sides = {"temporal": (preset, [motion]), "spatial": (APPEARANCE, list(appearance))}
    lists = {}
    for side, (adapted, states) in sides.items():
        names = targets(unet, adapted)
        expected = {f"{name}.{matrix}.weight" for name in names for matrix in ("lora_A", "lora_B")}
        if any(state.keys() != expected for state in states):
            raise UserError(
                f"the {side} adapter is not the preset {adapted} on this model ({architecture(unet)}), so it"
                " has no place in a positional file; name the model it was trained on"
            )
        if states:
            lists[side] = list_tensors(states, names, scale)
    for side, tensors in lists.items():
        path = folder / side / "lora" / f"{index}_unet.pt"
        path.parent.mkdir(parents=True)
        torch.save(tensors, path)


def read_embeddings(path: Path) -> State:
    """The embeddings of a `motion_embed.pt` by the names of models/embeddings.py, each [1 or h*w, frames, C] fp32.

    The file is a dict from "<block>.pos_embed" (Query-Key) and "<block>.attn{1,2}.vSpatial" (Value) to tensors.
    """
    content = read_pickle(path)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path}: expected a dict of embeddings by name, found {_describe(content)}")
    state = {}
    for name, tensor in content.items():
        block, _, kind = str(name).rpartition(".")
        if kind not in EMBEDDING_NAMES or not isinstance(tensor, torch.Tensor) or tensor.ndim != 3:
            raise UserError(
                f"{path}: {shown(name)} is no embedding [1 or h*w, frames, C] of Motion Inversion"
                f" (its names end in {' or '.join(EMBEDDING_NAMES)})"
            )
        check_real(tensor, str(name), path, axes=3)
        state[f"{block}.{EMBEDDING_NAMES[kind]}"] = tensor.detach().to(torch.float32)
    return state


def write_embeddings(state: State, path: Path) -> None:
    """The inverse of `read_embeddings`, as Motion Inversion pickles it. Raises UserError for another network's."""
    if other := next((name for name in state if ".transformer_blocks." not in name), None):
        raise UserError(
            f"{path}: such a file holds embeddings of a U-Net's temporal transformers, and {other} belongs to another"
            " network; write them as ours"
        )
    theirs = {ours: kind for kind, ours in EMBEDDING_NAMES.items()}
    names = {name: name.rpartition(".") for name in state}
    torch.save({f"{names[n][0]}.{theirs[names[n][2]]}": nn.Parameter(state[n].float().clone()) for n in state}, path)
