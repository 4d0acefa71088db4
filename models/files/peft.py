"""One LoRA adapter on disk: a PEFT folder of adapter_model.safetensors and adapter_config.json.

In memory an adapter is a state {"<module>.lora_A.weight": [r in], "<module>.lora_B.weight": [out r]}; PEFT's prefix
exists on disk only. The safetensors header carries what PEFT's config has no place for.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig

from configs.errors import UserError, shown
from models.files.tensors import State, check_real, read_tensors, write_tensors

PEFT_PREFIX = "base_model.model."
ADAPTER_FILE, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_adapter(folder: Path, state: State, header: Mapping[str, str]) -> None:
    """Write one LoRA as a folder that `PeftModel.from_pretrained` loads. `header` names rank and alpha."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors({PEFT_PREFIX + name: tensor for name, tensor in state.items()}, folder / ADAPTER_FILE, header)
    config = peft_config(state, int(header["rank"]), float(header["alpha"]))
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def peft_config(state: State, rank: int, alpha: float) -> dict[str, Any]:
    """PEFT's description of a LoRA state. Layers of a smaller rank keep the scale alpha / rank."""
    ranks = {name.removesuffix(".lora_A.weight"): t.shape[0] for name, t in state.items() if name.endswith("A.weight")}
    narrow = {name: r for name, r in ranks.items() if r != rank}
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=list(ranks),
        rank_pattern=narrow,
        alpha_pattern={name: alpha / rank * r for name, r in narrow.items()},
        init_lora_weights="gaussian",
        inference_mode=True,
    ).to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}


def read_adapter(folder: Path) -> tuple[State, dict[str, str]]:
    """(LoRA state, header) of a PEFT folder. Raises UserError where a pair is incomplete or not finite."""
    tensors, header = read_tensors(folder / ADAPTER_FILE)
    state = {name.removeprefix(PEFT_PREFIX): tensor for name, tensor in tensors.items()}
    check_pairs(state, folder / ADAPTER_FILE)
    return state, header


def check_pairs(state: State, path: Path) -> None:
    """Raise UserError unless `state` is made of complete LoRA pairs of one inner rank each."""
    if not state:
        raise UserError(f"{path}: holds no tensors")
    for name, tensor in state.items():
        side = re.fullmatch(r"(.+)\.lora_([AB])\.weight", name)
        if side is None:
            raise UserError(f"{path}: {shown(name)} {list(tensor.shape)} is no LoRA matrix of a linear layer")
        check_real(tensor, name, path, axes=2)
        other = state.get(f"{side[1]}.lora_{'B' if side[2] == 'A' else 'A'}.weight")
        if other is None or (side[2] == "A" and other.shape[1:] != tensor.shape[:1]):
            raise UserError(f"{path}: {shown(side[1])} has no complete pair of LoRA matrices; the file is damaged")
