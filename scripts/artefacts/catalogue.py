"""The paper's ten artefacts, and one of this project's own, as data: what each compares, reports and claims.

Reported numbers are a secondary reading of the paper's tables ("[S]"), not checked against the PDF.
"""

from configs.layers import ROOT
from configs.plain import read_yaml
from data.world import PATHS, RETIMINGS
from scripts.artefacts.artefact import RETIMED, Artefact, Claim, Variant
from scripts.artefacts.transformer import TRANSFORMER

PLI_TAU = read_yaml(ROOT / "configs/methods/tap_pli.yaml")["pli_threshold"]  # ours: the paper reports none
NEW_PATH = ("orbit",)  # visits places that no pretrained value holds, which the paper's argument does not promise


def preset(name: str) -> tuple[str, ...]:
    return (f"temporal_preset={name}",)


def highway(beta: float = 1.1, scope: str = "all") -> tuple[str, ...]:
    return ("--highway", scope, "--beta", str(beta))


TAP, MOTION_DIRECTOR = preset("tap"), preset("motiondirector")
PLI, EARLY_PLI = ("--pli_threshold", str(PLI_TAU)), ("--pli_threshold", "400")
WORDS_ALONE, TRUE_MOTION = "rendered: what the words say", "rendered: the motion itself"
RENDERED = (Variant(WORDS_ALONE), Variant(TRUE_MOTION))  # no model: what the measures give where the truth is known
PRIOR = Variant("noise prior 0.5 alone", TAP, ("--lora_scale", "0", "--noise_prior", "0.5"))
UNTOUCHED = Variant("untouched model", TAP, ("--lora_scale", "0"))
DIRECTOR = Variant("MotionDirector", MOTION_DIRECTOR, (), "text 27.55, ViCLIP 25.54, consistency 93.56")
FULL = Variant("TAP + AH + PLI", TAP, (*highway(), *PLI), "text 28.52, ViCLIP 26.52, consistency 93.83")
HIGHWAY = Variant("TAP + AH", TAP, highway(), "text 28.32, consistency 93.71")
GUIDANCE = Variant("guidance", TAP, ("--lora_scale", "0", "--guide"))  # the run gives the clip, not its adapter
TAP_GUIDANCE = Variant("TAP + guidance", TAP, ("--guide",))
INVERSION = Variant("Motion Inversion", ("method=motion_inversion",), ("--embedding_sampling", "difference"))
# names of rows that claims refer to
ALL_LAYERS, BASELINE, ALL_THREE = "all (MotionDirector)", "baseline (MotionDirector)", "+ PLI (full)"
AH_SAMPLED, AH_TRAINED, DEFAULT = "AH in sampling only", "AH in training and sampling", "TAP + AH (default)"


def _against_director(one: str) -> tuple[Claim, ...]:
    return (
        Claim(
            f"{one} follows the prompt's appearance better than MotionDirector",
            "appearance",
            one,
            "more",
            "MotionDirector",
        ),
        Claim(f"{one} leaks less of the reference than MotionDirector", "leakage", one, "less", "MotionDirector"),
        Claim(f"{one} moves no worse than MotionDirector", "motion", one, "not less", "MotionDirector"),
    )


def _about_guidance(tap: str) -> tuple[Claim, ...]:
    return (
        Claim(
            "guidance moves more like the reference than the untouched model",
            "motion",
            "guidance",
            "more",
            "untouched model",
            "ours",
        ),
        Claim("TAP moves better than guidance without training", "motion", tap, "more", "guidance", "ours"),
        Claim("guidance improves the motion of TAP", "motion", "TAP + guidance", "more", tap, "ours"),
        Claim("TAP with guidance leaks no more than TAP", "leakage", "TAP + guidance", "not more", tap, "ours"),
    )


def _sweep(scope: str, label: str, betas: tuple[float, ...]) -> tuple[Variant, ...]:
    return tuple(Variant(f"{label} @ {beta:g}", TAP, highway(beta, scope)) for beta in betas)


