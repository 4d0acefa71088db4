"""The header of a safetensors file: what it records of an adapter, as typed and checked values.

safetensors keeps a dict of texts beside the tensors. Ours holds kind, preset, rank, alpha, step, number of appearance
adapters, sizes and the whole configuration; everything else in it is text that is passed on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from configs.checks import checked, real, text, whole, written
from configs.errors import UserError, shown
from configs.stored import stored_config
from models.backbones import PRESETS
from models.files.tensors import check_real

LAYOUT = "1"  # of our headers; raise it when a key changes its meaning
KINDS = ("lora", "embeddings")
MOST_RANK, MOST_CLIPS, MOST_FRAMES, MOST_SIDE = 65_536, 10_000, 100_000, 4096
CUSTOM = "custom"  # in the place of a preset: layers that another program chose, which only the file can tell
COARSEST = 4096  # positions of the finest grid to one of the coarsest: six halvings of both sides


def _two_shares(value: str) -> list[float]:
    shares = [written(real(0, 1))(share) for share in value.split()]
    if len(shares) != 2:
        raise ValueError("no two shares such as '0.0 0.5'")
    return shares


SCHEMA = {
    "layout": text(choices=(LAYOUT,)),
    "kind": text(choices=KINDS),
    "preset": text(choices=(*PRESETS, CUSTOM)),
    "rank": written(whole(1, MOST_RANK)),
    "alpha": written(real(above=0, high=1e6)),
    "block_range": lambda value: _two_shares(text(100)(value)),
    "step": written(whole(0)),
    "clips": written(whole(0, MOST_CLIPS)),
    # Motion Inversion's: length and latent size of the training clip
    "frames": written(whole(1, MOST_FRAMES)),
    "latent_height": written(whole(1, MOST_SIDE)),
    "latent_width": written(whole(1, MOST_SIDE)),
}


@dataclass(frozen=True)
class Header:
    """The checked values of a header, None where it has none; `texts` is all of it as it was, but the configuration."""

    texts: dict[str, str]
    preset: str | None = None
    rank: int | None = None
    alpha: float | None = None
    block_range: list[float] | None = None
    step: int | None = None
    clips: int | None = None
    frames: int | None = None
    latent_height: int | None = None
    latent_width: int | None = None
    config: dict[str, Any] | None = None

    @property
    def scale(self) -> float:
        """alpha / rank, 1 where the file names neither."""
        return self.alpha / self.rank if self.rank and self.alpha is not None else 1.0


def read_header(texts: Mapping[str, str], path: Path) -> Header:
    """The header of the file `path`. Raises UserError for a value outside the schema above."""
    found = checked(texts, SCHEMA, str(path), advice="the file is damaged or of another version; use another")
    config = stored_config(texts["config"], str(path)) if "config" in texts else None
    named = {name: found.get(name) for name in SCHEMA if name not in ("layout", "kind")}
    return Header({key: value for key, value in texts.items() if key != "config"}, config=config, **named)


def check_rank(path: Path, header: Header, state: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError where a LoRA pair of `state` is wider than the rank that the header names."""
    widest = max((tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_A.weight")), default=0)
    if header.rank is not None and widest > header.rank:
        raise UserError(
            f"{path}: its header names rank {header.rank}, its matrices have rank {widest}; the file is damaged: use"
            " another"
        )


def check_embeddings(path: Path, header: Header, state: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError unless `state` is Motion Inversion's, each [1 or h*w, F, C], and the header's sizes go with it.

    A Value embedding may hold one frame, as a transformer's does. A header that claims another size would make room
    for embeddings of that size before they are compared.
    """
    damaged = "the file is damaged: use another"
    if not state:
        raise UserError(f"{path}: holds no tensors; {damaged}")
    for name, tensor in state.items():
        if not name.endswith((".query_key", ".value")):
            raise UserError(f"{path}: {shown(name)} is no embedding of Motion Inversion; {damaged}")
        check_real(tensor, name, path, axes=3)
    held = min((tensor.shape[1] for name, tensor in state.items() if name.endswith(".query_key")), default=0)
    if header.frames is not None and header.frames > held:
        raise UserError(f"{path}: its header names {header.frames} frames, its embeddings hold {held}; {damaged}")
    if header.latent_height is None or header.latent_width is None:
        return
    positions = header.latent_height * header.latent_width
    grids = [len(tensor) for name, tensor in state.items() if name.endswith(".value")]
    if not grids or not max(grids) <= positions <= COARSEST * max(grids):
        size = f"{header.latent_width}x{header.latent_height} latents"
        raise UserError(f"{path}: its header names {size}, its embeddings hold {max(grids, default=0)}; {damaged}")
