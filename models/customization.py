"""Saved motions and appearances on a plain network, for sampling: what `models/methods.py` trained, put back."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import nn

from configs.errors import UserError
from models import lora, merge
from models.embeddings import MotionEmbeddings, attach_trained, mix
from models.files.checkpoint import Checkpoint
from models.highway import HighwaySettings, attach_highway, check_highway
from models.hooks import Patch

State = dict[str, torch.Tensor]
Motions = Sequence[tuple[Checkpoint, float]]  # saved motions with their strengths


class Customization(Patch):
    """What sampling put on a network, until `remove()`. `notes` say what acts and what is interpolated, a line each."""

    def __init__(self, undo: Callable[[], None], notes: list[str]):
        super().__init__([undo])
        self.notes = notes


def customize(
    network: nn.Module,
    motions: Motions,
    appearances: Sequence[tuple[Checkpoint, int, float]] = (),
    highway: HighwaySettings | None = None,
    sampling: str = "none",
    latent_size: tuple[int, int, int] | None = None,
) -> Customization:
    """Give a plain network the motions of `motions`, (checkpoint, strength) pairs, until the patch is removed.

    LoRAs of any preset act in parallel; embeddings with equal shapes are added up. A strength of 0 leaves the network
    untouched, above 1 exaggerates. `appearances` are (checkpoint, number of its clip, strength). `highway` is None for
    the plain skips. `latent_size` (frames, height, width in latent pixels) is what will be sampled. Raises UserError
    for checkpoints that cannot act together; after any exception, Ctrl-C included, the network is as it was
    (MotionDirector's mixing of two paths).
    """
    if len({checkpoint.kind for checkpoint, _ in motions}) > 1:
        raise UserError(
            "mixing: motion embeddings are learned against the pretrained query and key projections, which "
            "a motion LoRA changes, so the two cannot act together; mix LoRAs with LoRAs"
        )
    acting = [(checkpoint, strength) for checkpoint, strength in motions if strength]
    notes = []
    with ExitStack() as patches:
        if acting and highway is not None:
            check_highway(network, highway.scope, motion=acting[0][0].kind)
        if acting and acting[0][0].kind == "embeddings":
            notes += _put_embeddings(patches, network, acting, sampling, latent_size)
        elif acting:
            notes += [_put_lora(patches, network, f"motion LoRA {c.shape}", c.motion, c, s) for c, s in acting]
        for checkpoint, clip, strength in appearances:
            notes.append(
                _put_lora(patches, network, "appearance LoRA", checkpoint.appearance[clip], checkpoint, strength)
            )
        if highway is not None:
            notes.append(str(patches.enter_context(attach_highway(network, *highway))))
        return Customization(patches.pop_all().close, notes)


def _put_lora(patches: ExitStack, network, name: str, state: State, checkpoint: Checkpoint, strength: float) -> str:
    preset, normed = checkpoint.preset, merge.pairs(checkpoint.motion) if checkpoint.kind == "lora" else ()
    patches.enter_context(lora.attach_state(network, preset, state, strength, checkpoint.scale, normed))
    how = "merged" if merge.is_merged(network, state) else "added"
    return f"{name}: {len(state) // 2} layers, {how} at {strength:g}"


def _put_embeddings(patches: ExitStack, network, motions: Motions, sampling, latent_size) -> list[str]:
    embeddings = patches.enter_context(_trained_embeddings(network, motions, latent_size))
    embeddings.sampling_mode = sampling
    interpolated = embeddings.interpolation(*latent_size) if latent_size else None
    return [str(embeddings), *filter(None, [interpolated])]


def _trained_embeddings(
    network: nn.Module, motions: Motions, latent_size: tuple[int, int, int] | None
) -> MotionEmbeddings:
    """Attach saved embeddings, several of them as their weighted sum; their sizes are in the checkpoint's header."""
    sizes = [_trained_size(checkpoint) for checkpoint, _ in motions]
    if different := next((size for size in sizes if size != sizes[0]), None):
        raise UserError(
            f"mixing: these embeddings were trained on {_in_words(sizes[0])} and on {_in_words(different)}; "
            "only those of one size and length can be added up"
        )
    frames, height, width = sizes[0]
    state = mix([checkpoint.motion for checkpoint, _ in motions], [strength for _, strength in motions])
    return attach_trained(
        network, state, size=height and (height, width), frames=frames, sampled=latent_size and latent_size[1:]
    )


def _trained_size(checkpoint: Checkpoint) -> tuple[int | None, ...]:
    """(frames, height, width) in latent pixels; all None for a file of Motion Inversion's authors, which has no
    header.
    """
    header = (checkpoint.info.get(name) for name in ("frames", "latent_height", "latent_width"))
    return tuple(value and int(value) for value in header)


def _in_words(size: tuple[int | None, ...]) -> str:
    return "an unknown size" if size[1] is None else f"{size[0]} frames of {size[2]}x{size[1]} latents"
