"""Public benchmarks of motion customization, read from their folders: which clip, which prompts, which points.

MTBench (Shi et al. 2025, DeT), whose cases may also lie one folder deeper, by level:
    CASE/videos/CASE.mp4  CASE/masks/CASE/00000.png  CASE/trajectories/CASE.pth  CASE/prompts.txt  CASE/eval_prompts.txt
    The mask is the moving object's in the first frame, trajectories are float32 [frames points 3]: x and y as shares of
    the frame, and 1 where the point is visible; prompts.txt holds the caption, eval_prompts.txt a prompt a line.
JointTuner (Chen et al. 2025): the folder of a checkout, or its datasets folder:
    motion_16f/MOTION/*.mp4 (and motion_49f), captions in .txt files beside the clips or else the folder's name
    All clips of a folder show one motion. Those in deeper folders are left out: a training reads one folder.
    Prompts are those of MOTION/prompts.txt, else of the checkout's configurations (*.yaml) that train on this motion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from configs.errors import UserError
from configs.plain import read_text, read_yaml, shown_error
from data.clips import UNREADABLE, VIDEO_SUFFIXES
from data.pickles import is_held, read_pickle

MTBENCH, JOINTTUNER = "MTBench", "JointTuner"
PARTS = ("videos", "masks", "trajectories", "prompts.txt", "eval_prompts.txt")
MOTION_FOLDERS = ("motion_16f", "motion_49f")


@dataclass(frozen=True)
class Case:
    """One motion: its clip with a caption, and the prompts to sample. `others` are more clips of the same motion, in
    the same folder; `mask` and `tracks` are files, None where there are none. `notes` are sentences about what the case
    lacks or leaves out where it is used all the same.
    """

    name: str
    group: str
    clip: Path
    caption: str
    prompts: tuple[str, ...]
    mask: Path | None = None
    tracks: Path | None = None
    others: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """`missing` has a sentence for each case that is left out, `notes` one for each other thing that was not read."""

    name: str
    cases: list[Case]
    missing: list[str]
    notes: list[str]


def read_benchmark(folder: Path) -> Benchmark:
    """The benchmark in a folder; a case that lacks something is named, and the others stay.

    Raises UserError when the folder is missing or has the layout of neither benchmark.
    """
    if not folder.is_dir():
        raise UserError(f"--benchmark: no folder {folder}; give the folder of MTBench or of JointTuner")
    motions = [path for name in MOTION_FOLDERS for path in sorted(folder.rglob(name)) if path.is_dir()]
    found, notes = _jointtuner(folder, motions) if motions else _mtbench(folder)
    if not found:
        raise UserError(
            f"--benchmark: {folder} has neither MTBench's layout (CASE/videos/CASE.mp4) nor JointTuner's "
            f"({' or '.join(MOTION_FOLDERS)}); data/benchmarks.py describes both"
        )
    cases = [case for case in found if isinstance(case, Case)]
    missing = [case for case in found if isinstance(case, str)]
    return Benchmark(
        JOINTTUNER if motions else MTBENCH, cases, missing, [*notes, *(note for case in cases for note in case.notes)]
    )


def read_tracks(path: Path, frames: int, seen: Sequence[int] | None = None) -> np.ndarray:
    """Trajectories [n f 2] as shares of the frame over the frames `seen` of the clip's `frames` (default all of them),
    of the points that are visible in the first of those.

    Raises UserError for a damaged file, another layout, another length or a point that is nowhere.
    """
    import torch

    tracks = read_pickle(path, "trajectories")
    shape = list(tracks.shape) if isinstance(tracks, torch.Tensor) else type(tracks).__name__
    if not isinstance(tracks, torch.Tensor) or tracks.ndim != 3 or tracks.shape[2] != 3 or not is_held(tracks):
        raise UserError(f"{path}: found {shape} where trajectories are [frames points 3]; download the file again")
    if tracks.shape[0] != frames:
        raise UserError(
            f"{path}: trajectories over {tracks.shape[0]} frames of a clip of {frames}; they belong to another"
        )
    if not torch.isfinite(tracks).all():
        raise UserError(f"{path}: trajectories with values that are not finite; download the file again")
    tracks = tracks if seen is None else tracks[list(seen)]
    tracks = tracks[:, tracks[0, :, 2] > 0.5]
    if not tracks.shape[1]:
        raise UserError(f"{path}: no point is visible in the first frame; the case cannot be measured by it")
    return tracks[..., :2].float().permute(1, 0, 2).numpy()


def read_mask(path: Path) -> np.ndarray:
    """The mask, bool [h w]: the object is whatever is not 0 (a grey value, a palette's index, a colour), without alpha.

    Raises UserError for a file that is no picture.
    """
    try:
        with Image.open(path) as image:
            pixels, bands = np.atleast_3d(np.asarray(image)), image.getbands()  # a palette's indices, not its colours
    except UNREADABLE as error:
        raise UserError(f"{path}: not a mask that can be read ({shown_error(error)}); download it again") from None
    return pixels[..., : len(bands) - (bands[-1] in ("A", "a"))].any(-1)


def _mtbench(folder: Path) -> tuple[list[Case | str], list[str]]:
    """(each case, or the sentence that it is left out; a sentence for each folder that does not belong to it)"""
    places = _folders(folder)
    levels = [path for path in places if not _is_case(path) and any(map(_is_case, _folders(path)))]
    cases = [(path, "all") for path in places if _is_case(path)]
    cases += [(path, level.name) for level in levels for path in _folders(level)]
    others = [path for path in places if path not in levels and not _is_case(path)]
    notes = [f"{path.name}: neither a case nor a folder of cases, left out" for path in others]
    return [_mtbench_case(path, group) for path, group in cases], notes


def _mtbench_case(path: Path, group: str) -> Case | str:
    name, clip = path.name, path / "videos" / f"{path.name}.mp4"
    mask, tracks = path / "masks" / name / "00000.png", path / "trajectories" / f"{name}.pth"
    if not clip.is_file():
        return f"{name}: no videos/{name}.mp4, left out; download the case again"
    try:
        caption = (_lines(path / "prompts.txt") or [""])[0]
        prompts = _lines(path / "eval_prompts.txt")
    except UserError as error:
        return f"{name}: {error}, left out"
    if not caption or not prompts:
        return f"{name}: {'prompts.txt' if not caption else 'eval_prompts.txt'} is missing or empty, left out"
    notes = []
    if not tracks.is_file():
        notes.append(f"{name}: no trajectories/{name}.pth; points are followed anew")
    if not mask.is_file():
        notes.append(f"{name}: no masks/{name}/00000.png; where points are followed anew they are of the whole frame")
    return Case(
        name,
        group,
        clip,
        caption,
        tuple(prompts),
        mask if mask.is_file() else None,
        tracks if tracks.is_file() else None,
        notes=tuple(notes),
    )


def _jointtuner(folder: Path, groups: list[Path]) -> tuple[list[Case | str], list[str]]:
    """(each motion, or the sentence that it is left out; a sentence for each configuration that cannot be read)"""
    configured, notes = _configured(folder)
    return [_motion(path, group, configured) for group in groups for path in _folders(group)], notes


def _motion(path: Path, group: Path, configured: Mapping[str, list[str]]) -> Case | str:
    """A motion's folder as a case, with the prompts that configurations have for its name."""
    files = sorted(path.rglob("*"), key=lambda file: (len(file.parts), file))  # its own before deeper ones
    clips = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES and not _is_hidden(file, path)]
    if not clips:
        return f"{path.name}: no video in {path}, left out; download the case again"
    try:
        prompts = _lines(path / "prompts.txt") or configured.get(path.name, [])
        caption = (_lines(clips[0].with_suffix(".txt")) or [path.name.replace("_", " ")])[0]
    except UserError as error:
        return f"{path.name}: {error}, left out"
    if not prompts:
        return f"{path.name}: no prompts.txt, and no configuration trains on it, left out; write one"
    others = tuple(clip for clip in clips[1:] if clip.parent == clips[0].parent)
    return Case(
        path.name,
        group.name,
        clips[0],
        caption,
        tuple(prompts),
        others=others,
        notes=_elsewhere(path, clips[0], clips[1 + len(others) :]),
    )


