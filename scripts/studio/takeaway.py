"""What a person takes away from a run: LoRA files in three dialects, videos, the configuration, the commands."""

import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path

from configs.errors import UserError
from configs.files import atomic_path
from configs.paths import locate
from models.backbones import kind_of_model
from scripts.studio.places import Places, script, short
from scripts.studio.recipe import go_on
from scripts.studio.runs import Run

LORAS = {  # kind of scripts/convert.py -> what it is for
    "ours": "LoRA, ours (PEFT folder, loads here)",
    "diffusers": "LoRA for diffusers",
    "comfyui": "LoRA for ComfyUI (Wan)",
    "musubi": "LoRA for musubi-tuner (Wan)",
    "release": "LoRA as the authors' list (3-D U-Net)",
}
OF_ONE_NETWORK = {"comfyui": "transformer", "musubi": "transformer", "release": "unet"}  # its folder
VIDEOS, CONFIG = "videos", "config"
KINDS = {**LORAS, VIDEOS: "the sampled videos", CONFIG: "the configuration (YAML)"}


def lora_words(kind: str, run: Run, index: int, places: Places) -> list[str]:
    """The command that writes a checkpoint as another kind of file."""
    out = places.lora / f"{_plain(run)}_{index}_{kind}"
    return [script("scripts/convert.py"), kind, short(run.path), short(out), "--index", str(index)]


def prepare(kind: str, run: Run, index: int, places: Places) -> Path:
    """A file to download, in the page's folder. Raises UserError where the run has no such thing."""
    if kind in LORAS:
        return _lora(kind, run, index, places)
    if kind == CONFIG:
        return _copied(places.files / f"{_plain(run)}.yaml", run.path / "config.yaml")
    if kind == VIDEOS:
        return _videos(run, places)
    raise UserError(f"download: there is no {kind!r}; choose one of {', '.join(KINDS)}")


def _loras_of(run: Run) -> list[str]:
    """The kinds of files that the run's network can have; every kind where its model is no folder here."""
    try:
        model = locate(run.config().pretrained_model_path)
    except UserError:  # a damaged configuration, which is told elsewhere
        return [*LORAS]
    network = kind_of_model(model).FOLDER if model.is_dir() else None
    return [kind for kind in LORAS if network is None or OF_ONE_NETWORK.get(kind, network) == network]


def _lora(kind: str, run: Run, index: int, places: Places) -> Path:
    from scripts.conversion.writing import convert

    words = lora_words(kind, run, index, places)
    out = Path(words[3]).absolute()
    with atomic_path(out) as part:  # an earlier one from the same checkpoint stays until the new one is whole
        convert(kind, run.path, part, index, None, None)  # its notes go to the page's terminal
    return _zipped(places.files / f"{out.name}.zip", out, sorted(path for path in out.rglob("*") if path.is_file()))


def _videos(run: Run, places: Places) -> Path:
    folder = places.infer / run.name
    found = sorted(path for path in folder.rglob("[!.]*") if path.suffix in (".mp4", ".gif", ".json", ".png"))
    if not any(path.suffix in (".mp4", ".gif") for path in found):
        raise UserError("videos: none was sampled from this run yet; press Sample first")
    return _zipped(places.files / f"{_plain(run)}_videos.zip", folder, found)


def _zipped(path: Path, folder: Path, files: list[Path]) -> Path:
    def write(part: Path) -> None:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.relative_to(folder))

    return _written(path, write)


def _copied(path: Path, source: Path) -> Path:
    if not source.is_file():
        raise UserError("configuration: the run has none; choose another run")
    return _written(path, lambda part: part.write_bytes(source.read_bytes()))


def _written(path: Path, write: Callable[[Path], object]) -> Path:
    with atomic_path(path) as part:
        write(part)
    return path


def _plain(run: Run) -> str:
    return run.name.replace("/", "_")


def train_words(run: Run) -> list[str]:
    """The command that made the run: as the page wrote it down, else from the configuration that the run keeps."""
    kept = run.path.parent / COMMAND
    if kept.is_file():
        return shlex.split(kept.read_text(encoding="utf-8"))[1:]
    return [script("train.py"), "--config", short(run.path / "config.yaml")]


COMMAND = "command.txt"  # beside the run folder, written when the page starts a training


def keep_command(folder: Path, words: list[str]) -> None:
    """Write down the command that trains into `folder`."""
    with atomic_path(folder / COMMAND) as part:
        part.write_text(line(words) + "\n", encoding="utf-8")


def line(words: list[str]) -> str:
    """A command as it is typed into a terminal."""
    return shlex.join(["python", *words])


def commands(run: Run, sampled: list[list[str]], index: int | None, places: Places) -> str:
    """Everything that was done with a run, as a script for a terminal."""
    parts = [("train", [train_words(run)]), ("go on after a stop", [go_on(run.path)])]
    if sampled:
        parts.append(("sample: the base model, then the customized one", sampled))
        folder = sampled[-1][sampled[-1].index("--output_dir") + 1]
        parts.append(("measure", [[script("scripts/evaluate.py"), folder]]))
    if index is not None:
        parts.append(("take the LoRA elsewhere", [lora_words(kind, run, index, places) for kind in _loras_of(run)]))
    return "\n\n".join("\n".join([f"# {title}", *map(line, lines)]) for title, lines in parts)
