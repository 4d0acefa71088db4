"""Learn a motion from one or a few clips: `python train.py --config configs/car.yaml [key=value ...]`.

config -> frozen backbone -> clips -> cache -> method -> loop -> adapters saved. The loop is the dual-path objective of
MotionDirector, which the paper keeps: appearance LoRA on single frames, motion LoRA on whole clips. stdout carries one
line, the run folder; everything else goes to stderr and to the folder's log.jsonl. Several processes train together
under `torchrun --nproc_per_node N train.py ...` (models/training/processes.py).

Every draw derives from (seed, step), so a resumed run continues bit for bit on a CPU: adapters, moments and losses are
those of a run that never stopped. On CUDA the same draws are made, but the backward kernels of convolution and
attention add in an order of their own, so runs agree to rounding; torch.use_deterministic_algorithms(True) before
`run` removes that too, where CUDA has a deterministic kernel (tests/test_gpu.py resumes both ways).
"""

import sys

from configs.errors import command
from configs.runtime import is_first, one_voice, slow_imports

DESCRIPTION = "train.py: give a text-to-video model the motion of one or a few reference clips."


@command
def main() -> None:
    """Train as the command line says; prints the run folder."""
    from configs.schema import load

    with one_voice():
        cfg, only_describe = load(sys.argv[1:], description=DESCRIPTION)
        with slow_imports():  # --help has answered by now, and Ctrl-C ends them in one line
            import train  # this file, all of it

        result = train.dry_run(cfg) if only_describe else train.run(cfg)
    if is_first():
        print(result)


if __name__ == "__main__":  # what follows takes seconds to import; `main` imports this file again, as `train`
    main()
    sys.exit()

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from configs.files import atomic_path
from configs.schema import to_yaml
from data import cache
from infer.training.dry_run import rehearsed
from infer.training.plan import check, plan
from infer.training.preview import Previews
from infer.training.references import prepare_clips
from models import backbones, methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import Backbone, Predictor, allow_tf32, choose_dtype
from models.compiled import WAIT, attach_quicker, check_compiling
from models.files.card import write_card
from models.heads import find_heads, write_heads
from models.hooks import training_mode
from models.schedule import noised
from models.seeds import seed_of
from models.threads import use_threads
from models.training import beside, objective
from models.training.journal import Journal
from models.training.optimizer import DualPathOptimizer
from models.training.processes import Processes
from models.training.resume import open_run, resume
from models.training.steps import Done, Training, record, take_step
from models.training.stopping import StopSignals
from models.training.trackers import start_tracker


def training_step(
    predict: Predictor,
    scheduler,
    method,
    latents,
    text,
    draw,
    *,
    stills=None,
    clip=0,
    debias_beta=1.0,
    learn_appearance=True,
    learn_motion=True,
    backward=torch.Tensor.backward,
) -> dict[str, torch.Tensor]:
    """Both passes of the objective with their gradients; no weight moves. Returns the detached losses by name.

    latents [b c f h w] and text [b n d] belong to reference clip number `clip`; `draw` holds noise, timestep, frame
    and anchor. `stills` [b c f h w]: frames encoded one by one, used in the spatial pass when one latent covers several
    frames; else None. Each pass runs its backward before adapters are switched, and both do before any optimizer steps:
    the release steps the appearance LoRA in between, which falsifies the motion gradients. One-frame clips (images)
    only have an appearance to teach: they always run the spatial pass and never the temporal one.
    """
    is_video, losses = latents.shape[2] > 1, {}

    if learn_appearance and method.appearance and (draw.spatial or not is_video):
        with method.spatial_pass(clip):
            i = slice(draw.frame, draw.frame + 1)
            still, noise = (latents if stills is None else stills)[:, :, i], draw.noise[:, :, i]
            z_t, target = noised(scheduler, still, noise, draw.timestep)
            loss = objective.spatial_loss(predict(z_t, draw.timestep, text), target)
            backward(loss)
            losses["spatial"] = loss.detach()

    if learn_motion and is_video:
        with method.temporal_pass(clip, with_appearance=draw.spatial):
            z_t, target = noised(scheduler, latents, draw.noise, draw.timestep)
            prediction = predict(z_t, draw.timestep, text)
            mse, extra = objective.temporal_loss(prediction, target, draw.anchor, debias_beta, method.extra_loss)
            backward(mse if extra is None else mse + extra)
            losses["temporal"] = mse.detach()
            if extra is not None:
                losses[method.extra_loss] = extra.detach()
    return losses


