"""What the pretrainings of both models share: sizes, the log, the phase of the VAE, and phases that end in samples."""

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from infer.pictures import contact_sheet, strip
from scripts.pocket.abilities import fresh_prompts, measure_detectors
from scripts.pocket.trainer import Phase, Trainer
from scripts.pocket.world_data import render_frames, vae_loss

SAMPLE_STEPS, SMOKE_STEPS = 12, 2  # of the samples that show how far a phase is


class Phases:
    """The phases of one pretraining in the folder `args.out`, each resumed where it was left.

    `clips` and `frames` say how much of the world is rendered. A smoke run makes three steps of every phase, on little.
    """

    def __init__(self, args: Namespace, phases: dict[str, Phase], *, clips: int, frames: int, save_every: int):
        args.out.mkdir(parents=True, exist_ok=True)
        self.args, self.trainer = args, Trainer(args.out, args.seed, save_every=save_every, dtype=args.dtype)
        self.clips, self.frames = clips, frames
        self.phases = {key: replace(phase, batch=phase.batch * args.batch) for key, phase in phases.items()}
        self.checks, self.prompts = 64, fresh_prompts(24, args.seed)
        if args.smoke:
            size = 4 * args.batch
            self.phases = {key: Phase(3, size, phase.lr, phase.ema, warmup=1) for key, phase in phases.items()}
            self.clips, self.frames, self.checks, self.prompts = 48, 32, 2, self.prompts[:2]

    def log(self, name: str, step: int, facts: dict) -> None:
        print(json.dumps({"phase": name, "step": step} | facts), flush=True)

    def train_vae(self, vae: nn.Module, codec) -> bool:
        """The phase "vae": single frames through `codec`, which is `vae`, or codes frames with it (FrameCodec)."""
        args, phase = self.args, self.phases["vae"]
        images, masks = (None, None) if self.trainer.done("vae", phase) else render_frames(self.frames, args.seed)

        def loss(rng: torch.Generator) -> torch.Tensor:
            rows = torch.randint(len(images), (phase.batch,), generator=rng)
            noise = torch.randn((len(rows), 4, 8, 8), generator=rng)
            batch = (x.to(args.device) for x in (images[rows] / 127.5 - 1, masks[rows] / 255, noise))
            return vae_loss(codec, *batch)

        report = lambda step: self.log("vae", step, measure_detectors(codec, args.seed, self.checks))
        return self.trainer.run("vae", phase, vae, loss, report=report, every=250)

    def some_frames(self) -> torch.Tensor:
        """Frames [n c h w] between -1 and 1, to measure latents on."""
        return render_frames(min(self.frames, 512), self.args.seed)[0].to(self.args.device) / 127.5 - 1

    def train_network(
        self,
        name: str,
        network: nn.Module,
        loss: Callable[[torch.Generator], torch.Tensor],
        sample: Callable[..., tuple[dict, list]],
        probe: Callable[[], float],
        *,
        single: bool,
        before: Callable[[int], None] = lambda step: None,
    ) -> bool:
        """A phase of the network. Unless it sees `single` frames, `sample(prompts, seed, steps=n)` gives now and then
        (facts, videos); they and `probe()` are logged, and drawn on a sheet."""
        args = self.args

        def report(step: int) -> None:
            if single:
                return  # there is no video to look at yet
            facts, made = sample(self.prompts, args.seed, steps=SMOKE_STEPS if args.smoke else SAMPLE_STEPS)
            rows = [(prompt, strip(video, height=64)) for prompt, video in zip(self.prompts, made)]
            contact_sheet(args.out / f"{name}_{step:05d}.png", rows[:8])
            self.log(name, step, facts | {"probe": round(probe(), 4)})

        return self.trainer.run(name, self.phases[name], network, loss, before, report=report, every=250)