PAPER = {
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
            *_against_director(FULL.name),
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
            *_about_guidance("TAP"),
        ),
        motions=(*RETIMED, *NEW_PATH),
    ),
    "table3": Artefact(
        "Table 3: methods on several reference clips",
        "the same with three clips of one motion in different appearances",
        (UNTOUCHED, DIRECTOR, INVERSION, Variant("TAP", TAP), FULL),
        _against_director(FULL.name),
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
    ),
    "table5": Artefact(
        "Table 5: highway in training or only in sampling",
        "whether training with the highway is needed",
        (
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
    ),
    "table6": Artefact(
        "Table 6: beta",
        "which scale of the highway is best",
        (Variant("no highway", TAP), *_sweep("all", "AH", (0.8, 0.9, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3))),
        (
            Claim("1.1 keeps appearance better than 1.0", "appearance", "AH @ 1.1", "more", "AH @ 1"),
            Claim("1.1 keeps appearance better than 1.2", "appearance", "AH @ 1.1", "more", "AH @ 1.2"),
        ),
        form="sweep",
        reported="best at 1.1; 1.0 and 1.2 worse",
    ),
    "figure3": Artefact(
        "Figure 3: highway against scaled plain skips",
        "that leakage falls because skips are moved, not because they are scaled up",
        (
            Variant("no highway", TAP),
            *_sweep("all", "AH", (0.9, 1.0, 1.1, 1.2)),
            *_sweep("plain", "plain skips", (0.9, 1.1, 1.2)),
            *_sweep("release", "AH, release scope", (1.1,)),
        ),
        (
            Claim("AH at 1.1 leaks less than plain skips at 1.1", "leakage", "AH @ 1.1", "less", "plain skips @ 1.1"),
            Claim("AH at 1.1 leaks less than no highway", "leakage", "AH @ 1.1", "less", "no highway"),
            Claim(
                "scaling plain skips by 1.1 does not lower leakage",
                "leakage",
                "plain skips @ 1.1",
                "not less",
                "no highway",
            ),
        ),
        form="sweep",
        reported="leakage falls only with AH",
    ),
    "figure4": Artefact(
        "Figure 4: decoder hidden states",
        "how far each model's decoder is from the base, and whether motion is read there",
        (UNTOUCHED, Variant("TAP", TAP)),
        form="states",
        motions=RETIMED[:1],
        reported="the paper's values are not in our reading",
    ),
    "figure5": Artefact(
        "Figure 5: one reference clip, videos",
        "the videos of the methods side by side",
        (UNTOUCHED, DIRECTOR, Variant("TAP", TAP), HIGHWAY, FULL),
        form="grid",
        motions=(*RETIMED, *NEW_PATH),
    ),
    "figure6": Artefact(
        "Figure 6: several reference clips, videos",
        "the same with several clips of one motion",
        (UNTOUCHED, DIRECTOR, Variant("TAP", TAP), HIGHWAY, FULL),
        form="grid",
        motions=RETIMED[:1],
        several=True,
        needs="several clips of one motion (real models: --clips FOLDER)",
    ),
}

OURS = {
    "guidance": Artefact(
        "Guidance: what training buys over steering a sampling",
        "motion guidance without training, TAP, and both together, on a re-timing and on two new paths (the setting of "
        "guidance was chosen on there and back and the orbit, with the first four prompts)",
        (UNTOUCHED, PRIOR, GUIDANCE, Variant("TAP", TAP), TAP_GUIDANCE),
        _about_guidance("TAP"),
        motions=(RETIMED[0], "orbit", "spiral"),
        world=True,
        needs="a model of the toy world",
    ),
    "motions": Artefact(
        "Motions: every held-out motion of the toy world",
        "which methods learn which motions from one clip, and what they keep",
        (
            UNTOUCHED,
            PRIOR,
            GUIDANCE,
            Variant("MotionDirector", MOTION_DIRECTOR),
            Variant("MotionDirector, half the rate", (*MOTION_DIRECTOR, "learning_rate=1.25e-3")),
            Variant("release (k + out)", preset("release")),
            Variant("TAP-key (k)", preset("tap_key")),
            Variant("TAP (q + k)", TAP),
            Variant("TAP + AH, release scope", TAP, highway(scope="release")),
            Variant("TAP + AH, beta 1", TAP, highway(1.0)),
            Variant(DEFAULT, TAP, highway()),
            Variant("TAP + AH + PLI", TAP, (*highway(), *PLI)),
            Variant("TAP + noise prior 0.5", TAP, ("--noise_prior", "0.5")),
            TAP_GUIDANCE,
        ),
        (
            *(claim for one in ("TAP (q + k)", DEFAULT) for claim in _against_director(one)),
            Claim(
                "TAP + AH keeps the appearance of the untouched model",
                "appearance",
                DEFAULT,
                "not less",
                UNTOUCHED.name,
                "ours",
                0.03,
            ),
            Claim(
                "TAP + AH moves more like the reference than the untouched model",
                "motion",
                DEFAULT,
                "more",
                UNTOUCHED.name,
            ),
            Claim(
                "TAP + AH moves more like the reference than a noise prior alone",
                "motion",
                DEFAULT,
                "more",
                "noise prior 0.5 alone",
                "ours",
            ),
            Claim("AH keeps appearance better than TAP alone", "appearance", DEFAULT, "more", "TAP (q + k)"),
            Claim("AH costs no motion", "motion", DEFAULT, "not less", "TAP (q + k)", "ours"),
            Claim("q + k moves better than k alone", "motion", "TAP (q + k)", "more", "TAP-key (k)", "ours"),
            Claim(
                "the release's k + out moves better than q + k",
                "motion",
                "release (k + out)",
                "more",
                "TAP (q + k)",
                "ours",
            ),
            *_about_guidance("TAP (q + k)"),
        ),
        motions=(*RETIMINGS, *PATHS),
        world=True,
        needs="a model of the toy world",
    ),
}
ARTEFACTS = PAPER | OURS | TRANSFORMER
STUDIES = {"metrics": ("Motion metrics against the truth (toy world)", "no model; about three minutes of CPU")}
