"""Where an artefact is made: the model and its configuration, the motions to learn, the prompts and the metrics.

Two testbeds share all other code: the toy world with PocketScope, where motion and appearance are measured exactly,
and real clips with a model in ZeroScope's layout, measured by CLIP and point tracking. Prompts are this project's own
fixed lists (data/prompts), because the papers' are not public.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.files import atomic_path
from configs.schema import ROOT
from data.clips import VIDEO_SUFFIXES
from data.world import PATHS, REFERENCE_SEEDS, Scene, parse_prompt, reference_clip, render
from infer.video import safe_name, write_video
from scripts.artefacts.catalogue import TRUE_MOTION, WORDS_ALONE

POCKET = ROOT / "models" / "pocketscope"
EXAMPLES = ROOT / "data" / "examples"
REAL_CLIPS = {  # example clip -> its caption, and the part of data/prompts/real.txt that asks for its kind of motion
    "car_turn": ("A car is running on the road.", "vehicle turning"),
    "dolly_zoom": ("A figure stands between the columns of a temple.", "camera dolly zoom"),
    "zoom_in": ("A lighthouse on a small island in the sea.", "camera zooming in"),
    "zoom_out": ("A tent in front of pyramids in the desert.", "camera zooming out"),
}


@dataclass(frozen=True)
class MotionTask:
    """One motion to learn: the configuration's data keys that name its clips, and the prompts it is sampled with.

    `group` is what results are pooled over; `clip` is the first reference clip.
    """

    name: str
    group: str
    data: tuple[str, ...]
    prompts: tuple[str, ...]
    clip: Path
    several: bool = False  # the other clips lie beside the first


class Testbed:
    """`world`: the toy world with exact scores; else real clips. `model` is the pipeline folder.

    Reference clips of the toy world are rendered into `folder`/references while an artefact is planned, since a plan
    is named by what its clips hold. `discard` takes those back that this testbed wrote, for a request that is refused
    or only printed.
    """

    def __init__(self, model: Path, world: bool, folder: Path, clips: Path | None = None):
        self.model, self.world, self.clips = model, world, clips
        self.config = ROOT / "configs" / "reproduce" / ("pocket.yaml" if world else "real.yaml")
        self.folder = folder / "references"
        self._written: list[Path] = []
        self._new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
        # the metric that a claim is decided by here, and by how much "no worse" may be worse
        self.roles = (
            {
                "motion": ("correlation", 0.1),
                "appearance": ("appearance_accuracy", 0.1),
                "leakage": ("leakage", 0.1),
                "consistency": ("frame_consistency", 0.05),
            }
            if world
            else {
                "motion": ("motion_fidelity", 0.1),
                "appearance": ("text_alignment", 0.5),
                "leakage": ("appearance_leakage", 0.5),
                "consistency": ("temporal_consistency", 0.5),
            }
        )
        self.columns = (
            ("motion_success", "correlation", "rmse", "appearance_accuracy", "leakage", "frame_consistency")
            if world
            else (
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
        )

    @property
    def name(self) -> str:
        return self.model.name

    def fingerprint(self) -> str:
        """Changes with the model's weights: size, beginning and end of every weight file."""
        digest = hashlib.sha256()
        files = sorted(p for p in self.model.rglob("*") if p.suffix in (".safetensors", ".bin"))
        if not files:
            raise UserError(
                f"--model: no weights in {self.model}; point it at a pipeline folder in ZeroScope's layout, or "
                "leave it out to use models/pocketscope"
            )
        for path in files:
            size, edge = path.stat().st_size, 1 << 20
            digest.update(f"{path.relative_to(self.model)} {size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(edge))
                file.seek(max(0, size - edge))
                digest.update(file.read(edge))
        return digest.hexdigest()[:12]

    def tasks(self, names: Sequence[str], several: bool, most: int | None = None) -> list[MotionTask]:
        """The motions called `names` (of the toy world), or those of the example clips; at most `most`.

        With `several` every motion is learned from several clips. Raises UserError where there are none.
        """
        if self.world:
            return [self._world(name, several) for name in names[:most]]
        found = self._several_real() if several else self._real()
        return found[:most]

    def _world(self, motion: str, several: bool) -> MotionTask:
        seeds = (
            (1, 3, 6) if several else (REFERENCE_SEEDS[motion],)  # 1, 3, 6: window, pattern, three colours and shapes
        )
        folder = self.folder / (f"{motion}_few" if several else motion)
        clips = [reference_clip(motion, seed) for seed in seeds]
        paths = []
        for seed, clip in zip(seeds, clips):
            path = folder / f"{motion}_{seed}.mp4"
            caption = path.with_suffix(".txt")
            if not (path.exists() and caption.exists()):
                self._written += [path, caption]
                write_video(path, clip.frames, fps=8, quality=10)  # lossless: a reference is exactly what was rendered
                with atomic_path(caption) as unfinished:
                    unfinished.write_text(clip.prompt)
            paths.append(path)
        group, prompts = ("path", "pocket_paths.txt") if motion in PATHS else ("re-timing", "pocket.txt")
        return MotionTask(motion, group, _data(paths, folder), prompt_list(prompts), paths[0], several)

    def discard(self) -> None:
        """Delete the reference clips that this testbed wrote, and the folders that held nothing else."""
        for path in self._written:
            path.unlink(missing_ok=True)
        for folder in [*dict.fromkeys(path.parent for path in self._written), self.folder, *self._new_folders]:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self._written = []

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
                path = folder / f"{safe_name(prompt)}.mp4"
                notes = path.with_suffix(".json")
                if not notes.exists():
                    write_video(path, render(scene).frames, fps=8)  # as infer.py writes samples
                    with atomic_path(notes) as unfinished:
                        unfinished.write_text(
                            json.dumps({"video": path.name, "prompt": prompt, "seed": seed, "config": None})
                        )
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
