"""What is computed once from a clip: latents, text embedding and DDIM inversion, kept on disk keyed by content.

The key is a hash over the clip's frames (so over its bytes, geometry and frame choice), its prompt and whatever else
the caller names as something the result depends on (weights, inversion steps, ...): a change of any of them gives a new
entry. The encoders are passed in as functions and are called only for what is missing. The file layout extends the
release's cached_latents/cached_{i}.pt, which can be read too (opened with weights_only, so nothing in it runs).
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from configs.archives import check_safetensors
from configs.checks import checked, listed, whole
from configs.errors import UserError, printable, shown
from configs.files import atomic_path, sweep
from configs.plain import read_json, shown_error
from configs.runtime import note
from data.clips import Clip
from data.pickles import is_held, read_pickle

REAL = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
MOST_PIXELS = 65_536  # of one side


@dataclass(frozen=True)
class CachedClip:
    """latents [1 c f h w] and inversion [1 c f h w] or None, both scaled latents in fp32; text [1 n d] fp32.

    `stills` like the latents are single frames, encoded alone where a latent of the clip holds several; else None.
    `text` is None only for a file of the release, which keeps token ids in place of the embedding. `size` is the width
    and height in pixels that the clip was cut to, None in files that do not record it.
    """

    latents: torch.Tensor
    text: torch.Tensor | None
    inversion: torch.Tensor | None
    prompt: str
    name: str
    size: tuple[int, int] | None = None
    stills: torch.Tensor | None = None


def content_key(clip: Clip, key_parts: dict[str, Any]) -> str:
    """A name for what is cached of `clip`, different whenever its frames, its prompt or `key_parts` differ."""
    settings = json.dumps(
        {"prompt": clip.prompt, "shape": list(clip.frames.shape), **key_parts}, sort_keys=True, default=str
    )
    digest = hashlib.sha256(settings.encode())
    digest.update(clip.frames.contiguous().numpy())
    return digest.hexdigest()[:32]


def build(
    clips: list[Clip],
    directory: str | Path,
    *,
    key_parts: dict[str, Any],
    encode_video: Callable[[torch.Tensor], torch.Tensor],
    encode_text: Callable[[str], torch.Tensor],
    invert: Callable[[torch.Tensor], torch.Tensor | None] | None,
    encode_stills: Callable[[torch.Tensor], torch.Tensor | None] = lambda frames: None,
) -> list[CachedClip]:
    """The cached form of every clip, read from `directory` or computed and written there.

    `encode_video` maps uint8 [f c h w] to latents [1 c f h w], `encode_text` a prompt to [1 n d], `invert` latents to
    their inverted noise, or to None where a clip needs none; without `invert` no clip gets one. `encode_stills` maps
    frames to `CachedClip.stills`. Prints to stderr what was reused; an unreadable entry is made anew.
    Every entry is written as soon as it is computed, so what is done stays when the rest is interrupted.
    """
    sweep(directory)
    found = []
    for clip in clips:
        key = content_key(clip, {**key_parts, "inverted": invert is not None})
        path = Path(directory) / f"{key}.safetensors"
        if path.is_file():
            try:
                found.append(read_cached(path))
                note(f"cache: {clip.name} reused ({key[:12]})")
                continue
            except UserError as error:
                note(f"cache: {error}; made anew")
        latents = encode_video(clip.frames)
        inversion = invert(latents) if invert else None
        size = (clip.frames.shape[3], clip.frames.shape[2])
        text = _plain(encode_text(clip.prompt))
        stills = _plain(encode_stills(clip.frames))
        cached = CachedClip(_plain(latents), text, _plain(inversion), clip.prompt, clip.name, size, stills)
        write_cached(cached, path)
        note(f"cache: {clip.name} encoded ({key[:12]})")
        found.append(cached)
    return found


def export_clips(cached: list[CachedClip], run_dir: str | Path) -> None:
    """Write run_dir/cached_latents/cached_{i}.safetensors, where sampling finds the reference clip's inversion."""
    for number, clip in enumerate(cached):
        write_cached(clip, Path(run_dir) / "cached_latents" / f"cached_{number}.safetensors")


def write_cached(cached: CachedClip, path: Path) -> None:
    """Write one clip, atomically: under another name first."""
    named = {"latents": cached.latents, "text": cached.text, "inversion": cached.inversion, "stills": cached.stills}
    tensors = {name: tensor.contiguous() for name, tensor in named.items() if tensor is not None}
    header = {"format": "pt", "prompt": cached.prompt, "name": cached.name}
    if cached.size is not None:
        header["size"] = json.dumps(cached.size)
    with atomic_path(path, needs=sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())) as part:
        part.write_bytes(save(tensors, metadata=header))  # save_file has a hidden file of its own, which a kill leaves


def read_cached(path: str | Path) -> CachedClip:
    """One cached clip: ours (.safetensors) or the release's (.pt). Raises UserError when the file is not one."""
    path = Path(path)
    return _read_release(path) if path.suffix == ".pt" else _read_ours(path)


def read_folder(directory: str | Path) -> list[CachedClip]:
    """Every cached_{i} file of a folder in order of i (a run's cached_latents, or the release's)."""
    directory = Path(directory)
    numbered = {}
    for path in directory.glob("cached_*"):
        if match := re.fullmatch(r"cached_(\d+)\.(safetensors|pt)", path.name):
            numbered[int(match[1]), match[2] == "pt"] = path
    if not numbered:
        raise UserError(
            f"{directory}: no cached clips there; point it at a folder with cached_0.safetensors or cached_0.pt"
        )
    return [read_cached(path) for _, path in sorted(numbered.items())]


