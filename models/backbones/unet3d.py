"""The 3-D U-Net of ZeroScope and ModelScope, with an image VAE and CLIP's text encoder.

Each level has a spatial transformer, which learns appearance, and a temporal one, which learns motion: attention over
the frames of one latent pixel. Frames are encoded one by one, so a clip has as many latents as frames. Single frames
bypass every temporal layer (models/hooks.py).
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from einops import rearrange
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from configs.checks import flag, listed, maybe, real, text, whole
from configs.errors import UserError
from models.blocks import choose_temporal_blocks, temporal_blocks
from models.hooks import TEMPORAL_LAYERS, bypass_single_frames
from models.schedule import TIMESTEPS
from models.shifted import shift_temporal

NAME, PIPELINE = "U-Net", "TextToVideoSDPipeline"
NETWORK, FOLDER, SECOND = UNet3DConditionModel, "unet", None
WORDS = "a ZeroScope or ModelScope folder"
PARTS = {
    "unet": UNet3DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "tokenizer": CLIPTokenizer,
    "scheduler": DDIMScheduler,
}
ATTENTION = AttnProcessor2_0
LEAVES = (ResnetBlock2D, Transformer2DModel, *TEMPORAL_LAYERS)
HEAD_PRESETS = PURE_NORM = SPATIAL_APPEARANCE = DIFFERENCE_LOSS = ()  # presets of a transformer
IN_PLACE_OF_SKIPS = ""  # it has skip connections
ZEROSCOPE = {  # the architecture behind every published file: ZeroScope v2, ModelScope
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
}
FRAMES_AT_ONCE = 4  # the VAE is applied to a few frames at a time: decoding 16 at once would need 3.6 GB
NATIVE: dict[str, object] = {}  # infer/options.py holds the release's


def _both_attentions(*kinds: str) -> tuple[str, ...]:
    return tuple(f"attn{i}.{kind}" for i in (1, 2) for kind in kinds)


_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0")
_FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")

# What each preset adapts inside one transformer block, in the order of the release's positional files.
PRESETS: dict[str, tuple[str, ...]] = {
    "tap": _both_attentions("to_q", "to_k"),
    "tap_key": _both_attentions("to_k"),
    "release": _both_attentions("to_k", "to_out.0"),
    "motiondirector": (*_both_attentions(*_PROJECTIONS), *_FEED_FORWARD),
    "query": _both_attentions("to_q"),
    "value": _both_attentions("to_v"),
    "out": _both_attentions("to_out.0"),
    "ff": _FEED_FORWARD,
    "qk_out": _both_attentions("to_q", "to_k", "to_out.0"),
    "value_out_ff": (*_both_attentions("to_v", "to_out.0"), *_FEED_FORWARD),
    "appearance": (*(f"attn1.{kind}" for kind in _PROJECTIONS), *_FEED_FORWARD),
}
MOTION, APPEARANCE = "temporal transformers", "spatial transformers"
EXPECTED = "temp_attentions.0"  # where a network of another kind ends
MOTION_BLOCK = re.compile(r"(transformer_in|.+\.temp_attentions\.\d+)\.transformer_blocks\.\d+")
APPEARANCE_BLOCK = re.compile(r".+\.attentions\.\d+\.transformer_blocks\.\d+")

_channels, _layers = whole(1, 65_536), whole(1, 64)
_blocks = listed(_channels, 1, 8)
SETTINGS = {  # part -> the file with its settings, and what they must be
    "unet": (
        "config.json",
        {
            "block_out_channels": _blocks,
            "down_block_types": listed(text(choices=("CrossAttnDownBlock3D", "DownBlock3D")), 1, 8),
            "up_block_types": listed(text(choices=("CrossAttnUpBlock3D", "UpBlock3D")), 1, 8),
            "layers_per_block": _layers,
            "cross_attention_dim": _channels,
            "attention_head_dim": _channels,
            "num_attention_heads": maybe(_channels),
            "in_channels": _channels,
            "out_channels": _channels,
            "norm_num_groups": maybe(_channels),
            "norm_eps": real(above=0, high=1),
            "act_fn": text(200),
            "downsample_padding": whole(0, 8),
            "mid_block_scale_factor": real(above=0, high=1e6),
            "sample_size": maybe(_channels),
            "time_cond_proj_dim": maybe(_channels),
        },
    ),
    "vae": (
        "config.json",
        {
            "block_out_channels": _blocks,
            "layers_per_block": _layers,
            "latent_channels": _channels,
            "in_channels": whole(3, 3),
            "out_channels": whole(3, 3),
            "norm_num_groups": _channels,
            "scaling_factor": real(above=0, high=1e6),
        },
    ),
    "text_encoder": (
        "config.json",
        {
            "hidden_size": _channels,
            "intermediate_size": _channels,
            "num_attention_heads": _channels,
            "num_hidden_layers": whole(1, 256),
            "max_position_embeddings": whole(1, 65_536),
            "vocab_size": whole(1, 10**7),
        },
    ),
    "tokenizer": ("tokenizer_config.json", {"model_max_length": whole(2, 65_536)}),
    "scheduler": (
        "scheduler_config.json",
        {
            "num_train_timesteps": whole(TIMESTEPS, TIMESTEPS),
            "beta_start": real(above=0, high=1),
            "beta_end": real(above=0, high=1),
            "beta_schedule": text(choices=("linear", "scaled_linear", "squaredcos_cap_v2")),
            "trained_betas": maybe(listed(real(above=0, high=1), TIMESTEPS, TIMESTEPS)),
            "prediction_type": text(choices=("epsilon", "v_prediction")),
            "timestep_spacing": text(choices=("leading", "linspace", "trailing")),
            "steps_offset": whole(0, 1),
            "clip_sample": flag,
            "set_alpha_to_one": flag,
            "thresholding": flag,
            "rescale_betas_zero_snr": flag,
        },
    ),
}
NEEDED = {"unet": ("block_out_channels",), "vae": ("block_out_channels",)}


def contradiction(settings: dict) -> str | None:
    """What is wrong with settings of the network that are fine alone and not together, None when nothing is."""
    widths = settings.get("block_out_channels", [])
    for side in ("down_block_types", "up_block_types"):
        if side in settings and len(settings[side]) != len(widths):
            return f"{len(settings[side])} {side} to {len(widths)} block_out_channels"
    head = settings.get("num_attention_heads") or settings.get("attention_head_dim", 1)
    if widths and head > min(widths):
        return f"attention heads of {head} do not fit into block_out_channels {widths}"
    return None


def load_options(dtype: torch.dtype) -> dict[str, dict]:
    """What each part's `from_pretrained` gets."""
    text = {"dtype": dtype, "ignore_mismatched_sizes": True}  # whoever loads it sees the sizes that differ
    return {"unet": {"torch_dtype": dtype}, "vae": {"torch_dtype": dtype}, "text_encoder": text}


