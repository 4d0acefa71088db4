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
from configs.schema import load, to_yaml

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a step several times slower on a busy CPU

DESCRIPTION = "train.py: give a text-to-video model the motion of one or a few reference clips."
if __name__ == "__main__":  # before the slow imports, so that --help and a misspelt key answer at once
    CONFIG, DRY_RUN = command(load)(sys.argv[1:], description=DESCRIPTION)

import math
import signal
import time
from dataclasses import replace

import torch
from accelerate import PartialState
from diffusers import DDIMScheduler
from omegaconf import DictConfig

from data import cache
from data.sources import load_clips
from infer.inversion import ddim_invert
from infer.journal import Journal
from infer.noise import initial_noise
from infer.pictures import contact_sheet
from infer.sampler import sample
from infer.video import safe_name, write_video
from models import legacy, memory, methods, objective
from models.backbone import Backbone, choose_device, choose_dtype
from models.checkpoint import list_checkpoints, load_checkpoint, load_training_state, save_checkpoint
from models.highway import attach_highway
from models.hooks import bypass_single_frames, checkpoint_activations
from models.optimizer import DualPathOptimizer


def training_step(unet, scheduler, method, latents, text, draw, *, clip=0, debias_beta=1.0, learn_motion=True,
                  backward=torch.Tensor.backward) -> dict[str, torch.Tensor]:
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
            loss = objective.spatial_loss(predict(unet, z_t[:, :, i], draw.timestep, text), target[:, :, i])
            backward(loss)
            losses["spatial"] = loss.detach()

    if learn_motion and is_video:
        with method.temporal_pass(clip, with_appearance=draw.spatial):
            prediction = predict(unet, z_t, draw.timestep, text)
            mse, debiased = objective.temporal_loss(prediction, target, draw.anchor, debias_beta)
            backward(mse + debiased if method.debiased else mse)
            losses["temporal"] = mse.detach()
            if method.debiased:
                losses["debiased"] = debiased.detach()
    return losses


