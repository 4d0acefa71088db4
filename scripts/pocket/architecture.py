"""PocketScope before training: every part of the pipeline folder, built from nothing.

The layout is ZeroScope's (four blocks, the last down and the first up block without attention), the sizes are a
laptop's. `build` returns random parts; scripts/pretrain_pocketscope.py trains them and writes models/pocketscope.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D, TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.upsampling import Upsample2D
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

TEXT_WIDTH = 64
TEXT_LENGTH = 24  # tokens: the longest caption of the world has 17 with both ends


def build_tokenizer(words: Sequence[str]) -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of `words` is one token and any other text falls into letters."""
    letters = [chr(code) for code in range(33, 127)]
    merges = _merges_for(sorted(words))
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(
            json.dumps({token: index for index, token in enumerate(tokens)}), encoding="utf-8"
        )
        (Path(folder) / "merges.txt").write_text(
            "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]), encoding="utf-8"
        )
        return CLIPTokenizer.from_pretrained(folder, model_max_length=TEXT_LENGTH, pad_token="<|endoftext|>")


def write_slow_tokenizer(folder: Path) -> None:
    """Beside the tokenizer.json in `folder`, write vocab.json and merges.txt: what the folders of 2023 hold."""
    stored = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = stored["model"]["vocab"] | {token["content"]: token["id"] for token in stored["added_tokens"]}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(pair) for pair in stored["model"]["merges"]), ""]), encoding="utf-8"
    )


