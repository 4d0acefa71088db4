"""What the settings of a Wan folder must be before anything is loaded from it; models/backbones/wan.py is its code."""

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from configs.checks import flag, listed, maybe, real, text, whole
from models.schedule import TIMESTEPS

SCHEDULERS = (UniPCMultistepScheduler, FlowMatchEulerDiscreteScheduler)

_size, _count = whole(1, 65_536), whole(1, 256)
_numbers = listed(real(-1e3, 1e3), 1, 1024)
SETTINGS = {  # part -> the file with its settings, and what they must be
    "transformer": (
        "config.json",
        {
            "patch_size": listed(whole(1, 16), 3, 3),
            "num_attention_heads": _count,
            "attention_head_dim": whole(2, 4096, 2),
            "in_channels": _size,
            "out_channels": _size,
            "text_dim": _size,
            "freq_dim": _size,
            "ffn_dim": whole(1, 10**6),
            "num_layers": _count,
            "cross_attn_norm": flag,
            "qk_norm": text(choices=("rms_norm_across_heads",)),
            "eps": real(above=0, high=1),
            "added_kv_proj_dim": maybe(_size),
            "image_dim": maybe(_size),
            "rope_max_seq_len": _size,
        },
    ),
    "vae": (
        "config.json",
        {
            "base_dim": _size,
            "z_dim": _size,
            "dim_mult": listed(whole(1, 64), 1, 8),
            "num_res_blocks": whole(1, 64),
            "temperal_downsample": listed(flag, 0, 8),
            "latents_mean": _numbers,
            "latents_std": listed(real(above=0, high=1e3), 1, 1024),
            "in_channels": whole(3, 12),
            "out_channels": whole(3, 12),
            "patch_size": maybe(whole(1, 16)),
            "scale_factor_temporal": whole(1, 64),
            "scale_factor_spatial": whole(1, 64),
        },
    ),
    "text_encoder": (
        "config.json",
        {
            "d_model": _size,
            "d_kv": _size,
            "d_ff": whole(1, 10**6),
            "num_layers": _count,
            "num_heads": _count,
            "vocab_size": whole(1, 10**7),
        },
    ),
    "tokenizer": ("tokenizer_config.json", {"model_max_length": real(2, 1e31)}),
    "scheduler": (
        "scheduler_config.json",
        {
            "_class_name": text(choices=tuple(kind.__name__ for kind in SCHEDULERS)),
            "num_train_timesteps": whole(TIMESTEPS, TIMESTEPS),
            "flow_shift": real(above=0, high=1000),
            "shift": real(above=0, high=1000),
            "prediction_type": text(choices=("flow_prediction",)),
            "use_flow_sigmas": flag,
        },
    ),
}
NEEDED = {"transformer": ("num_attention_heads", "attention_head_dim", "num_layers"), "vae": ("z_dim",)}


def contradiction(settings: dict) -> str | None:
    """What is wrong with settings of the network that are fine alone and not together, None when nothing is."""
    if settings.get("image_dim") is not None or settings.get("added_kv_proj_dim") is not None:
        return "image_dim is set, so it is an image-to-video model, and only text-to-video models are read"
    return None