def run(cfg: DictConfig) -> Path:
    """Train as `cfg` (configs/fields.py) says and return the run folder.

    On CUDA what stays in fp32 may use TF32, for this process from here on. Raises UserError for what a person can mend.
    """
    cfg = backbones.settled(cfg, cfg.pretrained_model_path)
    check(cfg)
    processes = Processes(cfg.device)
    allow_tf32(processes.device)
    check_compiling(cfg.compile, processes.device)
    try:
        folder = _train(cfg, processes)
    except SystemExit:  # a signal: all stop after the same step
        processes.leave()
        raise
    processes.leave()  # not after an error, which may be one process's own: NCCL would wait for the others
    return folder


def _train(cfg: DictConfig, processes: Processes) -> Path:
    training = prepare(cfg, processes)
    method, same_clips = training.method, partial(cache.same_clips, training.clips)
    checkpoint, start = resume(cfg, method, training.optimizer, processes, same_clips)
    if start >= cfg.max_train_steps:
        processes.say(
            f"nothing is left to do: {start} of {cfg.max_train_steps} steps are done; raise max_train_steps to go on"
        )
        return checkpoint.parent
    folder = open_run(cfg, processes, checkpoint)
    stopped = (_train_and_record if processes.is_main else loop)(training, folder, start)
    if stopped:
        raise SystemExit(128 + stopped)
    return folder


def prepare(cfg: DictConfig, processes: Processes) -> Training:
    """Load the frozen model, encode the clips or find them encoded, and attach what is trained, with its optimizer."""
    device = processes.device
    if processes.is_main:
        processes.say("\n".join(plan(cfg)))
    dtype = choose_dtype(cfg.mixed_precision, device)
    backbone = Backbone.load(cfg.pretrained_model_path, dtype, device, cfg.memory, second_waits=True)
    use_threads(backbone.network, device, cfg.threads)
    with processes.main_first():
        clips = prepare_clips(cfg, backbone)
    latent_size = tuple(clips[cache.primary(clips)].latents.shape[2:])
    if heads := find_heads(cfg, backbone, clips):  # the first process decides: cards may differ on a head near a tie
        heads = heads.keeping(processes.share(heads.info()["heads"]))
    method = methods.attach(backbone.network, cfg, clips=len(clips), latent_size=latent_size, heads=heads)
    processes.say("\n".join(method.describe()))
    learned = [*method.motion_parameters, *method.appearance_parameters]
    if cfg.compile != "off":
        processes.say(WAIT)
    attach_quicker(backbone.network, cfg.compile, device, training=True, learned=learned)
    if cfg.gradient_checkpointing:
        checkpoint_activations(backbone.network)
    optimizer = DualPathOptimizer(
        cfg,
        method.motion_parameters,
        method.appearance_parameters,
        device=device,
        second_factors=method.second_factors,
        motion_lr=cfg.learning_rate if cfg.method == "lora" else cfg.embeddings.learning_rate,
        half=backbone.dtype == torch.float16,
        processes=processes,
    )
    return Training(cfg, backbone, method, optimizer, clips, processes)


def _train_and_record(training: Training, folder: Path, start: int) -> int:
    """The `loop` of the first process, which also writes everything that the run folder holds."""
    cfg, method, clips, say = training.cfg, training.method, training.clips, training.processes.say
    with atomic_path(folder / "config.yaml") as unfinished:
        unfinished.write_text(to_yaml(cfg), encoding="utf-8")
    cache.export_clips(clips, folder)
    if method.heads:
        say(f"heads: {write_heads(method.heads, folder)}")
    previews = Previews(cfg, training.backbone, method, clips, folder, say)
    previews.at_first()
    tracker = start_tracker(cfg.report_to, folder, OmegaConf.to_container(cfg), start)
    journal = Journal(folder, start, cfg.max_train_steps, training.backbone.device, tracker)
    try:
        stopped = loop(training, folder, start, partial(record, training, folder, journal, previews))
        if not stopped:
            previews.at_last()
        write_card(folder, cfg, method.info(), previews.caption, journal.measures(), clips=previews.clips)
        return stopped
    finally:
        if plot := journal.close():
            say(f"loss plot: {plot}")