def same_clips(clips: list[CachedClip], kept: Path) -> bool:
    """Whether these are the clips and captions whose latents a run keeps; True as well where it keeps none.

    Another precision changes latents a little, another clip changes them a lot.
    """
    if not kept.is_dir():
        return True
    before = read_folder(kept)
    return len(before) == len(clips) and all(
        old.prompt == new.prompt
        and old.latents.shape == new.latents.shape
        and (old.latents - new.latents).abs().mean() < 0.1 * old.latents.abs().mean()
        for old, new in zip(before, clips)
    )


def primary(clips: list[CachedClip]) -> int:
    """Index of the representative clip: the first of the longest, since images have no motion to start from."""
    return max(range(len(clips)), key=lambda i: clips[i].latents.shape[2])


def check_clips_fit(clips: list[CachedClip], channels: int, text_width: int) -> None:
    """Raise UserError unless every clip's latents have `channels` and its text embedding `text_width`, the model's."""
    for clip in clips:
        width = text_width if clip.text is None else clip.text.shape[-1]
        if (clip.latents.shape[1], width) != (channels, text_width):
            raise UserError(
                f"cached_latent_dir: {printable(clip.name)} was cached with another model ({clip.latents.shape[1]}"
                f" latent channels, text width {width}; this model has {channels} and {text_width}); give train_data in"
                " place of it"
            )


def _read_ours(path: Path) -> CachedClip:
    check_safetensors(path)
    try:
        with safe_open(path, "pt") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
            tensors = {name: file.get_tensor(name) for name in names & {"latents", "text", "inversion", "stills"}}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: not a readable cache file ({shown_error(error)}); delete it and train again"
        ) from None
    if not {"latents", "text"} <= tensors.keys() or not {"prompt", "name"} <= metadata.keys():
        held = ", ".join(shown(name) for name in sorted(names)[:8]) or "nothing"
        raise UserError(f"{path}: not a cache file of this project (holds {held}); delete it")
    latents, text, inversion, stills = (tensors.get(name) for name in ("latents", "text", "inversion", "stills"))
    if text.ndim != 3 or len(text) != 1 or not _is_finite(text):
        raise UserError(f"{path}: its text is {_kind(text)}, no embedding [1 n d]; delete it and train again")
    _check_latents(path, latents, inversion)
    _check_latents(path, latents, stills, "stills are")
    size = _size(path, metadata, latents)
    latents, text, inversion, stills = map(_plain, (latents, text, inversion, stills))
    return CachedClip(latents, text, inversion, metadata["prompt"], metadata["name"], size, stills)


def _size(path: Path, metadata: dict[str, str], latents: torch.Tensor) -> tuple[int, int] | None:
    """The header's size in pixels, which must be the same multiple of the latents' on both sides."""
    if "size" not in metadata:
        return None
    schema = {"size": listed(whole(1, MOST_PIXELS), 2, 2)}
    size = checked({"size": read_json(metadata["size"], f"{path}: its size")}, schema, str(path))["size"]
    (width, height), (rows, columns) = size, latents.shape[3:]
    if width % columns or height % rows or width // columns != height // rows:
        raise UserError(f"{path}: its size is {width}x{height} pixels, its latents are {_kind(latents)}; delete it")
    return width, height


def _read_release(path: Path) -> CachedClip:
    content = read_pickle(path, "a cached clip of the release")
    try:
        latents, inversion = _batched(content["latents"]), _batched(content.get("inversion_noise"))
        prompt = content["text_prompt"]
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a cached clip of the release ({shown_error(error)}); give another file") from None
    _check_latents(path, latents, inversion)
    prompt = prompt[0] if isinstance(prompt, (list, tuple)) and prompt else prompt
    if not isinstance(prompt, str):
        raise UserError(f"{path}: its text_prompt is {shown(prompt)}, no text; give another file")
    return CachedClip(latents, None, inversion, prompt, path.stem)


def _check_latents(path: Path, latents: torch.Tensor, beside: torch.Tensor | None, what: str = "inversion is") -> None:
    if latents.ndim != 5 or len(latents) != 1 or not _is_finite(latents):
        raise UserError(f"{path}: its latents are {_kind(latents)}, no finite clip [1 c f h w]; give another file")
    if beside is not None and (beside.shape != latents.shape or not _is_finite(beside)):
        raise UserError(
            f"{path}: its {what} {_kind(beside)}, not as finite and as large as its latents"
            f" {_kind(latents)}; give another file"
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    return tensor.dtype in REAL and tensor.numel() > 0 and bool(torch.isfinite(tensor).all())


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {shown(list(tensor.shape))}"


def _plain(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.detach().float().cpu().contiguous()


def _batched(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """[c f h w] or [1 c f h w] -> fp32 [1 c f h w]; TypeError for what is no tensor of real numbers held whole."""
    if tensor is None:
        return None
    if not torch.is_tensor(tensor) or tensor.dtype not in REAL:
        raise TypeError(f"{type(tensor).__name__} in place of latents")
    if not is_held(tensor):
        raise TypeError(f"latents {shown(list(tensor.shape))} that the file does not hold")
    return _plain(tensor if tensor.ndim == 5 else tensor[None])
