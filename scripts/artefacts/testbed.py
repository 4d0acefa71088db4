"""Where an artefact is made: the model and its configuration, the motions to learn, the prompts and the metrics.

Two testbeds share all other code: the toy world with PocketScope, where motion and appearance are measured exactly,
and real clips with a model in ZeroScope's layout, measured by CLIP and point tracking. Prompts are this project's own
fixed lists (data/prompts), because the papers' are not public.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.errors import UserError
from configs.files import atomic_path
from configs.paths import ROOT
from data.clips import VIDEO_SUFFIXES
from data.world import PATHS, REFERENCE_SEEDS, Scene, parse_prompt, reference_clip, render
from infer.video import read_frames, safe_name, write_video
from models.backbones import kind_of_model
from scripts.artefacts.variants import TRUE_MOTION, WORDS_ALONE
from scripts.artefacts.verdict import Role

WORLD_RECIPES = {"unet": "pocket.yaml", "transformer": "pocket_dit.yaml"}  # the network's folder -> configuration
EXAMPLES = ROOT / "data" / "examples"
REAL_CLIPS = {  # example clip -> its caption, and the part of data/prompts/real.txt that asks for its kind of motion
    "car_turn": ("A car is running on the road.", "vehicle turning"),
    "dolly_zoom": ("A figure stands between the columns of a temple.", "camera dolly zoom"),
    "zoom_in": ("A lighthouse on a small island in the sea.", "camera zooming in"),
    "zoom_out": ("A tent in front of pyramids in the desert.", "camera zooming out"),
}

WORLD_ROLES = {
    "motion": Role("correlation", 0.1, ("timing_error", "motion_success"), sign="motion_success"),
    "appearance": Role("appearance_match", 0.02, ("shape_overlap", "appearance_accuracy")),
    "leakage": Role("appearance_pull", 0.05, ("leakage",)),
    "consistency": Role("frame_consistency", 0.05),
}
REAL_ROLES = {
    "motion": Role("motion_fidelity", 0.1),
    "appearance": Role("text_alignment", 0.5),
    "leakage": Role("appearance_leakage", 0.5),
    "consistency": Role("temporal_consistency", 0.5),
}
WORLD_COLUMNS = (
    "motion_success",
    "correlation",
    "timing_error",
    "appearance_match",
    "appearance_accuracy",
    "appearance_pull",
    "leakage",
    "frame_consistency",
)
WORLD_DETAILS = (  # a second table
    "rmse",
    "speed_error",
    "shape_overlap",
    "colour_error",
    "background_error",
    "background_noise",
    "edge_error",
    "flicker",
    "colour_pull",
    "ground_pull",
    "pattern_pull",
    "window_pull",
)
REAL_COLUMNS = (
    "motion_fidelity",
    "motion_fidelity_dmt_code",
    "text_alignment",
    "text_alignment_logits",
    "viclip",
    "pickscore",
    "temporal_consistency",
    "temporal_consistency_all_pairs",
    "appearance_leakage",
)
WEIGHTS = (".safetensors", ".bin")
BLOCK, WHOLE = 1 << 18, 1 << 28  # bytes of a file that are read at once, and of the largest that is read as a whole
NEXT_APPEARANCE = 1000  # how far the seeds of a motion's reference clips are apart


@dataclass(frozen=True)
class MotionTask:
    """One motion to learn in one appearance: the configuration's data keys that name its clips, and prompts to sample.

    `group` is what results are pooled over; `clip` is the first reference clip; `appearance` counts those in which the
    motion is learned.
    """

    name: str
    group: str
    data: tuple[str, ...]
    prompts: tuple[str, ...]
    clip: Path
    several: bool = False  # the other clips lie beside the first
    appearance: int = 0

    @property
    def reference(self) -> str:
        """The motion, and which of its appearances."""
        return f"{self.name}, clip {self.appearance + 1}" if self.appearance else self.name


class Testbed:
    """`world`: the toy world with exact scores; else real clips. `model` is the pipeline folder.

    Reference clips of the toy world are rendered into `folder`/references while an artefact is planned, since a plan
    is named by what its clips hold. `discard` takes those back that this testbed wrote, for a request that is refused
    or only printed.
    """

    def __init__(self, model: Path, world: bool, folder: Path, clips: Path | None = None):
        self.model, self.world, self.clips = model, world, clips
        recipe = WORLD_RECIPES[kind_of_model(model).FOLDER] if world else "real.yaml"
        self.config = ROOT / "configs" / "reproduce" / recipe
        self.folder = folder / "references"
        self._before: dict[Path, bytes | None] = {}  # what was where this testbed wrote
        self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        self.roles = WORLD_ROLES if world else REAL_ROLES
        self.columns, self.details = (WORLD_COLUMNS, WORLD_DETAILS) if world else (REAL_COLUMNS, ())

    @property
    def name(self) -> str:
        return self.model.name

    def fingerprint(self) -> str:
        """Changes with what the model's parts hold: weights, settings and vocabularies; not with its sampling.json."""
        digest = hashlib.sha256()
        files = sorted(p for p in self.model.glob("*/*") if p.suffix in (*WEIGHTS, ".json", ".txt", ".model"))
        if not any(path.suffix in WEIGHTS for path in files):
            raise UserError(
                f"--model: no weights in {self.model}; point it at a pipeline folder in ZeroScope's layout, or "
                "leave it out to use models/pocketscope"
            )
        for path in files:
            digest.update(f"{path.relative_to(self.model)} {path.stat().st_size}".encode())
            for block in _blocks(path):
                digest.update(block)
        return digest.hexdigest()[:12]

    def tasks(
        self, names: Sequence[str], several: bool, most: int | None = None, appearances: int = 1
    ) -> list[MotionTask]:
        """The motions called `names` (of the toy world) in that many appearances each, or those of the examples.

        At most `most` motions; appearance by appearance, so that what is made first has a bit of everything. With
        `several` every motion is learned from several clips. Raises UserError where there are none.
        """
        if self.world:
            return [
                self._world(name, several, appearance) for appearance in range(appearances) for name in names[:most]
            ]
        found = self._several_real() if several else self._real()
        return found[:most]

    def _world(self, motion: str, several: bool, appearance: int) -> MotionTask:
        first = (1, 3, 6) if several else (REFERENCE_SEEDS[motion],)  # 1, 3, 6: window, pattern, three colours, shapes
        seeds = [seed + NEXT_APPEARANCE * appearance for seed in first]
        folder = self.folder / (f"{motion}_few{appearance or ''}" if several else motion)
        clips = [reference_clip(motion, seed) for seed in seeds]
        paths = []
        for seed, clip in zip(seeds, clips):
            path = folder / f"{motion}_{seed}.mp4"
            caption = path.with_suffix(".txt")
            if not (
                _holds(path, clip.frames) and caption.exists() and caption.read_text(encoding="utf-8") == clip.prompt
            ):
                self._before |= {file: file.read_bytes() if file.exists() else None for file in (path, caption)}
                write_video(path, clip.frames, fps=8, quality=10)  # lossless: a reference is exactly what was rendered
                with atomic_path(caption) as unfinished:
                    unfinished.write_text(clip.prompt, encoding="utf-8")
            paths.append(path)
        group, prompts = ("path", "pocket_paths.txt") if motion in PATHS else ("re-timing", "pocket.txt")
        listed = prompt_list(prompts)
        turn = 5 * appearance % len(listed)  # other prompts come first in every appearance
        return MotionTask(
            motion, group, _data(paths, folder), listed[turn:] + listed[:turn], paths[0], several, appearance
        )

    def discard(self) -> None:
        """Put back what was there before this testbed wrote reference clips, and delete folders that hold nothing."""
        for path, content in self._before.items():
            if content is None:
                path.unlink(missing_ok=True)
            else:
                with atomic_path(path) as unfinished:
                    unfinished.write_bytes(content)
        for folder in [*dict.fromkeys(path.parent for path in self._before), self.folder, *self._new_folders]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self._before = {}

    def rendered(self, motion: str, prompts: Sequence[str]) -> dict[str, Path]:
        """Folders of clips that the toy world draws for these prompts: what the metrics give for no transfer at all
        and for a perfect one.

        One shows the motion that the prompt names, the other the held-out `motion`. Keys are the variants' names.
        """
        folders = {WORDS_ALONE: self.folder / "rendered" / "words", TRUE_MOTION: self.folder / "rendered" / motion}
        for name, folder in folders.items():
            for seed, prompt in enumerate(prompts):
                words = parse_prompt(prompt)
                scene = Scene(
                    words["shape"],
                    words["colour"],
                    words["background"],
                    words["motion"] if name == WORDS_ALONE else motion,
                    seed=1000 + seed,
                )
                path, frames = folder / f"{safe_name(prompt)}.mp4", render(scene).frames
                drawn = hashlib.sha256(frames.numpy().tobytes()).hexdigest()  # by the world as it is now
                notes = {"video": path.name, "prompt": prompt, "seed": seed, "config": None, "drawn": drawn}
                sidecar, text = path.with_suffix(".json"), json.dumps(notes)
                if not sidecar.exists() or sidecar.read_text(encoding="utf-8") != text:
                    write_video(path, frames, fps=8)  # as infer.py writes samples
                    with atomic_path(sidecar) as unfinished:
                        unfinished.write_text(text, encoding="utf-8")
        return folders

    def _real(self) -> list[MotionTask]:
        found = []
        for name, (caption, kind) in REAL_CLIPS.items():
            path = EXAMPLES / f"{name}.mp4"
            if path.exists():
                data = (f"train_data.single_video_path={path}", f"train_data.single_video_prompt='{caption}'")
                found.append(MotionTask(name, "real clip", data, prompt_list("real.txt", kind), path))
        if not found:
            raise UserError(f"{EXAMPLES}: no example clip; render them with scripts/render_clips.py")
        return found

    def _several_real(self) -> list[MotionTask]:
        if self.clips is None or not self.clips.is_dir():
            raise UserError(
                "several clips of one motion are needed (the paper uses UCF Sports, which is not shipped): give "
                "a folder of clips with a .txt caption beside each as --clips FOLDER"
            )
        paths = sorted(p for p in self.clips.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES)
        if not paths:
            raise UserError(f"--clips: no video in {self.clips}; put clips of one motion there")
        own = self.clips / "prompts.txt"
        prompts = prompt_list(own) if own.is_file() else prompt_list("real.txt", "person in sport")
        return [MotionTask(self.clips.name, "real clips", _data(paths, self.clips), prompts, paths[0], several=True)]


