"""Say what a LoRA file is, and turn it into another kind of file.

    python scripts/convert.py inspect PATH
    python scripts/convert.py {ours,peft,diffusers,release,merged} SOURCE OUT [--model FOLDER] [--preset NAME]

SOURCE is a run or checkpoint folder of ours, of the paper's authors, of MotionDirector or of Motion Inversion, one
`N_unet.pt`, a PEFT folder, or a diffusers LoRA file. OUT is a folder, new or empty: a run (ours, release), or the
adapter's own (peft, diffusers), or a whole pipeline with the motion in its weights (merged). Nothing in SOURCE is
executed, and nothing is written before all of it was read and checked.
"""

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml
from safetensors import safe_open
from transformers import CLIPTokenizer

from configs.errors import UserError, command
from configs.files import atomic_path
from data.cache import read_cached
from models import lora
from models.backbone import Backbone, skeleton
from models.files import release
from models.files.checkpoint import Checkpoint, list_checkpoints, load_checkpoint, save_checkpoint
from models.files.diffusers import DIFFUSERS_FILE, header_of, read_diffusers, read_peft, write_diffusers, write_peft
from models.files.peft import ADAPTER_FILE
from models.files.tensors import read_pickle
from models.merge import merge

CACHE = "cached_latents"


def read(source: Path, index: int | None = None, model: str | None = None, preset: str | None = None) -> Checkpoint:
    """Any of the formats above as a Checkpoint. `model` names layers where the file does not (default: ZeroScope)."""
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if source.suffix == ".pt":
        return _read_pickle(source, model, preset)
    if source.name == DIFFUSERS_FILE or (source / DIFFUSERS_FILE).is_file():
        return read_diffusers(source)
    if source.name == ADAPTER_FILE or (source / ADAPTER_FILE).is_file():
        return read_peft(source.parent if source.is_file() else source)
    if source.is_file():
        raise UserError(f"{source}: expected a .pt, {ADAPTER_FILE} or {DIFFUSERS_FILE}")
    nameless = any(source.glob("**/lora/*_unet.pt"))
    unet = skeleton(model) if nameless or model else None
    return load_checkpoint(source, index, preset=preset, unet=unet)


def _read_pickle(path: Path, model: str | None, preset: str | None) -> Checkpoint:
    if path.name == release.EMBEDDINGS_FILE:
        return load_checkpoint(path.parent)
    tensors, unet = release.read_list(path), skeleton(model)
    asked = preset
    preset, _ = release.choose_preset(path, tensors, unet, asked)
    (motion,) = release.name_tensors(tensors, lora.targets(unet, preset))
    info = {"architecture": release.architecture(unet)}
    if asked is None and preset == release.ASSUMED:
        info["assumed"] = f"{path} names no layers"
    step, rank = path.name.split("_")[0], max(down.shape[0] for down in tensors[1::2])
    return Checkpoint(path, int(step) if step.isdecimal() else 0, "lora", preset, rank, 1.0, motion, info=info)


def convert(kind: str, source: Path, out: Path, index: int | None, model: str | None, preset: str | None) -> Path:
    """Read `source`, write it as `kind`, return what was written."""
    checkpoint = read(source, index, model, preset)
    if "assumed" in checkpoint.info:
        raise UserError(
            f"{source}: its layers have no names and release and tap have the same shapes: say which with"
            " --preset release (what the authors' code trains) or --preset tap"
        )
    _refuse_existing(out)
    if kind in ("ours", "release"):
        folder = out / f"checkpoint-{checkpoint.index}"
        cache = _cache_of(checkpoint, model, release=kind == "release")
        if kind == "ours":
            _write_ours(checkpoint, out)
        else:
            _write_release(checkpoint, folder, model)
        _write_cache(cache, out / CACHE)
        return folder
    if checkpoint.kind != "lora":
        raise UserError(
            f"{source}: holds Motion Inversion's embeddings, which {kind} files have no place for; they can"
            " be written as ours or release"
        )
    with atomic_path(out) as part:
        if kind == "merged":
            _write_merged(checkpoint, part, model)
        else:
            part.mkdir()
            {"peft": write_peft, "diffusers": write_diffusers}[kind](checkpoint, part)
    return out


def _refuse_existing(path: Path) -> None:
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path}: exists already; remove it or name another place")


def _write_ours(checkpoint: Checkpoint, run: Path) -> None:
    header = header_of(checkpoint) if checkpoint.kind == "lora" else checkpoint.info
    config = None if checkpoint.config is None else yaml.safe_dump(checkpoint.config, sort_keys=False)
    save_checkpoint(
        run,
        checkpoint.index,
        motion=checkpoint.motion,
        appearance=checkpoint.appearance,
        kind=checkpoint.kind,
        config_yaml=config,
        info=header,
    )


