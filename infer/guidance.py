"""Motion guidance without training: steer the first steps of a sampling towards a clip's predicted clean latents.

FlowMotion (Wang et al. 2026), written for any noise schedule. In each of the first steps the model predicts the clean
latents of the noised reference clip, and a few Adam updates move the noisy latents until their own predicted clean
latents, and the differences between their frames, come near to those. The gradient is taken through the formula from
latents to clean latents alone: the network's output counts as a constant, so nothing of the network is kept for a
backward pass and memory stays that of plain sampling.

Latents are [b c f h w] in fp32, z = alpha * clean + sigma * noise. Epsilon- and v-prediction and flow matching differ
only in `clean_latents`, `velocity` and `way`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch

from infer.choices import GUIDANCE
from infer.sampler import Denoiser
from models.schedule import FLOW, prediction_type
from models.seeds import seed_of

SHARE = 0.2  # of the sampling's steps that are guided by default: FlowMotion's 10 of 50


@dataclass(frozen=True)
class GuidanceSettings:
    """`steps` guided from the first on, `updates` of Adam in each with learning rate `rate`.

    `weights` of the two objectives, clean latents and their frame differences; `across` is the share that stays of the
    predicted velocity across the mean velocity so far; `target` is "predicted", or "clean_latent" for the clip's own
    latents, which costs no prediction of the reference.
    """

    steps: int
    updates: int = GUIDANCE["updates"]
    rate: float = GUIDANCE["rate"]
    weights: tuple[float, float] = GUIDANCE["weights"]
    across: float = GUIDANCE["across"]
    target: str = GUIDANCE["target"]

    def forwards(self, each: Sequence[int], passes: Sequence[int] | None = None) -> int:
        """How often the network sees one video in a guided sampling; `each` holds every step's forwards without it.

        A guided step takes its last update's prediction. `passes` says how often the network runs in a forward of each
        step, default once.
        """
        reference = 1 if self.target == "predicted" else 0
        guided = [reference + (self.updates - 1) * count for count in each[: self.steps]]
        taken = [count + more for count, more in zip_longest(each, guided, fillvalue=0)]
        return sum(count * runs for count, runs in zip(taken, passes or [1] * len(each), strict=True))


@dataclass(frozen=True)
class Level:
    """The noise level of a timestep: z = alpha * clean + sigma * noise. `kind` is the scheduler's prediction_type."""

    alpha: float
    sigma: float
    kind: str

    @classmethod
    def of(cls, scheduler, timestep: torch.Tensor | int) -> "Level":
        """Of an integer timestep of a diffusion schedule, or of a flow's, whose sigma is its share of the whole."""
        kind = prediction_type(scheduler)
        if kind == FLOW:
            sigma = float(timestep) / scheduler.config.num_train_timesteps
            return cls(1 - sigma, sigma, kind)
        kept = float(scheduler.alphas_cumprod[int(timestep)])
        return cls(kept**0.5, (1 - kept) ** 0.5, kind)


