"""The temporal transformers of a U-Net: which there are, on which side, how wide, at which resolution.

Motion Inversion chooses among them by side and width. A level counts downsamplings: 0 is the latents' own size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffusers import UNet3DConditionModel
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel

from configs.errors import UserError

SIDES = {"down": "down_blocks.", "mid": "mid_block.", "up": "up_blocks."}


@dataclass(frozen=True)
class Block:
    """One temporal transformer: module name, side of the U-Net, channels, and its resolution level (0 = full size)."""

    name: str
    side: str
    channels: int
    level: int

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Latent pixels at this level: every downsampler halves, rounding up."""
        return -(-height // 2**self.level), -(-width // 2**self.level)


def temporal_blocks(unet: UNet3DConditionModel) -> list[Block]:
    """The temporal transformers that can carry embeddings (all but the stem), in module order.

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
            found.append(Block(name, side, module.transformer_blocks[0].attn1.to_q.in_features, level))
    return found


def choose_blocks(unet: UNet3DConditionModel, sides: Sequence[str], widths: Sequence[int] | None) -> list[Block]:
    """Blocks on these sides with these channel widths; by default the widest there are (1280 in ZeroScope).

    Raises UserError naming the sides and widths that exist when one of those asked for does not.
    """
    present = temporal_blocks(unet)
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
