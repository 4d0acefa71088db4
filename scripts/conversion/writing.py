"""A Checkpoint written as another kind of file, with the reference clips' cache where the kind has a place for it."""

import shutil
import sys
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import CLIPTokenizer

from configs.archives import check_safetensors
from configs.errors import UserError, printable
from configs.files import atomic_path, check_writable, sweep
from configs.paths import locate
from configs.plain import dump_yaml, shown_error
from data.cache import read_cached
from models.backbone import Backbone
from models.backbones import kind_of_model
from models.files import release
from models.files.checkpoint import Checkpoint, save_checkpoint
from models.files.dialects import DIALECTS, write_dialect
from models.files.diffusers_lora import header_of, write_diffusers, write_peft
from models.files.header import CUSTOM
from models.files.parts import UNLOADABLE
from models.files.pipeline import check_pipeline
from models.files.tensors import REAL, read_pickle
from models.merge import merge
from models.outline import skeleton
from scripts.conversion.reading import read

CACHE = "cached_latents"


def convert(kind: str, source: Path, out: Path, index: int | None, model: str | None, preset: str | None) -> Path:
    """Read `source`, write it as `kind` into the new or empty folder `out`, return what was written.

    Raises UserError, writing nothing, where the source is damaged or the kind has no place for what it holds.
    """
    checkpoint = read(source, index, model, preset)
    if "assumed" in checkpoint.info:
        raise UserError(
            f"{source}: its layers have no names and release and tap have the same shapes: name it with"
            " --preset release (what the authors' code trains) or --preset tap"
        )
    if checkpoint.preset == "tap_pure" and kind in ("diffusers", "comfyui", "musubi", "merged"):
        _note("tap_pure takes QK-norm from the base model, which other programs do not: there it acts as tap_temporal")
    out = out.absolute()  # "." has no name to write under
    _refuse_existing(out)
    check_writable(out.parent)
    sweep(out.parent)
    run = kind in ("ours", "release")
    if checkpoint.kind != "lora" and not run:
        raise UserError(
            f"{source}: holds Motion Inversion's embeddings, which {kind} files have no place for; they can"
            " be written as ours or release"
        )
    cache = _cache_of(checkpoint, model, release=kind == "release") if run else {}
    with atomic_path(out) as part:
        if kind == "merged":
            _write_merged(checkpoint, part, model)
        elif kind == "ours":
            _write_ours(checkpoint, part)
        else:
            part.mkdir()
            folder = part / f"checkpoint-{checkpoint.index}" if kind == "release" else part
            writers = {name: partial(write_dialect, name) for name in DIALECTS}
            writers |= {"peft": write_peft, "diffusers": write_diffusers, "release": partial(_write_release, model)}
            writers[kind](checkpoint, folder)
        _write_cache(cache, part / CACHE)
    return out / f"checkpoint-{checkpoint.index}" if run else out


