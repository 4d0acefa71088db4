"""A file of reference numbers, and the models that its numbers were made with. Read by scripts/parity.py.

A file is a .safetensors, with settings in a .json beside some. Its U-Net is rebuilt from the file's metadata
(`unet_config`, `recipe_seed`) or comes from a pipeline folder (its weights, else scripts/authors/weights.py).
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.utils import logging as transformers_logging

from configs.errors import UserError
from models.backbone import Backbone
from models.files.checkpoint import load_checkpoint
from models.outline import skeleton
from scripts.authors.weights import REFERENCE_SEED, build_unet, build_vae

FORWARD = 5e-6  # absolute, one pass through the U-Net or the text encoder


class Row(NamedTuple):
    """One comparison: the measured difference and what it may be at most."""

    quantity: str
    tolerance: float
    difference: float


class ReferenceFile:
    """One file: its tensors `data`, its `settings`, its models; folders are looked for in `places`, in their order.

    Raises UserError for a file that is no safetensors file, and wherever something that belongs to it is missing.
    """

    def __init__(self, path: Path, places: list[Path]):
        self.path, self.places, self.stem = path, places, path.stem
        try:
            with safe_open(path, "pt") as file:
                self.metadata = file.metadata() or {}
                self.data: dict[str, torch.Tensor] = {key: file.get_tensor(key) for key in file.keys()}
        except SafetensorError as error:
            raise UserError(f"{path}: not a safetensors file ({error}); copy it again") from error

    def settings(self, stem: str | None = None) -> dict:
        """The content of the .json of this name (default: the file's own) beside the file."""
        path = self.path.with_name(f"{stem or self.stem}.json")
        if not path.is_file():
            raise UserError(f"{path}: missing; it belongs to {self.path.name}")
        return json.loads(path.read_text(encoding="utf-8"))

    def has_settings(self, stem: str) -> bool:
        return self.path.with_name(f"{stem}.json").is_file()

    def find(self, *names: str) -> Path:
        """The first of `names` that exists, in the first of the places that has it."""
        for name in names:
            for place in self.places:
                if (place / name).exists():
                    return place / name
        raise UserError(
            f"{self.path.name}: needs {' or '.join(names)}, not found in"
            f" {' or '.join(map(str, self.places))}: name its folder with --assets"
        )

    def pipeline(self, name: str | None = None, fits: Callable[[UNet3DConditionModel], bool] | None = None) -> Path:
        """The pipeline folder called `name`; without a name, one with this file's text width, the most alike in name,
        for whose U-Net without weights `fits` holds."""
        if name is not None and any((place / n).is_dir() for place in self.places for n in (name, Path(name).name)):
            return self.find(name, Path(name).name)
        configs = [
            c
            for place in self.places
            for c in sorted([*place.glob("unet/config.json"), *place.glob("*/unet/config.json")])
        ]
        found = {config.parents[1]: json.loads(config.read_text(encoding="utf-8")) for config in configs}
        width = next((self.data[key].shape[-1] for key in ("text", "prompt_embeds") if key in self.data), None)
        if "unet_config" in self.metadata:
            width, fits = json.loads(self.metadata["unet_config"])["cross_attention_dim"], None  # brings its own U-Net
        words = set(self.stem.split("_"))
        for folder in sorted(found, key=lambda folder: -len(words & set(folder.name.split("_")))):
            if width in (None, found[folder]["cross_attention_dim"]) and (fits is None or fits(skeleton(folder))):
                return folder
        raise UserError(
            f"{self.path.name}: no pipeline folder (unet/config.json) that fits it in"
            f" {' or '.join(map(str, self.places))}: name its folder with --assets"
        )

    def unet(self, folder: Path | None = None) -> UNet3DConditionModel:
        """The U-Net, fp32, frozen, in eval mode; without the one-frame bypass."""
        if "unet_config" in self.metadata:
            return build_unet(self.metadata["unet_config"], int(self.metadata.get("recipe_seed", REFERENCE_SEED)))
        folder = (folder or self.pipeline()) / "unet"
        if _has_weights(folder):
            return UNet3DConditionModel.from_pretrained(folder).eval().requires_grad_(False)
        return build_unet((folder / "config.json").read_text(encoding="utf-8"))

    def vae(self, folder: Path) -> AutoencoderKL:
        """The VAE, fp32, in eval mode."""
        if _has_weights(folder):
            return AutoencoderKL.from_pretrained(folder).eval()
        return build_vae((folder / "config.json").read_text(encoding="utf-8"))

    def unet_for(self, checkpoint: Path) -> UNet3DConditionModel:
        """The U-Net that the checkpoint folder `checkpoint` was trained on."""

        def fits(unet: UNet3DConditionModel) -> bool:
            try:
                load_checkpoint(checkpoint, network=unet)
            except UserError:
                return False
            return True

        return self.unet(None if "unet_config" in self.metadata else self.pipeline(fits=fits))

    def backbone(self, folder: Path) -> Backbone:
        """The whole pipeline, as training and inference see it but for the one-frame bypass."""
        transformers_logging.disable_progress_bar()
        return Backbone(
            self.unet(folder),
            self.vae(folder / "vae"),
            CLIPTextModel.from_pretrained(folder, subfolder="text_encoder").eval(),
            CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer"),
            DDIMScheduler.from_pretrained(folder, subfolder="scheduler"),
            str(folder),
            torch.device("cpu"),
        )

    def forward(self, unet: UNet3DConditionModel, sample: str = "sample") -> torch.Tensor:
        """The U-Net's output [b c f h w] for the file's `sample`, timestep and text."""
        with torch.no_grad():
            return unet(self.data[sample], self.data["timestep"], self.data["text"]).sample

    def row(self, key: str, ours: torch.Tensor, tolerance: float = FORWARD, relative: bool = False) -> Row:
        """Compare `ours` with the tensor `key`: largest difference, over the largest value if `relative`."""
        theirs = self.data[key].double()
        if ours.numel() != theirs.numel():
            return Row(f"{key}: {list(ours.shape)} here, {list(theirs.shape)} in the file", tolerance, math.inf)
        scale = theirs.abs().max().item() if relative else 1.0
        difference = (ours.double().reshape(theirs.shape) - theirs).abs().max().item() / (scale or 1.0)
        return Row(key, tolerance, math.inf if math.isnan(difference) else difference)


def _has_weights(part: Path) -> bool:
    return any(file.suffix in (".safetensors", ".bin") for file in part.iterdir())
