"""LoRA files of other libraries: PEFT folders, and diffusers' `pytorch_lora_weights.safetensors`.

The names in a diffusers file begin with the network's folder, `unet.` or `transformer.`.

Both are read into, and written from, the states of models/files/checkpoint.py. What we write carries our header too,
so that preset and config survive the way there and back. One file holds one adapter: the motion adapter lies in the
folder itself, the appearance adapters of the reference clips in `spatial/{i}/`.

A stock pipeline loads the diffusers file once its U-Net can hold adapters, which today's class cannot by itself:

    class UNet3DConditionModel(diffusers.UNet3DConditionModel, diffusers.loaders.PeftAdapterMixin): pass
    pipe.unet.__class__ = UNet3DConditionModel
    pipe.load_lora_weights(folder)
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from configs.checks import checked, flag, maybe, real, text, whole
from configs.errors import UserError, shown
from configs.plain import dump_yaml, read_json
from configs.runtime import note
from models.backbones import KINDS
from models.files.checkpoint import Checkpoint, appearance_parts, appearance_states, from_header
from models.files.header import LAYOUT, MOST_RANK, Header, read_header
from models.files.peft import ADAPTER_CONFIG, ADAPTER_FILE, check_pairs, peft_config, read_adapter, write_adapter
from models.files.tensors import State, read_tensors, write_tensors
from models.targets import APPEARANCE

# of an adapter configuration; no other key of PEFT's changes the effect of a plain LoRA
ADAPTER = {
    "r": whole(1, MOST_RANK),
    "lora_alpha": real(above=0, high=1e6),
    "use_rslora": maybe(flag),
    "use_dora": maybe(flag),
    "peft_type": maybe(text(choices=("LORA",))),
    "alpha_pattern": maybe(lambda patterns: _alphas(patterns)),
}
# An expression of a name's end: two wildcards at most and none around a group, so that matching takes no time.
EXPRESSION = re.compile(r"(?!(.*[*+?{]){3})(?!.*\)[*+?{])([\w.\-*+|()\[\]]|\\[.dw]){1,200}")
MOST_EXPRESSIONS = 32

DIFFUSERS_FILE = "pytorch_lora_weights.safetensors"
DIFFUSERS_METADATA = "lora_adapter_metadata"
PREFIXES = tuple(f"{kind.FOLDER}." for kind in KINDS)


def header_of(checkpoint: Checkpoint) -> dict[str, str]:
    """The safetensors header of a LoRA checkpoint, whatever file it came from."""
    rank = checkpoint.rank
    header = {key: value for key, value in checkpoint.info.items() if key != "assumed"}
    header |= {"rank": str(rank), "alpha": repr(checkpoint.scale * rank), "layout": LAYOUT}
    header |= {"step": str(checkpoint.index), "kind": "lora", "clips": str(len(checkpoint.appearance)), "format": "pt"}
    if checkpoint.preset is not None:
        header["preset"] = checkpoint.preset
    if checkpoint.config is not None:
        header["config"] = dump_yaml(checkpoint.config)
    return header


def preset_of(state: State) -> str | None:
    """The preset whose layer kinds are exactly those of `state`, None where there is none."""
    layers = {name.rsplit(".lora_", 1)[0] for name in state}
    for kind in KINDS:
        for preset, parts in kind.PRESETS.items():
            block = kind.APPEARANCE_BLOCK if preset == APPEARANCE else kind.MOTION_BLOCK
            found = [re.fullmatch(rf"{block.pattern}\.(?P<part>.+)", layer) for layer in layers]
            if all(found) and {match["part"] for match in found} == set(parts):
                return preset
    return None


def prefix_of(names: Iterable[str]) -> str:
    """What diffusers puts before the names of layers: the folder of the network that has them."""
    first = next(iter(names))
    return next(
        (f"{kind.FOLDER}." for kind in KINDS if re.match(rf"{kind.MOTION_BLOCK.pattern}\.", first)), PREFIXES[0]
    )


def without_prefix(name: str) -> str:
    """The name of a layer in a network, from a diffusers file or its metadata."""
    return next((name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)), name)


def write_peft(checkpoint: Checkpoint, folder: Path) -> None:
    """Write PEFT folders into `folder`, which must exist."""
    header = header_of(checkpoint)
    write_adapter(folder, checkpoint.motion, header)
    for place, state, texts in appearance_parts(checkpoint.appearance, header):
        write_adapter(folder / place, state, texts)


def read_peft(folder: Path) -> Checkpoint:
    """The adapter of a PEFT folder, ours or anybody's, with one scale for all layers.

    Layers whose alpha / rank differs from the adapter's own have the difference multiplied into their up matrices.
    Raises UserError for adapters that are more than a plain LoRA.
    """
    state, header = read_adapter(folder)
    return checkpoint_of_peft(folder, state, header, read_json(folder / ADAPTER_CONFIG))


def checkpoint_of_peft(path: Path, state: State, texts: dict[str, str], config: Any) -> Checkpoint:
    """A Checkpoint from another program's LoRA `state`, the header `texts` of its file, and PEFT's description of it.

    Raises UserError for more than a plain LoRA, and for a description that is no PEFT configuration.
    """
    if isinstance(config, Mapping) and (config.get("use_dora") or config.get("peft_type", "LORA") != "LORA"):
        found = f"{shown(config.get('peft_type'))}, DoRA {shown(config.get('use_dora'))}"
        raise UserError(f"{path}: is no plain LoRA (found {found}); only plain ones can be converted")
    needed = ("r", "lora_alpha")
    config = checked(config, ADAPTER, f"{path}: its adapter configuration", needed=needed)
    rank, alpha = config["r"], config["lora_alpha"]
    root = math.sqrt if config.get("use_rslora") else float
    scale = alpha / root(rank)
    own_alpha = _look_up(path, config.get("alpha_pattern") or {})
    for name in [name for name in state if name.endswith(".lora_B.weight")]:
        layer = name.removesuffix(".lora_B.weight")
        r = state[name].shape[1]
        rank = max(rank, r)
        found = own_alpha(layer)
        ratio = (alpha if found is None else found) / root(r) / scale
        if not math.isclose(ratio, 1):
            state[name] = state[name] * ratio
    if "layout" not in texts:
        texts = {"preset": preset_of(state)} if preset_of(state) else {}
    header = read_header(texts | {"rank": str(rank), "alpha": repr(scale * rank)}, path)
    folder = path if path.is_dir() else path.parent
    appearance = appearance_states(folder, clips_beside(path, header)) if (folder / ADAPTER_FILE).is_file() else []
    return from_header(path, header.step or 0, "lora", state, appearance, header)


def clips_beside(path: Path, header: Header) -> int | None:
    """How many appearance adapters are beside a file or folder: as its header says, None where that says nothing; none
    where it was passed on without them, which is printed."""
    folder = path if path.is_dir() else path.parent
    if header.clips and not (folder / "spatial").is_dir():
        note(f"note: {path}: its {header.clips} appearance adapters are not beside it; the motion is read alone")
        return 0
    return header.clips


def _alphas(patterns: Any) -> dict[str, float]:
    if not isinstance(patterns, Mapping) or not all(isinstance(name, str) for name in patterns):
        raise ValueError("no dict from layers to numbers")
    positive = real(above=0, high=1e6)
    return {name: positive(value) for name, value in patterns.items()}


def _look_up(path: Path, patterns: Mapping[str, float]) -> Callable[[str], float | None]:
    """The function from a layer's name to its alpha, None where no pattern is its.

    As in PEFT, the first pattern counts that is the name, or its end after a dot. Nearly all patterns are names; what
    is more is matched as a regular expression when it is a harmless one.
    """
    order = {name: place for place, name in enumerate(patterns)}
    names = {name for name in patterns if re.fullmatch(r"[\w.]+", name)}
    expressions = {}
    for pattern in patterns.keys() - names:
        if not EXPRESSION.fullmatch(pattern) or len(expressions) == MOST_EXPRESSIONS:
            raise UserError(
                f"{path}: alpha_pattern holds {shown(pattern)}, no layer name and no simple expression; write"
                " the layers' names"
            )
        try:
            expressions[pattern] = re.compile(rf"(.*\.)?({pattern})")
        except re.error as error:
            raise UserError(
                f"{path}: alpha_pattern holds {shown(pattern)}, no regular expression ({error}); write the names"
            ) from None

    def alpha(layer: str) -> float | None:
        ends = [layer, *(layer[i + 1 :] for i, letter in enumerate(layer) if letter == ".")]
        found = [end for end in ends if end in names]
        found += [pattern for pattern, expression in expressions.items() if expression.fullmatch(layer)]
        return patterns[min(found, key=order.__getitem__)] if found else None

    return alpha


def write_diffusers(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` files into `folder`, which must exist."""
    header = header_of(checkpoint)
    _write_diffusers(checkpoint.motion, folder, header)
    for place, state, texts in appearance_parts(checkpoint.appearance, header):
        _write_diffusers(state, folder / place, texts)


