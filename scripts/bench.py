"""How long training and sampling take on this machine, and how many bytes a training step needs.

    python scripts/bench.py --model mid --baseline          # seconds on this machine, and a plain dual-path step's
    python scripts/bench.py --model pocket --against stock  # what the lean U-Net saves of a step on a CPU
    python scripts/bench.py --model zeroscope --memory      # peak bytes, counted on the meta device: no weights, no GPU
    python scripts/bench.py --model zeroscope --memory small --timed        # what that mode costs in time, and its peak
    python scripts/bench.py --model mid --compile blocks --against stock    # what compiling brings and costs
    python scripts/bench.py --model zeroscope --baseline --results RESULTS.md      # adds a row for this device

Models have random weights: `pocket` is the shipped architecture with four timesteps a step, `mid` has 64/128/256/256
channels at 16 frames of 16x16 latents, `zeroscope` is the full one at 16 frames of 48x48 latents. The last line of
stdout is one JSON document:

    train_step_s       seconds of one step: both passes, both optimizers
    train_step_cpu_s   of this process's CPU, which other programs do not stretch; likewise sample_cpu_s
    train_host_s       seconds until the host has queued both passes; near train_step_s, the device waits for the host
    train_device_s     seconds in which the device's kernels run; CUDA only; likewise sample_host_s, sample_device_s
    compile_s          seconds that compiling added to the first step; with --compile only
    train_step_fp16_s  the same step with the frozen model in fp16; not on a CPU, which emulates it
    sample_s           seconds of one guided sampling step (conditional and unconditional), adapters merged
    inversion_step_s   seconds of one step of DDIM inversion
    text_encoder_s, vae_encode_s, vae_decode_s    seconds for one prompt, one clip, one video
    video_s            seconds from a prompt to frames in video_steps sampling steps
    peak_bytes         peak of our training step: measured on CUDA, before a baseline is made, else counted (frozen
                       model, adapters, their gradients and AdamW's moments, activations; without the CUDA context);
                       --memory alone counts in bf16 with checkpointing, the default, and takes the modes of the key
                       `memory`: small, smallest
    baseline_ratio     the baseline's step time over ours, in CPU time on a CPU; the median of alternating pairs
    sample_ratio       the baseline's sampling step over ours, likewise
    customized_ratio   a sampling step with motion LoRA and highway over one of the model with neither, likewise
    train_flop         floating-point operations of a step without recomputation; train_flop_by_dtype by precision
    sample_flop        floating-point operations of a guided sampling step
    matmul_flop_s      the device's measured rate of a large matrix product in each of those precisions
    train_share, sample_share    the time the step's operations would take at those rates, over the step's; on a CPU
                       both, and the rates, are of CPU time
    threads            CPU threads, chosen as the commands do: --threads, OMP_NUM_THREADS, else by the model's size
    memory             where the frozen model waits; checkpointing is whether activations are computed anew
    targets            what this project aims at for this model and baseline, and whether it was reached or missed

Baselines: `stock` is our step on diffusers' own layers, neither lean (models/lean.py) nor compiled; `plain` is the dual
path as MotionDirector describes it (fp32, text encoder in every step, checkpointing, every adapter gathering gradients
in both passes); `release` is the authors' code as it is (fp32 weights under fp16 autocast, the rest as `plain`) with
the order of its passes repaired. --baseline takes `release` on CUDA, else `plain`.
"""

import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.commandline import Parser
from configs.errors import UserError, command
from configs.runtime import slow_imports


@command
def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    parser = Parser(description=__doc__)
    parser.add_argument("--model", choices=("pocket", "mid", "zeroscope"), default="mid")
    parser.add_argument("--baseline", action="store_true", help="alternate with a baseline's steps, print the ratio")
    parser.add_argument(
        "--against", choices=("stock", "plain", "release"), help="the baseline to take; implies --baseline"
    )
    parser.add_argument(
        "--memory",
        nargs="?",
        const="default",
        choices=("default", "small", "smallest"),
        metavar="MODE",
        help="where the frozen model waits, as the key `memory`; alone it counts bytes, on the meta device",
    )
    parser.add_argument("--timed", action="store_true", help="with --memory: time the steps in this mode as well")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads, as the key `threads`")
    parser.add_argument("--compile", choices=("off", "blocks", "step"), default="off", help="as the key `compile`")
    parser.add_argument("--checkpointing", choices=("on", "off"), help="default: on for zeroscope, small and smallest")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="timed runs of each (default 3)")
    parser.add_argument("--video-steps", type=int, default=30, metavar="N", help="sampling steps of a video (30)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--results", type=Path, help="keep the timings as a row of this file (RESULTS.md)")
    args = parser.parse_args(argv)
    for flag in ("repeats", "video_steps"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')}: {getattr(args, flag)} measures nothing; give 1 or more")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads: {args.threads} compute nothing; give 1 or more")
    if args.timed and not args.memory:
        raise UserError("--timed: without --memory everything is timed; name a mode, or leave it out")
    timed = args.timed or not args.memory
    flags = ("compile", "results", "baseline", "against", "repeats", "video_steps", "threads")
    if not timed and (given := [flag for flag in flags if getattr(args, flag) != parser.get_default(flag)]):
        raise UserError(
            f"--{given[0].replace('_', '-')}: --memory counts and runs nothing; add --timed, or leave one of them out"
        )
    with slow_imports():
        import torch

        from models.backbone import choose_device
        from scripts.artefacts.results_file import check_results
        from scripts.benchmark.steps import MODELS, count_bytes, settings

    if args.results:
        check_results(args.results)
    device = choose_device(args.device)
    checkpointing = None if args.checkpointing is None else args.checkpointing == "on"
    if checkpointing is None:
        lean = args.memory in ("small", "smallest")  # their weights are dropped once a layer is computed
        checkpointing = not timed or lean or MODELS[args.model].checkpointing
    cfg = settings(
        memory=args.memory or "default",
        compile=args.compile,
        threads=args.threads,
        gradient_checkpointing=checkpointing,
        **MODELS[args.model].recipe,
    )
    numbers: dict = {"model": args.model, "train_step_s": None, "sample_s": None, "peak_bytes": None}
    numbers["baseline_ratio"] = None
    dtype = torch.bfloat16
    if timed:
        from scripts.benchmark.targets import judged
        from scripts.benchmark.timings import measure

        dtype = torch.float32 if device.type == "cpu" else dtype
        against = args.against or (("release" if device.type == "cuda" else "plain") if args.baseline else None)
        numbers |= measure(
            args.model, device, repeats=args.repeats, against=against, cfg=cfg, video_steps=args.video_steps
        )
        numbers["targets"] = judged(numbers)
        print(*numbers["targets"], sep="\n", file=sys.stderr)
    if numbers["peak_bytes"] is None:
        numbers["peak_bytes"] = count_bytes(MODELS[args.model], checkpointing=checkpointing, dtype=dtype, cfg=cfg)
    if args.results:
        from scripts.benchmark.results import keep_timings

        keep_timings(args.results, numbers, f"python scripts/bench.py {shlex.join(argv)}")
    print(json.dumps(numbers))


if __name__ == "__main__":
    main()