def _holds(path: Path, frames: torch.Tensor) -> bool:
    """Whether the video at `path` is there, and has these frames to the bit."""
    try:
        return path.exists() and torch.equal(read_frames(path), frames)
    except UserError:
        return False


def _blocks(path: Path) -> Iterator[bytes]:
    """A file's contents; of one that would take long to read every 16th block, and so some of each layer."""
    large = path.stat().st_size > WHOLE
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
            if large:
                file.seek(15 * BLOCK, os.SEEK_CUR)


def _data(paths: Sequence[Path], folder: Path) -> tuple[str, ...]:
    if len(paths) > 1:
        return ("dataset_types=[folder]", f"train_data.path={folder}")
    return (f"train_data.single_video_path={paths[0]}",)  # its caption stands in the .txt beside it


def prompt_list(name: str | Path, section: str | None = None) -> tuple[str, ...]:
    """The prompts of data/prompts/`name` (or of any file by its path), or those below its line `## section`."""
    found, current = [], None
    for line in (ROOT / "data" / "prompts" / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            current = line.removeprefix("## ").strip()
        elif line.strip() and not line.startswith("#") and section in (None, current):
            found.append(line.strip())
    if not found:
        raise UserError(f"{name}: no prompts{f' under {section!r}' if section else ''}; give one a line")
    return tuple(found)