def _refuse_existing(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; remove it or name another place")


def _write_ours(checkpoint: Checkpoint, run: Path) -> None:
    """A LoRA of whatever layers: what another program trained can be sampled, and not trained on."""
    header = {"preset": CUSTOM} | header_of(checkpoint) if checkpoint.kind == "lora" else checkpoint.info
    config = None if checkpoint.config is None else dump_yaml(checkpoint.config)
    save_checkpoint(
        run,
        checkpoint.index,
        motion=checkpoint.motion,
        appearance=checkpoint.appearance,
        kind=checkpoint.kind,
        config_yaml=config,
        info=header,
    )


def _write_release(model: str | None, checkpoint: Checkpoint, folder: Path) -> None:
    folder.mkdir()
    if checkpoint.kind == "embeddings":
        release.write_embeddings(checkpoint.motion, folder / release.EMBEDDINGS_FILE)
        return
    if checkpoint.preset is None:
        raise UserError(f"{checkpoint.path}: adapts no preset's layers, so it has no place in a positional file")
    release.write_lora(
        folder,
        checkpoint.index,
        skeleton(_model_of(checkpoint, model)),
        checkpoint.preset,
        checkpoint.motion,
        checkpoint.appearance,
        checkpoint.scale,
    )
    if checkpoint.preset not in (release.ASSUMED, "motiondirector"):
        _note(
            f"the authors' code knows the presets release and motiondirector only and would put the"
            f" {checkpoint.preset} layers of this file elsewhere; ours reads it with --preset {checkpoint.preset}"
        )
    if checkpoint.scale != 1:
        _note(f"the scale alpha / rank = {checkpoint.scale:g} was multiplied into the up matrices")


def _model_of(checkpoint: Checkpoint, model: str | None) -> str | None:
    trained = (checkpoint.config or {}).get("pretrained_model_path")
    return model or (str(locate(trained)) if trained and locate(trained).is_dir() else None)


def _cache_of(checkpoint: Checkpoint, model: str | None, release: bool) -> dict[str, Path | dict]:
    """The reference clips' cached latents by file name: files to copy, or the dicts that the release pickles."""
    source = checkpoint.path if (checkpoint.path / CACHE).is_dir() else checkpoint.path.parent
    cache: dict[str, Path | dict] = {}
    for path in sorted((source / CACHE).glob("cached_*")):
        clip = read_cached(path)  # also of a file that is copied: nothing unreadable or unsafe is passed on
        if not release or path.suffix == ".pt":
            cache[path.name] = path
            continue
        content = {"latents": clip.latents[0], "text_prompt": clip.prompt, "dataset": "single_video"}  # [c f h w]
        if clip.inversion is not None:
            content["inversion_noise"] = clip.inversion[0]
        if (folder := _model_of(checkpoint, model)) is not None:
            content["prompt_ids"] = _token_ids(folder, clip.prompt)
        cache[f"{path.stem}.pt"] = content
        _note(f"{path.stem}.pt will hold no pixel_values: ours does not keep them, sampling does not read them")
    return cache


def _token_ids(folder: str, prompt: str) -> torch.Tensor:
    if not Path(folder).is_dir():
        raise UserError(f"--model: {folder} is no folder; its tokenizer is needed for the reference's caption")
    check_pipeline(Path(folder))
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        return tokenizer(prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids[0]
    except UNLOADABLE as error:
        raise UserError(f"{folder}: its tokenizer cannot be loaded ({shown_error(error)}); download it again") from None


def _write_cache(cache: dict[str, Path | dict], folder: Path) -> None:
    for name, content in cache.items():
        with atomic_path(folder / name) as part:
            if isinstance(content, Path):
                shutil.copyfile(content, part)
            else:
                torch.save(content, part)


def _write_merged(checkpoint: Checkpoint, part: Path, model: str | None) -> None:
    folder = _model_of(checkpoint, model)
    if folder is None or not Path(folder).is_dir():
        raise UserError("merged: needs the folder of the pipeline to merge into: give it with --model")
    network = kind_of_model(folder).FOLDER
    backbone = Backbone.load(folder, _stored_dtype(Path(folder) / network))
    merge(backbone.network, checkpoint.motion, 1.0, checkpoint.scale)
    shutil.copytree(folder, part, ignore=lambda path, names: [network] if Path(path) == Path(folder) else [])
    backbone.network.save_pretrained(part / network)


def _stored_dtype(network: Path) -> torch.dtype:
    """The type the network's weights have on disk, which a merged model keeps; of two variants not the fp16 one."""
    found = sorted([*network.glob("*.safetensors"), *network.glob("*.bin")])
    for path in sorted(found, key=lambda path: ".fp16." in path.name):
        if path.suffix == ".bin":
            content = read_pickle(path)
            first = next(iter(content.values()), None) if isinstance(content, dict) else None
        else:
            check_safetensors(path)
            try:
                with safe_open(path, framework="pt") as file:
                    first = next((file.get_tensor(name) for name in file.keys()), None)
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path}: truncated, or no safetensors file ({shown_error(error)})") from None
        if not isinstance(first, torch.Tensor) or first.dtype not in REAL:
            raise UserError(f"{path}: holds no weights of real numbers; give the folder of a complete pipeline")
        return first.dtype
    raise UserError(f"{network}: no weights there; give the folder of a complete pipeline")


def _note(text: str) -> None:
    print(f"note: {printable(text)}", file=sys.stderr)
