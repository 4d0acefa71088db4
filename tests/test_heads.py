"""Heads of a transformer's self-attention: told apart on pure maps, masked exactly, and norms that do not leak."""

import json

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

import train
from configs.errors import UserError
from data.cache import CachedClip
from models import heads, methods
from models.backbone import Backbone
from models.backbones.wan_attention import pure_norm, query_key
from models.customization import customize
from models.files.checkpoint import load_checkpoint, save_checkpoint
from models.heads import Heads, classify, enrichment, restrict
from models.lean import attach_lean
from models.lora import add_adapter, attach_state
from models.outline import skeleton
from models.training.objective import difference_loss
from models.training.processes import Processes

from conftest import config_of

GRID = (4, 3, 3)
TOKENS = 36


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def one_hot(index, tokens=TOKENS):
    """Queries or keys that find each other where `index` is the same, sharply."""
    return 40 * F.one_hot(index, tokens).float()[None]


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
    query, key = (part.transpose(1, 2) for part in query_key(attention, x, rotary))
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


def test_classification_looks_at_every_timestep_prompt_and_place(tiny_wan, monkeypatch):
    """Each look is scripted: only all of them together make the second head temporal, and the grid is 3 by 2."""
    backbone, timesteps, grids = Backbone.load(tiny_wan), [], []
    clip = CachedClip(normal(1, 4, 3, 6, 4), backbone.encode_text(["a car"]), None, "a car", "clip")
    inner = WanTransformer3DModel.forward

    def noting(self, z_t, timestep, text):
        timesteps.append((timestep.item(), text.sum().item()))
        return inner(self, z_t, timestep, text)

    monkeypatch.setattr(WanTransformer3DModel, "forward", noting)

    def scripted(query, key, grid):
        grids.append(grid)
        look = (len(grids) - 1) // 2  # two layers a look
        return torch.tensor([[1.0, 0.0], [1.0, 1.2 * (look + 1) / 3.5]])

    monkeypatch.setattr(heads, "enrichment", scripted)
    found = classify(backbone, [clip], torch.Generator().manual_seed(0))
    looks = len(heads.TIMESTEPS) * 2
    assert len(set(timesteps)) == looks and {time for time, _ in timesteps} == set(heads.TIMESTEPS)
    assert set(grids) == {(3, 3, 2)} and len(grids) == 2 * looks
    assert torch.allclose(found.temporal.mean(0)[:, 1], torch.tensor(1.2)), "the mean over all looks"
    assert found.is_temporal.tolist() == [[False, True]] * 2


def test_near_is_counted_on_a_grid_that_is_no_square():
    """A head that looks one row away in every frame of two rows of five: near there, and far on the turned grid."""
    place = torch.arange(40) % 10
    looking = one_hot((place + 5) % 10, 40), one_hot(place, 40)
    assert enrichment(*looking, (4, 2, 5))[0, 1] > 1.5 and enrichment(*looking, (4, 5, 2))[0, 1] < 1e-3


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
    restrict(adapter, network, torch.tensor([[True, False], [False, True]]))
    if lean:
        attach_lean(network)
    for name, up in trained_rows(adapter, network).items():
        mine, other = (up[:12], up[12:]) if name.startswith("blocks.0.") else (up[12:], up[:12])
        assert other.abs().max() == 0 < mine.abs().max(), name


def test_a_preset_of_all_layers_restricted_to_heads_learns_in_q_k_and_v_alone(tiny_wan):
    network = Backbone.load(tiny_wan).network
    adapter = add_adapter(network, "appearance", "appearance", 4)
    restrict(adapter, network, torch.ones(2, 2, dtype=torch.bool))
    moved = {
        name.split("attn1.")[-1].split(".lora")[0] for name, up in trained_rows(adapter, network).items() if up.any()
    }
    assert moved == {"to_q", "to_k", "to_v"}


@pytest.mark.parametrize("pure", [True, False])
def test_qk_norm_leaks_into_other_heads_unless_it_is_pure(tiny_wan, pure):
    network = Backbone.load(tiny_wan).network
    adapter = add_adapter(network, "motion", "tap_pure" if pure else "tap_temporal", 4)
    restrict(adapter, network, torch.tensor([[True, False], [True, False]]))
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


def pure_state(seed, head):
    """A trained tap_pure state of one head."""
    state = {}
    for layer in (0, 1):
        for part in "qk":
            name = f"blocks.{layer}.attn1.to_{part}"
            up = torch.zeros(24, 4)
            up[12 * head : 12 * head + 12] = normal(12, 4, seed=seed)
            state |= {f"{name}.lora_A.weight": normal(4, 24, seed=seed + 1), f"{name}.lora_B.weight": up}
    return state


@torch.no_grad()
def test_two_pure_motions_mix_in_either_order_and_leave_other_heads_alone(tiny_wan):
    network = Backbone.load(tiny_wan).network
    one, two = pure_state(1, head=0), pure_state(5, head=0)
    attention, x = network.blocks[0].attn1, normal(1, 8, 24)
    query = lambda: attention.norm_q(attention.to_q(x))
    projected, base = attention.to_q(x), query()
    found = []
    for first, second in ((one, two), (two, one)):
        with attach_state(network, "tap_pure", first), attach_state(network, "tap_pure", second):
            changed = attention.to_q(x) - projected
            found.append(query())
    assert torch.equal(query(), base)
    divisor = projected.square().mean(-1, keepdim=True).add(attention.norm_q.eps).sqrt()
    assert all(torch.allclose(mixed, base + changed / divisor * attention.norm_q.weight, atol=1e-5) for mixed in found)
    assert all(torch.equal(mixed[..., 12:], base[..., 12:]) for mixed in found)


