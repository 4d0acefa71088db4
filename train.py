"""Learn a motion from one or a few clips: `python train.py --config configs/car.yaml [key=value ...]`.

config -> frozen backbone -> method -> clips -> cache -> loop -> adapters saved. The loop is the dual-path objective of
MotionDirector, which the paper keeps: appearance LoRA on single frames, motion LoRA on whole clips. Every draw derives
from (seed, step), so a resumed run continues bit for bit. stdout carries one line, the run folder; everything else
goes to stderr and to the folder's log.jsonl. Also runs under torchrun and `accelerate launch`.
"""

import os
import sys
from pathlib import Path

from configs.errors import UserError, command
from configs.files import check_writable
from configs.schema import load, to_yaml

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a step several times slower on a busy CPU

DESCRIPTION = "train.py: give a text-to-video model the motion of one or a few reference clips."
if __name__ == "__main__":  # before the slow imports, so that --help and a misspelt key answer at once
    CONFIG, DRY_RUN = command(load)(sys.argv[1:], description=DESCRIPTION)

import math
from dataclasses import replace
from functools import partial

import torch
from accelerate import PartialState
from diffusers import DDIMScheduler
from omegaconf import DictConfig

from data import cache
from data.sources import load_clips
from infer.inversion import ddim_invert
from infer.preview import preview
from infer.sampler import guide
from models import methods
from models.backbone import Backbone, Predictor, choose_device, choose_dtype, predictor, skeleton
from models.files.checkpoint import save_checkpoint
from models.highway import attach_highway
from models.hooks import bypass_single_frames, checkpoint_activations
from models.training import memory, objective
from models.training.journal import Journal
from models.training.optimizer import DualPathOptimizer
from models.training.resume import begin_or_resume, say
from models.training.stopping import StopSignals, together

VAE_FACTOR, CLIP_TOKENS = 8, 77  # of every model of this family; only the estimate of --dry-run assumes them


def training_step(
    predict: Predictor,
    scheduler,
    method,
    latents,
    text,
    draw,
    *,
    clip=0,
    debias_beta=1.0,
    learn_motion=True,
    backward=torch.Tensor.backward,
) -> dict[str, torch.Tensor]:
    """Both passes of the objective with their gradients; no weight moves. Returns the detached losses by name.

    latents [b c f h w] and text [b n d] belong to reference clip number `clip`; `draw` holds noise, timestep, frame
    and anchor. Each pass runs its backward before adapters are switched, and both do before any optimizer steps: the
    release steps the appearance LoRA in between, which falsifies the motion gradients. One-frame clips (images) only
    have looks to teach: they always run the spatial pass and never the temporal one.
    """
    z_t = scheduler.add_noise(latents, draw.noise, draw.timestep)
    target = objective.target(scheduler, latents, draw.noise, draw.timestep)
    is_video, losses = latents.shape[2] > 1, {}

    if method.appearance and (draw.spatial or not is_video):
        with method.spatial_pass(clip):
            i = slice(draw.frame, draw.frame + 1)
            loss = objective.spatial_loss(predict(z_t[:, :, i], draw.timestep, text), target[:, :, i])
            backward(loss)
            losses["spatial"] = loss.detach()

    if learn_motion and is_video:
        with method.temporal_pass(clip, with_appearance=draw.spatial):
            prediction = predict(z_t, draw.timestep, text)
            mse, debiased = objective.temporal_loss(prediction, target, draw.anchor, debias_beta)
            backward(mse + debiased if method.debiased else mse)
            losses["temporal"] = mse.detach()
            if method.debiased:
                losses["debiased"] = debiased.detach()
    return losses


