"""Describe a LoRA file, or turn it into another kind of file.

    python scripts/convert.py inspect PATH
    python scripts/convert.py {ours,peft,diffusers,comfyui,musubi,release,merged} SOURCE OUT [--model FOLDER]

SOURCE is a run or checkpoint folder of ours, of the paper's authors, of MotionDirector or of Motion Inversion, one
`N_unet.pt`, a PEFT folder, or a LoRA file of diffusers, or for Wan of ComfyUI or musubi-tuner. OUT is a folder, new or
empty: a run (ours, release), or the adapter's own (peft, diffusers, comfyui, musubi), or a whole pipeline with the
motion in its weights (merged). Nothing in SOURCE is executed, and nothing is written before all of it was read and
checked. Files without names of layers take --preset NAME.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import command
from configs.runtime import slow_imports


@command
def main() -> None:

    from configs.fields import KEYS
    from configs.key import type_words

    parser = Parser(description=__doc__)
    commands = parser.add_subparsers(dest="kind", required=True)
    for kind in ("inspect", "ours", "peft", "diffusers", "comfyui", "musubi", "release", "merged"):
        sub = commands.add_parser(kind)
        sub.add_argument("source", type=Path)
        sub.add_argument("--model", help="pipeline folder the file belongs to (default: ZeroScope's layout)")
        if kind != "inspect":
            sub.add_argument("out", type=Path)
            sub.add_argument("--preset", choices=type_words(KEYS["temporal_preset"]).split(" | "))
            sub.add_argument("--index", type=int, help="checkpoint of a run folder (default: the last)")
    args = parser.parse_args()
    with slow_imports():
        from scripts.conversion.inspection import inspect
        from scripts.conversion.writing import convert

    if args.kind == "inspect":
        print("\n".join(inspect(args.source, args.model)))
    else:
        print(convert(args.kind, args.source, args.out, args.index, args.model, args.preset))


if __name__ == "__main__":
    main()
