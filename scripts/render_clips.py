"""Render the example clips that this project ships: a turning car, a dolly zoom, zooms in and out, the toy's motions.

Every scene is placed by hand (scripts/pocket/scenes.py) and ray traced, so that nobody's footage is shipped. The clips
called pocket_* are of data/world.py, one of each motion that PocketScope never saw, with a caption beside it.

    python scripts/render_clips.py                   # writes data/examples/*.mp4, a few minutes
    python scripts/render_clips.py pocket_zigzag     # only that one
    python scripts/render_clips.py pocket_zigzag --seed 6 --output_dir outputs/clips    # in another appearance
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.files import atomic_path
from configs.runtime import slow_imports
from configs.signals import held

FOLDER, POCKET_FPS = Path(__file__).resolve().parents[1] / "data" / "examples", 8


def toys() -> dict[str, str]:
    """The motion of each pocket clip."""
    from data.world import PATHS, RETIMINGS

    return {f"pocket_{motion}": motion for motion in (*RETIMINGS, *PATHS)}


def write_toy(path: Path, motion: str, seed: int | None = None) -> None:
    """The world's reference clip of one motion, its caption in the .txt beside it."""
    from data.world import reference_clip

    toy = reference_clip(motion, seed)
    frames = toy.frames.permute(0, 2, 3, 1).numpy()  # [f c h w] -> [f h w c]
    with held(), atomic_path(path.with_suffix(".txt")) as caption:
        caption.write_text(toy.prompt + "\n", encoding="utf-8")
        # at 64 pixels, colour at half resolution would be off by tens of grey levels along every edge
        write_clip(path, frames, POCKET_FPS, quality=10, pixelformat="yuv444p")


def write_clip(path: Path, frames, fps: int, **options) -> None:
    """uint8 [f h w c] as H.264, with imageio's own settings where `options` have no others."""
    import imageio.v3 as imageio

    with held(), atomic_path(path) as part:
        imageio.imwrite(part, frames, extension=".mp4", fps=fps, macro_block_size=2, **options)


@command
def main(argv: list[str] | None = None) -> None:
    with slow_imports():
        from scripts.pocket.scenes import CLIPS, FPS, render_clip

        known = toys()
    parser = Parser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join([*CLIPS, *known])}")
    parser.add_argument("--seed", type=int, help="appearance of the pocket clips (default each motion's own)")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="default data/examples")
    args = parser.parse_args(argv)
    names = args.names or [*CLIPS, *known]
    for name in names:
        if name not in (*CLIPS, *known):
            raise UserError(f"{name}: no such clip; there are {', '.join([*CLIPS, *known])}")
    if args.seed is not None and args.seed < 0:
        raise UserError(f"--seed: found {args.seed}; give 0 or more")
    for name in names:
        path = args.output_dir / f"{name}.mp4"
        if name in known:
            write_toy(path, known[name], args.seed)
        else:
            write_clip(path, render_clip(name), FPS, quality=7)
        print(path)


if __name__ == "__main__":
    main()
