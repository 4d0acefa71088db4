"""PocketScope-DiT before training: every part of a Wan folder, built from nothing.

The classes are those of Wan 2.1 (WanTransformer3DModel, AutoencoderKLWan, UMT5EncoderModel), the sizes are a laptop's.
Two things differ from Wan on purpose: the VAE does not compress time, so that eight frames stay eight latents, and it
codes each frame on its own. `build` returns random parts; scripts/pocket/wan_pretraining.py trains them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanAttentionBlock,
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
)
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from models.hooks import Patch, wrap_forward
from scripts.pocket.architecture import TEXT_LENGTH, TEXT_WIDTH

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # T5's special tokens, ids 0 to 2
FLOW_SHIFT = 3.0  # the timestep shift of training and of sampling alike


def build_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """Every word of `words` is one token, every other word is `<unk>`; a caption ends in `</s>`, as T5's do."""
    vocabulary = {token: index for index, token in enumerate([PAD, END, UNKNOWN, *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", pair=f"$A {END} $B {END}", special_tokens=[(END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN, model_max_length=TEXT_LENGTH
    )


def untrained_text_encoder(tokenizer: PreTrainedTokenizerFast) -> UMT5EncoderModel:
    """One random UMT5 layer, to be kept frozen. T5's token embeddings start with unit variance already."""
    config = UMT5Config(
        vocab_size=len(tokenizer),
        d_model=TEXT_WIDTH,
        d_kv=16,
        d_ff=2 * TEXT_WIDTH,
        num_layers=1,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return UMT5EncoderModel(config).eval().requires_grad_(False)


@torch.no_grad()
def encode_captions(text_encoder: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Token ids [b n] -> embeddings [b n d], zero at the padding, which is how stock WanPipeline hands them on."""
    real = ids.ne(text_encoder.config.pad_token_id)
    return text_encoder(ids, real.long()).last_hidden_state * real.unsqueeze(-1)


def untrained_vae() -> AutoencoderKLWan:
    """An eightfold Wan VAE with four latent channels and 8/16/32/32 channels, started as a working codec.

    Time: only the tap on the present frame of every causal convolution is set. The others are zero and stay zero,
    because training sees single frames, for which they read padding. So every frame is coded on its own, and decoding
    a video latent by latent, as the stock class does, is the same as decoding its frames.

    Space: it begins as 8x8 averaging and smooth upsampling. RGB travels through the shortcuts, every residual branch
    starts at zero, and training has only the edges left to learn; the posterior is narrow. See
    scripts/pocket/architecture.py for what a random start costs.
    """
    vae = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, False, False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_temporal=1,
        scale_factor_spatial=8,
    )
    average = torch.tensor([0.5, 0.5, 0.0])  # the stock class pads right and below before the strided convolution
    blur = torch.tensor([0.25, 0.5, 0.25])  # after nearest upsampling: close to bilinear
    point = torch.tensor([0.0, 1.0, 0.0])
    with torch.no_grad():
        for module in vae.modules():
            if isinstance(module, WanResidualBlock):
                nn.init.zeros_(module.conv2.weight)
                nn.init.zeros_(module.conv2.bias)
                if isinstance(module.conv_shortcut, WanCausalConv3d):
                    _carry(module.conv_shortcut, torch.ones(1))
            elif isinstance(module, WanAttentionBlock):
                nn.init.zeros_(module.proj.weight)
                nn.init.zeros_(module.proj.bias)
            elif isinstance(module, WanResample):
                _carry(module.resample[1], average if module.mode == "downsample2d" else blur)
        for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
            _carry(conv, point)
        for conv in (vae.quant_conv, vae.post_quant_conv):
            _carry(conv, torch.ones(1))
        for half in (vae.encoder, vae.decoder):
            last = [module for module in half.modules() if isinstance(module, WanResample)][-1]
            _pass_through_silu(last.resample[1], half)
        vae.quant_conv.weight[4:] = 0
        vae.quant_conv.bias[4:] = -6  # log variance
        for module in vae.modules():
            if isinstance(module, WanCausalConv3d):
                module.weight[:, :, :-1] = 0  # causal: the last tap is the present frame
    return vae


def _carry(conv: nn.Conv2d | nn.Conv3d, taps: torch.Tensor) -> None:
    """Let the first three channels pass, filtered by `taps` along height and width; the others stay random."""
    conv.weight[:3] = 0
    conv.bias[:3] = 0
    for channel in range(3):
        _present(conv)[channel, channel] = taps[:, None] * taps


def _present(conv: nn.Conv2d | nn.Conv3d) -> torch.Tensor:
    """The kernel [o i h w] that acts on the present frame."""
    return conv.weight[:, :, -1] if conv.weight.ndim == 5 else conv.weight


def _pass_through_silu(last: nn.Conv2d, half: nn.Module, constant: float = 6.0) -> None:
    """Make normalisation, SiLU and `conv_out` of an encoder or decoder start as the identity on RGB.

    silu(x) - silu(-x) = x, so RGB is kept once with each sign. Wan's RMS norm divides each pixel by the length of its
    channels; a pair of large constants makes this length nearly the same everywhere. Both are written by the last
    resampling convolution.
    """
    channels = half.norm_out.gamma.shape[0]
    last.weight[3:6] = -last.weight[:3]
    last.weight[6:8] = 0
    last.bias[3:6] = 0
    last.bias[6:8] = torch.tensor([constant, -constant])
    divisor = (2 * constant**2 / channels) ** 0.5
    half.conv_out.weight *= 0.1
    half.conv_out.weight[:3] = 0
    half.conv_out.bias[:3] = 0
    for channel in range(3):
        _present(half.conv_out)[channel, channel, 1, 1] = divisor
        _present(half.conv_out)[channel, channel + 3, 1, 1] = -divisor


def skip_earlier_frames(vae: AutoencoderKLWan) -> Patch:
    """On single frames, leave out the taps on earlier frames, which read padding: the same result 2.5 times as fast."""

    def present_only(conv: WanCausalConv3d):
        left, _, top, _, _, _ = conv._padding
        kernel = lambda: (_present(conv), conv.bias, conv.stride[1:], (top, left))
        return lambda forward, frame, *cache: F.conv2d(frame.squeeze(2), *kernel()).unsqueeze(2)

    return Patch([wrap_forward(m, present_only(m)) for m in vae.modules() if isinstance(m, WanCausalConv3d)])


class FrameCodec:
    """A Wan VAE that codes each frame on its own, with the interface of an image VAE: frames [n c h w].

    The stock `encode` reads one frame and then fours, and drops what is left over; the stock `decode` clamps, which
    stops gradients. Neither happens here. Latents are the VAE's own, before its mean and deviation are taken out.
    """

    def __init__(self, vae: AutoencoderKLWan):
        self.vae, self.device, self.dtype = vae, vae.device, vae.dtype

    def encode(self, frames: torch.Tensor) -> AutoencoderKLOutput:
        moments = self.vae.quant_conv(self.vae.encoder(frames.unsqueeze(2))).squeeze(2)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, latents: torch.Tensor) -> DecoderOutput:
        frames = self.vae.decoder(self.vae.post_quant_conv(latents.unsqueeze(2)))
        return DecoderOutput(sample=frames.squeeze(2))


def untrained_transformer() -> WanTransformer3DModel:
    """Wan's diffusion transformer in small, 3.5 M parameters; a clip of eight frames is 128 tokens.

    Nothing is done for the order of frames: the rotary positions give time a direction from the first step.
    """
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=4,
        out_channels=4,
        text_dim=TEXT_WIDTH,
        freq_dim=64,
        ffn_dim=576,
        num_layers=6,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )


def build_scheduler() -> UniPCMultistepScheduler:
    """Wan's sampler: UniPC on the flow ODE with shifted noise levels."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT)


def build(words: Sequence[str], seed: int = 0) -> dict[str, object]:
    """All five parts, random from `seed`, as keyword arguments of WanPipeline."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer(words)
        return {
            "tokenizer": tokenizer,
            "text_encoder": untrained_text_encoder(tokenizer),
            "vae": untrained_vae(),
            "transformer": untrained_transformer(),
            "scheduler": build_scheduler(),
        }
