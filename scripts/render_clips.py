"""Render the example clips that this project ships: a turning car, a dolly zoom, zooms in and out, the toy's motions.

Every scene is placed by hand (scripts/pocket/scenes.py) and ray traced, so that nobody's footage is shipped. The clips
called pocket_* are of data/world.py, one of each motion that PocketScope never saw, with a caption beside it.

    python scripts/render_clips.py                   # writes data/examples/*.mp4, a few minutes
    python scripts/render_clips.py pocket_zigzag     # only that one
    python scripts/render_clips.py pocket_zigzag --seed 6 --output_dir outputs/clips    # in another appearance
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import UserError, command
from configs.runtime import quiet_threads
from configs.schema import ROOT
from data.world import PATHS, RETIMINGS
from scripts.pocket.scenes import CLIPS

FOLDER, FPS = ROOT / "data" / "examples", 8
TOYS = {f"pocket_{motion}": motion for motion in (*RETIMINGS, *PATHS)}


def write_toy(path: Path, motion: str, seed: int | None = None) -> None:
    """The world's reference clip of one motion, its caption in the .txt beside it."""
    import imageio.v3 as imageio

    from data.world import reference_clip

    toy = reference_clip(motion, seed)
    path.with_suffix(".txt").write_text(toy.prompt + "\n")
    frames = toy.frames.permute(0, 2, 3, 1).numpy()  # [f c h w] -> [f h w c]
    # at 64 pixels, colour at half resolution would be off by tens of grey levels along every edge
    imageio.imwrite(path, frames, fps=FPS, quality=10, macro_block_size=2, pixelformat="yuv444p")


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default all: {', '.join([*CLIPS, *TOYS])}")
    parser.add_argument("--seed", type=int, help="appearance of the pocket clips (default each motion's own)")
    parser.add_argument("--output_dir", type=Path, default=FOLDER, help="default data/examples")
    args = parser.parse_args(argv)
    names = args.names or [*CLIPS, *TOYS]
    for name in names:
        if name not in (*CLIPS, *TOYS):
            raise UserError(f"{name}: no such clip; there are {', '.join([*CLIPS, *TOYS])}")
    if args.seed is not None and args.seed < 0:
        raise UserError(f"--seed: found {args.seed}; give 0 or more")
    quiet_threads()
    import imageio.v3 as imageio

    from scripts.pocket.scenes import render_clip

    args.output_dir.mkdir(parents=True, exist_ok=True)
    for name in names:
        path = args.output_dir / f"{name}.mp4"
        if name in TOYS:
            write_toy(path, TOYS[name], args.seed)
        else:
            imageio.imwrite(path, render_clip(name), fps=FPS, quality=7, macro_block_size=2)
        print(path)


if __name__ == "__main__":
    main()
