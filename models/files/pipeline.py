"""The settings in a model folder, checked before diffusers and transformers use them.

Their loaders take any value from a config.json; a wrong one ends as an error from deep inside a model, if at all. Here
every part's settings are read as plain data and the ones that shape what is computed must be of their type and within
limits. Other keys are passed on as they are.
"""

from pathlib import Path
from typing import Any

from configs.checks import Check, checked, flag, listed, maybe, real, text, whole
from configs.errors import UserError
from configs.layers import is_hub_id
from configs.plain import read_json, shown_error

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
ADVICE = "download the whole folder again"
TIMESTEPS = 1000  # of every model of this family, and of the limits in configs/fields.py

channels, layers = whole(1, 65_536), whole(1, 64)
blocks = listed(channels, 1, 8)
UNET: dict[str, Check] = {
    "block_out_channels": blocks,
    "down_block_types": listed(text(choices=("CrossAttnDownBlock3D", "DownBlock3D")), 1, 8),
    "up_block_types": listed(text(choices=("CrossAttnUpBlock3D", "UpBlock3D")), 1, 8),
    "layers_per_block": layers,
    "cross_attention_dim": channels,
    "attention_head_dim": channels,
    "num_attention_heads": maybe(channels),
    "in_channels": channels,
    "out_channels": channels,
    "norm_num_groups": maybe(channels),
    "norm_eps": real(above=0, high=1),
    "act_fn": text(200),
    "downsample_padding": whole(0, 8),
    "mid_block_scale_factor": real(above=0, high=1e6),
    "sample_size": maybe(channels),
    "time_cond_proj_dim": maybe(channels),
}
VAE: dict[str, Check] = {
    "block_out_channels": blocks,
    "layers_per_block": layers,
    "latent_channels": channels,
    "in_channels": whole(3, 3),
    "out_channels": whole(3, 3),
    "norm_num_groups": channels,
    "scaling_factor": real(above=0, high=1e6),
}
SCHEDULER: dict[str, Check] = {
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
}
TEXT_ENCODER: dict[str, Check] = {
    "hidden_size": channels,
    "intermediate_size": channels,
    "num_attention_heads": channels,
    "num_hidden_layers": whole(1, 256),
    "max_position_embeddings": whole(1, 65_536),
    "vocab_size": whole(1, 10**7),
}
TOKENIZER: dict[str, Check] = {"model_max_length": whole(2, 65_536)}  # a prompt has a beginning and an end
SETTINGS = {  # part -> the file with its settings, and what they must be
    "unet": ("config.json", UNET),
    "vae": ("config.json", VAE),
    "text_encoder": ("config.json", TEXT_ENCODER),
    "tokenizer": ("tokenizer_config.json", TOKENIZER),
    "scheduler": ("scheduler_config.json", SCHEDULER),
}


def check_pipeline(folder: Path) -> None:
    """Raise UserError for a setting of any part that no model of this family has, and for any JSON that is not plain.

    A part without its file of settings is left to the loader, which reports it.
    """
    for part, (name, schema) in SETTINGS.items():
        for file in sorted((folder / part).glob("*.json")):
            content = read_json(file)
            if file.name == name:
                found = checked(content, schema, str(file), advice=ADVICE)
                if part == "unet":
                    _check_together(found, str(file))


def check_folder(path: str) -> None:
    """Raise UserError unless `path` is a pipeline folder, or could be a hub id."""
    folder = Path(path)
    if folder.is_dir():
        missing = [part for part in PARTS if not (folder / part).is_dir()]
        if missing:
            found = sorted(p.name for p in folder.iterdir())[:8]
            raise UserError(
                f"model: {path} is not a text-to-video pipeline folder: {', '.join(missing)} missing "
                f"(found {', '.join(found) or 'nothing'}); download the whole folder again"
            )
    elif not is_hub_id(path):
        raise UserError(
            f"model: no folder {path}; point pretrained_model_path (or --model) at a ZeroScope or "
            "ModelScope folder, or use models/pocketscope, which is in this repository"
        )


def settings_of(kind: Any, model: str, part: str) -> dict[str, Any]:
    """The checked settings of the U-Net or VAE of a pipeline folder (or of a U-Net's own), or of a hub id.

    `kind` is diffusers' class, which finds a hub id's. Raises UserError where there are none or they are not usable.
    """
    if Path(model).is_dir():
        path = Path(model) / part / "config.json"
        if part == "unet" and not path.is_file():
            path = Path(model) / "config.json"
        if not path.is_file():
            raise UserError(f"{model}: no {part}/config.json there; give the folder of a text-to-video pipeline")
        config, origin = read_json(path), str(path)
    else:
        check_folder(model)
        try:
            config, origin = kind.load_config(model, subfolder=part), f"{model}: its {part}/config.json"
        except (OSError, ValueError) as error:
            raise UserError(
                f"--model: {model} is no folder and cannot be read from the hub ({shown_error(error)}); point it at a"
                " ZeroScope or ModelScope folder"
            ) from error
    found = checked(config, SETTINGS[part][1], origin, needed=("block_out_channels",), advice=ADVICE)
    if part == "unet":
        _check_together(found, origin)
    return {**config, **found}


def _check_together(unet: dict[str, Any], origin: str) -> None:
    """Raise UserError where settings of a U-Net are fine alone and not together."""
    widths = unet.get("block_out_channels", [])
    for side in ("down_block_types", "up_block_types"):
        if side in unet and len(unet[side]) != len(widths):
            raise UserError(f"{origin}: {len(unet[side])} {side} to {len(widths)} block_out_channels; {ADVICE}")
    head = unet.get("num_attention_heads") or unet.get("attention_head_dim", 1)
    if widths and head > min(widths):
        raise UserError(f"{origin}: attention heads of {head} do not fit into block_out_channels {widths}; {ADVICE}")
