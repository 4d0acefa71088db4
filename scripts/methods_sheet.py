"""Train and sample every method on one clip, and put them on one sheet: the reference above, one row a method.

    python scripts/methods_sheet.py                        # every file of configs/methods
    python scripts/methods_sheet.py tap motion_inversion   # some of them

Takes configs/quickstart.yaml and merges each method's file over it, the commands' own way; about a minute and a half a
method on two CPU cores. The run folders are kept. The last line of stdout names the sheet.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve each other

import train
from configs.errors import UserError, command
from configs.schema import ROOT, load
from data.sources import load_clips
from infer import options
from infer.generate import generate
from infer.pictures import contact_sheet, strip
from infer.video import read_video

METHODS = sorted(path.stem for path in (ROOT / "configs/methods").glob("*.yaml"))


def row(name: str, words: list[str], folder: Path, seed: int):
    """(caption, strip) of one method's first validation prompt, trained and sampled with nothing but its files."""
    files = [str(ROOT / "configs/quickstart.yaml"), str(ROOT / f"configs/methods/{name}.yaml")]
    argv = [word for file in files for word in ("--config", file)]
    cfg, _ = load(
        [*argv, f"output_dir={folder / name}", "validation_data.sample_preview=false", *words], description=__doc__
    )
    prompt = cfg.validation_data.prompt[0]
    run = train.run(cfg)
    arguments = [
        "--checkpoint_folder",
        str(run),
        "--prompt",
        prompt,
        "--seed",
        str(seed),
        "--quality",
        "10",
        "--output_dir",
        str(run / "samples"),
    ]
    (video,) = generate(options.parse(arguments))
    return (f"{name}: {prompt}", strip(read_video(video), height=64)), cfg


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="methods by file name, and key=value overrides for all")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/methods"), help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the samples (default 1)")
    args = parser.parse_args()
    names = [word for word in args.words if "=" not in word] or METHODS
    if unknown := [name for name in names if name not in METHODS]:
        raise UserError(f"{unknown[0]}: no such method; there are {', '.join(METHODS)}")
    rows = []
    for name in names:
        made, cfg = row(name, [word for word in args.words if "=" in word], args.output_dir, args.seed)
        rows.append(made)
    reference = load_clips(cfg, snap=64)[0]
    print(
        contact_sheet(
            args.output_dir / "sheet.png",
            [(f"reference: {reference.prompt}", strip(reference.frames, height=64)), *rows],
        )
    )


if __name__ == "__main__":
    main()