def test_the_appearance_of_a_pure_run_samples_as_it_trained(tiny_wan, clip_file, tmp_path):
    network = Backbone.load(tiny_wan).network
    cfg = config_of(tiny_wan, clip_file, tmp_path, {"temporal_preset": "tap_pure", "lora_unet_dropout": 0.0})
    cfg.appearance_highway.use = "off"
    method = methods.attach(network, cfg, clips=1, latent_size=(2, 4, 4))
    for i, parameter in enumerate(method.appearance_parameters):
        parameter.data = normal(*parameter.shape, seed=i)
    given = normal(1, 4, 1, 4, 4), torch.tensor([500.0]), normal(1, 5, 64)
    with torch.no_grad():
        with method.spatial_pass(0):
            trained = network(*given).sample
        with method.sampling(appearance_scale=1.0):
            assert torch.allclose(network(*given).sample, trained, atol=1e-4), "in a preview"
        folder, (motion, appearance) = tmp_path / "run", method.state()
        info = method.info()
        save_checkpoint(folder, 1, motion=motion, appearance=appearance, kind="lora", config_yaml=None, info=info)
        plain = Backbone.load(tiny_wan).network
        with customize(plain, [], [(load_checkpoint(folder), 0, 1.0)]):
            assert torch.allclose(plain(*given).sample, trained, atol=1e-4), "when sampling"


def test_heads_of_images_alone_are_one_sentence(tiny_wan, clip_file, tmp_path):
    one_latent = {"temporal_preset": "tap_pure", "train_data": {"n_sample_frames": 1}}
    with pytest.raises(UserError, match="tap_pure tells heads apart by .* every clip is an image or a single latent"):
        train.run(config_of(tiny_wan, clip_file, tmp_path, one_latent))


def test_a_resumed_run_keeps_the_heads_of_its_checkpoint(tiny_wan, clip_file, tmp_path, monkeypatch, capsys):
    """A near-tie may be called otherwise on another machine, and other rows would then act."""
    given = {"temporal_preset": "effivmt", "train_data": {"n_sample_frames": 9}, "spatial_path_probability": 1.0}
    run = train.run(config_of(tiny_wan, clip_file, tmp_path, given))
    kept = load_checkpoint(run).info["heads"]
    flipped = torch.tensor([[[2.0 * (letter == "s") for letter in word] for word in kept.split()]])
    monkeypatch.setattr(train, "find_heads", lambda *_: Heads(torch.ones(1, 2, 2), flipped, (0,)))
    more = given | {"max_train_steps": 4, "resume_from_checkpoint": str(run)}
    checkpoint = load_checkpoint(train.run(config_of(tiny_wan, clip_file, tmp_path, more)))
    assert checkpoint.info["heads"] == kept and f"those of the checkpoint stay: {kept}" in capsys.readouterr().err
    up = checkpoint.motion["blocks.0.attn1.to_v.lora_B.weight"].unflatten(0, (2, 12)).abs().amax((1, 2))
    assert torch.equal(up > 0, torch.tensor([letter == "t" for letter in kept.split()[0]]))
    monkeypatch.setattr(train, "find_heads", lambda *_: Heads(torch.ones(1, 3, 2), torch.ones(1, 3, 2), (0,)))
    with pytest.raises(UserError, match="this model has 3 layers of 2"):
        train.run(config_of(tiny_wan, clip_file, tmp_path, more | {"max_train_steps": 5}))
    with pytest.raises(UserError, match="block_range"):
        train.run(config_of(tiny_wan, clip_file, tmp_path, more | {"block_range": [0, 0.5]}))


def test_every_process_has_the_heads_of_the_first(tiny_wan, clip_file, tmp_path, monkeypatch):
    """Cards of two kinds may call a near-tie otherwise, and their gradients are averaged."""
    given = {"temporal_preset": "effivmt", "train_data": {"n_sample_frames": 9}, "max_train_steps": 1}
    asked = []

    def share(self, value):
        if not isinstance(value, str):
            return value
        asked.append(value)
        return value.translate(str.maketrans("ts", "st"))

    monkeypatch.setattr(Processes, "share", share)
    run = train.run(config_of(tiny_wan, clip_file, tmp_path, given))
    (own,) = asked
    assert load_checkpoint(run).info["heads"] == own.translate(str.maketrans("ts", "st")) != own


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
    cfg = config_of(tiny_wan, clip_file, tmp_path, {"temporal_preset": "effivmt", "train_data": {"n_sample_frames": 9}})
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


def test_frame_differences_of_two_latent_frames_teach_nothing_and_are_refused(tiny_wan, clip_file, tmp_path):
    x, y = (normal(1, 4, 2, 4, 4, seed=i).requires_grad_() for i in (0, 1))
    assert torch.autograd.grad(difference_loss(x, y), x)[0].abs().max() < 1e-6
    cfg = config_of(tiny_wan, clip_file, tmp_path, {"temporal_preset": "effivmt", "appearance_highway": {"use": "off"}})
    with pytest.raises(UserError, match="temporal_preset: effivmt .* two latent frames have one difference"):
        methods.attach(skeleton(tiny_wan), cfg, clips=1, latent_size=(2, 4, 4))
    methods.attach(skeleton(tiny_wan), cfg, clips=1, latent_size=(3, 4, 4))
