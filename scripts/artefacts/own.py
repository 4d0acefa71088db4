"""This project's own artefacts as data: what training buys over guidance, and every held-out motion."""

from data.world import PATHS, RETIMINGS
from scripts.artefacts.artefact import Artefact, Claim, Variant
from scripts.artefacts.claims import LEARNED, about_guidance, against_director
from scripts.artefacts.variants import (
    GUIDANCE,
    MOTION_DIRECTOR,
    PLI,
    PREDICTED,
    PRIOR,
    TAP,
    TAP_GUIDANCE,
    UNTOUCHED,
    highway,
    preset,
)

DEFAULT = "TAP + AH (default)"
A_LITTLE = Variant("TAP + a little guidance", TAP, ("--guide", "--guide_steps", "2"))

OWN = {
    "guidance": Artefact(
        "Guidance: what training buys over steering a sampling",
        "motion guidance without training, TAP, and both together (the setting of guidance was chosen on the orbit, "
        "with the first eight of its prompts and the clip's own clean latents; FlowMotion's predicted ones have the "
        "same setting, and a little guidance acts in the first two of six steps in place of five)",
        (UNTOUCHED, PRIOR, GUIDANCE, PREDICTED, Variant("TAP", TAP), TAP_GUIDANCE, A_LITTLE),
        (
            *about_guidance("TAP"),
            Claim("a little guidance improves the motion of TAP", "motion", A_LITTLE.name, "more", "TAP", "ours"),
            Claim(
                "TAP with a little guidance leaks no more than TAP", "leakage", A_LITTLE.name, "not more", "TAP", "ours"
            ),
        ),
        motions=(*RETIMINGS, *PATHS),
        appearances=2,
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
            Variant("MotionDirector, half the rate", (*MOTION_DIRECTOR, "learning_rate=1e-3")),
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
            *(claim for one in ("TAP (q + k)", DEFAULT) for claim in against_director(one)),
            Claim(
                "TAP + AH keeps the appearance of the untouched model",
                "appearance",
                DEFAULT,
                "not less",
                UNTOUCHED.name,
                "ours",
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
            Claim(
                "q + k learns no new path: at most every second video",
                "motion",
                "TAP (q + k)",
                "not more",
                LEARNED,
                "ours",
                group="path",
            ),
            Claim("q + k moves better than k alone", "motion", "TAP (q + k)", "more", "TAP-key (k)", "ours"),
            Claim(
                "the release's k + out moves better than q + k",
                "motion",
                "release (k + out)",
                "more",
                "TAP (q + k)",
                "ours",
            ),
        ),
        motions=(*RETIMINGS, *PATHS),
        appearances=3,
        world=True,
        needs="a model of the toy world",
    ),
}
