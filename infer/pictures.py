"""Contact sheets: one row a video, frames left to right.

Videos are uint8 [f c h w]; sheets are PNG files with a caption above each row. Rows are made one by one with `strip`,
so that a sheet of many videos never holds them.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from configs.files import atomic_path

MARGIN = 6
TEXT_HEIGHT = 16


def contact_sheet(path: Path, strips: list[tuple[str, Image.Image]]) -> Path:
    """Write the (caption, `strip`) rows below each other as a PNG file; returns `path`."""
    width = max(row.width for _, row in strips) + 2 * MARGIN
    sheet = Image.new("RGB", (width, MARGIN + sum(row.height + TEXT_HEIGHT + MARGIN for _, row in strips)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    y = MARGIN
    for caption, row in strips:
        draw.text((MARGIN, y), _fit(draw, caption, font, width - 2 * MARGIN), fill="black", font=font)
        sheet.paste(row, (MARGIN, y + TEXT_HEIGHT))
        y += TEXT_HEIGHT + row.height + MARGIN
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")
    return path


def strip(frames: torch.Tensor, columns: int = 8, height: int = 128) -> Image.Image:
    """Up to `columns` evenly spaced frames of uint8 [f c h w] side by side, each `height` pixels high."""
    picked = frames[np.linspace(0, len(frames) - 1, min(columns, len(frames))).round().astype(int)]
    images = [Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy()) for frame in picked]
    width = max(1, round(images[0].width * height / images[0].height))
    method = Image.Resampling.NEAREST if height % images[0].height == 0 else Image.Resampling.LANCZOS
    row = Image.new("RGB", (len(images) * (width + 2) - 2, height), "white")
    for i, image in enumerate(images):
        row.paste(image.resize((width, height), method), (i * (width + 2), 0))
    return row


def _fit(draw: ImageDraw.ImageDraw, text: str, font, width: int) -> str:
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "...", font=font) > width:
        text = text[:-1]
    return text + "..."