def untrained_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random CLIP text encoder, to be kept frozen: trained jointly, motion and shape words collapse on each other.

    Token embeddings have unit variance, because CLIP's 0.02 leaves the words too close to tell apart.
    """
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        projection_dim=TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    nn.init.normal_(encoder.get_input_embeddings().weight)
    return encoder.eval().requires_grad_(False)


def untrained_vae() -> AutoencoderKL:
    """An eightfold VAE with four latent channels and 8/16/32/64 channels, started as a working codec.

    From a random start the network spends its first thousand steps finding out that colours exist. Here it begins as
    8x8 averaging and smooth upsampling: RGB travels through the shortcuts, every residual branch starts at zero, and
    training has only the edges left to learn. Three more choices keep the background's tint: one normalisation group
    (with more, each of the last eight channels nearly loses its own mean), the pairs of `_pass_through_silu`, and a
    narrow posterior (the stock start's noise is as large as the latents).
    """
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=64,
        scaling_factor=1.0,
    )
    average = torch.tensor([0.5, 0.5, 0.0])  # diffusers pads right and below before the strided convolution
    blur = torch.tensor([0.25, 0.5, 0.25])  # after nearest upsampling: close to bilinear
    point = torch.tensor([0.0, 1.0, 0.0])
    with torch.no_grad():
        for half in (vae.encoder, vae.decoder):
            for module in half.modules():
                if isinstance(module, ResnetBlock2D):
                    nn.init.zeros_(module.conv2.weight)
                    if module.conv_shortcut is not None:
                        _carry(module.conv_shortcut, torch.ones(1))
                elif isinstance(module, Attention):
                    nn.init.zeros_(module.to_out[0].weight)
                elif isinstance(module, Downsample2D):
                    _carry(module.conv, average)
                elif isinstance(module, Upsample2D):
                    _carry(module.conv, blur)
        _carry(vae.encoder.conv_in, point)
        _carry(vae.decoder.conv_in, point)
        _carry(vae.post_quant_conv, torch.ones(1))
        _carry(vae.quant_conv, torch.ones(1))
        _pass_through_silu(vae.encoder.down_blocks[-1].resnets[0], vae.encoder)
        _pass_through_silu(vae.decoder.up_blocks[-1].resnets[0], vae.decoder)
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -6  # log variance
    return vae


def _carry(conv: nn.Conv2d, taps: torch.Tensor) -> None:
    """Let the first three channels pass, filtered by `taps` along both axes; the others keep their random start."""
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    for channel in range(3):
        conv.weight[channel, channel] = taps[:, None] * taps


def _pass_through_silu(last: ResnetBlock2D, half: nn.Module, constant: float = 6.0) -> None:
    """Make normalisation, SiLU and `conv_out` of an encoder or decoder start as the identity on RGB.

    silu(x) - silu(-x) = x, so RGB is kept once with each sign; a pair of large constants, written by the shortcut of
    the last channel change, makes the normalisation's divisor nearly the same for every image.
    """
    shortcut, channels = last.conv_shortcut, half.conv_norm_out.num_channels
    shortcut.weight[3:6] = -shortcut.weight[:3]
    shortcut.weight[6:8] = 0
    shortcut.bias[3:6] = 0
    shortcut.bias[6:8] = torch.tensor([constant, -constant])
    divisor = (2 * constant**2 / channels) ** 0.5
    half.conv_out.weight *= 0.1
    half.conv_out.weight[:3] = 0
    half.conv_out.bias[:3] = 0
    for channel in range(3):
        half.conv_out.weight[channel, channel, 1, 1] = divisor
        half.conv_out.weight[channel, channel + 3, 1, 1] = -divisor


def untrained_unet(channels: Sequence[int] = (32, 64, 128, 128), layers: int = 1) -> UNet3DConditionModel:
    """ZeroScope's U-Net in small, started so that it can learn the order of time.

    Temporal attention has no frame positions; order comes only from the zero padding of the temporal convolutions.
    With the stock start (last convolution zero) training stays for long where left and right are the same, so half
    of each convolution's channels start without the tap to the next frame and half without the one to the previous.
    Temporal attention starts as the identity (`proj_out` zero), and nothing drops out.
    """
    unet = UNet3DConditionModel(
        sample_size=8,
        block_out_channels=tuple(channels),
        layers_per_block=layers,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=16,
        norm_num_groups=4,
    )
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(module, TransformerTemporalModel):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
        elif isinstance(module, TemporalConvLayer):
            for stage in (module.conv1, module.conv2, module.conv3, module.conv4):
                conv = stage[-1]
                nn.init.kaiming_uniform_(conv.weight, a=5**0.5)
                with torch.no_grad():
                    conv.weight[::2, :, 2] = 0
                    conv.weight[1::2, :, 0] = 0
                    conv.weight *= 0.3 if stage is module.conv4 else 1.2  # 1.2 makes up for the taps left out
    return unet


def build_scheduler() -> DDIMScheduler:
    """v-prediction on linear betas with trailing timesteps, which end in almost pure noise as sampling starts."""
    return DDIMScheduler(
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def build(words: Sequence[str], seed: int = 0) -> dict[str, object]:
    """All five parts, random from `seed`, as keyword arguments of TextToVideoSDPipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(words)
        return {
            "tokenizer": tokenizer,
            "text_encoder": untrained_text_encoder(tokenizer),
            "vae": untrained_vae(),
            "unet": untrained_unet(),
            "scheduler": build_scheduler(),
        }


def _merges_for(words: Sequence[str]) -> list[tuple[str, str]]:
    """Byte-pair merges learned until every word is one token; ties go to the alphabet, so ids never change.

    The trainer of the tokenizers library breaks ties in another way, which would renumber the shipped tokenizer.
    """
    spelled = [(*word[:-1], word[-1] + "</w>") for word in words]
    merges = []
    while any(len(parts) > 1 for parts in spelled):
        pairs = Counter(pair for parts in spelled for pair in zip(parts, parts[1:]))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        spelled = [_merged(parts, best) for parts in spelled]
    return merges


def _merged(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out, index = [], 0
    while index < len(parts):
        both = parts[index : index + 2] == pair
        out.append("".join(pair) if both else parts[index])
        index += 2 if both else 1
    return tuple(out)