def _write_diffusers(state: State, folder: Path, header: Mapping[str, str]) -> None:
    config = peft_config(state, int(header["rank"]), float(header["alpha"]))
    prefix = prefix_of(state)
    metadata = json.dumps({prefix + key: value for key, value in config.items()}, sort_keys=True)
    tensors = {prefix + name: tensor for name, tensor in state.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(tensors, folder / DIFFUSERS_FILE, {**header, DIFFUSERS_METADATA: metadata})


def is_diffusers(file: Path) -> bool:
    """Does every name in this safetensors file begin as diffusers' do? People call such files anything."""
    return all(name.startswith(PREFIXES) for name in read_tensors(file)[0])


def read_diffusers(path: Path) -> Checkpoint:
    """The adapters of a diffusers LoRA file, or of a folder of them as `write_diffusers` makes it.

    Without diffusers' metadata in the header the scale is 1, as diffusers itself assumes.
    """
    file = path / DIFFUSERS_FILE if path.is_dir() else path
    state, header, config = _read_diffusers(file)
    checkpoint = checkpoint_of_peft(file, state, header, config)
    clips = range(clips_beside(file, read_header({"clips": header.get("clips", "0")}, file)))
    checkpoint.appearance = [_read_diffusers(file.parent / "spatial" / str(clip) / DIFFUSERS_FILE)[0] for clip in clips]
    return checkpoint


def _read_diffusers(file: Path) -> tuple[State, dict[str, str], dict[str, Any]]:
    tensors, header = read_tensors(file)
    state = {without_prefix(name): tensor for name, tensor in tensors.items()}
    check_pairs(state, file)
    metadata = header.pop(DIFFUSERS_METADATA, None)
    if metadata is not None:
        config = read_json(metadata, f"{file}: its {DIFFUSERS_METADATA}")
        if not isinstance(config, dict):
            raise UserError(f"{file}: its {DIFFUSERS_METADATA} is {shown(config)}, no configuration; copy it again")
        return state, header, {without_prefix(key): value for key, value in config.items()}
    rank = max(tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_A.weight"))
    # every layer at its own rank: the scale is 1 throughout
    alphas = {name.removesuffix(".lora_A.weight"): t.shape[0] for name, t in state.items() if name.endswith("A.weight")}
    return state, header, {"r": rank, "lora_alpha": rank, "alpha_pattern": alphas}