def predict(unet, z_t: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The frozen U-Net's prediction [b c f h w] in its own precision, whatever the inputs are in."""
    return unet(z_t.to(unet.dtype), timestep, text.to(unet.dtype)).sample


def run(cfg: DictConfig) -> Path:
    """Train as `cfg` (configs/fields.py) says and return the run folder. Raises UserError for what a person can mend."""
    processes = PartialState(cpu=cfg.device == "cpu")
    device = processes.device if processes.num_processes > 1 else choose_device(cfg.device)
    backbone = Backbone.load(cfg.pretrained_model_path, choose_dtype(cfg.mixed_precision, device), device)
    with processes.main_process_first():
        clips = prepare_clips(cfg, backbone)
    method = methods.attach(backbone.unet, cfg, clips=len(clips), latent_size=tuple(longest(clips).latents.shape[2:]))
    say(processes, "\n".join(method.describe()))
    if cfg.gradient_checkpointing:
        checkpoint_activations(backbone.unet, nested=cfg.memory == "low")
    optimizer = DualPathOptimizer(
        cfg, method.motion_parameters, method.appearance_parameters, device=device,
        motion_lr=cfg.learning_rate if cfg.method == "lora" else cfg.embeddings.learning_rate,
        half=backbone.dtype == torch.float16)
    folder, start = begin_or_resume(cfg, method, optimizer, processes)

    if processes.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(to_yaml(cfg))
        cache.export(clips, folder)
    journal = Journal(folder, start, cfg.max_train_steps, device, cfg.logger == "tensorboard") \
        if processes.is_main_process else None
    try:
        loop(cfg, backbone, method, optimizer, clips, folder, start, processes, journal)
    finally:
        plot = journal.close() if journal else None
    say(processes, f"loss plot: {plot}")
    return folder


def loop(cfg, backbone, method, optimizer, clips, folder, start, processes, journal) -> None:
    """Steps start+1 to max_train_steps: draw, both passes, move the weights, log, save, preview."""
    unet, device = backbone.unet, backbone.device
    accumulation, ranks = cfg.gradient_accumulation_steps, processes.num_processes
    batches = [tuple(x.to(device).expand(cfg.timesteps_per_step, *x.shape[1:]) for x in (c.latents, c.text))
               for c in clips]
    unet.train()  # as the release: LoRA dropout and the temporal convolutions' own dropout are active
    with StopSignals() as stop:
        for step in range(start + 1, cfg.max_train_steps + 1):
            for k in range(accumulation):
                micro = k * ranks + processes.process_index
                clip = clip_order(cfg.seed, (step - 1) * accumulation * ranks + micro, len(clips))
                latents, text = batches[clip]
                draw = objective.draw(cfg.seed, step, latents, micro=micro, min_timestep=cfg.min_timestep,
                                      max_timestep=cfg.max_timestep, spatial_probability=cfg.spatial_path_probability)
                torch.manual_seed(objective.seed_of(cfg.seed, step, micro))  # for dropout, the one global draw
                losses = training_step(
                    unet, backbone.scheduler, method, latents, text, draw, debias_beta=cfg.debias_beta,
                    clip=0 if cfg.single_spatial_lora else clip, learn_motion=cfg.train_temporal_lora,
                    backward=optimizer.backward)
                losses = {name: loss.item() for name, loss in losses.items()}
                stop_if_not_finite(losses, step, draw.timestep, folder)
            rate = optimizer.learning_rate
            optimizer.step()
            if journal:
                journal.log(step, losses, timestep=int(draw.timestep[0]), learning_rate=rate)

            last = step == cfg.max_train_steps or stop.requested
            if (last or step % cfg.checkpointing_steps == 0) and processes.is_main_process:
                save(cfg, method, optimizer, folder, step, backbone)
            if processes.is_main_process and step % cfg.validation_steps == 0 and cfg.validation_data.sample_preview:
                preview(cfg, backbone, method, clips, folder / "previews" / f"step-{step}")
            if journal:
                journal.pause()
            if stop.requested and step < cfg.max_train_steps:
                say(processes, f"stopped after step {step}; go on with: resume_from_checkpoint={folder}")
                raise SystemExit(128 + stop.requested)


def prepare_clips(cfg, backbone: Backbone) -> list[cache.CachedClip]:
    """Latents, text embeddings and inversions of the reference clips, from the cache where it has them."""
    if cfg.cached_latent_dir:
        return [clip if clip.text is not None else replace(clip, text=backbone.encode_text([clip.prompt]).cpu())
                for clip in cache.read_folder(cfg.cached_latent_dir)]
    clips = load_clips(cfg, backbone.snap)
    empty = backbone.encode_text([""])

    def invert(latents: torch.Tensor) -> torch.Tensor:
        return ddim_invert(backbone.unet, backbone.scheduler, latents.to(backbone.device),
                           empty.to(backbone.device), cfg.inversion_steps).cpu()

    return cache.build(
        clips, Path(cfg.cache_dir), key_parts={"weights": backbone.fingerprint(), "inversion": cfg.inversion_steps},
        encode_video=lambda frames: backbone.encode_video(frames).cpu(),
        encode_text=lambda prompt: backbone.encode_text([prompt]).cpu(), invert=invert)


def begin_or_resume(cfg, method, optimizer, processes) -> tuple[Path, int]:
    """The run folder and the number of steps done: a new folder and 0, or what resume_from_checkpoint names."""
    source = cfg.resume_from_checkpoint
    if source == "latest":
        runs = sorted((p for p in Path(cfg.output_dir).glob("train_*") if p.is_dir() and list_checkpoints(p)),
                      key=lambda p: p.name)
        if not runs:
            say(processes, f"note: no checkpoint under {cfg.output_dir} yet, starting from step 0")
        source = runs[-1] if runs else None
    if not source:
        return Path(cfg.output_dir) / time.strftime("train_%Y-%m-%dT%H-%M-%S"), 0
    found = load_checkpoint(source)
    method.load(found.motion, found.appearance)
    state = load_training_state(found.path)
    optimizer.load_state_dict(state["optimizer"])
    say(processes, f"resuming after step {state['step']} of {found.path}")
    return found.path.parent, state["step"]


def save(cfg, method, optimizer, folder: Path, step: int, backbone: Backbone) -> None:
    motion, appearance = method.state()
    info = {"base_model": cfg.pretrained_model_path, "method": cfg.method, **method.info()}
    save_checkpoint(folder, step, motion=motion, appearance=appearance, kind=method.kind, config_yaml=to_yaml(cfg),
                    info=info, training_state={"step": step, "optimizer": optimizer.state_dict()},
                    limit=cfg.checkpoints_total_limit)


def preview(cfg, backbone: Backbone, method, clips, folder: Path) -> None:
    """Sample the validation prompts with the weights as they are, through the sampler that inference uses."""
    wanted, factor = cfg.validation_data, backbone.vae_factor
    shape = (1, backbone.unet.config.in_channels, wanted.num_frames, wanted.height // factor, wanted.width // factor)
    negative = backbone.encode_text([wanted.negative_prompt])
    reference = longest(clips).inversion
    usable = reference is not None and reference.shape[2] > 1  # an image's inversion would be one noise for all frames
    rows = []
    backbone.unet.eval()
    with method.sampling(wanted.spatial_scale):
        for prompt in wanted.prompt:
            noise = initial_noise(shape, torch.Generator().manual_seed(cfg.seed), reference,
                                  wanted.noise_prior if usable else 0.0, cfg.initial_noise.strategy, cutoff=cfg.initial_noise.cutoff)
            latents = sample(backbone.unet, backbone.scheduler, noise.to(backbone.device), backbone.encode_text([prompt]),
                             negative, steps=wanted.num_inference_steps, guidance_scale=wanted.guidance_scale,
                             guidance_rescale=wanted.guidance_rescale)
            rows.append((prompt, backbone.decode_video(latents)))
            write_video(folder / f"{safe_name(prompt)}.mp4", rows[-1][1], fps=cfg.train_data.fps or 8)
    backbone.unet.train()
    contact_sheet(folder / "sheet.png", rows)


def longest(clips: list[cache.CachedClip]) -> cache.CachedClip:
    """The first of the clips with the most frames: images beside videos do not say how large a motion is."""
    return max(clips, key=lambda clip: clip.latents.shape[2])


def clip_order(seed: int, position: int, clips: int) -> int:
    """Which clip is number `position` of the endless sequence in which every epoch is a new order of all clips."""
    epoch, place = divmod(position, clips)
    generator = torch.Generator().manual_seed(objective.seed_of(seed, "epoch", epoch))
    return torch.randperm(clips, generator=generator)[place].item()


def stop_if_not_finite(losses: dict[str, float], step: int, timestep: torch.Tensor, folder: Path) -> None:
    for name, value in losses.items():
        if not math.isfinite(value):
            raise UserError(f"training: the {name} loss is {value} at step {step}, timestep {timestep.tolist()}; earlier "
                            f"checkpoints in {folder} are kept; lower learning_rate, or use mixed_precision=bf16")


def say(processes, message: str) -> None:
    if processes.is_main_process:
        print(message, file=sys.stderr)


class StopSignals:
    """Inside the block Ctrl-C and SIGTERM only ask: `requested` becomes the signal's number. A second Ctrl-C insists."""

    def __enter__(self) -> "StopSignals":
        self.requested = 0
        self._before = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = number
        os.write(2, b"\nfinishing this step, then saving (Ctrl-C again to stop at once)\n")


def dry_run(cfg: DictConfig) -> str:
    """The resolved configuration, what would be patched and the memory a step needs; loads and writes nothing."""
    unet = legacy.skeleton(cfg.pretrained_model_path).to(choose_dtype(cfg.mixed_precision, choose_device(cfg.device)))
    unet.requires_grad_(False)
    factor, data = 8, cfg.train_data
    size = (data.n_sample_frames, data.height // factor, data.width // factor)
    base = memory.parameter_bytes(unet)
    bypass_single_frames(unet)
    method = methods.attach(unet, cfg, clips=1, latent_size=size)
    if cfg.gradient_checkpointing:
        checkpoint_activations(unet, nested=cfg.memory == "low")
    latents = torch.empty(cfg.timesteps_per_step, unet.config.in_channels, *size, device="meta")
    text = torch.empty(cfg.timesteps_per_step, 77, unet.config.cross_attention_dim, device="meta")
    draw = objective.Draw(latents, torch.empty(cfg.timesteps_per_step, dtype=torch.long, device="meta"), 0, 0, True)
    with memory.PeakBytes() as counted:
        training_step(unet.train(), DDIMScheduler(), method, latents, text, draw, learn_motion=cfg.train_temporal_lora)
    learned = 4 * sum(p.numel() for p in (*method.motion_parameters, *method.appearance_parameters))
    moments = 2 * learned  # AdamW; weights are not in `counted`, gradients are
    lines = method.describe()
    if cfg.appearance_highway.use != "off":
        with attach_highway(unet, cfg.appearance_highway.scope, cfg.appearance_highway.beta) as highway:
            lines += [f"  up_blocks.{s.up} layer {s.layer}: skip from {s.source}, x{s.factor:g}" for s in highway.skips]
    lines.append(f"memory      {(base + learned + moments + counted.peak) / 1e9:.2f} GB for a training step "
                 f"(model {base / 1e9:.2f}, adapters and AdamW {(learned + moments) / 1e9:.2f}, activations and gradients "
                 f"{counted.peak / 1e9:.2f}), without the CUDA context")
    return to_yaml(cfg) + "\n" + "\n".join(lines)


@command
def main() -> None:
    result = dry_run(CONFIG) if DRY_RUN else run(CONFIG)
    if PartialState().is_main_process:
        print(result)


if __name__ == "__main__":
    main()
