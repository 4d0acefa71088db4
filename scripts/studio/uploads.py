"""What a person brings along, checked before anything keeps it: a clip, a caption, prompts, numbers."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from configs.errors import UserError, printable, shown
from configs.files import atomic_path
from configs.plain import NO_TEXT
from data.clips import VIDEO_SUFFIXES
from scripts.studio.excerpt import measure
from scripts.studio.places import Places

MOST_BYTES = 1_000_000_000  # of an uploaded clip; two seconds of one are used
MOST_LETTERS = 1000  # of a caption or prompt; text encoders read 77 tokens
MOST_PROMPTS = 8
TAG = re.compile(r"</?[A-Za-z!][^>]*>")


def accept(upload: Path, places: Places) -> Path:
    """Keep an uploaded clip among the page's uploads, under a name that is safe anywhere; returns its new path.

    Raises UserError, keeping nothing, for what is no video, too large, or lies outside the page's own folder.
    """
    if not places.serves(upload) or not upload.is_file():
        raise UserError(f"{shown(upload.name)}: was not uploaded here; choose the file again")
    check_name(upload.name)
    if (size := upload.stat().st_size) > MOST_BYTES:
        raise UserError(
            f"{shown(upload.name)}: has {size / 1e9:.1f} GB, more than the {MOST_BYTES / 1e9:.0f} GB that are taken; "
            "cut out the seconds that show the motion"
        )
    try:
        measure(upload)
    except UserError as error:
        raise UserError(str(error).replace(str(upload), upload.name)) from None
    with open(upload, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:8]
    stem = re.sub(r"[^A-Za-z0-9]+", "_", upload.stem).strip("_")[:40] or "clip"
    kept = places.uploads / f"{stem}_{digest}{upload.suffix.lower()}"
    if not kept.exists():
        with atomic_path(kept, needs=size) as part:
            shutil.copyfile(upload, part)
    return kept


def check_name(name: str) -> None:
    """Raise UserError for a file name with a slash or control character, and for one that is no video's."""
    if re.search(r"[/\\\x00-\x1f\x7f]", name) or name.startswith("."):
        raise UserError(f"{shown(name)}: is no plain file name; rename the clip, for example to clip.mp4")
    if (suffix := Path(name).suffix.lower()) not in VIDEO_SUFFIXES:
        found = f"a {suffix} file" if suffix else "a file without an ending"
        raise UserError(f"{shown(name)}: {found} where a video is needed; give {', '.join(VIDEO_SUFFIXES)}")


def caption(text: str, what: str = "caption") -> str:
    """A caption or prompt on one line. Raises UserError without any text, and for HTML, control signs and too much."""
    text = " ".join((text or "").split())
    if not text:
        raise UserError(f"{what}: it is empty; say in a few words what is seen")
    if NO_TEXT.search(text) or not text.isprintable():
        raise UserError(f"{what}: {shown(text)} holds a character that is no text; write plain words")
    if found := TAG.search(text):
        raise UserError(f"{what}: found HTML ({shown(found[0], 40)}); write plain words")
    if len(text) > MOST_LETTERS:
        raise UserError(f"{what}: {len(text):,} letters, more than {MOST_LETTERS:,}; models read about 50 words")
    return text


def prompts(text: str) -> list[str]:
    """One prompt a line. Raises UserError for none, for too many and for one that `caption` would refuse."""
    lines = [line for line in (text or "").split("\n") if line.strip()]
    if not lines:
        raise UserError("prompts: none was given; write one a line")
    if len(lines) > MOST_PROMPTS:
        raise UserError(f"prompts: {len(lines)} lines, more than {MOST_PROMPTS} at a time; sample the rest afterwards")
    found = [caption(line, "prompts") for line in lines]
    if dashed := [line for line in found if line.startswith("-")]:
        raise UserError(f"prompts: {shown(dashed[0], 40)} begins with a dash, which a command takes for a flag")
    return list(dict.fromkeys(found))


def whole(what: str, value: Any, low: int, high: int) -> int:
    """A field of the page as a whole number. Raises UserError for anything else, and outside of low to high."""
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{what}: {printable(str(value))[:40]} is no whole number; give one from {low} on") from None
    if number != value or not low <= number <= high:
        raise UserError(f"{what}: {value} is not from {low} to {high:,}; give such a number")
    return number
