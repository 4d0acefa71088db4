"""Where things are: the repository, its own small model, and what a path of a configuration or of a flag means."""

import os
from pathlib import Path
from shlex import quote

ROOT = Path(__file__).resolve().parents[1]
POCKET = ROOT / "models" / "pocketscope"  # the model that is part of this repository
HUB = {  # name of a folder -> who publishes it on the Hugging Face hub
    "zeroscope_v2_576w": "cerspense/zeroscope_v2_576w",
    "text-to-video-ms-1.7b": "damo-vilab/text-to-video-ms-1.7b",
    "Wan2.1-T2V-1.3B-Diffusers": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "Wan2.1-T2V-14B-Diffusers": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "Wan2.2-T2V-A14B-Diffusers": "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
}


def locate(path: str | Path) -> Path:
    """A path as given when it exists from the working directory, else under the repository's root when it is there."""
    path = Path(os.path.expanduser(path))  # an unknown ~name stays as it is, and is then reported as missing
    return ROOT / path if not exists(path) and exists(ROOT / path) else path


def is_hub_id(model: str) -> bool:
    """Whether `model` reads as owner/name on the Hugging Face hub and as no path of this machine."""
    return model.count("/") == 1 and not model.startswith((".", "/", "~")) and not locate(Path(model).parent).is_dir()


def exists(path: Path) -> bool:
    """Whether there is such a file or folder; never where the name is too long for any file."""
    try:
        return path.exists()
    except OSError:
        return False


def download_of(model: str) -> str | None:
    """The command that puts a published model into the folder `model`, known by its name; None for any other."""
    name = Path(model).name
    return f"hf download {HUB[name]} --local-dir {quote(str(Path(model)))}" if name in HUB else None
