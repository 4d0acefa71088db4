"""Heads of a diffusion transformer's self-attention: which are temporal, and adapters that touch only those.

A spatial head attends inside its own frame, a temporal one to the same place in other frames. With the attention map A
of a head over tokens i = (f, y, x), averaged over queries,

    e_s = sum of A over keys of the same frame,                        divided by chance (1 / F)
    e_t = sum of A over keys of other frames within one token in y, x, divided by chance (their share of all pairs)

and a head is temporal where e_t > e_s: chance is 1 for both, and nothing depends on a threshold. (EffiVMT, Sparse
VideoGen: bands of the map, which are empty for small frames.)

`restrict` keeps the rows of other heads in a LoRA's up matrix at exactly 0.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from configs.errors import UserError, shown
from configs.files import atomic_path
from models.backbones import kind_of
from models.schedule import add_noise

TIMESTEPS = (900, 700, 500)  # at which heads are looked at; motion is decided at high noise
QUERIES = 256  # rows of a map that are looked at, evenly spread: the whole map of a real video would be 50 GB
NEAR = 1  # tokens to each side that count as the same place


@dataclass(frozen=True)
class Heads:
    """Enrichments of every head, [n layers heads] for n ways of looking (clips, timesteps, prompts), and the clip of
    each. `kept` are heads that were settled elsewhere, by the checkpoint that a run goes on from or by the first of its
    processes, in the words of a checkpoint's header: they stay.
    """

    spatial: torch.Tensor
    temporal: torch.Tensor
    clip: tuple[int, ...]
    kept: str | None = None

    @property
    def ratio(self) -> torch.Tensor:
        """log2(e_t / e_s) of the means, [layers heads]: above 0 a head is temporal, the clearer the farther from 0."""
        return (self.temporal.mean(0) / self.spatial.mean(0).clamp_min(1e-6)).clamp_min(1e-6).log2()

    @property
    def is_temporal(self) -> torch.Tensor:
        """bool [layers heads]."""
        if self.kept is None:
            return self.ratio > 0
        return torch.tensor([[letter == "t" for letter in layer] for layer in self.kept.split()])

    def keeping(self, words: str) -> "Heads":
        """These, with the heads for temporal that `words` name, a checkpoint's or another process's.

        Raises UserError for those of another model.
        """
        if [*map(len, words.split())] != [self.ratio.shape[1]] * len(self.ratio) or not set(words) <= set("ts "):
            raise UserError(
                f"resume_from_checkpoint: its header names the heads {shown(words)}, and this model has "
                f"{len(self.ratio)} layers of {self.ratio.shape[1]}; give the model that it was trained on"
            )
        return replace(self, kept=words)

    @property
    def agreement(self) -> float:
        """Share of heads that two clips (of one clip: two ways of looking at it) call the same, over all pairs."""
        groups = torch.tensor(self.clip if len(set(self.clip)) > 1 else range(len(self.clip)))
        kinds = torch.stack(
            [
                self.temporal[groups == group].mean(0) > self.spatial[groups == group].mean(0)
                for group in groups.unique()
            ]
        )
        first, second = torch.triu_indices(len(kinds), len(kinds), offset=1)
        return (kinds[first] == kinds[second]).float().mean().item() if len(first) else 1.0

    def info(self) -> dict[str, str]:
        """What a checkpoint's header keeps: a letter a head, t or s, a word a layer; margin and agreement."""
        words = ["".join("t" if temporal else "s" for temporal in layer) for layer in self.is_temporal]
        margin = self.ratio.abs().median().item()
        return {"heads": " ".join(words), "heads_margin": f"{margin:.3f}", "heads_agreement": f"{self.agreement:.3f}"}

    def __str__(self) -> str:
        count, found = int(self.is_temporal.sum()), self.info()
        between = "clips" if len(set(self.clip)) > 1 else "timesteps and prompts"
        return (
            f"{count} of {self.is_temporal.numel()} heads are temporal ({found['heads']}); median margin a factor of"
            f" {2 ** float(found['heads_margin']):.1f}, agreement between {between} {found['heads_agreement']}"
        )


def find_heads(cfg, backbone, clips: Sequence) -> Heads | None:
    """The heads of `backbone` where the configuration's preset tells temporal ones from the others, else None.

    Raises UserError where no clip has frames to tell them by.
    """
    if cfg.method != "lora" or cfg.temporal_preset not in backbone.kind.HEAD_PRESETS:
        return None
    if not any(clip.latents.shape[2] > 1 for clip in clips):
        raise UserError(
            f"temporal_preset: {cfg.temporal_preset} tells heads apart by what they see in other frames, and every "
            "clip is an image or a single latent; give a longer clip, or use tap"
        )
    return classify(backbone, clips, torch.Generator().manual_seed(cfg.seed))


