"""The dual-path training objective: what is drawn in a step, and the losses (tensors in, scalar out).

Section "dual path" of MotionDirector, which the paper keeps: a spatial pass on one frame with a plain MSE, and a
temporal pass on all frames with MSE(e, target) + MSE(phi(e), phi(target)), phi the appearance-debiased space.
Tensors are [b c f h w]; losses are computed in fp32 whatever comes in.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin

from configs.errors import UserError
from models import schedule
from models.seeds import seed_of


class Draw(NamedTuple):
    """The random choices of one training step."""

    noise: torch.Tensor  # [b c f h w], on the latents' device and in their dtype
    timestep: torch.Tensor  # [b], 0..999 int64, of a flow 0..1000 fp32; shared by both passes
    frame: int  # the spatial pass's frame
    anchor: int  # the frame that phi subtracts
    spatial: bool  # False: no spatial pass, and the appearance adapter is off in the temporal pass


def draw_step(
    seed: int,
    step: int,
    latents: torch.Tensor,
    *,
    micro: int = 0,
    spatial_probability: float = 0.8,
    min_timestep: int = 0,
    max_timestep: int = 999,
    scheduler: SchedulerMixin | None = None,
) -> Draw:
    """Draw a step's randomness for `latents` [b c f h w] from (seed, step, micro) alone: no state to save or restore.

    `micro` tells apart the draws inside one optimizer step (accumulation, ranks). Timesteps are uniform on
    min_timestep..max_timestep, both included, or spread as the flow of `scheduler` says. The order is the release's:
    noise, timestep, frame, anchor, spatial.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, step, micro))
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    timestep = schedule.draw_timesteps(scheduler, len(latents), min_timestep, max_timestep, generator)
    frame, anchor = torch.randint(latents.shape[2], (2,), generator=generator).tolist()
    spatial = torch.rand((), generator=generator).item() < spatial_probability
    return Draw(noise, timestep.to(latents.device), frame, anchor, spatial)


def clip_order(seed: int, position: int, clips: int) -> int:
    """Which clip is number `position` of the endless sequence in which every epoch is a new order of all clips."""
    epoch, place = divmod(position, clips)
    generator = torch.Generator().manual_seed(seed_of(seed, "epoch", epoch))
    return torch.randperm(clips, generator=generator)[place].item()


def check_scheduler(scheduler, max_timestep: int) -> None:
    """Raise UserError, before anything is made, for a noise schedule that this objective cannot train with."""
    if (kind := schedule.prediction_type(scheduler)) not in ("epsilon", "v_prediction", schedule.FLOW):
        raise UserError(
            f"scheduler: prediction_type is {kind!r}: only epsilon, v_prediction and flow_prediction models can be "
            "trained"
        )
    if max_timestep >= scheduler.config.num_train_timesteps:
        raise UserError(
            f"max_timestep: {max_timestep} is not among the model's {scheduler.config.num_train_timesteps} timesteps; "
            f"set it to {scheduler.config.num_train_timesteps - 1} or less"
        )


def debias(e: torch.Tensor, anchor: int, beta: float = 1.0) -> torch.Tensor:
    """phi(e) = sqrt(beta^2 + 1) e - beta e[anchor], [b c f h w]: what is common to all frames is damped.

    The anchor frame is subtracted from every frame, itself included (MotionDirector, appearance-debiased loss).
    """
    return (beta**2 + 1) ** 0.5 * e - beta * e[:, :, anchor : anchor + 1]


def spatial_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Plain MSE of the spatial pass; both [b c 1 h w], the drawn frame alone."""
    return F.mse_loss(prediction.float(), target.float())


def temporal_loss(
    prediction: torch.Tensor, target: torch.Tensor, anchor: int, beta: float = 1.0, extra: str | None = "debiased"
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(MSE, `extra` loss) of the temporal pass, [b c f h w]; the objective is their sum.

    "debiased" is the MSE in the appearance-debiased space, "difference" EffiVMT's `difference_loss`, None nothing.
    """
    prediction, target = prediction.float(), target.float()
    mse = F.mse_loss(prediction, target)
    if extra == "difference":
        return mse, difference_loss(prediction, target)
    if extra is None:
        return mse, None
    return mse, F.mse_loss(debias(prediction, anchor, beta), debias(target, anchor, beta))


def difference_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """1 - mean cosine, along time, of the absolute differences of neighbouring frames; both [b c f h w] (EffiVMT).

    As its code has it; its paper takes signed differences.
    """
    differences = (x.diff(dim=2).abs() for x in (prediction, target))
    return 1 - F.cosine_similarity(*differences, dim=2).mean()
