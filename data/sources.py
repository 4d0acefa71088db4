"""Where clips come from: one video, a folder of them, a json list, or images; several sources at once.

Captions: a folder's clip takes the .txt beside it, else its row of metadata.jsonl or metadata.csv, else the config's
prompt; a single file takes the config's prompt first. A json list gives each clip its own.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs.errors import UserError, shown
from configs.paths import locate
from configs.plain import read_csv, read_json, read_text
from data.clips import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Clip, Cut, read_image, read_video

FILE_KEYS = ("video_path", "clip_path", "video", "path", "file_name")
TEXT_KEYS = ("prompt", "text", "caption")


@dataclass(frozen=True)
class Planned:
    """A clip that was not read yet: its file, what to cut from it, its caption, and what reads such a file."""

    path: Path
    cut: Cut
    prompt: str
    reader: Callable[[Path, Cut, str], Clip] = read_video

    def read(self) -> Clip:
        """The clip. Raises UserError for a file that cannot be used."""
        return self.reader(self.path, self.cut, self.prompt)


def plan_clips(cfg: Any, snap: int) -> list[Planned]:
    """Every clip that `cfg.dataset_types` names, as `cfg.train_data` describes, before any is read.

    `snap` is the multiple of pixels that the model needs (used with use_bucketing). Raises UserError for a source
    without clips and for a clip without a caption.
    """
    data = cfg.train_data
    cut = Cut(
        data.width,
        data.height,
        data.n_sample_frames,
        data.fps,
        data.frame_step,
        max(0, data.sample_start_idx - 1),
        snap if data.use_bucketing else None,
    )
    readers = {"single_video": _single_video, "folder": _folder, "json": _json, "image": _images}
    return [planned for kind in cfg.dataset_types for planned in readers[kind](data, cut)]


def load_clips(cfg: Any, snap: int) -> list[Clip]:
    """The clips of `plan_clips`, read. Raises UserError as that function does, and for a file that cannot be used."""
    return [planned.read() for planned in plan_clips(cfg, snap)]


def _single_video(data: Any, cut: Cut) -> Iterator[Planned]:
    path = locate(data.single_video_path)
    prompt = data.single_video_prompt or _caption(path, {}, "", "train_data.single_video_prompt")
    yield Planned(path, cut, prompt)


def _folder(data: Any, cut: Cut) -> Iterator[Planned]:
    folder = locate(data.path)
    captions = _metadata(folder)
    for path in _files(folder, VIDEO_SUFFIXES, "video", "train_data.path"):
        yield Planned(path, cut, _caption(path, captions, data.fallback_prompt, "train_data.fallback_prompt"))


def _images(data: Any, cut: Cut) -> Iterator[Planned]:
    source = locate(data.image_dir)
    if source.is_file():
        prompt = data.single_img_prompt or _caption(source, {}, "", "train_data.single_img_prompt")
        yield Planned(source, cut, prompt, read_image)
        return
    captions = _metadata(source)
    for path in _files(source, IMAGE_SUFFIXES, "image", "train_data.image_dir"):
        prompt = _caption(path, captions, data.single_img_prompt, "train_data.single_img_prompt")
        yield Planned(path, cut, prompt, read_image)


def _json(data: Any, cut: Cut) -> Iterator[Planned]:
    """MotionDirector's layout ({"data": [{"video_path", "data": [{"frame_index", "prompt"}]}]}) or a plain list.

    `frame_index` is the first frame that is taken, counted from 0; without it `cut.start` counts.
    """
    source = locate(data.json_path)
    content = read_json(source)
    entries = content.get("data") if isinstance(content, dict) else content
    if not isinstance(entries, list) or not entries:
        raise UserError(f'{source}: no list of clips in it; write [{{"video": "a.mp4", "prompt": "a car turns"}}, ...]')
    for number, entry in enumerate(entries):
        where = f"{source}: entry {number}"
        parts = entry.get("data", [{}]) if isinstance(entry, dict) else None
        if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
            raise UserError(
                f'{where}: {shown(entry)} is not a clip; write {{"video": "a.mp4", "prompt": "a car turns"}}'
            )
        for part in parts:
            both = {**entry, **part}
            name, prompt = _first(both, FILE_KEYS), _first(both, TEXT_KEYS)
            if not name:
                raise UserError(f"{where}: names no file; give it one of the keys {', '.join(FILE_KEYS)}")
            if not prompt:
                raise UserError(
                    f"{where}: {shown(name)} has no caption; give it one of the keys {', '.join(TEXT_KEYS)}"
                )
            beside = source.parent / name
            start = both.get("frame_index", cut.start)
            if type(start) is not int or start < 0:
                raise UserError(f"{where}: frame_index is {shown(start)}; give a whole number from 0")
            yield Planned(beside if beside.exists() else locate(name), replace(cut, start=start), prompt)


def _files(folder: Path, suffixes: tuple[str, ...], kind: str, key: str) -> list[Path]:
    if not folder.is_dir():
        raise UserError(f"{key}: no folder at {folder}; point it at a folder of {kind} files")
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    found = [path for path in files if path.suffix.lower() in suffixes]
    if not found:
        seen = ", ".join(sorted({path.suffix or path.name for path in files})) or "nothing"
        raise UserError(f"{key}: no {kind} in {folder} (found {seen}); put {', '.join(suffixes)} files there")
    return found


def _caption(path: Path, captions: dict[str, str], otherwise: str, key: str) -> str:
    beside = path.with_suffix(".txt")
    text = read_text(beside).strip() if beside.is_file() else ""
    prompt = text or captions.get(path.name) or otherwise
    if not prompt:
        raise UserError(f"{path}: no caption; write one into {beside.name} beside it or set {key}")
    return prompt


def _metadata(folder: Path) -> dict[str, str]:
    """File name -> caption from metadata.jsonl or metadata.csv (columns: file_name and text, prompt or caption)."""
    rows: list[Any] = []
    if (source := folder / "metadata.jsonl").is_file():
        lines = enumerate(read_text(source).split("\n"), 1)
        rows = [read_json(line, f"{source}: line {number}") for number, line in lines if line.strip()]
    elif (source := folder / "metadata.csv").is_file():
        rows = list(read_csv(source))
    captions = {}
    for number, row in enumerate(rows, 1):
        name, text = (_first(row, FILE_KEYS), _first(row, TEXT_KEYS)) if isinstance(row, dict) else ("", "")
        if not name or not text:
            raise UserError(f"{source}: row {number} has no file or no caption; give it file_name and text")
        captions[Path(name).name] = text
    return captions


def _first(row: dict[str, Any], keys: tuple[str, ...]) -> str:
    """The first of `keys` with a value, as text; a list or dict is nobody's caption or file."""
    values = (row.get(key) for key in keys)
    return next((str(value) for value in values if value and isinstance(value, (str, int, float))), "")
