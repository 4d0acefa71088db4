"""Make PocketScope, the embedded text-to-video model, from nothing; or measure the shipped one.

    python scripts/pretrain_pocketscope.py                                      # two CPU cores: about 90 minutes
    python scripts/pretrain_pocketscope.py --device cuda --dtype bf16 --batch 4 --compile
    python scripts/pretrain_pocketscope.py --evaluate 256 --seed 1              # only measures models/pocketscope
    python scripts/pretrain_pocketscope.py --evaluate 64 --seed 1 --ablate      # ... and what carries its motion
    python scripts/pretrain_pocketscope.py --model dit                          # PocketScope-DiT; takes the same flags

Four phases: the VAE, then (on the latents of pre-rendered clips) single frames with the temporal layers bypassed,
video, and the fade, in which the temporal convolutions are frozen and their output is scaled down to `FADE_TO`: they
keep giving the order of frames while temporal attention takes over the motion. Ctrl-C or SIGTERM saves; the same
command continues.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.runtime import slow_imports

MODELS = Path(__file__).resolve().parents[1] / "models"
SHIPPED = {"unet": MODELS / "pocketscope", "dit": MODELS / "pocketscope_dit"}


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="unet", choices=("unet", "dit"), help="PocketScope, or PocketScope-DiT")
    parser.add_argument(
        "--out", type=Path, help="state and sample sheets (default outputs/pretrain, with --model dit .../pretrain_dit)"
    )
    parser.add_argument(
        "--export",
        type=Path,
        help="the pipeline folder to write or measure (default models/pocketscope[_dit]; with --smoke OUT/model)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"), help="autocast of the denoiser")
    parser.add_argument("--batch", type=int, default=1, help="multiplies every phase's batch; for a GPU")
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    parser.add_argument("--smoke", action="store_true", help="three tiny steps of every phase")
    parser.add_argument("--evaluate", type=int, metavar="N", help="only measure the model on N fresh prompts")
    parser.add_argument("--ablate", action="store_true", help="also measure with parts of it switched off")
    args = parser.parse_args(argv)
    if args.evaluate is not None and args.evaluate < 1:
        raise UserError(f"--evaluate: found {args.evaluate}; give a number of prompts of at least 1.")
    if args.ablate and args.evaluate is None:
        raise UserError("--ablate: switches parts off where the model is measured; give --evaluate N with it")
    with slow_imports():
        import torch

        from models.backbone import choose_device
        from scripts.pocket import pretraining, wan_pretraining

    phases = {"unet": pretraining, "dit": wan_pretraining}[args.model]
    args.out = args.out or Path({"unet": "outputs/pretrain", "dit": "outputs/pretrain_dit"}[args.model])
    args.export = args.export or (args.out / "model" if args.smoke and not args.evaluate else SHIPPED[args.model])
    args.device = choose_device(args.device)
    args.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    if args.evaluate:
        phases.measure_shipped(args)
    elif not phases.pretrain(args):
        print(f"stopped; the same command continues from {args.out / 'state.safetensors'}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