def parts(path: str | Path) -> dict[str, type]:
    """Part -> class, of this folder."""
    return PARTS


def defaults(path: str | Path) -> dict[str, object]:
    """Configuration values of such a model where nobody chose others; configs/fields.py holds the release's."""
    return {}


def boundary_of(path: str | Path) -> None:
    """There is no second network."""


def lowest_timestep(boundary: float | None) -> int:
    """The lowest that the network predicts: all of them."""
    return 0


def prepare(network: nn.Module, vae: nn.Module | None = None) -> None:
    """Give today's class the one-frame bypass of the paper's base model."""
    bypass_single_frames(network)


def predictor(network: nn.Module, _second: nn.Module | None = None, _boundary: float | None = None):
    """See `models.backbone.predictor`."""
    dtype = network.dtype  # once, not in every forward (models/hooks.py: know_dtype)

    def predict(z_t: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return network(z_t.to(dtype), timestep, text.to(dtype)).sample.float()

    return predict


def architecture(network: nn.Module) -> str:
    """The numbers that decide whether a checkpoint fits."""
    config = network.config
    channels = "/".join(map(str, config.block_out_channels))
    return (
        f"channels {channels}, {config.layers_per_block} layers a block, heads of {config.attention_head_dim},"
        f" text {config.cross_attention_dim}"
    )


def level(name: str) -> str:
    """Where a leaf layer lies: the part of the U-Net, whose layers are called with clips of one size."""
    return ".".join(name.split(".")[:2])


def count_blocks(layers: Iterable[str]) -> int:
    """How many transformers the named layers lie in."""
    return len({name.split(".transformer_blocks")[0] for name in layers})


def in_range(network: nn.Module, name: str, block_range: Sequence[float]) -> bool:
    """Raises UserError: block_range is undefined for a U-Net."""
    raise UserError("block_range: belongs to diffusion transformers, whose blocks are alike; on a U-Net leave it out")


carriers, choose_carriers, shift = temporal_blocks, choose_temporal_blocks, shift_temporal


def text_width(network: nn.Module) -> int:
    return network.config.cross_attention_dim


def text_length(tokenizer=None) -> int:
    """Tokens of every prompt; without a tokenizer those of all published models."""
    return tokenizer.model_max_length if tokenizer else 77


def sequences(height: int, width: int) -> int:
    """How many sequences attention takes for one video: temporal attention has one for each latent pixel."""
    return height * width


def vae_factor(vae_config) -> int:
    """Pixels per latent pixel, 8 for ZeroScope."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def sides(network_config, vae_config) -> int:
    """What width and height in pixels must be multiples of when sampling."""
    return vae_factor(vae_config)


def snap(network_config, vae_config) -> int:
    """What clips' sides are rounded to: they then suit the VAE and every level of the U-Net."""
    return vae_factor(vae_config) * 2 ** (len(network_config["block_out_channels"]) - 1)


def latent_frames(frames: int, vae_config) -> int:
    """Latents of a clip of so many frames: as many."""
    return frames


@torch.no_grad()
def encode_video(vae: nn.Module, frames: torch.Tensor, device: torch.device) -> torch.Tensor:
    """uint8 [f c h w] -> scaled latents fp32 [1 c f h/8 w/8]. The mode of the posterior, so it is repeatable."""
    latents = [
        vae.encode((chunk.to(device).float() / 127.5 - 1).to(vae.dtype)).latent_dist.mode()
        for chunk in frames.split(FRAMES_AT_ONCE)
    ]
    return rearrange(torch.cat(latents).float() * vae.config.scaling_factor, "f c h w -> 1 c f h w")


def encode_stills(vae: nn.Module, frames: torch.Tensor, device: torch.device) -> None:
    """None: every frame of a clip is encoded on its own already."""
    return None


@torch.no_grad()
def decode_video(vae: nn.Module, latents: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Scaled latents [1 c f h w] -> fp32 [f c 8h 8w] in -1..1."""
    frames = rearrange(latents / vae.config.scaling_factor, "1 c f h w -> f c h w").to(vae.dtype)
    return torch.cat([vae.decode(chunk.to(device)).sample.float() for chunk in frames.split(FRAMES_AT_ONCE)])


@torch.no_grad()
def encode_text(text_encoder: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Token ids [1 n] of one prompt -> embedding fp32 [1 n d]; CLIP reads the padding too."""
    return text_encoder(ids)[0].float()


def clean(prompt: str) -> str:
    """The prompt as the tokenizer gets it."""
    return prompt
