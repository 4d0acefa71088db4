"""A training that is only described: `train.py --dry-run`."""

from collections.abc import Callable

import torch
from diffusers import DDIMScheduler
from omegaconf import DictConfig

from configs.errors import printable
from configs.schema import to_yaml
from infer.training.plan import check, latent_size_of_clips, plan
from models import backbones, methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import choose_device, choose_dtype, predictor
from models.compiled import check_compiling
from models.highway import attach_highway
from models.hooks import training_mode
from models.outline import skeleton
from models.placement import place
from models.training import beside, memory, objective
from models.training.optimizer_kinds import bytes_of_state


def rehearsed(cfg: DictConfig, training_step: Callable) -> str:
    """The resolved configuration, the plan for each clip, what would be patched and the memory that a step needs.

    `training_step` is train.py's. Loads no weights and writes nothing. Raises UserError as a training does, also for a
    clip that cannot be used.
    """
    cfg = backbones.settled(cfg, cfg.pretrained_model_path)
    check(cfg)
    planned, device = plan(cfg), choose_device(cfg.device)
    check_compiling(cfg.compile, device)
    dtype = choose_dtype(cfg.mixed_precision, device)
    method, needed = _counted(cfg, dtype, training_step)
    lines = method.describe() + [beside.LINE] * beside.fits(cfg, method, device, latent_size_of_clips(cfg)[0])
    if method.highway:
        with attach_highway(method.network, *method.highway) as highway:
            lines += [f"  {skip}" for skip in highway.skips]
    lines.append(f"memory      {needed}")
    on_card = choose_dtype(cfg.mixed_precision, torch.device("cuda"))
    if device.type == "cpu" and dtype != on_card:  # somebody plans for another machine
        lines.append(f"on a GPU    {_counted(cfg, on_card, training_step)[1]}, in {cfg.mixed_precision}")
    return "\n".join(map(printable, [*to_yaml(cfg).split("\n"), *planned, *lines]))


def _counted(
    cfg: DictConfig, dtype: torch.dtype, training_step: Callable
) -> tuple[methods.Method, memory.TrainingBytes]:
    """The method on a network without weights, and the memory that a step needs in this precision."""
    network = skeleton(cfg.pretrained_model_path)
    torch.nn.Module.to(network, dtype).requires_grad_(False)  # diffusers' own `to` warns for no reason
    kind = backbones.kind_of(network)
    # the second of two experts, which are alike, takes room on the device only where it is streamed
    streamed = cfg.memory == "smallest" and kind.boundary_of(cfg.pretrained_model_path) is not None
    model_bytes = (2 if streamed else 1) * place(network, "meta", cfg.memory)
    kind.prepare(network)
    n, size = cfg.timesteps_per_step, latent_size_of_clips(cfg)
    method = methods.attach(network, cfg, clips=1, latent_size=size)
    if cfg.gradient_checkpointing:
        checkpoint_activations(network)
    latents = torch.empty(n, network.config.in_channels, *size, device="meta")
    text = torch.empty(n, kind.text_length(), kind.text_width(network), device="meta")
    draw = objective.Draw(latents, torch.empty(n, dtype=torch.long, device="meta"), 0, 0, True)
    given = predictor(training_mode(network, cfg.frozen_dropout)), DDIMScheduler(), method, latents, text, draw
    return method, memory.training_bytes(
        model_bytes,
        [*method.motion_parameters, *method.appearance_parameters],
        lambda: training_step(*given, learn_motion=cfg.train_temporal_lora),
        bytes_of_state(cfg),
    )
