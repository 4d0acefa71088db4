"""The paper's four figures as data: what each compares, reports and claims."""

from scripts.artefacts.artefact import RETIMED, Artefact, Claim, Variant
from scripts.artefacts.variants import BETAS, DIRECTOR, FULL, HIGHWAY, TAP, UNTOUCHED, sweep

FIGURES = {
    "figure3": Artefact(
        "Figure 3: highway against scaled plain skips",
        "that leakage falls because skips are moved, not because they are scaled up",
        (
            Variant("no highway", TAP),
            *sweep("all", "AH", BETAS),
            *sweep("plain", "plain skips", tuple(beta for beta in BETAS if beta != 1)),  # 1 changes nothing
            *sweep("release", "AH, release scope", (1.1,)),
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
        network="unet",
        needs="a U-Net, whose decoder is looked at, and one reference clip for each motion",
        motions=RETIMED[:1],
        reported="the paper's values are not in our reading",
    ),
    "figure5": Artefact(
        "Figure 5: one reference clip, videos",
        "the videos of the methods side by side",
        (UNTOUCHED, DIRECTOR, Variant("TAP", TAP), HIGHWAY, FULL),
        form="grid",
        motions=(*RETIMED, "orbit"),
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
