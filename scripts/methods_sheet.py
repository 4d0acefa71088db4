"""Train and sample every method on one clip, and put them on one sheet: the reference above, one row for each method.

    python scripts/methods_sheet.py                        # every file of configs/methods
    python scripts/methods_sheet.py tap motion_inversion   # some of them

Takes configs/quickstart.yaml and merges each method's file over it, as the commands do; about a minute and a half for
each method on two CPU cores. The run folders are kept. The last line of stdout names the sheet.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.runtime import slow_imports

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
METHODS = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml"))


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("words", nargs="*", help="methods by file name, and key=value overrides for all")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/methods"), help="default %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the samples (default %(default)s)")
    args = parser.parse_args(argv)
    overrides = [word for word in args.words if "=" in word]
    names = [word for word in args.words if "=" not in word] or METHODS
    if unknown := [name for name in names if name not in METHODS]:
        raise UserError(f"{unknown[0]}: no method has this name; there are {', '.join(METHODS)}")
    with slow_imports():
        import train
        from configs.schema import load
        from infer.pictures import contact_sheet, strip
        from scripts.showcase.samples import clip_of, sample_run

    rows = []
    for name in names:
        files = ["--config", str(CONFIGS / "quickstart.yaml"), "--config", str(CONFIGS / f"methods/{name}.yaml")]
        kept = [f"output_dir={args.output_dir / name}", "validation_data.sample_preview=false"]
        cfg, _ = load([*files, *kept, *overrides], description=__doc__)
        run, prompt = train.run(cfg), cfg.validation_data.prompt[0]
        ((_, frames),) = sample_run(run, [prompt], args.seed, run / "samples", flags=("--quality", "10"))
        rows.append((f"{name}: {prompt}", strip(frames, height=64)))
    reference = clip_of(cfg)
    rows.insert(0, (f"reference: {reference.prompt}", strip(reference.frames, height=64)))
    print(contact_sheet(args.output_dir / "sheet.png", rows))


if __name__ == "__main__":
    main()
