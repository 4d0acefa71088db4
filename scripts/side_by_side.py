"""Put a run beside its reference clip, playing: the clip, the base model and the customized model from one seed.

    python scripts/side_by_side.py outputs/train/quickstart/train_TIME
    python scripts/side_by_side.py RUN --prompt "a blue square moves right" --output data/examples/side_by_side.webp

Writes an animated WebP below 1 MB, which browsers and a README play, and the same as mp4 beside it. The last line of
stdout names the WebP.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.runtime import slow_imports

MOST_ROWS = 3


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder of train.py")
    parser.add_argument("--prompt", nargs="+", help="default: the first validation prompts of the run, at most two")
    parser.add_argument("--seed", type=int, default=1, help="of the noise that both models start from (default 1)")
    parser.add_argument("--output", type=Path, help="the .webp to write (default RUN/side_by_side.webp)")
    args = parser.parse_args(argv)
    if args.output and args.output.suffix != ".webp":
        raise UserError(f"--output: found {args.output.name}; give a name that ends in .webp")
    if args.prompt and len(args.prompt) > MOST_ROWS:
        raise UserError(f"--prompt: found {len(args.prompt)} prompts; give at most {MOST_ROWS}, one row each")
    with slow_imports():
        from infer.side_by_side import write_side_by_side
        from models.files.card import PICTURE
        from scripts.showcase.samples import clip_of, config_of, sample_run

    cfg = config_of(args.run)
    prompts, reference = args.prompt or list(cfg.validation_data.prompt)[:2], clip_of(cfg)
    if not prompts:
        raise UserError(f"{args.run}: its configuration has no validation prompt; give --prompt")
    made = [
        sample_run(
            args.run, prompts, args.seed, args.run / "samples" / name, strength=strength, flags=("--quality", "10")
        )
        for name, strength in (("base", 0.0), ("customized", 1.0))
    ]
    rows = [(prompt, base, customized) for prompt, (_, base), (_, customized) in zip(prompts, *made)]
    output = args.output or args.run / PICTURE
    print(write_side_by_side(output, rows, reference, fps=reference.fps))


if __name__ == "__main__":
    main()
