"""Figure 4's measures: what the motion classifier can and cannot read, and what a comparison says."""

import numpy as np
import pytest
import torch

from scripts.artefacts.hidden_states import AH, BASE, SPATIAL, TAP, StateComparison, classify, decoder_layers
from scripts.pocket.architecture import untrained_unet

LABELS = ["left", "right", "up"] * 20


def test_a_motion_that_is_in_the_features_is_read_and_noise_is_not():
    noise = torch.randn(len(LABELS), 64, generator=torch.Generator().manual_seed(0))
    codes = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
    clear = noise + 2 * codes[[["left", "right", "up"].index(label) for label in LABELS]]
    assert sum(classify(clear, LABELS)) == len(LABELS) // 2  # the other half was fitted on
    tried, chance = len(LABELS) // 2, 1 / 3
    assert sum(classify(noise, LABELS)) / tried < chance + 3 * (chance * (1 - chance) / tried) ** 0.5


def states(read: bool, trainings: int = 4, of_each: int = 1) -> StateComparison:
    """Two layers; TAP and the spatial LoRA of several trainings, the untouched model and the highway of none.

    `of_each` trainings learn from one reference clip.
    """
    near = {TAP: 0.9, AH: 0.99, SPATIAL: 0.5, BASE: 1.0}
    clips = [0.0, 0.01, -0.01, 0.02]
    lists = {name: trainings if name in (TAP, SPATIAL) else 1 for name in near}
    values = {
        (name, layer): [[near[name] + clip + 0.01 * training for clip in clips] for training in range(lists[name])]
        for name in near
        for layer in range(2)
    }
    seen = {key: [[True, False, True, False]] * lists[key[0]] for key in values}
    references = [f"clip {training // of_each}" for training in range(trainings)]
    layers = ["up 0.0", "up 0.1"]
    return StateComparison("four clips", list(near), layers, values, torch.eye(4), seen if read else {}, references)


def test_verdicts_follow_from_the_trainings_and_from_the_clips_where_none_is_involved():
    rulings = {verdict.claim.text: verdict for verdict in states(read=True).verdicts()}
    first = rulings["TAP leaves the decoder nearer to the untouched model than the spatial LoRA does"]
    assert (
        "0.920 against 0.520, difference +0.400" in first.words
        and "over 4 reference clips (4 trainings of each)" in first.words
    )
    assert "with 16 pairs of clips" in first.words
    assert first.ruling == "confirmed"
    reading = rulings["motion is read as well with AH as without"]
    assert "over 4 clips with 4 pairs of values" in reading.words and reading.ruling == "confirmed"


def test_trainings_on_one_reference_clip_do_not_count_as_several():
    found = states(read=True, of_each=2)
    first = found.verdicts()[0]
    assert first.ruling == "not decided" and "2 reference clips: too few for an interval" in first.words
    assert "trainings of the adapters: 4, reference clips: 2." in found.caption
    alone = states(read=True, of_each=1).measured()[0][1][TAP, 0]
    narrow = found.measured()[0][1][TAP, 0]
    assert alone.high - alone.low > narrow.high - narrow.low  # two clips are too few to widen an interval by


def test_without_several_clips_of_a_motion_nothing_is_read():
    single = states(read=False)
    assert [v.ruling for v in single.verdicts() if "classifier" in v.claim.role] == ["not measured"] * 2
    assert [title for title, _ in single.tables()] == [
        "cosine with the untouched model",
        "cosine between models, mean of clips and layers",
    ]
    assert "classifier" not in single.markdown()


def test_the_figure_draws_a_line_with_a_band_for_every_model_and_none_for_what_was_not_read():
    for read in (True, False):
        found = states(read)
        matrix, near, reading = found.figure().axes[:3]
        assert torch.equal(torch.as_tensor(matrix.images[0].get_array().data), found.between)
        assert [label.get_text() for label in near.get_legend().get_texts()] == found.models
        drawn = {line.get_label(): line.get_ydata().tolist() for line in near.lines}
        assert drawn == {name: pytest.approx([np.mean(found.similarity[name, 0])] * 2) for name in found.models}
        bands = [band.get_paths()[0].get_extents() for band in near.collections]
        assert len(bands) == len(found.models) and all(band.height > 0.01 for band in bands)
        assert len(reading.lines) == (len(found.models) if read else 0)


def test_every_layer_of_the_decoder_is_looked_at():
    unet = untrained_unet((16, 32, 32, 32))
    names = list(decoder_layers(unet))
    assert names == [f"up {block}.{layer}" for block in range(4) for layer in range(len(unet.up_blocks[block].resnets))]