def run(cfg: DictConfig) -> Path:
    """Train as `cfg` (configs/fields.py) says and return the run folder.

    Raises UserError for what a person can mend.
    """
    for folder in (cfg.output_dir, cfg.cache_dir):
        check_writable(Path(folder))
    processes = PartialState(cpu=cfg.device == "cpu")
    device = processes.device if processes.num_processes > 1 else choose_device(cfg.device)
    backbone = Backbone.load(cfg.pretrained_model_path, choose_dtype(cfg.mixed_precision, device), device)
    with processes.main_process_first():
        clips = prepare_clips(cfg, backbone)
    method = methods.attach(
        backbone.unet, cfg, clips=len(clips), latent_size=tuple(clips[cache.primary(clips)].latents.shape[2:])
    )
    say(processes, "\n".join(method.describe()))
    if cfg.gradient_checkpointing:
        checkpoint_activations(backbone.unet)
    optimizer = DualPathOptimizer(
        cfg,
        method.motion_parameters,
        method.appearance_parameters,
        device=device,
        motion_lr=cfg.learning_rate if cfg.method == "lora" else cfg.embeddings.learning_rate,
        half=backbone.dtype == torch.float16,
    )
    folder, start = begin_or_resume(cfg, method, optimizer, processes, partial(cache.same_clips, clips))
    if start >= cfg.max_train_steps:
        say(
            processes,
            f"nothing is left to do: {start} of {cfg.max_train_steps} steps are done; raise max_train_steps to go on",
        )
        return folder
    if not processes.is_main_process:
        loop(cfg, backbone, method, optimizer, clips, folder, start, processes, None)
        return folder

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(cfg))
    cache.export(clips, folder)
    journal = Journal(folder, start, cfg.max_train_steps, device, cfg.logger == "tensorboard")
    try:
        loop(cfg, backbone, method, optimizer, clips, folder, start, processes, journal)
    finally:
        say(processes, f"loss plot: {journal.close()}")
    return folder


def loop(cfg, backbone, method, optimizer, clips, folder, start, processes, journal) -> None:
    """Steps start+1 to max_train_steps: draw, both passes, move the weights, log, save, preview."""
    unet, device = backbone.unet, backbone.device
    accumulation, ranks = cfg.gradient_accumulation_steps, processes.num_processes
    batches = [
        tuple(x.to(device).expand(cfg.timesteps_per_step, *x.shape[1:]) for x in (c.latents, c.text)) for c in clips
    ]
    unet.train()  # as the release: LoRA dropout and the temporal convolutions' own dropout are active
    with StopSignals() as stop:
        for step in range(start + 1, cfg.max_train_steps + 1):
            found = []
            for k in range(accumulation):
                micro = k * ranks + processes.process_index
                clip = clip_order(cfg.seed, (step - 1) * accumulation * ranks + micro, len(clips))
                latents, text = batches[clip]
                draw = objective.draw(
                    cfg.seed,
                    step,
                    latents,
                    micro=micro,
                    min_timestep=cfg.min_timestep,
                    max_timestep=cfg.max_timestep,
                    spatial_probability=cfg.spatial_path_probability,
                )
                torch.manual_seed(objective.seed_of("dropout", cfg.seed, step, micro))  # the one global draw
                found.append(
                    training_step(
                        backbone.predict,
                        backbone.scheduler,
                        method,
                        latents,
                        text,
                        draw,
                        debias_beta=cfg.debias_beta,
                        clip=0 if cfg.single_spatial_lora else clip,
                        learn_motion=cfg.train_temporal_lora,
                        backward=optimizer.backward,
                    )
                )
            losses = mean_losses(found)
            stopped, broken = together(processes, stop.requested, not all(map(math.isfinite, losses.values())))
            if broken:
                which = [f"{name} loss is {value}" for name, value in losses.items() if not math.isfinite(value)]
                advice = "" if backbone.dtype == torch.float32 else ", or use mixed_precision=bf16"
                raise UserError(
                    f"training: the {' and the '.join(which) or 'loss of another process is not finite'} at step "
                    f"{step}, timestep {draw.timestep.tolist()}; checkpoints made before are kept in {folder}; "
                    f"lower learning_rate{advice}"
                )
            rate = optimizer.learning_rate
            optimizer.step()
            if journal:
                journal.log(step, losses, timestep=int(draw.timestep[0]), learning_rate=rate)
                if step == cfg.max_train_steps or stopped or step % cfg.checkpointing_steps == 0:
                    save(cfg, method, optimizer, folder, step)
                if (
                    step % cfg.validation_steps == 0
                    and cfg.validation_data.sample_preview
                    and cfg.validation_data.prompt
                ):
                    preview(cfg, backbone, method, clips, folder / "previews" / f"step-{step}")
                journal.pause()
            if stopped and step < cfg.max_train_steps:
                say(processes, f"stopped after step {step}; go on with: resume_from_checkpoint={folder}")
                raise SystemExit(128 + stopped)


