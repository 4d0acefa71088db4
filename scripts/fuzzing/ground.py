"""The ground that cases are tried on: whole files of every kind to spoil, and the judge of what happened.

The property: one sentence and exit code 2, or a right result. Never another exception, never a file outside the output
folder, never a value of the environment in what was written or printed, never something half-written, and never more
than MOST_SECONDS or MOST_BYTES.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from configs.errors import ending
from configs.paths import POCKET
from data.cache import CachedClip, export_clips
from infer.video import write_video
from models.backbones import architecture
from models.files import release
from models.files.checkpoint import save_checkpoint
from models.files.diffusers_lora import write_diffusers, write_peft
from models.outline import skeleton
from scripts.conversion.reading import read
from scripts.fuzzing.values import SECRET

MOST_SECONDS, MOST_BYTES = 10, 2 << 30
TINY = {
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
}


class Broken(AssertionError):
    """The property does not hold."""


class Ground:
    """A temporary folder: `whole` holds intact files and is never written to, `work` is emptied before every case."""

    def __init__(self):
        self.place = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.whole, self.work = self.place / "whole", self.place / "work"
        self.whole.mkdir()
        self.peak = _peak()
        self._fill()
        self.model = str(self.whole / "model")
        self.unet = skeleton(self.model)

    def close(self) -> None:
        shutil.rmtree(self.place)

    def judge(self, attempt: Callable[["Ground", Any], None], case: Any) -> bool:
        """Whether `case` was accepted; raises Broken, naming what did not hold, where the property does not."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.out.mkdir(parents=True)
        printed, before = io.StringIO(), os.getcwd()
        os.environ[SECRET] = secret = "swordfish-in-the-environment"
        began, accepted = time.process_time(), True
        os.chdir(self.work)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                attempt(self, case)
        except (Exception, SystemExit) as error:
            accepted = False
            if isinstance(error, Broken):
                raise
            if isinstance(error, AssertionError):
                raise Broken(f"a wrong result: {error}") from error
            if (how := ending(error)) is None or how[1] != 2:
                raise Broken(f"{type(error).__name__}: {error}") from error
            printed.write(how[0])
        finally:
            os.chdir(before)
        seconds = time.process_time() - began
        self._look(printed.getvalue(), secret, accepted)
        if seconds > MOST_SECONDS:
            raise Broken(f"{seconds:.0f} seconds")
        if _peak() - self.peak > MOST_BYTES:
            raise Broken(f"{(_peak() - self.peak) / 1e9:.1f} GB more than before")
        return accepted

    @property
    def out(self) -> Path:
        """The only folder that a case may write into."""
        return self.work / "out"

    def copy(self, name: str) -> Path:
        """A file or folder of `whole` in `inputs`, to be spoiled."""
        target = self.work / "inputs" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (self.whole / name).is_dir() else shutil.copy)(self.whole / name, target)
        return target

    def inputs(self) -> Path:
        (self.work / "inputs").mkdir(exist_ok=True)
        return self.work / "inputs"

    def _look(self, printed: str, secret: str, accepted: bool) -> None:
        if secret in printed:
            raise Broken("a value of the environment was printed")
        if any(not (c.isprintable() or c in "\n\r\t") for c in printed):
            raise Broken(f"a control character was printed: {printed[:200]!r}")
        outside = [p for p in self.work.iterdir() if p.name not in ("out", "inputs")]
        outside += [p for p in self.place.iterdir() if p.name not in ("whole", "work")]
        if outside:
            raise Broken(f"a file outside the output folder: {outside[0]}")
        written = list(self.out.rglob("*"))
        if left := [p for p in written if ".part" in p.name or p.suffix == ".old"]:
            raise Broken(f"something half-written: {left[0].name}")
        if written and not accepted:
            raise Broken(f"refused, and yet {written[0].name} was written")
        if any(secret.encode() in p.read_bytes() for p in written if p.is_file()):
            raise Broken("a value of the environment was written")

    def _fill(self) -> None:
        generator = torch.Generator().manual_seed(0)
        model = self.whole / "model"
        shutil.copytree(POCKET, model, ignore=shutil.ignore_patterns("*.safetensors", "*.png", "*.md"))
        (model / "unet" / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
        unet = skeleton(model)

        def state(preset: str) -> dict[str, torch.Tensor]:
            found = {}
            for name, (out, width) in release.layer_shapes(unet, preset).items():
                found[f"{name}.lora_A.weight"] = torch.randn(2, width, generator=generator)
                found[f"{name}.lora_B.weight"] = torch.randn(out, 2, generator=generator)
            return found

        latents = torch.randn(1, 4, 4, 8, 8, generator=generator)
        clip = CachedClip(latents, torch.randn(1, 24, 8, generator=generator), -latents, "a cat runs", "clip", (64, 64))
        info = {"preset": "tap", "rank": 2, "architecture": architecture(unet)}
        config = "seed: 3\nvalidation_data:\n  num_frames: 4\n"
        motion, appearance = state("tap"), state("appearance")
        save_checkpoint(
            self.whole / "run", 2, motion=motion, appearance=[appearance], kind="lora", config_yaml=config, info=info,
            training_state=training_state(),
        )  # fmt: skip
        export_clips([clip], self.whole / "run")
        block = "down_blocks.0.temp_attentions.0.transformer_blocks.0"
        embeddings = {f"{block}.query_key": torch.randn(1, 8, 8), f"{block}.attn1.value": torch.randn(64, 8, 8)}
        sizes = {"frames": 4, "latent_height": 8, "latent_width": 8}
        kept = {"motion": embeddings, "appearance": [], "kind": "embeddings", "config_yaml": config, "info": sizes}
        save_checkpoint(self.whole / "embeddings", 2, **kept)
        checkpoint = read(self.whole / "run")
        for name, write in (("peft", write_peft), ("diffusers", write_diffusers)):
            (self.whole / name).mkdir()
            write(checkpoint, self.whole / name)
        theirs = self.whole / "theirs" / "checkpoint-2"
        theirs.mkdir(parents=True)
        release.write_lora(theirs, 2, unet, "tap", motion, [appearance])
        torch.save(
            {"latents": latents[0], "inversion_noise": -latents[0], "text_prompt": "a cat"}, self.whole / "cached_0.pt"
        )
        frames = torch.randint(0, 255, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
        for name in ("clip.mp4", "clip.gif", "frames"):
            write_video(self.whole / name, frames, fps=8)
        iio.imwrite(self.whole / "picture.png", np.zeros((8, 8, 3), np.uint8))


def training_state() -> dict[str, Any]:
    """As training writes it: one optimizer with one weight of two numbers that has moved once."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.ones(2)
    optimizer.step()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    parts = {"optimizers": [optimizer.state_dict()], "schedules": [schedule.state_dict()], "scaler": {}}
    return {"step": 2, "optimizer": parts}


def rewrite(file: Path, header: dict[str, Any] | None = None, tensors: Callable | None = None) -> None:
    """Other header texts (None takes a key out), or `tensors(state)` in place of the state of a safetensors file."""
    with safe_open(file, "pt") as opened:
        state, texts = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}
    texts = {key: value for key, value in (texts | (header or {})).items() if value is not None}
    save_file(tensors(state) if tensors else state, file, metadata=texts)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
