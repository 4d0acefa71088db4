"""One small training or sampling, and all that can be seen of it: how test_keys proves that a key does something.

A `Bench` holds two pipelines of random weights (half as deep as conftest's), clips, and the runs made so far. A run is
seen as a dict of parts (weights, moments, log, video, ...), each a plain value, so that two runs are compared with
`==`. What only repeats the configuration (config.yaml, the headers of checkpoints) is no part of it.
"""

import hashlib
import inspect
import json
import re
from dataclasses import dataclass, field
from operator import attrgetter as of
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, TextToVideoSDPipeline
from safetensors.torch import load_file

import train
from configs.errors import UserError
from configs.schema import from_dict
from infer import options
from infer.generate import generate
from scripts.authors.weights import build_unet, fill
from scripts.pocket.architecture import build_tokenizer

from conftest import SCHEDULE, text_encoder

UNET = {
    "sample_size": 4,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "cross_attention_dim": 32,
    "attention_head_dim": 16,
}
ONE_LEVEL = {  # every kind of leaf layer, once each where that is possible
    **UNET,
    "block_out_channels": [32],
    "down_block_types": ["CrossAttnDownBlock3D"],
    "up_block_types": ["CrossAttnUpBlock3D"],
}
LOGGED = ("loss", "timestep", "lr", "norm", "scale")  # columns of log.jsonl that measure no machine
IMAGES = {"dataset_types": ["single_video", "image"], "train_data.image_dir": of("image"), "max_train_steps": 2}


@dataclass(frozen=True)
class Case:
    """Another value for a key, the part of a run in which it must show, and what else stands on both sides.

    A value may be a function of the bench, such as `of("clip")`. `refused` is a piece of the sentence with which the
    value must be refused.
    """

    value: Any
    part: str = "weights"
    given: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None


