"""Heads of a transformer's self-attention: told apart on pure maps, masked exactly, and norms that do not leak."""

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

import train
from configs.errors import UserError
from data.cache import CachedClip
from models import methods
from models.backbone import Backbone, skeleton
from models.files.checkpoint import load_checkpoint
from models.heads import Heads, classify, enrichment, pure_norm, restrict, turned
from models.lean import attach_lean
from models.lora import add_adapter, attach_state
from models.training.objective import difference_loss

from conftest import config_of

GRID = (4, 3, 3)
TOKENS = 36


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_hot(index):
    """Queries or keys that find each other where `index` is the same, sharply."""
    return 40 * F.one_hot(index, TOKENS).float()[None]


def test_enrichment_tells_pure_maps_apart():
    frame, place = torch.arange(TOKENS) // 9, torch.arange(TOKENS) % 9
    e_s, e_t = enrichment(one_hot(frame), one_hot(frame), GRID)[0]
    assert torch.allclose(e_s, torch.tensor(4.0), atol=1e-3) and e_t < 1e-3, "a spatial head: (F, 0)"
    e_s, e_t = enrichment(one_hot(place), one_hot(place), GRID)[0]
    assert torch.allclose(e_s, torch.tensor(1.0), atol=1e-3) and e_t > 1.5, "a temporal head: its own frame by chance"
    flat = enrichment(torch.zeros(2, TOKENS, 4), torch.zeros(2, TOKENS, 4), GRID)
    assert torch.allclose(flat, torch.ones(2, 2), atol=1e-3), "chance is 1 for both"


def test_agreement_is_between_clips_and_margins_are_reported():
    spatial = torch.ones(4, 1, 2)
    temporal = torch.tensor([[4.0, 0.5], [4.0, 0.5], [4.0, 2.0], [4.0, 2.0]])[:, None]
    heads = Heads(spatial, temporal, (0, 0, 1, 1))
    assert heads.agreement == 0.5 and Heads(spatial[:2], temporal[:2], (0, 0)).agreement == 1.0
    assert heads.info()["heads"] == "tt" and float(heads.info()["heads_margin"]) == pytest.approx(0.322, abs=1e-3)


def test_the_turned_queries_are_the_stock_processors(tiny_wan):
    """The map that is looked at is the one that acts: attention by hand gives the stock module's output."""
    network = Backbone.load(tiny_wan).network
    attention, x = network.blocks[0].attn1, normal(1, 8, 24)
    rotary = network.rope(torch.zeros(1, 4, 2, 4, 4))
    query, key = (
        turned(norm(project(x)).unflatten(2, (2, -1)), *rotary).transpose(1, 2)
        for project, norm in ((attention.to_q, attention.norm_q), (attention.to_k, attention.norm_k))
    )
    value = attention.to_v(x).unflatten(2, (2, -1)).transpose(1, 2)
    by_hand = attention.to_out[0](((query @ key.mT / 12**0.5).softmax(-1) @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(WanAttnProcessor()(attention, x, None, None, rotary), by_hand, atol=1e-5)


def test_classification_leaves_the_model_alone_and_repeats(tiny_wan):
    backbone = Backbone.load(tiny_wan)
    clip = CachedClip(normal(1, 4, 3, 4, 4), backbone.encode_text(["a car"]), None, "a car", "clip")
    given = normal(1, 4, 2, 4, 4), torch.tensor([500.0]), normal(1, 5, 64)
    before = backbone.network(*given).sample
    one, two = (classify(backbone, [clip], torch.Generator().manual_seed(0)) for _ in "ab")
    assert one.ratio.shape == (2, 2) and torch.equal(one.ratio, two.ratio)
    assert torch.equal(backbone.network(*given).sample, before)


def trained_rows(adapter, network, steps=3):
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=0.1, weight_decay=0.5)
    for step in range(steps):
        with adapter.training():
            network(
                normal(1, 4, 2, 4, 4, seed=step), torch.tensor([500.0]), normal(1, 5, 64)
            ).sample.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: tensor for name, tensor in adapter.state_dict().items() if name.endswith("lora_B.weight")}


@pytest.mark.parametrize("lean", [False, True])
def test_rows_of_other_heads_are_exactly_zero_after_adamw_with_decay(tiny_wan, lean):
    network = Backbone.load(tiny_wan).network
    adapter = add_adapter(network, "motion", "effivmt", 4)
    restrict(adapter, torch.tensor([[True, False], [False, True]]))
    if lean:
        attach_lean(network)
    for name, up in trained_rows(adapter, network).items():
        mine, other = (up[:12], up[12:]) if name.startswith("blocks.0.") else (up[12:], up[:12])
        assert other.abs().max() == 0 < mine.abs().max(), name