def loop(training: Training, folder: Path, start: int, after: Callable[[int, Done, float], None] | None = None) -> int:
    """Take the steps from start + 1 to max_train_steps, and leave after one in which a signal came: its number, else 0.

    Raises SystemExit where steps are left, since nothing but the checkpoint is then wanted.
    `after` is called after each step with its number, what it did, and the CPU seconds that a second process
    (models/training/beside.py) spent on it.
    """
    cfg, backbone, method, _, clips, processes = training
    device, copies, last = backbone.device, cfg.timesteps_per_step, cfg.max_train_steps
    repeat = lambda x: None if x is None else x.to(device).expand(copies, *x.shape[1:])  # t timesteps in one pass
    batches = [tuple(map(repeat, (clip.latents, clip.text, clip.stills))) for clip in clips]
    training_mode(backbone.network, cfg.frozen_dropout)
    apart = beside.fits(cfg, method, device, max(clip.latents.shape[2] for clip in clips), processes.count)
    if apart:
        processes.say(beside.LINE)
    both = partial(gradients, training, batches)
    with StopSignals() as stop, beside.Passes(both, method.appearance_parameters, apart) as passes:
        for step in range(start + 1, last + 1):
            done = take_step(training, passes, stop, folder, step)
            if after:
                after(step, done, passes.cpu_seconds)
            if done.stopped and step < last:
                processes.say(f"stopped after step {step}; go on with: resume_from_checkpoint={folder}")
                raise SystemExit(128 + done.stopped)
        stopped = done.stopped or stop.requested  # during the last step: nobody waits for its picture any more
        if stopped:
            processes.say(
                f"stopped after step {last}; it was the last, and the picture is left out: python "
                f"scripts/side_by_side.py {folder}"
            )
        return stopped


def gradients(
    training: Training, batches: list[tuple], step: int, *, learn_appearance: bool = True, learn_motion: bool = True
) -> tuple[list[dict[str, float]], list[float]]:
    """This process's share of a step, one clip after another; returns the losses of each and all their timesteps."""
    cfg, backbone, processes = training.cfg, training.backbone, training.processes
    accumulation, found, timesteps = cfg.gradient_accumulation_steps, [], []
    for k in range(accumulation):
        micro = k * processes.count + processes.rank
        position = (step - 1) * accumulation * processes.count + micro
        clip = objective.clip_order(cfg.seed, position, len(batches))
        latents, text, stills = batches[clip]
        draw = objective.draw_step(
            cfg.seed,
            step,
            latents,
            micro=micro,
            min_timestep=cfg.min_timestep,
            max_timestep=cfg.max_timestep,
            spatial_probability=cfg.spatial_path_probability,
            scheduler=backbone.scheduler,
        )
        torch.manual_seed(seed_of("dropout", cfg.seed, step, micro))  # the one global draw
        losses = training_step(
            backbone.predict,
            backbone.scheduler,
            training.method,
            latents,
            text,
            draw,
            stills=stills,
            clip=0 if cfg.single_spatial_lora else clip,
            debias_beta=cfg.debias_beta,
            learn_appearance=learn_appearance,
            learn_motion=learn_motion and cfg.train_temporal_lora,
            backward=training.optimizer.backward,
        )
        found.append(losses)
        timesteps.append(draw.timestep)
    return [{name: loss.item() for name, loss in losses.items()} for losses in found], torch.cat(timesteps).tolist()


def dry_run(cfg: DictConfig) -> str:
    """What a training would do, in words; see infer/training/dry_run.py."""
    return rehearsed(cfg, training_step)