class Bench:
    """Pipelines, clips and runs in `folder`; what is there already is used again."""

    def __init__(self, folder: Path):
        self.folder, self.runs = folder, {}
        self.model, self.other_model = (self._pipeline(f"model_{seed}", seed) for seed in (0, 1))
        self.clip, self.other_clip, self.wide = self._clip("bar", 0), self._clip("block", 9), self._clip("wide", 3, 96)
        self.clips = self._folder("clips", self.clip)
        self.other_clips = self._folder("other_clips", self.other_clip)
        self.image, self.other_image = self._image("red", 30), self._image("blue", 200)
        self.json, self.other_json = self._json("one", self.clip), self._json("other", self.other_clip)

    # ---- training ----

    def config(self, sandbox: Path, changes: dict[str, Any]):
        values = {
            "pretrained_model_path": self.model,
            "output_dir": str(sandbox / "train"),
            "cache_dir": str(self.folder / "cache"),
            "mixed_precision": "no",
            "gradient_checkpointing": False,
            "lora_rank": 2,
            "lora_unet_dropout": 0.5,
            "learning_rate": 0.05,
            "spatial_path_probability": 1.0,
            "max_train_steps": 1,
            "inversion_steps": 2,
            "device": "cpu",
            "train_data.width": 32,
            "train_data.height": 32,
            "train_data.n_sample_frames": 3,
            "train_data.single_video_path": self.clip,
            "train_data.single_video_prompt": "a car",
            "train_data.fallback_prompt": "a car",
            "train_data.single_img_prompt": "a bar",
            "validation_data.prompt": ["a horse is running"],
            "validation_data.num_inference_steps": 2,
            "validation_data.guidance_scale": 3.0,
            "validation_data.sample_at_first": False,
            "validation_data.side_by_side": False,
        } | {key: value(self) if callable(value) else value for key, value in changes.items()}
        for key in ("output_dir", "cache_dir"):
            values[key] = str(sandbox / values[key])  # an absolute one stays where it is
        return from_dict(values)

    def train(self, changes: dict[str, Any]) -> dict[str, Any]:
        """What is seen of a training with these dotted keys; made once."""
        name = hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:12]
        if name not in self.runs:
            sandbox = self.folder / "runs" / name
            sandbox.mkdir(parents=True)
            kept = []
            threads = torch.get_num_threads()
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(0) or x, lambda x: x):
                run = train.run(self.config(sandbox, changes))
            self.runs[name] = {
                **self._seen(run),
                "kept": len(kept),  # tensors that wait for the backward pass
                "places": sorted(path.name for path in sandbox.iterdir()),
                "threads": torch.get_num_threads(),
                "run": run,
            }
            torch.set_num_threads(threads)
        return self.runs[name]

    def _seen(self, run: Path) -> dict[str, Any]:
        tensors = {
            path.relative_to(run).as_posix(): {name: digest(value) for name, value in load_file(path).items()}
            for path in sorted(run.rglob("*.safetensors"))
        }
        states = [torch.load(path, weights_only=True) for path in sorted(run.rglob("training_state.pt"))]
        rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        return {
            "weights": {name: part for name, part in tensors.items() if "cached" not in name},
            "latents": {name: part for name, part in tensors.items() if "cached" in name},
            "moments": [digest(value) for state in states for value in tensors_in(state)],
            "log": [{key: row[key] for key in row if any(word in key for word in LOGGED)} for row in rows],
            "video": {path.name: digest(iio.imread(path)) for path in sorted(run.rglob("previews/**/*.mp4"))},
            "files": sorted({re.sub(r"\d{6,}.*", "N", p.relative_to(run).as_posix()) for p in run.rglob("*")}),
        }

    def check_key(self, key: str, case: Case) -> None:
        """Fail unless `case` shows in its part of a training."""
        if case.refused:
            try:
                self.train({**case.given, key: case.value})
            except UserError as error:
                assert case.refused in str(error)
                return
            raise AssertionError(f"{key}: {case.value!r} was not refused")
        base, changed = self.train(case.given), self.train({**case.given, key: case.value})
        assert base[case.part], f"{key}: there is no {case.part} to see it in"
        assert base[case.part] != changed[case.part], f"{key}: {case.value!r} changes nothing in the {case.part}"

    # ---- sampling ----

    def sample(self, words: list[Any], trained: dict[str, Any]) -> dict[str, Any]:
        """What is seen of a sampling with these flags from a training with these keys; made once."""
        words = [str(word(self) if callable(word) else word) for word in words]
        name = hashlib.sha256(repr([words, sorted(trained.items())]).encode()).hexdigest()[:12]
        if name not in self.runs:
            out = self.folder / "samples" / name
            flags = [] if "--temporal_path_folder" in words else ["-cf", str(self.train(trained)["run"])]
            flags += ["-o", str(out), "--device", "cpu", *words]
            flags += [] if "--seed" in words else ["--seed", "5"]
            flags += [] if {"--prompt", "--prompt_file"} & set(words) else ["--prompt", "a horse"]
            args = options.parse(flags)
            takes_one = "backbone" in inspect.signature(generate).parameters
            more = {"backbone": self.backbone(args.model, args.memory)} if takes_one else {}
            threads = torch.get_num_threads()
            paths = list(generate(args, **more))
            self.runs[name] = {
                "video": [frames(path) for path in paths],
                "files": [path.name for path in paths],
                "bytes": [digest(path.read_bytes()) for path in paths if path.is_file()],
                "rate": [iio.immeta(path)["fps"] for path in paths if path.suffix == ".mp4"],
                "threads": torch.get_num_threads(),
            }
            torch.set_num_threads(threads)
        return self.runs[name]

    def backbone(self, model: str | None, memory: str):
        """A loaded pipeline, one for all samplings from it with the frozen model in one place."""
        from models.backbone import Backbone

        name = model or self.model, memory
        if name not in self.runs:
            self.runs[name] = Backbone.load(name[0], torch.float32, torch.device("cpu"), memory)
        return self.runs[name]

    @property
    def run(self) -> Path:
        return self.train({})["run"]

    @property
    def other_run(self) -> Path:
        return self.train({"train_data.single_video_path": self.other_clip})["run"]

    @property
    def two_clips(self) -> Path:
        return self.train(IMAGES)["run"]

    @property
    def prompts(self) -> Path:
        path = self.folder / "prompts.txt"
        path.write_text("a red car\n")
        return path

    # ---- what runs are made of ----

    def _pipeline(self, name: str, seed: int) -> str:
        folder = self.folder / name
        if folder.exists():
            return str(folder)
        tokenizer = build_tokenizer(["a", "car", "horse", "is", "running", "red", "blue", "bar"])
        torch.manual_seed(seed)
        text = text_encoder(tokenizer, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8, 8),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=4,
            layers_per_block=1,
            sample_size=32,
        )
        scheduler = DDIMScheduler(**SCHEDULE)
        unet = fill(build_unet(UNET), seed)
        TextToVideoSDPipeline(fill(vae, seed), text, tokenizer, unet, scheduler).save_pretrained(folder)
        return str(folder)

    def _clip(self, name: str, row: int, width: int = 32) -> str:
        video = np.tile(np.linspace(0, 120, 32, dtype=np.uint8)[:, None, None], (9, 1, width, 3))
        for i, frame in enumerate(video):
            frame[row : row + 14, 2 * i : 2 * i + 9] = (250, 200 - 20 * row, 40)
        path = self.folder / f"{name}.mp4"
        if not path.exists():
            iio.imwrite(path, video, plugin="FFMPEG", fps=8, quality=8, macro_block_size=2)
        return str(path)

    def _folder(self, name: str, clip: str) -> str:
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "clip.mp4").write_bytes(Path(clip).read_bytes())
        return str(folder)

    def _image(self, name: str, red: int) -> str:
        path = self.folder / f"{name}.png"
        iio.imwrite(path, np.full((32, 32, 3), (red, 30, 230 - red), np.uint8))
        return str(path)

    def _json(self, name: str, clip: str) -> str:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps([{"video_path": clip, "prompt": "a car"}]))
        return str(path)


def digest(value: Any) -> str:
    """Sixteen letters that change with every bit of a tensor, an array or bytes, and with its shape."""
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().numpy()
    head = f"{getattr(value, 'shape', len(value))}".encode()
    return hashlib.sha256(head + (value if isinstance(value, bytes) else value.tobytes())).hexdigest()[:16]


def frames(path: Path) -> list[str]:
    """The digest of every frame of a video file or of a folder of frames."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return [digest(frame) for file in files for frame in np.atleast_3d(iio.imread(file))]


def tensors_in(state: Any) -> list[torch.Tensor]:
    """The tensors of a nested state, numbers left out: those repeat the configuration."""
    if isinstance(state, torch.Tensor):
        return [state] if state.ndim else []
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors_in(value)]
