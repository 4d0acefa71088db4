"""Choosing layers by patterns on top of a preset: what is adapted, what is printed, and what no pattern can do."""

import time

import pytest

import train
from configs.errors import UserError
from models.files.checkpoint import load_checkpoint
from models.outline import skeleton
from models.targets import choose_layers, targets
from scripts.authors.weights import build_unet

from conftest import UNET


@pytest.fixture(scope="module")
def unet():
    return build_unet(UNET)


def test_without_patterns_the_layers_are_the_presets(unet):
    assert choose_layers(unet, "tap", None, None) == (targets(unet, "tap"), [])
    assert choose_layers(unet, "tap", [], []) == (targets(unet, "tap"), [])


def test_exclude_takes_away_include_adds_and_wins(unet):
    tap = targets(unet, "tap")
    names, notes = choose_layers(unet, "tap", None, [r".*\.to_k"])
    assert names == targets(unet, "query") == [name for name in tap if name.endswith("to_q")]
    assert notes[0].startswith(f"exclude     '.*\\\\.to_k': {len(names)} layers, such as ")
    names, notes = choose_layers(unet, "tap_key", [r".*\.attn[12]\.to_q"], None)
    assert set(names) == set(tap) and names[: len(tap) // 2] == targets(unet, "tap_key")
    assert f"{len(tap) // 2} layers, {len(tap) // 2} of them new" in notes[0]
    names, _ = choose_layers(unet, "tap", [r"transformer_in\..*attn1\.to_out\.0"], [".*"])
    assert names == ["transformer_in.transformer_blocks.0.attn1.to_out.0"]


def test_only_linear_layers_of_the_temporal_transformers_can_be_included(unet):
    names, _ = choose_layers(unet, "tap", [".*"], None)
    assert set(targets(unet, "motiondirector")) == set(names)
    with pytest.raises(UserError, match="matches none"):
        choose_layers(unet, "tap", [r".*\.attentions\..*"], None)


def test_nothing_is_included_beside_temporal_heads(tiny_wan):
    """Their rows alone learn, so an included layer would be named, counted and saved, and learn nothing."""
    network = skeleton(tiny_wan)
    assert choose_layers(network, "tap_temporal", None, [r".*blocks\.0\..*"])[0]
    with pytest.raises(UserError, match="include_patterns: tap_temporal learns in the temporal heads"):
        choose_layers(network, "tap_temporal", [r".*ffn.*"], None)
    assert choose_layers(network, "tap", [r".*ffn.*"], None)[0]


def test_nothing_is_included_outside_the_range_of_blocks(tiny_wan):
    names, _ = choose_layers(skeleton(tiny_wan), "tap", [r".*attn1\.to_v"], None, block_range=[0, 0.5])
    assert "blocks.0.attn1.to_v" in names and {name.split(".")[1] for name in names} == {"0"}


def test_a_pattern_that_matches_nothing_names_the_nearest_layers(unet):
    with pytest.raises(UserError, match=r"include_patterns: .* matches none .* are .*attn1\.to_q"):
        choose_layers(unet, "tap", [r"down_blocks\.0\.temp_attentions\.0\.transformer_blocks\.0\.attn1\.to_qq"], None)
    with pytest.raises(UserError, match="exclude_patterns: .*to_v.* matches none of 68 layers"):
        choose_layers(unet, "tap", None, [r".*\.to_v"])
    with pytest.raises(UserError, match="has to match the whole name"):
        choose_layers(unet, "tap", None, ["attn1"])
    with pytest.raises(UserError, match="no layer of the preset tap is left"):
        choose_layers(unet, "tap", None, [".*"])


@pytest.mark.parametrize(
    "pattern",
    [
        "(((a{9999}){9999}){9999}){9999}",
        "(.*){5,}",
        ".*" * 200,
        "(" * 140 + ")" * 140,
        r"(?:(?:\w|\.)+)+(?=!)",
        r"((\w|\w\w|\w\w\w)*\.?)*!",
        "[",
        "*",
        "(?P<a>",
    ],
    ids=lambda pattern: pattern[:14],
)
def test_no_pattern_hangs_or_breaks_anything(unet, pattern):
    began = time.process_time()
    with pytest.raises(UserError, match="include_patterns: "):
        choose_layers(unet, "tap", [pattern], None)
    assert time.process_time() - began < 4


def test_a_pattern_that_takes_too_long_is_stopped(unet, monkeypatch):
    monkeypatch.setattr("models.targets.MOST_SECONDS", 0.2)
    began = time.process_time()
    with pytest.raises(UserError, match="takes too long"):
        choose_layers(unet, "tap", [r"(.*?)(.*?)(.*?)(.*?)(.*?)(.*?)\d\d\d(.*?)"], None)
    assert time.process_time() - began < 4


def test_a_training_with_patterns_is_read_back_as_it_is(tiny_config, capsys):
    only = {"include_patterns": [r"transformer_in\..*\.attn1\.to_v"], "exclude_patterns": [r".*\.to_k"]}
    quick = {"validation_data": {"sample_preview": False}, "max_train_steps": 1}
    cfg = tiny_config(**only, **quick)
    found = load_checkpoint(run := train.run(cfg), network=build_unet(UNET))
    layers = {name.rsplit(".lora_", 1)[0] for name in found.motion}
    assert layers == {*targets(build_unet(UNET), "query"), "transformer_in.transformer_blocks.0.attn1.to_v"}
    said = capsys.readouterr().err
    assert "motion      tap: 35 layers" in said and "exclude     " in said and "1 of them new" in said
    with pytest.raises(UserError, match="include_patterns"):
        train.run(tiny_config(**quick, resume_from_checkpoint=str(run)))


def test_patterns_belong_to_loras_and_may_be_written_as_one_text(tiny_config):
    assert tiny_config(include_patterns=r".*\.to_v").include_patterns == [r".*\.to_v"]
    with pytest.raises(UserError, match="include_patterns: chooses layers of a LoRA"):
        tiny_config(include_patterns=[".*"], method="motion_inversion")


def test_a_note_on_an_included_pattern_names_a_layer_that_is_new(unet):
    """The preset has Query already: what the pattern adds is Value."""
    _, (told,) = choose_layers(unet, "tap", [r".*to_[qv]"], None)
    assert "of them new, such as " in told and told.endswith("to_v")
