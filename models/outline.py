"""What a model folder or hub id says of its model without the weights: sizes, noise schedule, the network's layers."""

from pathlib import Path

import torch
from diffusers import SchedulerMixin
from torch import nn

from configs.errors import UserError
from configs.plain import shown_error
from models import backbones
from models.files.parts import UNLOADABLE, load_part
from models.files.pipeline import check_pipeline, settings_of


def snap_of(model: str | Path) -> int:
    """`Backbone.snap` of a pipeline folder or hub id, read from its configurations without loading any weights.

    Raises UserError when there is no such configuration.
    """
    kind = backbones.kind_of_model(model)
    return kind.snap(settings_of(str(model), kind.FOLDER), settings_of(str(model), "vae"))


def sides_of(model: str | Path) -> int:
    """`Backbone.sides` of a pipeline folder or hub id, likewise."""
    kind = backbones.kind_of_model(model)
    return kind.sides(settings_of(str(model), kind.FOLDER), settings_of(str(model), "vae"))


def scheduler_of(model: str | Path) -> SchedulerMixin:
    """The noise schedule of a pipeline folder or hub id, without the rest. Raises UserError where it is unusable."""
    if Path(model).is_dir():
        check_pipeline(Path(model), ["scheduler"])
    return load_part(str(model), "scheduler", backbones.kind_of_model(model).parts(model)["scheduler"], {})


def latent_size_of(model: str | Path, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """`Backbone.latent_size` of a pipeline folder or hub id, read from its configurations."""
    kind, vae = backbones.kind_of_model(model), settings_of(str(model), "vae")
    return kind.latent_frames(frames, vae), height // kind.vae_factor(vae), width // kind.vae_factor(vae)


def skeleton(model: str | Path | None = None) -> nn.Module:
    """The network of a pipeline folder, a network's folder or a hub id without its weights; ZeroScope's when None.

    It lives on the meta device and costs no memory: checkpoints are checked against it before anything is loaded.
    Raises UserError when there is no such configuration.
    """
    kind = backbones.kind_of_model(model)
    config = dict(backbones.unet3d.ZEROSCOPE) if model is None else settings_of(str(model), kind.FOLDER)
    try:
        with torch.device("meta"):
            return kind.NETWORK.from_config(config)
    except UNLOADABLE as error:
        raise UserError(
            f"model: the settings of the {kind.NAME} of {model} make no model ({shown_error(error)}); download it again"
        ) from error
