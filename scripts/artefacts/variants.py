"""The rows that tables and figures share: how a variant is trained (words for train.py) and sampled (infer/infer.py).

Reported numbers are a secondary reading of the paper's tables ("[S]"), not checked against the PDF.
"""

from collections.abc import Iterable

from configs.paths import ROOT
from configs.plain import read_yaml
from scripts.artefacts.artefact import Place, Variant

PLI_TAU = read_yaml(ROOT / "configs/methods/tap_pli.yaml")["pli_threshold"]  # ours: the paper reports none


def preset(name: str) -> tuple[str, ...]:
    return (f"temporal_preset={name}",)


def highway(beta: float = 1.1, scope: str = "all") -> tuple[str, ...]:
    return ("--highway", scope, "--beta", str(beta))


CHECKPOINT = "--checkpoint_index"
TAP, MOTION_DIRECTOR = preset("tap"), preset("motiondirector")
PLI, EARLY_PLI = ("--pli_threshold", str(PLI_TAU)), ("--pli_threshold", "400")
WORDS_ALONE, TRUE_MOTION = "rendered: what the words say", "rendered: the motion itself"
RENDERED = (Variant(WORDS_ALONE), Variant(TRUE_MOTION))  # no model: what the measures give where the truth is known
BETAS = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2, 1.25, 1.3)
PRIOR = Variant("noise prior 0.5 alone", TAP, ("--lora_scale", "0", "--noise_prior", "0.5"))
UNTOUCHED = Variant("untouched model", TAP, ("--lora_scale", "0"))
DIRECTOR = Variant("MotionDirector", MOTION_DIRECTOR, (), "text 27.55, ViCLIP 25.54, consistency 93.56")
FULL = Variant("TAP + AH + PLI", TAP, (*highway(), *PLI), "text 28.52, ViCLIP 26.52, consistency 93.83")
HIGHWAY = Variant("TAP + AH", TAP, highway(), "text 28.32, consistency 93.71")
GUIDANCE = Variant("guidance", TAP, ("--lora_scale", "0", "--guide"))  # the run gives the clip, not its adapter
PREDICTED = Variant("guidance, predicted", TAP, (*GUIDANCE.flags, "--guide_target", "predicted"))  # FlowMotion's
TAP_GUIDANCE = Variant("TAP + guidance", TAP, ("--guide",))
INVERSION = Variant("Motion Inversion", ("method=motion_inversion",), ("--embedding_sampling", "difference"))


def on_curve(
    curve: str, at: float, train: tuple[str, ...], flags: tuple[str, ...], preset: str = "", rate: str = ""
) -> Variant:
    """A row that is a point of a curve, "CURVE @ number"."""
    return Variant(f"{curve} @ {at:g}", train, flags, place=Place(curve, at, preset, rate))


def lengths(name: str, train: tuple[str, ...], steps: Iterable[int], rate: str = "") -> tuple[Variant, ...]:
    """A curve over the checkpoints of one training; `name` is that of its preset where a `rate` is given."""
    curve, preset = (f"{name}, rate {rate}", name) if rate else (name, "")
    return tuple(on_curve(curve, step, train, (CHECKPOINT, str(step)), preset, rate) for step in steps)


def sweep(scope: str, label: str, betas: tuple[float, ...]) -> tuple[Variant, ...]:
    """A curve over beta, sampled from one training."""
    return tuple(on_curve(label, beta, TAP, highway(beta, scope)) for beta in betas)
