"""Wan's diffusion transformer, with its causal VAE and UMT5's text encoder; also PocketScope-DiT, which has its layout.

A clip is one sequence of tokens [f h w], and every block attends over all of it: self-attention `attn1` carries both
appearance and motion, `attn2` reads the prompt. A clip of one latent frame is the appearance pass; nothing has to be
bypassed. Wan 2.2 has two experts: `transformer` for high noise, which decides the motion, and `transformer_2` below the
timestep that `boundary_ratio` names.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformerBlock
from torch import nn
from transformers import AutoTokenizer, UMT5EncoderModel

from configs.errors import UserError
from configs.plain import read_json
from models.backbones.index import read_index
from models.backbones.wan_attention import pure_norm as pure_norm
from models.backbones.wan_attention import shift_tokens
from models.backbones.wan_attention import watch as watch
from models.backbones.wan_settings import NEEDED as NEEDED
from models.backbones.wan_settings import SCHEDULERS
from models.backbones.wan_settings import SETTINGS as SETTINGS
from models.backbones.wan_settings import contradiction as contradiction
from models.backbones.wan_vae import decode_video as decode_video
from models.backbones.wan_vae import encode_stills as encode_stills
from models.backbones.wan_vae import encode_video as encode_video
from models.backbones.wan_vae import latent_frames as latent_frames
from models.backbones.wan_vae import vae_factor as vae_factor
from models.blocks import Block
from models.schedule import TIMESTEPS

NAME, PIPELINE = "diffusion transformer", "WanPipeline"
NETWORK, FOLDER, SECOND = WanTransformer3DModel, "transformer", "transformer_2"
WORDS = "a Wan folder (WanPipeline)"
PARTS = {
    "transformer": WanTransformer3DModel,
    "vae": AutoencoderKLWan,
    "text_encoder": UMT5EncoderModel,
    "tokenizer": AutoTokenizer,
    "scheduler": UniPCMultistepScheduler,
}
ATTENTION = WanAttnProcessor
LEAVES = (WanTransformerBlock,)
IN_PLACE_OF_SKIPS = (
    "appearance_highway.scope=value (Values from the model without its LoRAs), block_range (motion in the first blocks"
    " only), pli_threshold (the plain model finishes the sampling)"
)
LONGEST_PROMPT = 512  # tokens, of every published Wan
NATIVE = {  # Wan 2.1's own example
    "width": 832,
    "height": 480,
    "num_frames": 81,
    "num_steps": 50,
    "solver": "unipc",
    "guidance_scale": 5.0,
    "noise_prior": 0.0,
    "fps": 16,
    "precision": "bf16",
}
DEFAULTS = {
    "mixed_precision": NATIVE["precision"],
    **{f"validation_data.{name}": NATIVE[name] for name in ("solver", "noise_prior", "guidance_scale")},
    "appearance_highway.use": "off",
}

_QUERY_KEY, _VALUE, _OUT = ("attn1.to_q", "attn1.to_k"), ("attn1.to_v",), ("attn1.to_out.0",)
_FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")

# What each preset adapts inside one block. The cross-attention to the prompt is left alone by all of them.
PRESETS: dict[str, tuple[str, ...]] = {
    "tap": _QUERY_KEY,
    "tap_key": _QUERY_KEY[1:],
    "release": (*_QUERY_KEY[1:], *_OUT),
    "motiondirector": (*_QUERY_KEY, *_VALUE, *_OUT, *_FEED_FORWARD),
    "query": _QUERY_KEY[:1],
    "value": _VALUE,
    "out": _OUT,
    "ff": _FEED_FORWARD,
    "qk_out": (*_QUERY_KEY, *_OUT),
    "value_out_ff": (*_VALUE, *_OUT, *_FEED_FORWARD),  # where SMRABooth says that motion lives
    "tap_temporal": _QUERY_KEY,
    "tap_pure": _QUERY_KEY,
    "effivmt": (*_QUERY_KEY, *_VALUE),
    "appearance": (*_QUERY_KEY, *_VALUE, *_OUT, *_FEED_FORWARD),
}
HEAD_PRESETS = ("tap_temporal", "tap_pure", "effivmt")  # adapt the rows of temporal heads only (models/heads.py)
PURE_NORM = ("tap_pure",)  # ... with QK-norm taken from the base model's queries and keys
SPATIAL_APPEARANCE = DIFFERENCE_LOSS = ("effivmt",)  # appearance in spatial heads; the frame-difference loss
MOTION = APPEARANCE = "blocks"
EXPECTED = "blocks.0.attn1"
MOTION_BLOCK = APPEARANCE_BLOCK = re.compile(r"blocks\.\d+")


def load_options(dtype: torch.dtype) -> dict[str, dict]:
    """What each part's `from_pretrained` gets; the VAE stays in fp32, as Wan's authors run it."""
    network = {"torch_dtype": dtype}
    return {
        "transformer": network,
        SECOND: network,
        "vae": {"torch_dtype": torch.float32},
        "text_encoder": {"dtype": dtype, "ignore_mismatched_sizes": True},  # whoever loads it sees the sizes
    }


def parts(path: str | Path) -> dict[str, type]:
    """Part -> class, of this folder or hub id: with Wan 2.2's second expert, and the scheduler that its settings name.

    Raises UserError where the index names a boundary between two experts and the second is not there.
    """
    folder, found = Path(path), dict(PARTS)
    settings = folder / "scheduler" / "scheduler_config.json"
    if settings.is_file():
        name = read_json(settings).get("_class_name")
    else:
        named = read_index(path).get("scheduler")
        name = named[-1] if isinstance(named, list) and named else None  # [library, class]
    found["scheduler"] = next((kind for kind in SCHEDULERS if kind.__name__ == name), UniPCMultistepScheduler)
    if (boundary := boundary_of(path)) is not None:
        if folder.is_dir() and not (folder / SECOND).is_dir():
            raise UserError(
                f"model: {path} has no {SECOND}, the expert for timesteps below {TIMESTEPS * boundary:g} that its"
                " index asks for; download the whole folder again"
            )
        found[SECOND] = WanTransformer3DModel
    return found


def defaults(path: str | Path) -> dict[str, object]:
    """Configuration values of such a model where nobody chose others; Wan 2.2 learns in its first expert's range."""
    lowest = lowest_timestep(boundary_of(path))
    return DEFAULTS | {"min_timestep": lowest} if lowest else DEFAULTS


