"""Figure 4's measures: what the motion classifier can and cannot read, and what a comparison says."""

import pytest
import torch

from scripts.artefacts.hidden_states import AH, BASE, SPATIAL, TAP, StateComparison, classify

LABELS = ["left", "right", "up"] * 20


def test_a_motion_that_is_in_the_features_is_read_and_noise_is_not():
    noise = torch.randn(len(LABELS), 64, generator=torch.Generator().manual_seed(0))
    codes = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    clear = noise + 2 * codes[[["left", "right", "up"].index(label) for label in LABELS]]
    assert sum(classify(clear, LABELS)) == len(LABELS) // 2  # the other half was fitted on
    assert sum(classify(noise, LABELS)) < 0.7 * len(LABELS) / 2


def states(read: bool) -> StateComparison:
    near = {TAP: 0.9, AH: 0.99, SPATIAL: 0.5, BASE: 1.0}
    clips = [0.0, 0.01, -0.01, 0.02]
    return StateComparison(
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
    assert [title for title, _ in single.tables()] == [
        "cosine with the untouched model",
        "cosine between models, mean of clips and blocks",
    ]
    assert "classifier" not in single.markdown()


def test_the_figure_draws_a_line_for_every_model_and_none_for_what_was_not_read():
    for read in (True, False):
        found = states(read)
        matrix, near, reading = [axes for axes in found.figure().axes if axes.get_title()]
        assert torch.equal(torch.as_tensor(matrix.images[0].get_array().data), found.between)
        assert [label.get_text() for label in near.get_legend().get_texts()] == found.models
        drawn = [container.lines[0].get_ydata().tolist() for container in near.containers]
        assert drawn == [pytest.approx([sum(found.similarity[name, 0]) / 4]) for name in found.models]
        assert len(reading.containers) == (len(found.models) if read else 0)
