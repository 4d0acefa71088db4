"""The kinds of backbone: all that tells a 3-D U-Net from a diffusion transformer, one file each with the same names.

    NAME, PIPELINE           words for messages; the class that a folder's model_index.json names
    NETWORK, FOLDER, SECOND  class of the denoising network, its folder, and that of a second one (Wan 2.2)
    PARTS                    folder -> class of every part of the pipeline
    SETTINGS, NEEDED         folder -> file with its settings and what they must be; those that may not be missing
    PRESETS, MOTION_BLOCK, APPEARANCE_BLOCK    layers that a preset adapts in a block; which blocks learn what
    MOTION, APPEARANCE, EXPECTED, WORDS        those blocks and such a model in words
    NATIVE                   how the model samples where nobody says otherwise
    ATTENTION, LEAVES        diffusers' processor for PyTorch's own attention; classes of the `leaves`
    HEAD_PRESETS, PURE_NORM, SPATIAL_APPEARANCE, DIFFERENCE_LOSS    presets with a behaviour of their own
    IN_PLACE_OF_SKIPS        what a network without skip connections has in place of the highway, in words

and these functions; models/backbones/unet3d.py documents what each takes and returns:

    parts, load_options, boundary_of, prepare  what is loaded from a folder, and what is done to it once
    lowest_timestep                            of those that the adapted network serves
    defaults, contradiction                    configuration values of such a model; settings that no model has
    predictor                                  the network as one function (models/backbone.py: Predictor)
    architecture, count_blocks, in_range, level    what tells one network from another; how its blocks are counted
    carriers, choose_carriers, shift           blocks for Motion Inversion's embeddings (models/blocks.py), and how
                                               embeddings act in them (models/shifted.py)
    watch, pure_norm                           queries and keys, of a kind with HEAD_PRESETS (wan_attention.py)
    text_width, text_length, encode_text, clean          prompts
    vae_factor, sides, snap, sequences, latent_frames    sizes
    encode_video, encode_stills, decode_video            between frames and latents

Everything else asks here and does not know which kind it has. Latents are [b c f h w], videos uint8 [f c h w].
"""

from pathlib import Path
from types import ModuleType

from omegaconf import DictConfig, OmegaConf
from torch import nn

from configs.errors import UserError
from models.backbones import unet3d, wan
from models.backbones.index import read_index

KINDS = (unet3d, wan)
PRESETS = tuple(dict.fromkeys(name for kind in KINDS for name in kind.PRESETS))  # of any kind


def kind_of(network: nn.Module) -> ModuleType:
    """The kind of a denoising network; the U-Net's, whose messages say what is missing, for anything else."""
    return next((kind for kind in KINDS if isinstance(network, kind.NETWORK)), unet3d)


def kind_of_model(model: str | Path | None) -> ModuleType:
    """The kind of a pipeline folder, of a network's own folder, or of a hub id; the U-Net's where nothing says."""
    if model is None:
        return unet3d
    name = read_index(model).get("_class_name")
    return next((kind for kind in KINDS if name in (kind.PIPELINE, kind.NETWORK.__name__)), unet3d)


def leaves(network: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names and modules of the layers that are recomputed, compiled or streamed as one: nearly all of the network."""
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, kind_of(network).LEAVES)]


def architecture(network: nn.Module) -> str:
    """The numbers that decide whether a checkpoint fits a network, as a short text that opens with its kind."""
    kind = kind_of(network)
    return f"{kind.NAME} of {kind.architecture(network)}"


def settled(cfg: DictConfig, model: str | Path) -> DictConfig:
    """`cfg` with the model's own values for keys that nobody chose; the configuration passed in is not changed.

    Raises UserError for timesteps that belong to a second network, because only the first is trained.
    """
    cfg, kind = OmegaConf.create(cfg), kind_of_model(model)
    for key, value in kind.defaults(model).items():
        if key not in cfg.chosen:
            OmegaConf.update(cfg, key, value)
    lowest = kind.lowest_timestep(kind.boundary_of(model))
    for key in ("min_timestep", "max_timestep"):
        if cfg[key] < lowest:
            raise UserError(
                f"{key}: {cfg[key]} belongs to {kind.SECOND} of {model}, which learns nothing; the motion is learned "
                f"above the boundary between the two, so give {lowest} or more"
            )
    return cfg
