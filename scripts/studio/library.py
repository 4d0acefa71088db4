"""The clips to choose from, examples and uploads, each with the caption and the prompts that go with it."""

from dataclasses import dataclass
from pathlib import Path

from configs.errors import UserError
from configs.paths import ROOT
from configs.plain import read_text, read_yaml
from data.clips import VIDEO_SUFFIXES
from infer.prompt_file import read_prompt_file
from scripts.studio.places import Places
from scripts.studio.recipe import is_small

EXAMPLES = ROOT / "data/examples"
PROMPTS = {"wanders": "data/prompts/pocket_paths.txt", "": "data/prompts/pocket.txt"}
TOY = "pocket_"  # begins the names of the toy world's clips
FIRST = f"{TOY}there_and_back"  # what a newcomer sees first: the quickstart's clip
SHOWN_PROMPTS = 2


@dataclass(frozen=True)
class Offer:
    """A clip that can be chosen: its file, its title, and the caption that is proposed ("" for an unknown clip)."""

    path: Path
    title: str
    caption: str = ""

    @property
    def name(self) -> str:
        return self.path.name


def offers(places: Places) -> list[Offer]:
    """The uploads, the newest first, then the examples, the newcomer's first."""
    uploads = [path for path in places.uploads.glob("[!.]*") if path.suffix in VIDEO_SUFFIXES]
    uploads.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    known = _known_captions()
    examples = sorted(EXAMPLES.glob("*.mp4"), key=lambda path: (path.stem != FIRST, not _is_pocket(path), path.name))
    return [
        *(Offer(path, f"yours: {path.stem[:-9].replace('_', ' ')}") for path in uploads),
        *(Offer(path, _title(path), _caption(path, known)) for path in examples if _caption(path, known)),
    ]


def offer(name: str, places: Places) -> Offer:
    """The clip of that file name. Raises UserError for anything that is not offered."""
    for each in offers(places):
        if each.name == name:
            return each
    raise UserError("clip: it is no longer there; choose another one")


def prompts(chosen: Offer, model: str) -> list[str]:
    """Prompts that suit a clip and the model that is to draw them."""
    if is_small(model):
        file = next(file for word, file in PROMPTS.items() if word in chosen.caption)
        lines = read_prompt_file(str(ROOT / file))
        return [line.prompt for line in lines[2 : 2 + SHOWN_PROMPTS]]  # other colours and grounds than the first clip's
    return read_yaml(ROOT / "configs/car.yaml")["validation_data"]["prompt"][:SHOWN_PROMPTS]


def _known_captions() -> dict[str, str]:
    """Clip's file name -> caption, of the configurations that come with the repository."""
    found = {}
    for file in sorted((ROOT / "configs").glob("*.yaml")):
        data = read_yaml(file).get("train_data") or {}
        if data.get("single_video_path") and data.get("single_video_prompt"):
            found[Path(data["single_video_path"]).name] = data["single_video_prompt"]
    return found


def _caption(path: Path, known: dict[str, str]) -> str:
    beside = path.with_suffix(".txt")
    return read_text(beside).strip() if beside.is_file() else known.get(path.name, "")


def _is_pocket(path: Path) -> bool:
    return path.name.startswith(TOY)


def _title(path: Path) -> str:
    words = path.stem.removeprefix(TOY).replace("_", " ")
    return f"{words} (toy world)" if _is_pocket(path) else words