def test_a_preset_of_all_layers_restricted_to_heads_learns_in_q_k_and_v_alone(tiny_wan):
    network = Backbone.load(tiny_wan).network
    adapter = add_adapter(network, "appearance", "appearance", 4)
    restrict(adapter, torch.ones(2, 2, dtype=torch.bool))
    moved = {
        name.split("attn1.")[-1].split(".lora")[0] for name, up in trained_rows(adapter, network).items() if up.any()
    }
    assert moved == {"to_q", "to_k", "to_v"}


@pytest.mark.parametrize("pure", [True, False])
def test_qk_norm_leaks_into_other_heads_unless_it_is_pure(tiny_wan, pure):
    network = Backbone.load(tiny_wan).network
    adapter = add_adapter(network, "motion", "tap_pure" if pure else "tap_temporal", 4)
    restrict(adapter, torch.tensor([[True, False], [True, False]]))
    trained_rows(adapter, network)
    attention, x = network.blocks[0].attn1, normal(1, 8, 24)
    base = attention.norm_q(attention.to_q(x))
    with adapter.acting():
        changed = attention.norm_q(attention.to_q(x))
    assert not torch.allclose(changed[..., :12], base[..., :12], atol=1e-3)
    assert torch.equal(changed[..., 12:], base[..., 12:]) == pure


def test_pure_adapters_are_a_no_op_when_off_and_sample_as_they_trained(tiny_wan):
    network = Backbone.load(tiny_wan).network
    given = normal(1, 4, 2, 4, 4), torch.tensor([500.0]), normal(1, 5, 64)
    plain = network(*given).sample
    with pure_norm(network, ["blocks.0.attn1.to_q", "blocks.1.attn1.to_k"]):
        assert torch.equal(network(*given).sample, plain)
    adapter = add_adapter(network, "motion", "tap_pure", 4)
    assert torch.equal(network(*given).sample, plain)
    trained_rows(adapter, network)
    with adapter.acting():
        acting = network(*given).sample
    state = adapter.state_dict()
    with adapter.sampling():
        assert torch.allclose(network(*given).sample, acting, atol=1e-5)
    adapter.remove()
    assert torch.equal(network(*given).sample, plain)
    with attach_state(network, "tap_pure", state):
        assert torch.allclose(network(*given).sample, acting, atol=1e-5)
    with attach_state(network, "tap", state):
        assert not torch.allclose(network(*given).sample, acting, atol=1e-4)
    assert torch.equal(network(*given).sample, plain)


def test_the_frame_difference_loss_is_the_slow_obvious_one():
    one, two = normal(1, 2, 4, 2, 2), normal(1, 2, 4, 2, 2, seed=1)
    cosines = []
    for c in range(2):
        for y in range(2):
            for x in range(2):
                a, b = ((v[0, c, 1:, y, x] - v[0, c, :-1, y, x]).abs() for v in (one, two))
                cosines.append((a @ b / (a.norm() * b.norm())).item())
    assert difference_loss(one, two).item() == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)
    assert difference_loss(one, one).item() == pytest.approx(0, abs=1e-6)


def test_a_run_keeps_its_heads_in_the_header_a_file_and_a_picture(tiny_wan, clip_file, tmp_path):
    cfg = config_of(tiny_wan, clip_file, tmp_path, {"temporal_preset": "effivmt", "train_data": {"n_sample_frames": 5}})
    folder = train.run(cfg)
    checkpoint = load_checkpoint(folder)
    kept = json.loads((folder / "heads.json").read_text())
    assert checkpoint.info["heads"] == kept["heads"] and set(kept["heads"]) <= set("st ")
    assert (folder / "heads.png").stat().st_size > 1000
    temporal = torch.tensor([[letter == "t" for letter in word] for word in kept["heads"].split()])
    for state, wanted in ((checkpoint.motion, temporal), (checkpoint.appearance[0], ~temporal)):
        for layer in (0, 1):
            up = state[f"blocks.{layer}.attn1.to_v.lora_B.weight"].unflatten(0, (2, 12)).abs().amax((1, 2))
            assert torch.equal(up > 0, wanted[layer])
    assert '"loss_difference"' in (folder / "log.jsonl").read_text()


def test_a_preset_of_heads_belongs_to_transformers(tiny_pipeline, tiny_config):
    cfg = tiny_config(temporal_preset="tap_pure")
    with pytest.raises(UserError, match="no preset of a U-Net is called 'tap_pure'"):
        methods.attach(skeleton(tiny_pipeline), cfg, clips=1, latent_size=(4, 8, 8))
