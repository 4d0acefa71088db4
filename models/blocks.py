"""The blocks of a network that can carry Motion Inversion's embeddings, and which of them a U-Net's training takes.

On a U-Net they are its temporal transformers, chosen by side and width; a level counts downsamplings, 0 is the latents'
own size. A diffusion transformer's blocks are alike: models/backbones/wan.py lists them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import UNet3DConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

from configs.errors import UserError

SIDES = {"down": "down_blocks.", "mid": "mid_block.", "up": "up_blocks."}
DEFAULT_SIDES = ("down", "up")


@dataclass(frozen=True)
class Block:
    """One transformer block: module name, where it lies, channels, and how many latent pixels (height, width) one
    token covers.

    `attentions` are its self-attentions over frames. A Value embedding is `still` where it is the same in every frame.
    """

    name: str
    side: str
    channels: int
    cell: tuple[int, int]
    attentions: tuple[str, ...]
    still: bool = False

    @property
    def self_attentions(self) -> list[str]:
        """Their names in the network."""
        return [f"{self.name}.{kind}" for kind in self.attentions]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Tokens of one frame: every downsampler of a U-Net halves, rounding up."""
        return -(-height // self.cell[0]), -(-width // self.cell[1])


def temporal_blocks(unet: UNet3DConditionModel) -> list[Block]:
    """The blocks of the temporal transformers that can carry embeddings (all but the stem), in module order.

    Raises UserError for a network that has none.
    """
    if not hasattr(unet, "down_blocks"):
        raise UserError(
            f"method: motion_inversion needs temporal transformers, and {type(unet).__name__} has none; use method=lora"
        )
    deepest = len(unet.down_blocks) - 1
    found = []
    for name, module in unet.named_modules():
        side = next((side for side, prefix in SIDES.items() if name.startswith(prefix)), None)
        if isinstance(module, TransformerTemporalModel) and side:
            level = deepest if side == "mid" else int(name.split(".")[1])
            level = deepest - level if side == "up" else level
            for i, block in enumerate(module.transformer_blocks):
                channels, cell = block.attn1.to_q.in_features, (2**level, 2**level)
                found.append(Block(f"{name}.transformer_blocks.{i}", side, channels, cell, ("attn1", "attn2")))
    return found


def choose_temporal_blocks(
    unet: UNet3DConditionModel, sides: Sequence[str] | None = None, widths: Sequence[int] | None = None
) -> list[Block]:
    """Blocks on these sides with these channel widths; by default the widest there are (1280 in ZeroScope).

    Raises UserError naming the sides and widths that exist when one of those asked for does not.
    """
    present, sides = temporal_blocks(unet), DEFAULT_SIDES if sides is None else sides
    if unknown := [side for side in sides if side not in SIDES]:
        raise UserError(f"embeddings.blocks: {unknown[0]!r} is unknown; there are {', '.join(SIDES)}")
    if not sides:
        raise UserError(f"embeddings.blocks: the list is empty; name one or more of {', '.join(SIDES)}")
    here = [block for block in present if block.side in sides]
    exist = sorted({block.channels for block in here})
    if unknown := [width for width in widths or () if width not in exist]:
        raise UserError(
            f"embeddings.widths: no temporal transformer of width {unknown[0]} in {', '.join(sides)}; "
            f"there are {', '.join(map(str, exist))}"
        )
    return [block for block in here if block.channels in (widths or exist[-1:])]
