"""The paper's six tables as data: what each compares, reports and claims."""

from data.world import PATHS, RETIMINGS
from scripts.artefacts.artefact import RETIMED, Artefact, Claim, Variant
from scripts.artefacts.claims import against_director
from scripts.artefacts.variants import (
    BETAS,
    DIRECTOR,
    EARLY_PLI,
    FULL,
    GUIDANCE,
    HIGHWAY,
    INVERSION,
    MOTION_DIRECTOR,
    PLI,
    PRIOR,
    TAP,
    TAP_GUIDANCE,
    UNTOUCHED,
    highway,
    preset,
    sweep,
)

# names of rows that claims refer to
ALL_LAYERS, BASELINE, ALL_THREE = "all (MotionDirector)", "baseline (MotionDirector)", "+ PLI (full)"
EACH = 4  # reference clips of a motion in a table of every held-out one: all ten artefacts then take under four hours
AH_SAMPLED, AH_TRAINED = "AH in sampling only", "AH in training and sampling"

TABLES = {
    "table1": Artefact(
        "Table 1: which temporal layers to adapt",
        "what query, key, value, output and feed-forward layers each bring",
        (
            UNTOUCHED,
            Variant("q", preset("query"), (), "leakage about W_K's"),
            Variant("k", preset("tap_key"), (), "motion 64.3, appearance 25.52, leakage 21.33"),
            Variant("v", preset("value"), (), "motion 62.4, appearance 22.88"),
            Variant("out", preset("out")),
            Variant("ff", preset("ff"), (), "motion 69.2, appearance 21.23"),
            Variant("q + k (TAP)", TAP),
            Variant("k + out (release)", preset("release")),
            Variant(ALL_LAYERS, MOTION_DIRECTOR, (), "motion 64.1, appearance 21.26, leakage 21.66"),
        ),
        (
            Claim("keys alone keep the appearance better than all layers", "appearance", "k", "more", ALL_LAYERS),
            Claim("keys alone leak less than all layers", "leakage", "k", "less", ALL_LAYERS),
            Claim("keys alone move no worse than all layers", "motion", "k", "not less", ALL_LAYERS),
            Claim("keys keep the appearance better than values", "appearance", "k", "more", "v"),
            Claim("feed-forward layers move better than keys", "motion", "ff", "more", "k"),
            Claim("queries leak no more than keys", "leakage", "q", "not more", "k"),
        ),
        also=("motion_quality",),
    ),
    "table2": Artefact(
        "Table 2: methods on one reference clip",
        "how the methods compare in motion, appearance and leakage",
        (
            UNTOUCHED,
            PRIOR,
            GUIDANCE,
            DIRECTOR,
            INVERSION,
            Variant("release (k + out)", preset("release")),
            Variant("TAP", TAP),
            FULL,
            TAP_GUIDANCE,
        ),
        (
            *against_director(FULL.name),
            Claim(
                "TAP + AH + PLI is at least as consistent in time",
                "consistency",
                FULL.name,
                "not less",
                "MotionDirector",
            ),
            Claim(
                "TAP + AH + PLI moves more like the reference than the untouched model",
                "motion",
                FULL.name,
                "more",
                UNTOUCHED.name,
            ),
        ),
        motions=(*RETIMINGS, *PATHS),
        appearances=EACH,
    ),
    "table3": Artefact(
        "Table 3: methods on several reference clips",
        "the same with three clips of one motion in different appearances",
        (UNTOUCHED, DIRECTOR, INVERSION, Variant("TAP", TAP), FULL),
        against_director(FULL.name),
        motions=RETIMED[:1],
        several=True,
        needs="several clips of one motion (real models: --clips FOLDER)",
        reported="the paper's numbers (UCF Sports) are not in our reading",
    ),
    "table4": Artefact(
        "Table 4: ablation",
        "what TAP, the appearance highway and phased integration each add",
        (
            UNTOUCHED,
            Variant(BASELINE, MOTION_DIRECTOR, (), DIRECTOR.reported),
            Variant("+ TAP", TAP, (), "text 27.91, consistency 93.86"),
            Variant("+ AH", TAP, highway(), HIGHWAY.reported),
            Variant(ALL_THREE, TAP, (*highway(), *PLI), FULL.reported),
            Variant("+ PLI from timestep 400", TAP, (*highway(), *EARLY_PLI)),
        ),
        (
            Claim("TAP improves appearance over the baseline", "appearance", "+ TAP", "more", BASELINE),
            Claim("AH improves appearance over TAP", "appearance", "+ AH", "more", "+ TAP"),
            Claim("PLI improves appearance over AH", "appearance", ALL_THREE, "more", "+ AH"),
            Claim("the full method leaks less than the baseline", "leakage", ALL_THREE, "less", BASELINE),
            Claim("TAP is more consistent in time than the baseline", "consistency", "+ TAP", "more", BASELINE),
            Claim("the full method moves no worse than the baseline", "motion", ALL_THREE, "not less", BASELINE),
        ),
        motions=tuple(RETIMINGS),
        appearances=EACH,
    ),
    "table5": Artefact(
        "Table 5: highway in training or only in sampling",
        "whether training with the highway is needed",
        (
            UNTOUCHED,
            Variant("TAP without AH", TAP),
            Variant(AH_SAMPLED, TAP, highway(), "VBench average 76.33"),
            Variant(
                AH_TRAINED,
                (
                    *TAP,
                    "appearance_highway.use=training",
                    "appearance_highway.scope=all",
                    "appearance_highway.beta=1.1",
                ),
                (),
                "VBench average 76.21",
            ),
        ),
        (
            Claim(
                "AH only in sampling keeps appearance as well as AH in training",
                "appearance",
                AH_SAMPLED,
                "not less",
                AH_TRAINED,
            ),
            Claim("AH only in sampling moves as well as AH in training", "motion", AH_SAMPLED, "not less", AH_TRAINED),
        ),
        motions=tuple(RETIMINGS),
        appearances=EACH,
    ),
    "table6": Artefact(
        "Table 6: beta",
        "which scale of the highway is best",
        (Variant("no highway", TAP), *sweep("all", "AH", BETAS)),
        (
            Claim("1.1 keeps appearance better than 1.0", "appearance", "AH @ 1.1", "more", "AH @ 1"),
            Claim("1.1 keeps appearance better than 1.2", "appearance", "AH @ 1.1", "more", "AH @ 1.2"),
        ),
        form="sweep",
        reported="best at 1.1; 1.0 and 1.2 worse",
    ),
}
