"""Contact sheets: one row a video, frames left to right; and the thumbnail of a file's header.

A video, uint8 [f c h w], becomes a `strip` as soon as it is there, so that nobody keeps its frames for the sheet; the
sheet is a PNG file with a caption above each strip.
"""

import base64
import io
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from configs.files import atomic_path

MARGIN = 6
TEXT_HEIGHT = 16
DEJAVU = "mpl-data/fonts/ttf/DejaVuSans.ttf"
MOST_ROWS = 64  # of one sheet; at the usual height 10,000 pixels


def strip(frames: torch.Tensor, columns: int = 8, height: int = 128) -> Image.Image:
    """Up to `columns` evenly spaced frames of uint8 [f c h w] side by side, `height` pixels high."""
    picked = frames[np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)]
    images = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in picked]
    width = max(1, round(images[0].width * height / images[0].height))
    method = Image.Resampling.NEAREST if height % images[0].height == 0 else Image.Resampling.LANCZOS
    row = Image.new("RGB", (len(images) * (width + 2) - 2, height), "white")
    for i, image in enumerate(images):
        row.paste(image.resize((width, height), method), (i * (width + 2), 0))
    return row


def contact_sheet(path: Path, rows: Sequence[tuple[str, Image.Image]], more: int = 0) -> Path:
    """Write (caption, strip) rows below each other as a PNG file; returns `path`.

    At most MOST_ROWS are drawn; a last line counts the others and the `more` videos of which no row was kept.
    """
    drawn, left = rows[:MOST_ROWS], max(0, len(rows) - MOST_ROWS) + more
    width = max(row.width for _, row in drawn) + 2 * MARGIN
    height = MARGIN + sum(row.height + TEXT_HEIGHT + MARGIN for _, row in drawn) + (TEXT_HEIGHT if left else 0)
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), font_of(12)
    y = MARGIN
    for caption, row in drawn:
        draw.text((MARGIN, y), fitted(draw, caption, font, width - 2 * MARGIN), fill="black", font=font)
        sheet.paste(row, (MARGIN, y + TEXT_HEIGHT))
        y += TEXT_HEIGHT + row.height + MARGIN
    if left:
        draw.text((MARGIN, y), f"and {left:,} more", fill="black", font=font)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def thumbnail(frames: torch.Tensor, side: int = 256, most: int = 24 << 10) -> str | None:
    """The middle frame of uint8 [f c h w] as a data URL: a JPEG of at most `side` pixels and `most` bytes.

    None where no quality is small enough.
    """
    image = Image.fromarray(frames[len(frames) // 2].permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    for quality in (90, 75, 60, 40, 20):
        content = io.BytesIO()
        image.save(content, format="JPEG", quality=quality)
        if content.tell() <= most:
            return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()
    return None


def font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which Matplotlib brings along, for captions in Latin, Greek and Cyrillic letters.

    Where Matplotlib's data lie elsewhere, as in some distributions, it is Pillow's own font, which has ASCII alone.
    """
    (folder,) = find_spec("matplotlib").submodule_search_locations  # without importing it
    try:
        return ImageFont.truetype(Path(folder) / DEJAVU, size)
    except OSError:
        return ImageFont.load_default(size)


def fitted(draw: ImageDraw.ImageDraw, caption: str, font, width: int) -> str:
    """The longest beginning of `caption` that is at most `width` pixels wide with its "...", found by bisection."""
    text = " ".join(caption.split())
    if draw.textlength(text, font=font) <= width:
        return text
    fits, too_long = 0, len(text) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if draw.textlength(text[:middle] + "...", font=font) <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits] + "..."
