"""The frozen text-to-video pipeline: U-Net, VAE, text encoder, tokenizer, noise schedule.

Any folder in ZeroScope's / ModelScope's diffusers layout works, in today's format or the one of 2023 (.bin weights,
vocab.json + merges.txt), and so does a hub id where there is a network. Videos are uint8 [f c h w] outside and
latents [1 c f h w] inside; the VAE and the text encoder only visit a small GPU while they are needed.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from einops import rearrange
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from configs.errors import UserError, is_out_of_memory, shown
from configs.plain import shown_error
from models.files.pipeline import check_folder, check_pipeline, settings_of
from models.hooks import bypass_single_frames
from models.placement import place

ZEROSCOPE = {  # the architecture behind every published file: ZeroScope v2, ModelScope
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": 64,
}
# what diffusers, transformers, safetensors and torch raise for files that are cut short or of another model
UNLOADABLE = (OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, ArithmeticError)
UNLOADABLE += (AssertionError, SafetensorError, UnpicklingError, StrictDataclassError)
ROOM = 12e9  # bytes free beside all parts of the model, twice what training and sampling need: then no part is moved
FRAMES_AT_ONCE = 4  # the VAE is applied to a few frames at a time: decoding 16 at once would need 3.6 GB

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
    """fp16, bf16 or no (fp32). Half precision saves nothing on a CPU, where it is emulated, so fp32 is used there."""
    if device.type == "cpu":
        return torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "no": torch.float32}[precision]


def predictor(unet: nn.Module) -> Predictor:
    """The U-Net, with whatever is patched into it, as one function in its own precision.

    Training, inversion and sampling see the model only as this: latents and text [b n d] come in any precision, the
    prediction (noise or velocity, as the model was trained) goes out in fp32.
    """
    dtype = unet.dtype  # once: diffusers walks over all modules to answer, 2 ms each time

    def predict(z_t: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return unet(z_t.to(dtype), timestep, text.to(dtype)).sample.float()

    return predict


@dataclass
class Backbone:
    """A loaded pipeline folder.

    `unet` stays on `device`; the encoders are moved there when they are called, and parked after where room is scarce.
    """

    unet: UNet3DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDIMScheduler
    path: str
    device: torch.device
    memory: str = "default"

    @classmethod
    def load(
        cls, path: str, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", memory: str = "default"
    ) -> "Backbone":
        """Load every part in `dtype`, frozen, with the one-frame bypass attached (models/hooks.py).

        `memory` says where the U-Net's weights wait (models/placement.py).

        Raises UserError when the folder or a part of it is missing or unreadable.
        """
        path = str(path)
        check_folder(path)
        if Path(path).is_dir():
            check_pipeline(Path(path))
        transformers_logging.disable_progress_bar()  # hide transformers' loading bars
        device = torch.device(device)
        parts = {
            "unet": (UNet3DConditionModel, {"torch_dtype": dtype}),
            "vae": (AutoencoderKL, {"torch_dtype": dtype}),
            "text_encoder": (CLIPTextModel, {"dtype": dtype, "ignore_mismatched_sizes": True}),  # _load_part sees them
            "tokenizer": (CLIPTokenizer, {}),
            "scheduler": (DDIMScheduler, {}),
        }
        loaded = {name: _load_part(path, name, kind, options) for name, (kind, options) in parts.items()}
        for name in ("unet", "vae", "text_encoder"):
            loaded[name].eval().requires_grad_(False)
        if old := [name for name in loaded if any(Path(path, name).glob("*.bin"))]:
            files = f"{', '.join(old)} from .bin files, as of 2023, in which nothing is executed"
            print(f"note: loaded {path}: {files}", file=sys.stderr)
        place(loaded["unet"], device, memory)
        bypass_single_frames(loaded["unet"])
        return cls(**loaded, path=path, device=device, memory=memory)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def predict(self) -> Predictor:
        """The model as a function; see `predictor`."""
        return predictor(self.unet)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent pixel, 8 for ZeroScope."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def snap(self) -> int:
        """Width and height in pixels must be multiples of this for the VAE and every level of the U-Net."""
        return self.vae_factor * 2 ** (len(self.unet.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_video(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 [f c h w] -> scaled latents fp32 [1 c f h/8 w/8]. The mode of the posterior, so it is repeatable."""
        with _visiting(self.vae, self.device):
            latents = [
                self.vae.encode((chunk.to(self.device).float() / 127.5 - 1).to(self.vae.dtype)).latent_dist.mode()
                for chunk in frames.split(FRAMES_AT_ONCE)
            ]
        return rearrange(torch.cat(latents).float() * self.vae.config.scaling_factor, "f c h w -> 1 c f h w")

    @torch.no_grad()
    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [1 c f h w] -> uint8 [f c 8h 8w] on the CPU: the integer part of 255 * clamp(x/2 + 1/2)."""
        frames = rearrange(latents / self.vae.config.scaling_factor, "1 c f h w -> f c h w").to(self.vae.dtype)
        with _visiting(self.vae, self.device):
            decoded = [self.vae.decode(chunk.to(self.device)).sample.float() for chunk in frames.split(FRAMES_AT_ONCE)]
        return (torch.cat(decoded) / 2 + 0.5).clamp(0, 1).mul(255).to(torch.uint8).cpu()

    @torch.no_grad()
    def encode_text(self, prompts: list[str]) -> torch.Tensor:
        """Prompts -> embeddings fp32 [b n d], n = 77 for ZeroScope. Prints to stderr what a too long prompt loses.

        One visit of the text encoder, one prompt at a time: an embedding does not depend on which others are asked for.
        """
        length = self.tokenizer.model_max_length
        ids = self.tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        for prompt in prompts:
            self._report_cut(prompt, length)
        with _visiting(self.text_encoder, self.device):
            return torch.cat([self.text_encoder(row[None].to(self.device))[0].float() for row in ids.input_ids])

    def _report_cut(self, prompt: str, length: int) -> None:
        with _quiet("transformers.tokenization_utils_base"):
            ids = self.tokenizer(prompt).input_ids
        if len(ids) > length:
            cut = self.tokenizer.decode(ids[length - 1 : -1])
            print(
                f"note: the prompt has {len(ids)} tokens, the text encoder reads {length}; cut off: {cut!r}",
                file=sys.stderr,
            )

    def fingerprint(self) -> str:
        """Sixteen hex digits that change with any part's weights or settings (a strided sample of every tensor)."""
        digest = hashlib.sha256(json.dumps(dict(self.scheduler.config), sort_keys=True, default=str).encode())
        digest.update(json.dumps(self.tokenizer.get_vocab(), sort_keys=True).encode())
        for part in (self.unet, self.vae, self.text_encoder):
            for name, tensor in part.state_dict().items():
                flat = tensor.detach().flatten()
                sampled = flat[:: max(1, flat.numel() // 1024)].float().cpu()
                digest.update(f"{name}{tuple(tensor.shape)}".encode())
                digest.update(sampled.numpy().tobytes())
        return digest.hexdigest()[:16]


def snap_of(model: str | Path) -> int:
    """`Backbone.snap` of a pipeline folder or hub id, read from its configurations without loading any weights.

    Raises UserError when there is no such configuration.
    """
    levels = len(skeleton(model).config.block_out_channels)
    vae = settings_of(AutoencoderKL, str(model), "vae")
    return 2 ** (len(vae["block_out_channels"]) - 1) * 2 ** (levels - 1)


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


@contextmanager
def _quiet(logger: str) -> Iterator[None]:
    """Keep a library from warning of what this file words better, or of what is in order."""
    level = logging.getLogger(logger).level
    logging.getLogger(logger).setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.getLogger(logger).setLevel(level)


def skeleton(model: str | Path | None = None) -> UNet3DConditionModel:
    """The U-Net of a pipeline folder, a U-Net folder or a hub id without its weights; ZeroScope's when None.

    It lives on the meta device and costs no memory: checkpoints are checked against it before anything is loaded.
    Raises UserError when there is no such configuration.
    """
    config = dict(ZEROSCOPE) if model is None else settings_of(UNet3DConditionModel, str(model), "unet")
    try:
        with torch.device("meta"):
            return UNet3DConditionModel.from_config(config)
    except UNLOADABLE as error:
        raise UserError(
            f"model: the settings of the U-Net of {model} make no model ({shown_error(error)}); download it again"
        ) from error


def _load_part(path: str, name: str, kind, options: dict):
    """One part; a module with every weight that it has, none of them made up by a library for one that is missing."""
    folder, is_module = Path(path) / name, issubclass(kind, nn.Module)
    if folder.is_dir() and is_module:
        weights = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".safetensors")]
        if weights and all(".fp16." in file for file in weights):
            options = {**options, "variant": "fp16"}
    try:
        # diffusers calls .bin weights unsafe; they are opened so that nothing in them executes
        with _quiet("diffusers.models.modeling_utils"), _quiet("transformers"):
            if not is_module:
                return kind.from_pretrained(path, subfolder=name, **options)
            module, found = kind.from_pretrained(path, subfolder=name, output_loading_info=True, **options)
    except UNLOADABLE as error:
        if is_out_of_memory(error):
            raise
        raise UserError(
            f"model: {name} of {path} cannot be loaded ({shown_error(error)}); "
            "check that the download is complete and is a ZeroScope/ModelScope folder"
        ) from error
    wrong = [*sorted(found["missing_keys"]), *(key for key, *_ in found["mismatched_keys"])]
    if wrong:
        raise UserError(
            f"model: {name} of {path} lacks {len(wrong)} of its weights, or they have other shapes "
            f"({shown(wrong[0])}); check that the download is complete and is a ZeroScope/ModelScope folder"
        )
    return module
