"""A picture that plays: reference clip, base model and customized model side by side, one row for each prompt.

Videos are uint8 [f c h w]. The picture is an animated WebP, which browsers play, of at most `MOST_BYTES`; the same
frames are kept as an mp4. Small videos are enlarged by whole pixels, large ones are reduced.
"""

import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from configs.errors import UserError
from configs.files import atomic_path
from data.clips import Clip
from infer.pictures import font_of
from infer.video import write_video

COLUMNS = ("reference clip", "base model", "customized")
SIDE = 192  # pixels of a video's longer side in the picture
GAP, LINE, FONT_SIZE = 10, 17, 14  # pixels
LINES = 3  # of text below a video
MOST_BYTES = 1_000_000
QUALITIES = (90, 75, 60, 45, 30)  # of lossy WebP, the first that is small enough


def write_side_by_side(
    path: Path, rows: list[tuple[str, torch.Tensor, torch.Tensor]], reference: Clip, fps: float
) -> Path:
    """Write `path` (.webp) and the same as .mp4 beside it; returns `path`.

    A row is (prompt, base model's video, customized model's video); `reference` stands in the first column. Raises
    UserError when the picture cannot be made small enough; the mp4, which may have any size, is there all the same.
    """
    count = max(len(video) for _, *videos in rows for video in (reference.frames, *videos))
    images = [_frame(rows, reference, number, count) for number in range(count)]
    frames = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
    video = write_video(path.with_suffix(".mp4"), frames, fps=max(1, round(fps)))
    settings = dict(format="WEBP", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    tries = [dict(lossless=True, quality=100), *(dict(quality=quality, method=6) for quality in QUALITIES)]
    with atomic_path(path) as temporary:
        for quality in tries:
            images[0].save(temporary, **settings, **quality)
            if temporary.stat().st_size < MOST_BYTES:
                break
        else:
            raise UserError(
                f"{path.name}: {len(rows)} rows of {count} frames take {temporary.stat().st_size} bytes; "
                f"a picture of a README should stay below {MOST_BYTES}: give fewer prompts, or show {video.name}"
            )
    return path


def _frame(rows, reference: Clip, number: int, count: int) -> Image.Image:
    """Frame `number` of `count`; shorter videos are spread over the whole duration."""
    shown = _cell(reference.frames, number, count)
    lines = [(prompt, [_cell(video, number, count) for video in videos]) for prompt, *videos in rows]
    sizes = [cell.size for cell in (shown, *(cell for _, cells in lines for cell in cells))]
    width, height = (max(side) for side in zip(*sizes))
    row_height = height + LINES * LINE + GAP
    image = Image.new("RGB", (GAP + 3 * (width + GAP), GAP + LINE + len(rows) * row_height), "white")
    draw, font = ImageDraw.Draw(image), font_of(FONT_SIZE)
    lefts = [GAP + column * (width + GAP) for column in range(len(COLUMNS))]
    for left, title in zip(lefts, COLUMNS):
        draw.text((left, GAP // 2), title, fill="black", font=font)
    top = GAP + LINE
    image.paste(shown, (lefts[0], top))
    _write(draw, font, reference.prompt, lefts[0], top + height, width)
    for y, (prompt, cells) in zip(range(top, image.height, row_height), lines):
        for left, cell in zip(lefts[1:], cells):
            image.paste(cell, (left, y))
        _write(draw, font, prompt, lefts[1], y + height, 2 * width + GAP)
    return image


def _cell(video: torch.Tensor, number: int, count: int) -> Image.Image:
    place = round(number * (len(video) - 1) / max(1, count - 1))
    image = Image.fromarray(video[place].permute(1, 2, 0).contiguous().numpy())
    zoom = SIDE / max(image.size)
    zoom = max(1, int(zoom)) if zoom >= 1 else zoom
    size = (round(image.width * zoom), round(image.height * zoom))
    return image.resize(size, Image.Resampling.NEAREST if zoom >= 1 else Image.Resampling.LANCZOS)


def _write(draw: ImageDraw.ImageDraw, font, text: str, left: int, top: int, width: int) -> None:
    """`text` in at most `LINES` lines of `width` pixels."""
    letters = max(1, int(width / draw.textlength("abcdefghij", font=font) * 10))
    lines = textwrap.wrap(" ".join(text.split()), letters, max_lines=LINES, placeholder=" ...")
    for number, line in enumerate(lines):
        draw.text((left, top + 2 + number * LINE), line, fill="dimgray", font=font)
