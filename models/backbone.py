"""The frozen text-to-video pipeline: denoising network, VAE, text encoder, tokenizer, noise schedule.

Any folder in ZeroScope's / ModelScope's diffusers layout works, in today's format or the one of 2023 (.bin weights,
vocab.json + merges.txt), Wan's does, and so does a hub id where there is a network. Which kind it is, and all that
differs between them, is in models/backbones. Videos are uint8 [f c h w] outside and latents [1 c f h w] inside; the VAE
and the text encoder only visit a small GPU while they are needed, a very large text encoder layer by layer.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from diffusers import SchedulerMixin
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from configs.errors import UserError, shown
from configs.runtime import note
from models import backbones
from models.files.parts import load_part, quiet
from models.files.pipeline import check_folder, check_pipeline
from models.placement import copied_to, parameter_bytes, place, visit_by_layers
from models.vocabulary import unknown_words

ROOM = 12e9  # bytes free beside all parts of the model, twice what training and sampling need: then no part is moved

# (z_t [b c f h w], timestep [] or [b], text [b n d]) -> prediction, fp32 [b c f h w]
Predictor = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def choose_device(requested: str = "auto") -> torch.device:
    """The device asked for, else CUDA, else Apple's MPS, else the CPU. Raises UserError if it is not there."""
    if requested != "auto":
        try:
            device = torch.device(requested)
        except RuntimeError:
            raise UserError(f"device: {requested!r} is no torch device; use cuda, cuda:1, mps or cpu") from None
        there = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
        if (device.index or 0) >= there.get(device.type, 0):
            known = [f"{count} x {name}" for name, count in there.items() if count]
            raise UserError(
                f"device: {requested!r} was asked for but torch sees {', '.join(known)} here; use auto or one of those"
            )
        return device
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(precision: str, device: torch.device) -> torch.dtype:
    """fp16, bf16 or no (fp32). On a CPU half precision is emulated or saves a small model nothing, so it gets fp32."""
    if device.type == "cpu":
        return torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "no": torch.float32}[precision]