def _elsewhere(motion: Path, first: Path, clips: list[Path]) -> tuple[str, ...]:
    """The sentence that these clips, in other folders than the first one's, are left out; none where there are none."""
    if not clips:
        return ()
    number = "1 clip in another folder" if len(clips) == 1 else f"{len(clips)} clips in other folders"
    return (
        f"{motion.name}: {number} left out ({clips[0].relative_to(motion)}), since a training reads one folder; to use "
        f"them put them beside {first.relative_to(motion)}",
    )


def _configured(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """(name of a motion's folder -> validation prompts of all configurations under `folder` whose training path ends in
    it, a sentence for each file or entry that cannot be used)"""
    prompts: dict[str, list[str]] = {}
    notes = []
    for file in sorted(folder.rglob("*.yaml")):
        if _is_hidden(file, folder):
            continue
        try:
            values = read_yaml(file)
        except UserError as error:
            notes.append(f"{error}; if it is a configuration of the benchmark, its prompts are left out")
            continue
        data, validation = (
            values.get(key) if isinstance(values, dict) else None for key in ("train_data", "validation_data")
        )
        path = data.get("path") if isinstance(data, dict) else None
        if isinstance(path, str) and isinstance(validation, dict):
            asked = validation.get("prompt")
            entries = asked if isinstance(asked, list) else [] if asked is None else [asked]
            texts = [entry for entry in entries if isinstance(entry, str)]
            if others := len(entries) - len(texts):
                none = f"{others} {'is' if others == 1 else 'are'} no text and left out"
                notes.append(f"{file}: of the entries of validation_data.prompt {none}")
            prompts.setdefault(Path(path).name, []).extend(texts)
    return {motion: list(dict.fromkeys(texts)) for motion, texts in prompts.items()}, notes


def _is_case(path: Path) -> bool:
    return any((path / part).exists() for part in PARTS)


def _folders(path: Path) -> list[Path]:
    return [inside for inside in sorted(path.iterdir()) if inside.is_dir() and not _is_hidden(inside, path)]


def _is_hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def _lines(path: Path) -> list[str]:
    """Lines of a text file without blanks at their ends; none where there is no file."""
    return [line.strip() for line in read_text(path).split("\n") if line.strip()] if path.is_file() else []
