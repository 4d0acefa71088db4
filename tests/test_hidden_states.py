"""Figure 4's measures: what the motion classifier can and can not read, and what a comparison says."""

import torch

from scripts.artefacts.hidden_states import AH, BASE, SPATIAL, TAP, States, classify

LABELS = ["left", "right", "up"] * 20


def test_a_motion_that_is_in_the_features_is_read_and_noise_is_not():
    noise = torch.randn(len(LABELS), 64, generator=torch.Generator().manual_seed(0))
    codes = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    clear = noise + 2 * codes[[["left", "right", "up"].index(label) for label in LABELS]]
    assert sum(classify(clear, LABELS)) == len(LABELS) // 2  # the other half was fitted on
    assert sum(classify(noise, LABELS)) < 0.7 * len(LABELS) / 2


def states(read: bool) -> States:
    near = {TAP: 0.9, AH: 0.99, SPATIAL: 0.5, BASE: 1.0}
    clips = [0.0, 0.01, -0.01, 0.02]
    return States(
        "four clips",
        list(near),
        1,
        {(name, 0): [value + c for c in clips] for name, value in near.items()},
        torch.eye(4),
        {(name, 0): [True, False, True, False] for name in near} if read else {},
    )


def test_verdicts_follow_from_the_clips():
    rulings = {verdict.claim.text: verdict for verdict in states(read=True).verdicts()}
    first = rulings["TAP leaves the decoder nearer to the untouched model than the spatial LoRA does"]
    assert "0.905 against 0.505, difference +0.400" in first.words


def test_without_several_clips_of_a_motion_nothing_is_read():
    single = states(read=False)
    assert [v.ruling for v in single.verdicts() if v.claim.role == "classifier"] == ["not measured"] * 2
    assert "classifier" not in single.markdown() and "classifier" not in single.html()
    single.figure()