def boundary_of(path: str | Path) -> float | None:
    """Wan 2.2's boundary between its experts, as a share of the timesteps; None for a model with one expert."""
    found = read_index(path).get("boundary_ratio")
    return float(found) if isinstance(found, int | float) and 0 < found < 1 else None


def lowest_timestep(boundary: float | None) -> int:
    """The lowest that the first expert predicts, whose motion is learned."""
    return 0 if boundary is None else math.ceil(TIMESTEPS * boundary)


def prepare(network: nn.Module, vae: nn.Module | None = None) -> None:
    """Tiles for the VAE of a large model; nothing to bypass, since a single frame is a clip of one latent."""
    if vae is not None and vae.config.scale_factor_temporal > 1:
        vae.enable_tiling()


def predictor(network: nn.Module, second: nn.Module | None = None, boundary: float | None = None):
    """See `models.backbone.predictor`. `second` is the expert for timesteps below `boundary`, a share of all."""
    dtype = network.dtype

    def predict(z_t: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        timestep = timestep.expand(len(z_t))
        high = None if second is None else timestep >= TIMESTEPS * boundary
        if high is not None and high.any() != high.all():  # a batch on both sides of the boundary
            text, found = text.expand(len(z_t), -1, -1), torch.empty_like(z_t, dtype=torch.float32)
            for rows in (high, ~high):
                found[rows] = predict(z_t[rows], timestep[rows], text[rows])
            return found
        expert = network if high is None or high.any() else second
        return expert(z_t.to(dtype), timestep, text.to(dtype)).sample.float()

    return predict


def architecture(network: nn.Module) -> str:
    """The numbers that decide whether a checkpoint fits."""
    config = network.config
    return (
        f"{config.num_layers} layers, {config.num_attention_heads} heads of {config.attention_head_dim}, feed-forward"
        f" {config.ffn_dim}, text {config.text_dim}"
    )


def level(name: str) -> str:
    """Where a leaf layer lies: the blocks are alike, and what they are called with is too."""
    return ""


def count_blocks(layers: Iterable[str]) -> int:
    """How many blocks the named layers lie in."""
    return len({".".join(name.split(".")[:2]) for name in layers})


def in_range(network: nn.Module, name: str, block_range: Sequence[float]) -> bool:
    """Whether a layer lies in the blocks between two shares of the depth, [first, last]."""
    place, first, last = int(name.split(".")[1]), *(share * network.config.num_layers for share in block_range)
    return int(first) <= place < math.ceil(last)


def carriers(network: nn.Module) -> list[Block]:
    """Every block: its self-attention can carry Motion Inversion's embeddings."""
    cell = tuple(network.config.patch_size[1:])
    width = network.config.num_attention_heads * network.config.attention_head_dim
    return [Block(f"blocks.{i}", "blocks", width, cell, ("attn1",), still=True) for i in range(len(network.blocks))]


def choose_carriers(
    network: nn.Module, sides: Sequence[str] | None = None, widths: Sequence[int] | None = None
) -> list[Block]:
    """Every block. Raises UserError for `sides` and `widths`, which choose among the blocks of a U-Net."""
    for name, value in (("blocks", sides), ("widths", widths)):
        if value is not None:
            raise UserError(
                f"embeddings.{name}: chooses among the temporal transformers of a U-Net, and the blocks of a {NAME} "
                "are alike; leave it out, or choose blocks with block_range"
            )
    return carriers(network)


shift = shift_tokens


def text_width(network: nn.Module) -> int:
    return network.config.text_dim


def text_length(tokenizer=None) -> int:
    """Tokens of every prompt, at most Wan's 512."""
    return min(LONGEST_PROMPT, tokenizer.model_max_length) if tokenizer else LONGEST_PROMPT


def sequences(height: int, width: int) -> int:
    """How many sequences attention takes for one video: the video is one."""
    return 1


def sides(network_config, vae_config) -> int:
    """What width and height in pixels must be multiples of: a patch of latents."""
    return vae_factor(vae_config) * max(network_config["patch_size"][1:])


snap = sides


@torch.no_grad()
def encode_text(text_encoder: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Token ids and mask [1 n] of one prompt -> embedding fp32 [1 n d], zero at the padding as stock WanPipeline's."""
    return text_encoder(ids, mask).last_hidden_state.float() * mask.unsqueeze(-1)


def clean(prompt: str) -> str:
    """The prompt as the tokenizer gets it: HTML's escapes undone and blanks made single, as WanPipeline does."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(prompt))).strip()
