"""What each method costs, counted or timed, and when to take it: the rows of scripts/methods_table.py."""

import statistics
import sys
from functools import partial

import torch
from diffusers import WanTransformer3DModel

from configs import schema
from configs.paths import ROOT
from configs.plain import read_json
from models import methods
from scripts.benchmark.clock import timed
from scripts.benchmark.steps import MODELS, Step, count_bytes

FOLDER = ROOT / "configs" / "methods"
WHEN = {
    "tap": "the default: the appearance of the prompt with the motion of the clip",
    "tap_key": "half of tap's parameters, as the paper's figure draws it",
    "tap_highway_in_training": "as tap, with the skips already moved while training",
    "tap_pli": "the clip's appearance still comes through: the plain model finishes the last steps",
    "release": "to compare with the authors' code, or to sample its files",
    "motiondirector": "the paper's baseline, reported to leak more than tap; its appearance LoRA can be mixed with "
    "another motion",
    "motion_inversion": "the model's weights must stay untouched; trains fastest; the motion is tied to its position "
    "in the frame",
    "motion_inversion_debiased": "the same, where the clip's appearance comes through",
    "motion_inversion_hybrid": "the same, with the appearance learned apart, to be mixed in on demand",
    "query": "a probe of what this part learns alone (the paper's Table 1)",
    "value": "a probe, likewise",
    "out": "a probe, likewise",
    "ff": "a probe, likewise",
    "value_out_ff": "a probe: all that SMRABooth adapts on a transformer",
    "qk_out": "what tap and release adapt, together, where either is too weak",
}
TRANSFORMER_WHEN = {
    "transformer/tap_temporal": "only the heads that look across frames should change",
    "transformer/tap_pure": "and no other head may change at all",
    "transformer/effivmt": "to compare with EffiVMT",
    "transformer/motion_inversion": "the model's weights must stay untouched; trains without the appearance pass",
}
WAN = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}  # Wan 2.1 of 1.3 B
TRANSFORMERS = {  # (settings of the network, latent frames, height and width)
    "Wan 1.3 B": (WAN, (9, 34, 60)),
    "PocketScope-DiT": (read_json(ROOT / "models/pocketscope_dit/transformer/config.json"), (8, 8, 8)),
}
HEADER = [
    "method",
    "ZeroScope: parameters",
    "file",
    "pocket: parameters",
    "file",
    "pocket: s/step",
    "ZeroScope: GB",
    "pocket: GB",
    "take it when",
]
TRANSFORMER_HEADER = ["method", *(cell for name in TRANSFORMERS for cell in (f"{name}: parameters", "file"))]
TRANSFORMER_HEADER += HEADER[-1:]


def rows(names: list[str], repeats: int) -> list[list[str]]:
    """One row for each method, cells as text under `HEADER`."""
    table, cpu = [], torch.device("cpu")
    for name in names:
        cfg = _configuration(name)
        zeroscope = Step(MODELS["zeroscope"], "meta", torch.bfloat16, cfg=cfg)
        pocket = Step(MODELS["pocket"], cpu, torch.float32, cfg=cfg)
        pocket.train(0)
        seconds = statistics.median(timed(partial(pocket.train, n), cpu).cpu for n in range(1, repeats + 1))
        peaks = [
            count_bytes(MODELS[model], checkpointing=None, dtype=dtype, cfg=cfg)
            for model, dtype in (("zeroscope", torch.bfloat16), ("pocket", torch.float32))
        ]
        cells = [f"`{name}`", *parameters(zeroscope.method), *parameters(pocket.method), f"{seconds:.2f}"]
        table.append([*cells, *(f"{peak / 1e9:.2f}" for peak in peaks), WHEN[name]])
        print(" ".join(table[-1][:-1]), file=sys.stderr)
    return table


def transformer_rows(names: list[str]) -> list[list[str]]:
    """One row for each method that only a transformer has, cells as text under `TRANSFORMER_HEADER`."""
    table = []
    for name in names:
        cfg = _configuration(name)
        cells = [f"`{name}`"]
        for settings, size in TRANSFORMERS.values():
            with torch.device("meta"):
                network = WanTransformer3DModel.from_config(settings)
            cells += parameters(methods.attach(network, cfg, clips=1, latent_size=size))
        table.append([*cells, TRANSFORMER_WHEN[name]])
    return table


def _configuration(name: str):
    words = ["--config", str(FOLDER / f"{name}.yaml"), "train_data.single_video_path=random"]
    return schema.load(words, description="")[0]


def parameters(method: methods.Method) -> tuple[str, str]:
    """(millions of parameters, motion plus appearance; size of the motion's file)."""
    groups = method.motion_parameters, method.appearance_parameters
    motion, appearance = (sum(p.numel() for p in group) for group in groups)
    count = f"{motion / 1e6:.2f} + {appearance / 1e6:.2f} M" if appearance else f"{motion / 1e6:.2f} M"
    return count, f"{4 * motion / 1e6:.1f} MB"