@torch.no_grad()
def classify(backbone, clips: Iterable, generator: torch.Generator) -> Heads:
    """Look at every head of `backbone` while it predicts noised clips (data/cache.py), with and without the caption."""
    found, numbers, network = [], [], backbone.network
    lowest = backbone.kind.lowest_timestep(backbone.boundary)  # below, a second expert predicts, with other heads
    for number, clip in enumerate(clips):
        latents, texts = clip.latents.to(backbone.device), (clip.text, backbone.encode_text([""]))
        if latents.shape[2] == 1:
            continue  # an image has no other frames
        grid = (latents.shape[2], *backbone.kind.carriers(network)[0].grid(*latents.shape[3:]))
        for timestep in TIMESTEPS:
            time = torch.tensor([float(max(timestep, lowest))], device=backbone.device)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            noised = add_noise(backbone.scheduler, latents, noise, time)
            for text in texts:
                seen: list[torch.Tensor] = []
                with backbone.kind.watch(network, partial(_look, seen, grid)):
                    backbone.predict(noised, time, text.to(backbone.device))
                found.append(torch.stack(seen))
                numbers.append(number)
    spatial, temporal = torch.stack(found).cpu().unbind(-1)
    return Heads(spatial, temporal, tuple(numbers))


def _look(seen: list, grid: tuple[int, int, int], query: torch.Tensor, key: torch.Tensor) -> None:
    seen.append(enrichment(*(x[0].transpose(0, 1).float() for x in (query, key)), grid))


def enrichment(query: torch.Tensor, key: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """(e_s, e_t) of each head, [heads 2]; query and key [heads tokens d], tokens in the order f, y, x of `grid`."""
    frames, height, width = grid
    place = torch.stack(torch.meshgrid(*(torch.arange(n, device=key.device) for n in grid), indexing="ij")).flatten(1)
    rows = torch.linspace(0, key.shape[1] - 1, min(QUERIES, key.shape[1]), device=key.device).round().long()
    attention = (query[:, rows] @ key.transpose(1, 2) / key.shape[-1] ** 0.5).softmax(-1)  # [heads rows tokens]
    apart = (place[:, rows, None] - place[:, None, :]).abs()  # [3 rows tokens]
    same_frame = apart[0] == 0
    same_place = ~same_frame & (apart[1:] <= NEAR).all(0)
    share = lambda pairs: (attention * pairs).sum(-1).mean(-1) / pairs.float().mean().clamp_min(1e-12)
    return torch.stack([share(same_frame), share(same_place)], dim=-1)


def restrict(adapter, network: nn.Module, wanted: torch.Tensor) -> None:
    """Let only the rows of `wanted` heads, bool [layers heads], be learned in `adapter`'s up matrices of Q, K and V.

    The rows of other heads, and other layers, get no gradient: they start at 0 and stay exactly 0, through AdamW with
    decay too. The file stays a plain LoRA.
    """
    number = {name: i for i, block in enumerate(kind_of(network).carriers(network)) for name in block.self_attentions}
    for name, layer in adapter.layers.items():
        up, (attention, _, part) = layer.lora_B[adapter.name], name.rpartition(".")
        rows = torch.zeros(up.out_features)
        if attention in number and part in ("to_q", "to_k", "to_v"):
            rows = wanted[number[attention]].repeat_interleave(up.out_features // wanted.shape[1])
        up.rows = rows[:, None].to(up.weight)


def write_heads(heads: Heads, folder: Path) -> Path:
    """Write `heads.json` and the map `heads.png` (layers x heads) into `folder`; returns the picture's path."""
    from matplotlib.figure import Figure

    values = {"log2_temporal_over_spatial": [[round(v, 4) for v in row] for row in heads.ratio.tolist()]}
    with atomic_path(folder / "heads.json") as part:
        part.write_text(json.dumps(heads.info() | values, indent=2) + "\n", encoding="utf-8")
    figure = Figure(figsize=(1.5 + 0.4 * heads.ratio.shape[1], 1.5 + 0.3 * heads.ratio.shape[0]), layout="constrained")
    axes, limit = figure.subplots(), heads.ratio.abs().max().item()
    image = axes.imshow(heads.ratio, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axes.set(xlabel="head", ylabel="layer", title="red: temporal, blue: spatial")
    figure.colorbar(image, label="log2 of temporal over spatial enrichment")
    with atomic_path(folder / "heads.png") as part:
        figure.savefig(part, format="png", dpi=120)
    return folder / "heads.png"
