"""Where the page keeps things, and the copies that it may hand to a browser.

Runs, videos and LoRAs lie where the commands put them (`train`, `infer`, `lora`). Only the folder `own` is served:
uploads, files made for download, and copies of the pictures and videos that the page shows.
"""

import hashlib
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from configs.errors import UserError
from configs.files import atomic_path
from configs.paths import ROOT

PLAYABLE = (".mp4", ".gif", ".png", ".webp")
LONG_AGO = 24 * 3600  # seconds; no tab still shows what is so old
ROUTE = "gradio_api/file="  # relative, so that the page works below any address


@dataclass(frozen=True)
class Places:
    """The folder of all outputs, absolute, and what lies in it."""

    root: Path

    @classmethod
    def below(cls, root: str | Path) -> "Places":
        return cls(Path(root).absolute())

    @property
    def train(self) -> Path:
        return self.root / "train"

    @property
    def infer(self) -> Path:
        return self.root / "infer"

    @property
    def lora(self) -> Path:
        return self.root / "lora"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def own(self) -> Path:
        return self.root / "page"

    @property
    def uploads(self) -> Path:
        return self.own / "uploads"

    @property
    def files(self) -> Path:
        return self.own / "files"

    def prepare(self) -> None:
        """Make the page's own folders; copies that were shown and files that were made long ago are dropped."""
        for folder in (self.uploads, self.files, self.own / "shown"):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob("*") if folder != self.uploads else ():
                if time.time() - path.stat().st_mtime > LONG_AGO:
                    path.unlink(missing_ok=True)

    def serves(self, path: str | Path) -> bool:
        """Whether a file lies in the folder that is served, links followed."""
        return Path(path).resolve().is_relative_to(self.own.resolve())

    def address(self, path: Path) -> str:
        """Where a browser finds a file of the served folder. Raises UserError for any other file."""
        if not self.serves(path):
            raise UserError(f"{path}: lies outside the page's own folder {self.own}, so it is not shown")
        return ROUTE + quote(str(path))

    def show(self, path: Path) -> str:
        """The address of a copy of a picture or video, named by its content, so that equal ones are one."""
        if path.suffix not in PLAYABLE:
            raise UserError(f"{path}: is none of {', '.join(PLAYABLE)}, so it is not shown")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:24]
        copy = self.own / "shown" / f"{digest}{path.suffix}"
        if not copy.exists():
            with atomic_path(copy) as part:
                shutil.copyfile(path, part)
        return self.address(copy)

    def film(self, frames, fps: float) -> str:
        """The address of a video of frames uint8 [f c h w]."""
        from infer.video import write_video

        with tempfile.TemporaryDirectory(dir=self.own) as folder:
            return self.show(write_video(Path(folder) / "clip.mp4", frames, fps=max(1, round(fps))))

    def picture(self, image) -> str:
        """The address of a PIL image."""
        with tempfile.TemporaryDirectory(dir=self.own) as folder:
            path = Path(folder) / "picture.png"
            image.save(path)
            return self.show(path)


def short(path: str | Path) -> str:
    """A path as a command is given it: relative to the working directory when it lies inside."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def script(name: str) -> str:
    """A command of the repository as it is called from the working directory."""
    return name if Path.cwd() == ROOT else str(ROOT / name)
