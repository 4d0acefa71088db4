"""What each method costs and when to take it: prints the README's table, one row per file in configs/methods.

    python scripts/methods_table.py            # about two minutes on a CPU

Parameters are counted on the meta device for ZeroScope (16 frames of 384x384) and for the pocket model, as motion plus
one appearance adapter, which is trained beside it and needs no place in a file that only moves. The file is the motion
in fp32. Seconds are CPU time of a training step of the pocket model, both passes included where the method has both;
memory is the counted peak of a training step (scripts/bench.py): ZeroScope in bf16 with activation checkpointing, the
pocket model in fp32 without.
"""

import argparse
import os
import statistics
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads make a step several times slower on a busy CPU

import torch

from configs import schema
from configs.errors import UserError, command
from scripts.bench import MODELS, Step, count_bytes, seconds

FOLDER = schema.ROOT / "configs" / "methods"
WHEN = {
    "tap": "the default: the looks of the prompt with the motion of the clip",
    "tap_key": "half of tap's parameters, as the paper's figure draws it",
    "tap_highway_in_training": "as tap, with the skips already moved while training",
    "tap_pli": "the clip's looks still come through: the plain model finishes the last steps",
    "release": "to compare with the authors' code, or to go on from its files",
    "motiondirector": "the paper's baseline, reported to leak more than tap; its looks can be mixed with another "
    "motion",
    "motion_inversion": "no weight may change; short training; Value embeddings tie the motion to places in the frame",
    "motion_inversion_debiased": "the same, where the clip's looks come through",
    "motion_inversion_hybrid": "the same, with the looks learned apart, to be mixed in at will",
    "query": "a probe, to see what this part alone learns (paper's Table 1)",
    "value": "a probe, likewise",
    "out": "a probe, likewise",
    "ff": "a probe, likewise",
    "qk_out": "what tap and release adapt, together, if either is too weak",
}


def rows(names: list[str], repeats: int) -> list[tuple[str, ...]]:
    """One row a method, cells as text."""
    table = []
    for name in names:
        cfg, _ = schema.load(
            ["--config", str(FOLDER / f"{name}.yaml"), "train_data.single_video_path=random"], description=""
        )
        zeroscope = Step(MODELS["zeroscope"], "meta", torch.bfloat16, cfg=cfg)
        pocket = Step(MODELS["pocket"], "cpu", torch.float32, cfg=cfg)
        pocket.train(0)
        times = [seconds(partial(pocket.train, n), torch.device("cpu"))[1] for n in range(1, repeats + 1)]
        table.append(
            (
                f"`{name}`",
                *(cell for step in (zeroscope, pocket) for cell in parameters(step)),
                f"{statistics.median(times):.2f}",
                *(
                    f"{count_bytes(MODELS[model], checkpointing=None, dtype=dtype, cfg=cfg) / 1e9:.2f}"
                    for model, dtype in (("zeroscope", torch.bfloat16), ("pocket", torch.float32))
                ),
                WHEN[name],
            )
        )
        print(" ".join(table[-1][:-1]), file=sys.stderr)
    return table


def parameters(step: Step) -> tuple[str, str]:
    """(millions of parameters, motion plus appearance; size of the motion's file)."""
    motion, looks = (
        sum(p.numel() for p in group) for group in (step.method.motion_parameters, step.method.appearance_parameters)
    )
    return (
        f"{motion / 1e6:.2f} + {looks / 1e6:.2f} M" if looks else f"{motion / 1e6:.2f} M",
        f"{4 * motion / 1e6:.1f} MB",
    )


HEADER = (
    "method",
    "ZeroScope: parameters",
    "file",
    "pocket: parameters",
    "file",
    "pocket: s/step",
    "ZeroScope: GB",
    "pocket: GB",
    "take it when",
)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=list(WHEN), default=list(WHEN))
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="timed steps a method, after a warm-up")
    asked = parser.parse_args(argv)
    if asked.repeats < 1:
        raise UserError(f"--repeats: {asked.repeats} measures nothing; give 1 or more")
    print(
        "\n".join(
            f"| {' | '.join(row)} |" for row in [HEADER, ("---",) * len(HEADER), *rows(asked.methods, asked.repeats)]
        )
    )


if __name__ == "__main__":
    main()
