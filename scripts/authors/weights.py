"""Reproducible weights from parameter names alone, so that a test model needs no weight file.

This is a fact of the reference files' format: a parameter's values are those of a normal generator seeded by the CRC
of its name and a seed number, so any stack that spells the names alike rebuilds the same model bit for bit.
"""

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet3DConditionModel
from torch import nn

REFERENCE_SEED, VAE_SEED = 3, 2  # of the U-Net and the VAE of a reference pipeline folder without their weights
OUTPUT_GAIN = 0.3  # on the last convolution: keeps the prediction of a random U-Net near unit variance
OUTPUTS = ("conv_out.weight", "decoder.conv_out.weight")  # of a U-Net, of a VAE


@torch.no_grad()
def fill(module: nn.Module, seed: int) -> nn.Module:
    """Overwrite every parameter of `module`: matrices N(0, 1/fan_in), norm weights 1 + 0.1 N, biases 0.05 N."""
    for name, parameter in module.named_parameters():
        key = (zlib.crc32(name.encode()) + 1000003 * seed) % 2**31
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(key))
        if parameter.ndim >= 2:
            values /= parameter[0].numel() ** 0.5
            if name in OUTPUTS:
                values *= OUTPUT_GAIN
        elif name.endswith("weight"):
            values = 1 + 0.1 * values
        else:
            values *= 0.05
        parameter.copy_(values)
    return module


def build_unet(config: Mapping[str, Any] | str, seed: int = REFERENCE_SEED) -> UNet3DConditionModel:
    """The frozen fp32 U-Net of a configuration (a dict, or its JSON) with the weights of its names, in eval mode.

    Made without the usual random initialisation, which at ZeroScope's size takes longer than everything else.
    """
    config = json.loads(config) if isinstance(config, str) else config
    with torch.device("meta"):
        unet = UNet3DConditionModel.from_config(config)
    return fill(unet.to_empty(device="cpu"), seed).eval().requires_grad_(False)


def build_vae(config: str) -> AutoencoderKL:
    """The VAE of a configuration (JSON) with the weights of its names, in eval mode."""
    return fill(AutoencoderKL.from_config(json.loads(config)), VAE_SEED).eval()
