"""This project's question to a diffusion transformer, as data: which layers, which heads and which blocks learn motion.

    python scripts/reproduce.py dit --model models/pocketscope_dit --world

Nobody that we know of has published Query and Key adaptation on one; SMRABooth places motion in Value, output and
feed-forward layers, EffiVMT in temporal heads, DeT in the first third of the blocks; DeT also reports that Motion
Inversion's embeddings, put on a transformer, move best and follow the prompt worst. All nine held-out motions of the
toy world are learned from two clips each. Claims are judged over all of them: what an attention layer of a transformer
can move depends on no kind of motion. The U-Net's rows beside them are those of the artefact `motions`. Whether Query
and Key leak less than all layers that move equally well is asked by transformer_sweep.py.
"""

from itertools import chain, zip_longest

from configs.paths import ROOT
from configs.plain import read_yaml
from data.world import PATHS, RETIMINGS
from scripts.artefacts.artefact import Artefact, Beside, Bound, Claim, Variant
from scripts.artefacts.claims import LEARNED, about_guidance
from scripts.artefacts.variants import GUIDANCE, TAP, TAP_GUIDANCE, UNTOUCHED, preset

QK, ALL, VALUES = "q + k (TAP)", "all layers (MotionDirector)", "v + out + ff (SMRABooth)"
HEADS, PURE, EARLY, LATE = (
    "q + k, temporal heads",
    "q + k, temporal heads, pure norm",
    "TAP, first half",
    "TAP, last half",
)
EFFIVMT = "q + k + v, temporal heads (EffiVMT)"
EMBEDDINGS, NO_VALUES = "Motion Inversion", "Motion Inversion, without its Values"
MOTION_INVERSION = ("method=motion_inversion",)
LOWEST = read_yaml(ROOT / "configs/reproduce/pocket_dit.yaml")["min_timestep"]  # that a training draws
PHASED = "TAP + PLI where training ends"  # the adapters act at no timestep that they have not seen
NO_APPEARANCE = "spatial_path_probability=0"  # without the dual path

LADDER = (
    UNTOUCHED,
    Variant("q", preset("query")),
    Variant("k", preset("tap_key")),
    Variant("v", preset("value")),
    Variant("out", preset("out")),
    Variant("ff", preset("ff")),
    Variant(QK, TAP),
    Variant(VALUES, preset("value_out_ff")),
    Variant(ALL, preset("motiondirector")),
    Variant("q + k, no dual path", (*TAP, NO_APPEARANCE)),
    Variant("all layers, no dual path", (*preset("motiondirector"), NO_APPEARANCE)),
    Variant(HEADS, preset("tap_temporal")),
    Variant(PURE, preset("tap_pure")),
    Variant(EFFIVMT, preset("effivmt")),
    Variant(EARLY, (*TAP, "block_range=[0,0.5]")),
    Variant(LATE, (*TAP, "block_range=[0.5,1]")),
    Variant("TAP + value highway", TAP, ("--highway", "value")),
    Variant(PHASED, TAP, ("--pli_threshold", str(LOWEST))),
    Variant(EMBEDDINGS, MOTION_INVERSION),
    Variant(NO_VALUES, MOTION_INVERSION, ("--embedding_sampling", "drop_value")),
    GUIDANCE,
    TAP_GUIDANCE,
)


def _ours(text: str, role: str, one: str, expect: str, other: str | Bound, group: str | None = None) -> Claim:
    return Claim(text, role, one, expect, other, "ours", group=group)


CLAIMS = (
    _ours("q + k learns motions that the untouched model does not show", "motion", QK, "more", UNTOUCHED.name),
    _ours("q + k learns new paths: at least every second video", "motion", QK, "not less", LEARNED, "path"),
    _ours("q + k moves no worse than all layers", "motion", QK, "not less", ALL),
    _ours("q + k leaks less than all layers", "leakage", QK, "less", ALL),
    _ours("q + k follows the prompt's appearance no worse than all layers", "appearance", QK, "not less", ALL),
    _ours("v + out + ff moves no worse than q + k", "motion", VALUES, "not less", QK),
    _ours("v + out + ff leaks no more than q + k", "leakage", VALUES, "not more", QK),
    _ours("without the dual path all layers leak more than q + k", "leakage", "all layers, no dual path", "more",
          "q + k, no dual path"),
    _ours("temporal heads alone move no worse than all heads", "motion", HEADS, "not less", QK),
    _ours("temporal heads alone keep the appearance no worse than all heads", "appearance", HEADS, "not less", QK),
    _ours("q + k + v of temporal heads move no worse than q + k of all", "motion", EFFIVMT, "not less", QK),
    _ours("a pure norm moves no worse than the shared one", "motion", PURE, "not less", HEADS),
    _ours("the first half of the blocks moves no worse than all", "motion", EARLY, "not less", QK),
    _ours("the first half of the blocks moves better than the last", "motion", EARLY, "more", LATE),
    _ours("the value highway keeps the appearance no worse", "appearance", "TAP + value highway", "not less", QK),
    _ours("the value highway costs no motion", "motion", "TAP + value highway", "not less", QK),
    _ours("PLI improves the appearance", "appearance", PHASED, "more", QK),
    _ours("PLI costs no motion", "motion", PHASED, "not less", QK),
    _ours("embeddings move no worse than q + k", "motion", EMBEDDINGS, "not less", QK),
    _ours("embeddings leak more than q + k", "leakage", EMBEDDINGS, "more", QK),
    _ours("without their Values embeddings leak less", "leakage", NO_VALUES, "less", EMBEDDINGS),
    *about_guidance(QK),
)  # fmt: skip

# A re-timing and a path in turn, so that the first few motions already answer for both kinds.
MOTIONS = tuple(filter(None, chain.from_iterable(zip_longest(RETIMINGS, PATHS))))

TRANSFORMER = {
    "dit": Artefact(
        "Transformer: which layers, heads and blocks learn motion",
        "whether purified adaptation is worth having on a diffusion transformer (the setting of guidance was chosen on "
        "the orbit, with eight of its prompts)",
        LADDER,
        CLAIMS,
        motions=MOTIONS,
        pooled=True,
        appearances=2,
        world=True,
        network="transformer",
        needs="PocketScope-DiT: --model models/pocketscope_dit --world",
        beside=Beside(
            "the U-Net (PocketScope)",
            "motions",
            "pocketscope",
            ("untouched model", "TAP-key (k)", "TAP (q + k)", "MotionDirector", "guidance", "TAP + guidance"),
        ),
    )
}