def allow_tf32(device: torch.device) -> None:
    """On CUDA let what stays in fp32 (masters, losses) use TF32, in this process from here on."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True


def predictor(network: nn.Module, second: nn.Module | None = None, boundary: float | None = None) -> Predictor:
    """The network, with whatever is patched into it, as one function in its own precision.

    Training, inversion and sampling see the model only as this: latents and text [b n d] come in any precision, the
    prediction (noise or velocity, as the model was trained) goes out in fp32. `second` and `boundary` are another
    network and the noise level below which it predicts, where a kind has such (Wan 2.2).
    """
    return backbones.kind_of(network).predictor(network, second, boundary)


@dataclass
class Backbone:
    """A loaded pipeline folder.

    `network` stays on `device`; the encoders are moved there when they are called, and parked after where room is
    scarce.
    """

    network: nn.Module
    vae: nn.Module
    text_encoder: nn.Module
    tokenizer: PreTrainedTokenizerBase
    scheduler: SchedulerMixin
    path: str
    device: torch.device
    second: nn.Module | None = None
    boundary: float | None = None
    memory: str = "default"
    text_by_layers: bool = False  # whether the text encoder's layers visit the device one after another
    second_waits: bool = False  # whether the second expert is on the CPU, where training leaves it

    @classmethod
    def load(
        cls,
        path: str,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        memory: str = "default",
        second_waits: bool = False,
    ) -> "Backbone":
        """Load every part in `dtype`, frozen, with what every method needs attached (the U-Net's one-frame bypass).

        `memory` says where the network's weights wait (models/placement.py). With `second_waits` a second expert is on
        the device inside of `both_experts` alone; the weights of `smallest` wait on the CPU anyway.

        Raises UserError when the folder or a part of it is missing or unreadable.
        """
        path = str(path)
        check_folder(path)
        if Path(path).is_dir():
            check_pipeline(Path(path))
        transformers_logging.disable_progress_bar()  # hide transformers' loading bars
        device, kind = torch.device(device), backbones.kind_of_model(path)
        options = kind.load_options(dtype)
        parts = kind.parts(path)
        loaded = {name: load_part(path, name, part, options.get(name, {})) for name, part in parts.items()}
        if loaded["tokenizer"].pad_token is None:
            raise UserError(f"model: the tokenizer of {path} has no padding token; download the whole folder again")
        for part in loaded.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        if old := [name for name in loaded if any(Path(path, name).glob("*.bin"))]:
            files = f"{', '.join(old)} from .bin files, as of 2023, in which nothing is executed"
            note(f"note: loaded {path}: {files}")
        network, second = (loaded.pop(name, None) for name in (kind.FOLDER, kind.SECOND))
        place(network, device, memory)
        second_waits = second_waits and second is not None and memory != "smallest"
        if second is not None:
            place(second, "cpu" if second_waits else device, memory)
        kind.prepare(network, loaded["vae"])
        by_layers = parameter_bytes(loaded["text_encoder"]) > _free_bytes(device) / 2  # Wan's: 11.4 GB for one prompt
        if by_layers:
            visit_by_layers(loaded["text_encoder"], device)
        return cls(
            network,
            **loaded,
            path=path,
            device=device,
            second=second,
            boundary=kind.boundary_of(path),
            memory=memory,
            text_by_layers=by_layers,
            second_waits=second_waits,
        )

    @property
    def kind(self) -> ModuleType:
        """Which of models/backbones it is."""
        return backbones.kind_of(self.network)

    @property
    def dtype(self) -> torch.dtype:
        return self.network.dtype

    @property
    def predict(self) -> Predictor:
        """The model as a function; see `predictor`."""
        return predictor(self.network, self.second, self.boundary)

    def both_experts(self) -> AbstractContextManager[None]:
        """Inside the block `predict` takes every timestep: the second expert is on the device, wherever it waits."""
        return copied_to(self.second, self.device) if self.second_waits else nullcontext()

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel, 8 for ZeroScope and Wan."""
        return self.kind.vae_factor(self.vae.config)

    @property
    def snap(self) -> int:
        """What the width and height of clips are rounded to, in pixels."""
        return self.kind.snap(self.network.config, self.vae.config)

    @property
    def sides(self) -> int:
        """What the width and height of a video must be multiples of, in pixels."""
        return self.kind.sides(self.network.config, self.vae.config)

    @property
    def text_width(self) -> int:
        """d of the text embeddings [b n d]."""
        return self.kind.text_width(self.network)

    def latent_size(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Frames, height and width in latent pixels. Raises UserError for a length that the VAE cannot take."""
        return self.kind.latent_frames(frames, self.vae.config), height // self.vae_factor, width // self.vae_factor

    def encode_video(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [f c h w] -> scaled latents fp32 [1 c f h/8 w/8]. The mode of the posterior, so it is repeatable."""
        with _visiting(self.vae, self.device):
            return self.kind.encode_video(self.vae, frames, self.device)

    def encode_stills(self, frames: torch.Tensor) -> torch.Tensor | None:
        """uint8 [f c h w] -> frames encoded one by one, fp32 [1 c f h/8 w/8] with as many frames as the clip's latents.

        They are for the appearance pass. None where every latent of the clip covers one frame, as a U-Net's does.
        """
        with _visiting(self.vae, self.device):
            return self.kind.encode_stills(self.vae, frames, self.device)

    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [1 c f h w] -> uint8 [f c 8h 8w] on the CPU: the integer part of 255 * clamp(x/2 + 1/2)."""
        return self.decode_videos(latents)[0]

    def decode_videos(self, latents: torch.Tensor) -> list[torch.Tensor]:
        """The videos of `latents` [b c f h w], each as from `decode_video`, in one visit of the VAE."""
        with _visiting(self.vae, self.device):
            return [_pixels(self.kind.decode_video(self.vae, one, self.device)) for one in latents.split(1)]

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        """Prompts -> embeddings fp32 [b n d] on the CPU, n = 77 for ZeroScope. Prints what a too long prompt loses.

        One visit of the text encoder, one prompt at a time: an embedding does not depend on which others are asked for.
        They may have long to wait, and Wan's have 8.4 MB each.
        """
        # a tokenizer whose settings name no length has an endless one
        length = self.kind.text_length(self.tokenizer)
        length = min(length, getattr(self.text_encoder.config, "max_position_embeddings", length))
        prompts = [self.kind.clean(prompt) for prompt in prompts]
        found = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        for prompt in prompts:
            self._report_cut(prompt, length)
        if unknown := unknown_words(self.tokenizer, prompts):
            note(f"note: this small model does not know {', '.join(map(shown, unknown))}; its card lists its words")
        rows = list(zip(found.input_ids.to(self.device).split(1), found.attention_mask.to(self.device).split(1)))
        with nullcontext() if self.text_by_layers else _visiting(self.text_encoder, self.device):
            return torch.cat([self.kind.encode_text(self.text_encoder, *row).cpu() for row in rows])

    def _report_cut(self, prompt: str, length: int) -> None:
        with quiet("transformers.tokenization_utils_base"):
            ids = self.tokenizer(prompt).input_ids
        if len(ids) > length:
            cut = self.tokenizer.decode(ids[length - 1 : -1])
            note(f"note: the prompt has {len(ids)} tokens, the text encoder reads {length}; cut off: {cut!r}")

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any part's weights or settings (a strided sample of every tensor).

        Weights that wait on the host are the same weights, and one that is stored in 8 bits is another.
        """
        digest = hashlib.sha256(json.dumps(dict(self.scheduler.config), sort_keys=True, default=str).encode())
        digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        for part in filter(None, (self.network, self.vae, self.text_encoder, self.second)):
            for name, tensor in _named(part):
                flat = tensor.detach().flatten()
                sampled = flat[:: max(1, flat.numel() // 1024)].float().cpu()
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(sampled.numpy().tobytes())
        return digest.hexdigest()[:16]


def _pixels(decoded: torch.Tensor) -> torch.Tensor:
    return (decoded / 2 + 0.5).clamp(0, 1).mul(255).to(torch.uint8).cpu()


def _named(part: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """`state_dict` of a part, with the names and in the order that it has wherever its weights wait (streamed.py)."""
    state = {name.replace(".parametrizations.weight.original", ".weight"): x for name, x in part.state_dict().items()}
    layers = {layer: number for number, layer in enumerate(dict.fromkeys(name.rpartition(".")[0] for name in state))}
    place = lambda item: (layers[item[0].rpartition(".")[0]], not item[0].endswith(".weight"))
    return sorted(state.items(), key=place)


def _free_bytes(device: torch.device) -> float:
    """What is free on a GPU. On other devices there is no limit, because nothing needs to be moved to them."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


@contextmanager
def _visiting(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Have a module on a device for the length of the block, and back on the CPU after it if memory is scarce there."""
    module.to(device)
    try:
        yield
    finally:
        if device.type == "cuda" and torch.cuda.mem_get_info(device)[0] < ROOM:
            module.to("cpu")
            torch.cuda.empty_cache()
        elif device.type == "mps":  # its memory is the CPU's, of which most machines have little
            module.to("cpu")
            torch.mps.empty_cache()