class MotionGuidance:
    """One guided sampling: `steer` moves the latents before each step, and calling it is the denoiser for that step.

    `reference` is the clip's clean latents [1 c f h w]; `denoise` the model under the prompts, `denoise_reference` the
    model under the empty prompt. The reference's noise in step i of a video is drawn from (its seed, i), so a video
    does not depend on what is sampled beside it.
    """

    def __init__(
        self,
        reference: torch.Tensor,
        denoise: Denoiser,
        denoise_reference: Denoiser,
        scheduler,
        settings: GuidanceSettings,
        seeds: list[int],
    ):
        self.reference, self.scheduler, self.settings, self.seeds = reference, scheduler, settings, seeds
        self.denoise, self.denoise_reference = denoise, denoise_reference
        self.step = 0
        self.first: tuple[torch.Tensor, Level] | None = None
        self.known: torch.Tensor | None = None  # the last update's prediction, which the solver's step takes over

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The prediction for the solver's step: in a guided step the one of the last update, not a new one."""
        known, self.known = self.known, None
        return self.denoise(latents, timestep) if known is None else known

    @torch.no_grad()
    def steer(self, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """The latents [b c f h w] from which this step is to be taken; unchanged after the last guided step."""
        settings, step = self.settings, self.step
        self.step += 1
        if step >= settings.steps:
            return latents
        level = Level.of(self.scheduler, timestep)
        self.first = self.first or (latents, level)
        target = self._target(latents, timestep, level, step)
        moved = latents.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([moved], lr=settings.rate)
        for _ in range(settings.updates):
            prediction = self.denoise(moved.detach(), timestep)
            kept = along_mean(prediction, moved.detach(), level, *self.first, settings.across)
            with torch.enable_grad():
                loss = objective(clean_latents(moved, kept, level), target, settings.weights)
                (moved.grad,) = torch.autograd.grad(loss, moved)
            optimizer.step()
        self.known = prediction
        return moved.detach()

    def _target(self, latents: torch.Tensor, timestep: torch.Tensor, level: Level, step: int) -> torch.Tensor:
        reference = self.reference.to(latents).expand_as(latents)
        if self.settings.target == "clean_latent":
            return reference
        noise = torch.cat([_noise(seed, step, self.reference.shape) for seed in self.seeds]).to(latents)
        noised = level.alpha * reference + level.sigma * noise
        return clean_latents(noised, self.denoise_reference(noised, timestep), level)


def clean_latents(latents: torch.Tensor, prediction: torch.Tensor, level: Level) -> torch.Tensor:
    """The clean latents that a prediction means, [b c f h w], by the formula of the model's kind."""
    if level.kind == "epsilon":
        return (latents - level.sigma * prediction) / level.alpha
    if level.kind == "v_prediction":
        return level.alpha * latents - level.sigma * prediction
    return latents - level.sigma * prediction


def velocity(latents: torch.Tensor, prediction: torch.Tensor, level: Level) -> torch.Tensor:
    """The velocity along which the model's differential equation goes on from this moment, [b c f h w].

    A flow moves z itself with its prediction. A diffusion model moves z / alpha with the predicted noise, as a function
    of sigma / alpha.
    """
    return level.alpha * prediction + level.sigma * latents if level.kind == "v_prediction" else prediction


def way(latents: torch.Tensor, level: Level, first: torch.Tensor, first_level: Level) -> torch.Tensor:
    """The direction from `first` to `latents` in the coordinates of `velocity`, [b c f h w], up to a factor.

    Of a diffusion model z / alpha - z_first / alpha_first, here times both alphas: where the first is 0 (a schedule of
    zero terminal SNR) the initial noise lies infinitely far away, and only the direction is left.
    """
    return latents - first if level.kind == FLOW else first_level.alpha * latents - level.alpha * first


def along_mean(
    prediction: torch.Tensor,
    latents: torch.Tensor,
    level: Level,
    first: torch.Tensor,
    first_level: Level,
    across: float,
) -> torch.Tensor:
    """The prediction with its velocity pulled onto the mean velocity since `first`, the initial noise: [b c f h w].

    At each place of the video the part along the mean velocity stays (dot products over channels), of the rest a share
    of `across`. In the first step there is no mean velocity yet, and the prediction stays.
    """
    if level == first_level:
        return prediction
    now, mean = velocity(latents, prediction, level), way(latents, level, first, first_level)
    along = (now * mean).sum(1, keepdim=True) / (mean * mean).sum(1, keepdim=True).clamp_min(1e-12) * mean
    kept = along + across * (now - along)
    if level.kind == "v_prediction":
        return (kept - level.sigma * latents) / level.alpha
    return kept


def objective(clean: torch.Tensor, target: torch.Tensor, weights: tuple[float, float]) -> torch.Tensor:
    """Weighted squared errors of clean latents and of their frame differences, [b c f h w] -> [].

    Errors are means over a video and sums over the batch, so that videos do not share one learning rate.
    """
    error = (clean - target).square().flatten(1).mean(1).sum()
    motion = (frame_differences(clean) - frame_differences(target)).square().flatten(1).mean(1).sum()
    return weights[0] * error + weights[1] * motion


def frame_differences(latents: torch.Tensor) -> torch.Tensor:
    """Absolute differences of neighbouring frames and of all pairs of frames, [b c f h w] -> [b c (f-1)(f+2)/2 h w]."""
    earlier, later = torch.triu_indices(latents.shape[2], latents.shape[2], offset=1, device=latents.device)
    every = latents.index_select(2, later) - latents.index_select(2, earlier)
    return torch.cat([latents.diff(dim=2), every], dim=2).abs()


def _noise(seed: int, step: int, shape: torch.Size) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_of("guide", seed, step)))