def prepare_clips(cfg, backbone: Backbone) -> list[cache.CachedClip]:
    """Latents, text embeddings and inversions of the reference clips, from the cache where it has them."""
    if cfg.cached_latent_dir:
        clips = [
            clip if clip.text is not None else replace(clip, text=backbone.encode_text([clip.prompt]).cpu())
            for clip in cache.read_folder(cfg.cached_latent_dir)
        ]
        cache.check_fit(clips, backbone.unet.config.in_channels, backbone.unet.config.cross_attention_dim)
        return clips
    clips = load_clips(cfg, backbone.snap)
    empty = backbone.encode_text([""])

    def invert(latents: torch.Tensor) -> torch.Tensor:
        denoise = guide(backbone.predict, empty.to(backbone.device))
        return ddim_invert(denoise, backbone.scheduler, latents.to(backbone.device), cfg.inversion_steps).cpu()

    return cache.build(
        clips,
        Path(cfg.cache_dir),
        key_parts={
            "weights": backbone.fingerprint(),
            "precision": str(backbone.dtype),
            "inversion": cfg.inversion_steps,
        },
        encode_video=lambda frames: backbone.encode_video(frames).cpu(),
        encode_text=lambda prompt: backbone.encode_text([prompt]).cpu(),
        invert=invert,
    )


def save(cfg, method, optimizer, folder: Path, step: int) -> None:
    motion, appearance = method.state()
    info = {"base_model": cfg.pretrained_model_path, "method": cfg.method, **method.info()}
    save_checkpoint(
        folder,
        step,
        motion=motion,
        appearance=appearance,
        kind=method.kind,
        config_yaml=to_yaml(cfg),
        info=info,
        training_state={"step": step, "optimizer": optimizer.state_dict()},
        limit=cfg.checkpoints_total_limit,
    )


def clip_order(seed: int, position: int, clips: int) -> int:
    """Which clip is number `position` of the endless sequence in which every epoch is a new order of all clips."""
    epoch, place = divmod(position, clips)
    generator = torch.Generator().manual_seed(objective.seed_of(seed, "epoch", epoch))
    return torch.randperm(clips, generator=generator)[place].item()


def mean_losses(found: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """The mean of each loss over the clips of a step; a pass that did not run has none."""
    names = dict.fromkeys(name for losses in found for name in losses)
    return {name: torch.stack([losses[name] for losses in found if name in losses]).mean().item() for name in names}


def dry_run(cfg: DictConfig) -> str:
    """The resolved configuration, what would be patched and the memory a step needs; loads no weights, writes
    nothing.
    """
    unet = skeleton(cfg.pretrained_model_path).to(choose_dtype(cfg.mixed_precision, choose_device(cfg.device)))
    unet.requires_grad_(False)
    base, n, data = memory.parameter_bytes(unet), cfg.timesteps_per_step, cfg.train_data
    size = (data.n_sample_frames, data.height // VAE_FACTOR, data.width // VAE_FACTOR)
    bypass_single_frames(unet)
    method = methods.attach(unet, cfg, clips=1, latent_size=size)
    if cfg.gradient_checkpointing:
        checkpoint_activations(unet)
    latents = torch.empty(n, unet.config.in_channels, *size, device="meta")
    text = torch.empty(n, CLIP_TOKENS, unet.config.cross_attention_dim, device="meta")
    draw = objective.Draw(latents, torch.empty(n, dtype=torch.long, device="meta"), 0, 0, True)
    with memory.PeakBytes() as counted:
        training_step(
            predictor(unet.train()), DDIMScheduler(), method, latents, text, draw, learn_motion=cfg.train_temporal_lora
        )
    learned = 4 * sum(p.numel() for p in (*method.motion_parameters, *method.appearance_parameters))
    kept = 3 * learned  # the fp32 masters and AdamW's two moments; their gradients are in `counted`
    lines = method.describe()
    if method.highway:
        with attach_highway(unet, *method.highway) as highway:
            lines += [f"  up_blocks.{s.up} layer {s.layer}: skip from {s.source}, x{s.factor:g}" for s in highway.skips]
    lines.append(
        f"memory      {(base + kept + counted.peak) / 1e9:.2f} GB for a training step with one reference clip "
        f"(model {base / 1e9:.2f}, adapters and AdamW {kept / 1e9:.2f}, activations and gradients "
        f"{counted.peak / 1e9:.2f}), without the CUDA context"
    )
    return to_yaml(cfg) + "\n" + "\n".join(lines)


@command
def main() -> None:
    result = dry_run(CONFIG) if DRY_RUN else run(CONFIG)
    if PartialState().is_main_process:
        print(result)


if __name__ == "__main__":
    main()