def _write_release(checkpoint: Checkpoint, folder: Path, model: str | None) -> None:
    with atomic_path(folder) as part:
        part.mkdir()
        if checkpoint.kind == "embeddings":
            release.write_embeddings(checkpoint.motion, part / release.EMBEDDINGS_FILE)
            return
        if checkpoint.preset is None:
            raise UserError(f"{checkpoint.path}: adapts no preset's layers, so it has no place in a positional file")
        release.write_lora(
            part,
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
    return model or (trained if trained and Path(trained).is_dir() else None)


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
            tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
            ids = tokenizer(clip.prompt, padding="max_length", truncation=True, return_tensors="pt").input_ids
            content["prompt_ids"] = ids[0]
        cache[f"{path.stem}.pt"] = content
        _note(f"{path.stem}.pt will hold no pixel_values: ours does not keep them, sampling does not read them")
    return cache


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
    backbone = Backbone.load(folder, _stored_dtype(Path(folder) / "unet"))
    merge(backbone.unet, checkpoint.motion, 1.0, checkpoint.scale)
    shutil.copytree(folder, part, ignore=lambda path, names: ["unet"] if Path(path) == Path(folder) else [])
    backbone.unet.save_pretrained(part / "unet")


def _stored_dtype(unet: Path) -> torch.dtype:
    """The type the U-Net's weights have on disk, which a merged model keeps."""
    for path in unet.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(next(iter(file.keys()))).dtype
    for path in unet.glob("*.bin"):
        return next(iter(read_pickle(path).values())).dtype
    raise UserError(f"{unet}: no weights there; give the folder of a complete pipeline")


def inspect(path: Path, model: str | None) -> list[str]:
    """What is at `path`, one fact a line."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if (path / "model_index.json").is_file():
        return ["pipeline folder", f"U-Net: {release.architecture(skeleton(path))}"]
    if path.suffix == ".pt" and path.name != release.EMBEDDINGS_FILE:
        return _inspect_pickle(path, model)
    if path.is_file() or (path / ADAPTER_FILE).is_file() or (path / DIFFUSERS_FILE).is_file():
        return _describe(read(path, None, model))
    found = list_checkpoints(path)
    if not found:
        raise UserError(f"{path}: no checkpoint, LoRA or pipeline there")
    lines = [f"run folder, checkpoints {', '.join(map(str, found))}; the last:"] if len(found) > 1 else []
    last = found[max(found)]
    if (file := release.lora_file(last, "temporal")) is None:
        return lines + _describe(load_checkpoint(last))
    sides = [file, release.lora_file(last, "spatial")]
    return lines + [
        f"{side.relative_to(path)}: {line}" for side in sides if side for line in _inspect_pickle(side, model)
    ]


def _inspect_pickle(path: Path, model: str | None) -> list[str]:
    content = read_pickle(path)
    if isinstance(content, dict):
        shapes = [f"{name}: {list(v.shape) if isinstance(v, torch.Tensor) else v!r}" for name, v in content.items()]
        return ["dict of the release, such as its cached latents", *shapes]
    tensors, unet = release.read_list(path), skeleton(model)
    ranks = sorted({down.shape[0] for down in tensors[1::2]})
    fits = [f"{name}" + (f" ({n} clips)" if n > 1 else "") for name, n in release.identify(tensors, unet).items()]
    known = (
        f"fits {' or '.join(fits)} on {release.architecture(unet)}"
        if fits
        else (f"fits no preset on {release.architecture(unet)}" + ("" if model else "; name its model with --model"))
    )
    return [
        f"positional list of the release or MotionDirector, {len(tensors) // 2} layers, rank"
        f" {'/'.join(map(str, ranks))}, widths {release.widths(tensors)}",
        known,
    ]


def _describe(checkpoint: Checkpoint) -> list[str]:
    size = sum(tensor.numel() for tensor in checkpoint.motion.values())
    lines = [f"{checkpoint.kind} checkpoint of step {checkpoint.index}, {size:,} motion parameters"]
    if checkpoint.kind == "lora":
        layers = len(checkpoint.motion) // 2
        lines += [
            f"preset: {checkpoint.preset or 'none of ours'}, {layers} layers, rank {checkpoint.rank}, scale"
            f" {checkpoint.scale:g}",
            f"appearance adapters: {len(checkpoint.appearance)}",
        ]
    lines += [f"{key}: {value}" for key, value in sorted(checkpoint.info.items()) if key not in ("preset", "rank")]
    return lines + [f"config: {'in the header' if checkpoint.config else 'none'}"]


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind in ("inspect", "ours", "peft", "diffusers", "release", "merged"):
        sub = commands.add_parser(kind)
        sub.add_argument("source", type=Path)
        sub.add_argument("--model", help="pipeline folder the file belongs to (default: ZeroScope's layout)")
        if kind != "inspect":
            sub.add_argument("out", type=Path)
            sub.add_argument("--preset", choices=[name for name in lora.PRESETS if name != release.APPEARANCE])
            sub.add_argument("--index", type=int, help="checkpoint of a run folder (default: the last)")
    args = parser.parse_args()
    if args.kind == "inspect":
        print("\n".join(inspect(args.source, args.model)))
    else:
        print(convert(args.kind, args.source, args.out, args.index, args.model, args.preset))


if __name__ == "__main__":
    main()
