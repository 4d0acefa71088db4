"""Motion Inversion (Wang et al. 2024): motion learned as embeddings added to the inputs of self-attention.

On a U-Net each chosen temporal transformer block owns one Query-Key embedding, shared by its two self-attentions, and
one Value embedding per attention. After the norm, with x the hidden states [(b h w) f c]:

    q = Wq (x + e_qk)    k = Wk (x + e_qk)    v = Wv (x + e_v)        e_qk [1 F c], e_v [(h w) F c], zero at the start

A Query-Key embedding says how frames attend to each other, the same for every pixel; a Value embedding says what moves
where. Both hold F = 32 frames. On a diffusion transformer the same is done to the self-attention of every block, and a
Value embedding is the same in every frame, e_v [(h w) 1 c] (DeT's port). The model itself stays frozen; nothing but the
embeddings gets a gradient. Blocks and layouts are the backbone's: `carriers`, `choose_carriers`, `shift`.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from configs.errors import UserError
from models import backbones
from models.blocks import Block
from models.hooks import Patch

LARGEST_SIDE = 512  # latent pixels, 4096 pixels of video
SAMPLING = ("none", "difference", "drop_value")


class MotionEmbeddings(Patch):
    """The attached embeddings. `remove()` restores the network bit for bit; `strength` 0 is the base model, exactly.

    `strength` scales what is added (1 as trained). `sampling_mode` says what happens to the Value embeddings (Motion
    Inversion): "none" leaves them, "difference" replaces frame j > 0 by the change since frame j - 1 (object motion),
    "drop_value" leaves them out (camera motion). Query-Key embeddings stay as they are. A transformer's Value embedding
    has no frames to take the difference of, so that mode is refused there.
    """

    kind = "embeddings"

    def __init__(
        self,
        blocks: list[Block],
        parameters: dict[str, nn.Parameter],
        height: int,
        width: int,
        max_frames: int,
        frames: int | None,
        sampling: str = "none",
    ):
        super().__init__()
        self.blocks = blocks
        self.height, self.width, self.max_frames, self.frames = height, width, max_frames, frames
        self.strength = 1.0
        self.sampling_mode = sampling
        self._parameters = parameters

    @property
    def sampling_mode(self) -> str:
        return self._sampling_mode

    @sampling_mode.setter
    def sampling_mode(self, mode: str) -> None:
        """Raises UserError for a mode that does not exist, or not for these blocks."""
        if mode not in SAMPLING:
            raise UserError(f"embeddings.sampling: {mode!r} is unknown; there are {', '.join(SAMPLING)}")
        if mode == "difference" and any(block.still for block in self.blocks):
            raise UserError(
                "embeddings.sampling: difference is the change of a Value embedding from frame to frame, and on a "
                "diffusion transformer it is the same in every frame; use none or drop_value (--embedding_sampling)"
            )
        self._sampling_mode = mode

    def parameters(self) -> Iterator[nn.Parameter]:
        return iter(self._parameters.values())

    def state_dict(self) -> dict[str, torch.Tensor]:
        """`<block>.query_key` [1 F c] and `<block>.<attention>.value` [(h w) F c], or [(h w) 1 c] where still, fp32."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take over trained embeddings; raises UserError when names or shapes are not those attached here."""
        if missing := self._parameters.keys() ^ state.keys():
            raise UserError(
                f"embeddings: {len(missing)} names differ between checkpoint and model, such as "
                f"{sorted(missing)[0]}; attach with the blocks and widths of the training"
            )
        for name, parameter in self._parameters.items():
            if parameter.shape != state[name].shape:
                raise UserError(
                    f"embeddings: {name} has shape {tuple(state[name].shape)} in the checkpoint and "
                    f"{tuple(parameter.shape)} here; attach with the size and frames of the training, "
                    "other sizes are interpolated when sampling"
                )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(state[name])

    @contextmanager
    def at(self, strength: float | None = None, sampling: str | None = None) -> Iterator["MotionEmbeddings"]:
        """Within this `with`, another strength or sampling mode; a backward pass belongs inside it, too."""
        before = self.strength, self.sampling_mode
        self.sampling_mode = before[1] if sampling is None else sampling
        self.strength = before[0] if strength is None else strength
        try:
            yield self
        finally:
            self.strength, self.sampling_mode = before

    def training(self) -> AbstractContextManager:
        """Inside the block the embeddings act as they are; their parameters always collect gradients when they act."""
        return self.at(strength=1.0, sampling="none")

    def sampling(self) -> AbstractContextManager:
        """Inside the block the embeddings act as sampling uses them, in their own sampling mode."""
        return self.at(strength=1.0)

    def info(self) -> dict[str, int | None]:
        """What a checkpoint's header must hold for the state to be read."""
        return {"frames": self.frames, "latent_height": self.height, "latent_width": self.width}

    def __str__(self) -> str:
        kinds = [f"{block.side} {block.channels}" for block in self.blocks]
        counts = ", ".join(f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
        total = sum(p.numel() for p in self.parameters())
        return (
            f"motion embeddings: {counts}; {total / 1e6:.2f} M parameters for {self.width}x{self.height} latents, "
            f"{self.max_frames} frames"
        )

    def interpolation(self, frames: int, height: int, width: int) -> str | None:
        """What is interpolated to run at this latent size and length, in words; None when nothing is."""
        changes = []
        if (height, width) != (self.height, self.width):
            changes.append(f"in space from {self.width}x{self.height} to {width}x{height} latents")
        if frames != self._trained(frames):
            changes.append(f"in time from {self._trained(frames)} to {frames} frames")
        return f"embeddings interpolated {' and '.join(changes)}" if changes else None

    def query_key(self, block: str, frames: int) -> torch.Tensor:
        """[1 f c], scaled by `strength`."""
        return self.strength * self._fit_time(self._parameters[f"{block}.query_key"], frames)

    def value(self, block: Block, attention: str, grid: tuple[int, int], frames: int) -> torch.Tensor | None:
        """[(h w) f c] for the running grid (h, w), [(h w) 1 c] where it is still, scaled by `strength` and debiased as
        `sampling_mode` says; None where that drops it.
        """
        if self.sampling_mode == "drop_value":
            return None
        embedding = self._parameters[f"{block.name}.{attention}.value"][:, : self._trained(frames)]
        if self.sampling_mode == "difference":
            embedding = torch.cat([embedding[:, :1], embedding.diff(dim=1)], dim=1)
        if not block.still:
            embedding = self._fit_time(embedding, frames)
        trained_grid = block.grid(self.height, self.width)
        if grid != trained_grid:
            image = embedding.unflatten(0, trained_grid).permute(2, 3, 0, 1)  # [(h w) f c] -> [f c h w]
            image = F.interpolate(image, size=grid, mode="bilinear")
            embedding = image.permute(2, 3, 0, 1).flatten(0, 1)
        return self.strength * embedding

    def _trained(self, frames: int) -> int:
        return self.frames or min(frames, self.max_frames)

    def _fit_time(self, embedding: torch.Tensor, frames: int) -> torch.Tensor:
        trained = self._trained(frames)
        embedding = embedding[:, :trained]
        if trained == frames:
            return embedding
        # first and last frame stay where they are, as in the resized inversion, so the motion fills the clip
        return F.interpolate(embedding.transpose(1, 2), size=frames, mode="linear", align_corners=True).transpose(1, 2)


def attach_embeddings(
    network: nn.Module,
    blocks: Sequence[str] | None = None,
    widths: Sequence[int] | None = None,
    *,
    height: int,
    width: int,
    max_frames: int = 32,
    frames: int | None = None,
    block_range: Sequence[float] | None = None,
    sampling: str = "none",
) -> MotionEmbeddings:
    """Add zero embeddings to the temporal transformers of a U-Net, or to the blocks of a diffusion transformer.

    `blocks` are sides of the U-Net (default down and up), `widths` channels there (default the widest); `block_range`
    [first, last] are shares of a transformer's depth (default all of it). `height` and `width` are the latent size in
    training, which the Value embeddings are made for; the network may run at another size (bilinear interpolation over
    the tokens of a frame) or length. `frames` is the training's clip length in latents: its embeddings are stretched
    linearly to other lengths. Without it a clip takes the first of the `max_frames` frames, and only one longer than
    that stretches them. `sampling` is the mode that they sample in. One-frame passes with the temporal layers bypassed
    are untouched. Raises UserError for blocks or a mode that the network does not have, and for more frames than
    `max_frames` (5 blocks and 59 M parameters on ZeroScope at 384x384).
    """
    if frames is not None and frames > max_frames:
        raise UserError(f"embeddings.max_frames: {max_frames} frames are too few for clips of {frames}; raise it")
    kind = backbones.kind_of(network)
    chosen = kind.choose_carriers(network, blocks, widths)
    if block_range is not None:
        chosen = [block for block in chosen if kind.in_range(network, block.name, block_range)]
    return _attach(network, chosen, height, width, max_frames, frames, sampling)


def attach_trained(
    network: nn.Module,
    state: dict[str, torch.Tensor],
    *,
    size: tuple[int, int] | None,
    frames: int | None,
    sampled: tuple[int, int] | None = None,
) -> MotionEmbeddings:
    """Attach the embeddings of `state` to the blocks that its names say.

    `size` (height, width in latents) and `frames` are those of the training. The files of Motion Inversion's authors
    hold neither: without a size a square is assumed where the Value embeddings can be one, else the size `sampled`;
    without frames, the first of those the embeddings hold are used. Raises UserError when no such size fits, and when
    names or shapes are not those of this network.
    """
    carriers = backbones.kind_of(network).carriers(network)
    chosen = [block for block in carriers if any(name.startswith(f"{block.name}.") for name in state)]
    height, width = size or _guess_size(chosen, state, sampled)
    held = max(tensor.shape[1] for tensor in state.values())
    embeddings = _attach(network, chosen, height, width, held, frames)
    try:
        embeddings.load_state_dict(state)
    except UserError:
        embeddings.remove()
        raise
    return embeddings


def _guess_size(
    chosen: list[Block], state: dict[str, torch.Tensor], sampled: tuple[int, int] | None
) -> tuple[int, int]:
    values = {name: len(tensor) for name, tensor in state.items() if name.endswith(".value")}
    cells = [(block, count) for name, count in values.items() for block in chosen if name.startswith(f"{block.name}.")]
    # several sides give the same pyramid after rounding; take the largest, the one divisible by 2^levels
    squares = [(side, side) for side in range(LARGEST_SIDE, 0, -1)]
    for size in [*squares, sampled] if sampled else squares:
        if all(math.prod(block.grid(*size)) == count for block, count in cells):
            return size
    raise UserError(
        f"embeddings: the file does not say for which size it was made; its Value embeddings of "
        f"{', '.join(map(str, sorted(set(values.values()))))} pixels are neither square nor of the size "
        "sampled now; sample at the width and height of the training"
    )


def _attach(
    network: nn.Module,
    chosen: list[Block],
    height: int,
    width: int,
    max_frames: int,
    frames: int | None,
    sampling: str = "none",
) -> MotionEmbeddings:
    device = next(network.parameters()).device
    parameters: dict[str, nn.Parameter] = {}

    def zeros(name: str, *shape: int) -> None:
        parameters[name] = nn.Parameter(torch.zeros(shape, device=device))

    for block in chosen:
        zeros(f"{block.name}.query_key", 1, max_frames, block.channels)
        for kind in block.attentions:
            tokens = math.prod(block.grid(height, width))
            zeros(f"{block.name}.{kind}.value", tokens, 1 if block.still else max_frames, block.channels)
    embeddings = MotionEmbeddings(chosen, parameters, height, width, max_frames, frames, sampling)
    try:
        backbones.kind_of(network).shift(network, embeddings)
    except BaseException:  # out of memory, Ctrl-C
        embeddings.remove()
        raise
    return embeddings


def mix(states: Sequence[dict[str, torch.Tensor]], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """Several motions as one: the weighted sum of embedding states; UserError where names or shapes differ."""
    first = states[0]
    for number, state in enumerate(states[1:], start=2):
        wrong = sorted(first.keys() ^ state.keys()) or [n for n in first if first[n].shape != state[n].shape]
        if wrong:
            raise UserError(
                f"embeddings: motion {number} cannot be mixed with motion 1, they differ in {wrong[0]}; "
                "train both with the same blocks, widths, size and max_frames"
            )
    return {name: sum(weight * state[name] for weight, state in zip(weights, states, strict=True)) for name in first}
