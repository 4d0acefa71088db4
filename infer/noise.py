"""Initial noise for sampling: seeded Gaussian noise, alone or mixed with the DDIM inversion of a reference clip.

There are four mixtures, and each works with every method. Everything is drawn and mixed in fp32 on the CPU, so that a
seed means the same noise on every machine. Latents are [1 c f h w].

The release draws from PyTorch's global generator after building its LoRA layers has already used up part of the
stream, and in channel-last order when an inversion is mixed in; its noise therefore depends on rank and preset. Ours
depends on seed and shape alone, and is the release's noise bit for bit where its generator stands at the same place.
"""

import math

import torch
import torch.nn.functional as F

from configs.errors import UserError
from configs.key import LEAST_CUTOFF


def initial_noise(
    shape: tuple[int, int, int, int, int],
    generator: torch.Generator,
    inversion: torch.Tensor | None = None,
    prior: float = 0.0,
    strategy: str = "blend",
    *,
    cutoff: float = 0.25,
) -> torch.Tensor:
    """Noise of `shape` (1, c, f, h, w) to start sampling from, fp32 on the CPU.

    `inversion` [1 c f h w] may have another size or length: see `resize_inversion`. `prior` in [0, 1] is the share of
    the inversion's variance; at 0 the result is the plain noise whatever the strategy. Strategies:
    - blend: sqrt(prior) * inversion + sqrt(1 - prior) * noise (the paper's);
    - frequency: squares of 1/cutoff latent pixels keep the inversion's mean and the noise's detail;
    - blend_frequency: the same, with the blend in place of the inversion;
    - fft: Gaussian low-pass over frames, height and width (FreeInit, Wu et al. 2023, section 3.3, d = 0.25).
    `cutoff` is the edge of the low band as a share of the highest frequency; `prior` weighs only the blends. Raises
    UserError on an unknown strategy, a prior outside [0, 1], a cutoff outside [LEAST_CUTOFF, 1], or a prior without an
    inversion.
    """
    if strategy not in STRATEGIES:
        raise UserError(f"initial_noise.strategy: {strategy!r} is unknown; there are {', '.join(STRATEGIES)}")
    if not 0 <= prior <= 1:
        raise UserError(f"noise_prior: {prior:g} is outside [0, 1], it is the inversion's share of the variance")
    if not LEAST_CUTOFF <= cutoff <= 1:
        raise UserError(
            f"initial_noise.cutoff: {cutoff:g} is outside [{LEAST_CUTOFF}, 1], the share of frequencies that is low;"
            " use noise_prior=0 to take nothing from the inversion"
        )
    noise = torch.randn(shape, generator=generator, dtype=torch.float32)
    if prior == 0:
        return noise
    if inversion is None:
        raise UserError(
            f"noise_prior: {prior:g} of the initial noise should come from the reference clip's inversion, "
            "but there is none; use noise_prior=0 or cache the latents with the inversion"
        )
    inversion = resize_inversion(inversion.float().cpu(), tuple(shape[2:]))
    return STRATEGIES[strategy](inversion, noise, prior=prior, cutoff=cutoff)


def blend(inversion: torch.Tensor, noise: torch.Tensor, *, prior: float, **_) -> torch.Tensor:
    """`prior` is the inversion's share of the variance; both are [1 c f h w] of unit variance, and so is the result."""
    return math.sqrt(prior) * inversion + math.sqrt(1 - prior) * noise


def frequency(inversion: torch.Tensor, noise: torch.Tensor, *, cutoff: float, **_) -> torch.Tensor:
    """The inversion's means over squares of 1 / `cutoff` latent pixels with the noise's detail, [1 c f h w].

    The means are an orthogonal projection, so Gaussian noise of unit variance stays that.
    """
    side = min(round(1 / cutoff), max(noise.shape[-2:]))  # a larger square holds the whole frame as well
    return _square_means(inversion, side) + noise - _square_means(noise, side)


def blend_frequency(inversion: torch.Tensor, noise: torch.Tensor, *, prior: float, cutoff: float, **_) -> torch.Tensor:
    """`frequency` with the means of `blend` in place of the inversion's, [1 c f h w] of unit variance."""
    return frequency(blend(inversion, noise, prior=prior), noise, cutoff=cutoff)


def fft(inversion: torch.Tensor, noise: torch.Tensor, *, cutoff: float, **_) -> torch.Tensor:
    """FreeInit's mixture: low frequencies of the inversion, high ones of the noise, both [1 c f h w] of unit variance.

    `cutoff` is the Gaussian low-pass filter's standard deviation over frames, height and width, as a share of the
    highest frequency. Where the filter lets a part of both through, the result has less than unit variance.
    """
    dims = (-3, -2, -1)
    axes = [2 * torch.fft.fftfreq(n) for n in noise.shape[2:]]  # -1..1, 1 is the Nyquist frequency
    distance = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij"))
    low_pass = torch.exp(-distance / (2 * cutoff**2))
    spectrum = torch.fft.fftn(inversion, dim=dims) * low_pass + torch.fft.fftn(noise, dim=dims) * (1 - low_pass)
    return torch.fft.ifftn(spectrum, dim=dims).real


STRATEGIES = {"blend": blend, "frequency": frequency, "blend_frequency": blend_frequency, "fft": fft}


def _square_means(x: torch.Tensor, side: int) -> torch.Tensor:
    """Every pixel's mean over its square of `side` x `side`; squares at the right and lower edge may be cut off."""
    h, w = x.shape[3:]
    fill = (0, -w % side, 0, -h % side)
    sums = lambda values: F.avg_pool3d(F.pad(values, fill), (1, side, side))
    means = sums(x) / sums(torch.ones_like(x))
    return means.repeat_interleave(side, 3).repeat_interleave(side, 4)[..., :h, :w]


def resize_inversion(inversion: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Inversion [1 c f h w] at another `size` (frames, height, width), with each frame's variance restored.

    Bilinear in space; linear in time with first and last frame kept, so the motion still fills the clip. Averaging
    neighbours shrinks the spread of noise (0.81 instead of 1 from 32x48 to 48x48 [golden README]), which the U-Net
    would read as a lower noise level; each frame is scaled back to the spread of the frames it comes from.
    """
    frames, height, width = size
    if inversion.shape[2:] == size:
        return inversion
    spread = inversion.std(dim=(1, 3, 4), keepdim=True)  # [1 1 f 1 1]
    if inversion.shape[3:] != (height, width):
        inversion = F.interpolate(inversion, size=(inversion.shape[2], height, width), mode="trilinear")
    if inversion.shape[2] != frames:
        inversion = F.interpolate(inversion, size=size, mode="trilinear", align_corners=True)
        spread = F.interpolate(spread, size=(frames, 1, 1), mode="trilinear", align_corners=True)
    mean = inversion.mean(dim=(1, 3, 4), keepdim=True)
    shrunk = inversion.std(dim=(1, 3, 4), keepdim=True).clamp_min(torch.finfo(inversion.dtype).tiny)
    return mean + (inversion - mean) * spread / shrunk
