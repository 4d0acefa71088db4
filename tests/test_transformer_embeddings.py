"""Motion Inversion's embeddings on a diffusion transformer: identities, the slow formula, gradients, commands."""

import json
import shutil

import pytest
import torch

import train
from configs.errors import UserError
from configs.schema import load
from infer import options
from infer.generate import generate
from models import methods
from models.activation_checkpointing import checkpoint_activations
from models.backbone import Backbone
from models.customization import customize
from models.embeddings import attach_embeddings
from models.files.checkpoint import load_checkpoint
from models.highway import HighwaySettings
from models.hooks import wrap_forward
from models.outline import skeleton
from scripts.conversion.writing import convert

from conftest import config_of

FRAMES, SIDE = 3, 8  # latents; patches of 2x2 make 4x4 tokens of a frame
INVERSION = {"method": "motion_inversion", "train_data": {"n_sample_frames": 5}}


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(batch=1, frames=FRAMES, height=SIDE, width=SIDE):
    return normal(batch, 4, frames, height, width), torch.full((batch,), 500.0), normal(batch, 5, 64, seed=1)


@pytest.fixture(scope="module")
def network(tiny_wan):
    return Backbone.load(tiny_wan).network


@torch.no_grad()
def outcome(network, *args):
    return network(*args or inputs()).sample


def attach(network, **options):
    return attach_embeddings(network, height=SIDE, width=SIDE, **options)


@torch.no_grad()
def randomize(embeddings):
    for seed, parameter in enumerate(embeddings.parameters()):
        parameter.copy_(normal(*parameter.shape, seed=seed))
    return embeddings


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_strengthless_and_removed_embeddings_are_the_base_model_to_the_bit(tiny_wan, dtype):
    network = Backbone.load(tiny_wan, dtype).network
    given = [x.to(dtype) for x in inputs(batch=2)]
    base = outcome(network, *given)
    with attach(network) as embeddings:
        assert torch.equal(outcome(network, *given), base)
        randomize(embeddings)
        assert not torch.allclose(outcome(network, *given), base, atol=1e-2)
        with embeddings.at(strength=0.0):
            assert torch.equal(outcome(network, *given), base)
    assert torch.equal(outcome(network, *given), base)


def turn(row, cos, sin):
    """Rotary embedding of one head's row [d]: every pair of channels is a complex number, multiplied by one."""
    turned = torch.view_as_complex(row.unflatten(0, (-1, 2))) * torch.complex(cos[0::2], sin[0::2])
    return torch.view_as_real(turned).flatten()


def test_attention_is_the_explicit_formula_token_by_token(network):
    """q = Wq (x + m_f), k = Wk (x + m_f), v = Wv (x + a_hw), with a token at frame f and place (h, w)."""
    attn, seen = network.blocks[1].attn1, {}
    with randomize(attach(network)) as embeddings:

        def spy(forward, x, *args):
            seen["x"], seen["rotary"], seen["y"] = x, args[-1], forward(x, *args)
            return seen["y"]

        undo = wrap_forward(attn, spy)
        outcome(network, *inputs(batch=2))
        undo()
        state = embeddings.state_dict()
    m, a = state["blocks.1.query_key"][0], state["blocks.1.attn1.value"][:, 0]  # [F c], [h*w c]
    (cos, sin), places = (x[0, :, 0] for x in seen["rotary"]), len(a)
    heads, tokens = attn.heads, FRAMES * places
    assert seen["x"].shape == (2, tokens, 24) and places == 16
    with torch.no_grad():
        for x, y in zip(seen["x"], seen["y"]):
            q, k, v = [], [], []
            for n in range(tokens):
                f, place = n // places, n % places
                q.append([turn(h, cos[n], sin[n]) for h in attn.norm_q(attn.to_q(x[n] + m[f])).chunk(heads)])
                k.append([turn(h, cos[n], sin[n]) for h in attn.norm_k(attn.to_k(x[n] + m[f])).chunk(heads)])
                v.append(attn.to_v(x[n] + a[place]).chunk(heads))
            for n in range(0, tokens, 5):
                out = []
                for h in range(heads):
                    weights = torch.stack([q[n][h] @ k[other][h] for other in range(tokens)]) / 12**0.5
                    out.append(sum(w * v[other][h] for other, w in enumerate(weights.softmax(0))))
                torch.testing.assert_close(y[n], attn.to_out[0](torch.cat(out)), rtol=0, atol=1e-5)


def test_gradients_reach_the_embeddings_alone_and_survive_recomputation(network):
    def gradients():
        with randomize(attach(network)) as embeddings:
            network(*inputs()).sample.square().mean().backward()
        return embeddings.state_dict(), [p.grad for p in embeddings.parameters()]

    state, found = gradients()
    assert list(state) == [f"blocks.{i}.{part}" for i in (0, 1) for part in ("query_key", "attn1.value")]
    assert [tuple(tensor.shape) for tensor in state.values()] == [(1, 32, 24), (16, 1, 24)] * 2
    assert all(grad[:, :FRAMES].abs().sum() > 0 == grad[:, FRAMES:].abs().sum() for grad in found)
    assert all(p.grad is None for p in network.parameters())
    with checkpoint_activations(network):
        assert all(torch.equal(a, b) for a, b in zip(gradients()[1], found, strict=True))


def test_without_the_values_embedding_the_rest_is_what_zero_values_give(network):
    with randomize(attach(network)) as embeddings:
        whole = outcome(network)
        with embeddings.at(sampling="drop_value"):
            dropped = outcome(network)
        for name, parameter in embeddings._parameters.items():
            if name.endswith("value"):
                parameter.data.zero_()
        assert torch.equal(outcome(network), dropped) and not torch.allclose(dropped, whole, atol=1e-2)
        with pytest.raises(UserError, match="difference .* is the same in every frame; use none or drop_value"):
            embeddings.sampling_mode = "difference"


def test_a_shape_that_is_not_square_keeps_its_rows_apart_and_others_are_resampled(network):
    with attach_embeddings(network, height=8, width=16, frames=3) as embeddings, torch.no_grad():
        block = embeddings.blocks[0]
        ramp = torch.linspace(0, 1, 4)[:, None] + torch.zeros(4, 8)  # rises downwards, constant across
        embeddings._parameters["blocks.0.attn1.value"].copy_(ramp.flatten()[:, None, None].expand(32, 1, 24))
        embeddings._parameters["blocks.0.query_key"].copy_(torch.arange(32.0)[None, :, None].expand(1, 32, 24))
        assert torch.equal(embeddings.value(block, "attn1", (4, 8), 3)[:, 0, 0], ramp.flatten())
        other = embeddings.value(block, "attn1", (2, 2), 7)
        assert other.shape == (4, 1, 24) and (other[2:] > other[:2]).all() and torch.equal(other[0], other[1])
        assert embeddings.query_key("blocks.0", 5)[0, :, 0].tolist() == [0, 0.5, 1, 1.5, 2]
        assert outcome(network, *inputs(frames=5, height=4, width=4)).shape == (1, 4, 5, 4, 4)


def test_what_tells_a_unets_blocks_apart_is_refused_and_a_block_range_is_kept_to(tiny_wan, tiny_pipeline):
    def attached(model, words, file="transformer/motion_inversion"):
        given = [f"pretrained_model_path={model}", "train_data.single_video_path=a.mp4", *words]
        cfg, _ = load(["--config", f"configs/methods/{file}.yaml", *given], description="")
        return methods.attach(skeleton(model), cfg, clips=1, latent_size=(FRAMES, SIDE, SIDE))

    whole = attached(tiny_wan, [])
    assert whole.kind == "embeddings" and len(whole.state()[0]) == 4 and whole.describe()[1] == "highway     off"
    assert "2 x blocks 24" in whole.describe()[0]
    second = attached(tiny_wan, ["block_range=[0.5,1]"])
    assert list(second.state()[0]) == ["blocks.1.query_key", "blocks.1.attn1.value"]
    for words in ("embeddings.blocks=[up]", "embeddings.widths=[24]"):
        name = words.split("=")[0]
        with pytest.raises(UserError, match=f"{name}: chooses among the temporal transformers .* with block_range"):
            attached(tiny_wan, [words])
    with pytest.raises(UserError, match="block_range: belongs to diffusion transformers"):
        attached(tiny_pipeline, ["block_range=[0.5,1]"])
    with pytest.raises(UserError, match="embeddings.sampling: difference is the change"):
        attached(tiny_wan, [], file="motion_inversion")
    with pytest.raises(UserError, match="2 frames are too few for clips of 3"):
        attached(tiny_wan, ["embeddings.max_frames=2"])
    with pytest.raises(UserError, match="scope: value takes Values past LoRAs"):
        attached(tiny_wan, ["appearance_highway.use=sampling", "appearance_highway.scope=value"])


def test_the_hybrid_loss_teaches_an_appearance_beside_and_no_pass_reaches_the_others_weights(tiny_wan, tiny_config):
    network = Backbone.load(tiny_wan).network
    cfg = tiny_config(method="motion_inversion", embeddings={"loss": "hybrid"}, appearance_highway={"use": "off"})
    method = methods.attach(network, cfg, clips=1, latent_size=(FRAMES, SIDE, SIDE))
    for seed, parameter in enumerate((*method.motion_parameters, *method.appearance_parameters)):
        parameter.data = 0.1 * normal(*parameter.shape, seed=seed)
    with method.temporal_pass(0, with_appearance=True):
        network(*inputs()).sample.square().mean().backward()
    assert all(p.grad.abs().sum() > 0 for p in method.motion_parameters)
    assert all(p.grad is None for p in method.appearance_parameters)
    with method.temporal_pass(0, with_appearance=True), torch.no_grad():
        trained_as = network(*inputs()).sample
    with method.sampling(appearance_scale=1.0):
        torch.testing.assert_close(outcome(network), trained_as, rtol=0, atol=1e-5)
    for parameter in method.motion_parameters:
        parameter.grad = None
    with method.spatial_pass(0):
        network(*inputs(frames=1)).sample.square().mean().backward()
    assert all(p.grad is None for p in method.motion_parameters)
    assert all(p.grad is not None for p in method.appearance_parameters)


@pytest.fixture(scope="module")
def runs(tiny_wan, clip_file, tmp_path_factory):
    """Two run folders of two steps each, from different seeds."""
    given = INVERSION | {"embeddings": {"learning_rate": 0.5}, "validation_steps": 100}
    folder = tmp_path_factory.mktemp("runs")
    cfgs = [config_of(tiny_wan, clip_file, folder / str(seed), given | {"seed": seed}) for seed in (0, 5)]
    return [train.run(cfg) for cfg in cfgs]


@pytest.fixture
def sample(tmp_path):
    def make(*words):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        fixed = ("-p", "a horse", "-s", 2, "-g", 2, "-o", out, "--seed", 1, "--quality", 10)
        (video,) = generate(options.parse([str(word) for word in (*fixed, *words)]))
        return video.read_bytes(), json.loads(video.with_suffix(".json").read_text())

    return make


def test_a_run_is_saved_and_sampled_with_and_without_its_values(runs, sample, tiny_wan, capsys):
    checkpoint = load_checkpoint(runs[0], network=skeleton(tiny_wan))
    assert checkpoint.kind == "embeddings" and all(tensor.any() for tensor in checkpoint.motion.values())
    size = (checkpoint.info[name] for name in ("frames", "latent_height", "latent_width"))
    assert tuple(size) == ("2", "8", "8") and checkpoint.info["architecture"].startswith("diffusion transformer")
    assert checkpoint.config["embeddings"]["sampling"] == "none"
    base, whole, dropped, none, half = (
        sample(*words)[0]
        for words in (
            ("--model", tiny_wan, "-T", 5, "-W", 64, "-H", 64),
            ("-cf", runs[0]),
            ("-cf", runs[0], "--embedding_sampling", "drop_value"),
            ("-cf", runs[0], "--lora_scale", 0),
            ("-cf", runs[0], "--lora_scale", 0.5),
        )
    )
    assert len({base, whole, dropped, half}) == 4 and none == base
    assert sample("-cf", runs[0])[0] == whole
    sample("-cf", runs[0], "-W", 96, "-T", 9)
    told = capsys.readouterr().err
    assert "interpolated in space from 8x8 to 12x8 latents and in time from 2 to 3 frames" in told


def test_a_deeper_or_shallower_model_of_the_same_width_is_not_the_one_trained_on(runs, tiny_wan, tmp_path):
    for layers in (1, 3):
        other = tmp_path / str(layers)
        shutil.copytree(tiny_wan, other)
        config = other / "transformer" / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": layers}))
        with pytest.raises(UserError, match=f"does not fit this model: .* 2 layers, .* has .* {layers} layers"):
            load_checkpoint(runs[0], network=skeleton(other))


def test_motions_are_mixed_as_their_weighted_sum(runs, network, sample):
    checkpoints = [load_checkpoint(run) for run in runs]
    one, other = (checkpoint.motion for checkpoint in checkpoints)
    with customize(network, [(checkpoints[0], 0.5), (checkpoints[1], 2.0)], latent_size=(2, 8, 8)):
        mixed = outcome(network, *inputs(frames=2))
    with attach(network, frames=2) as embeddings:
        embeddings.load_state_dict({name: 0.5 * one[name] + 2.0 * other[name] for name in one})
        assert torch.equal(outcome(network, *inputs(frames=2)), mixed)
    assert sample("-cf", runs[0], "--motion", runs[1], 0.5)[0] != sample("-cf", runs[0])[0]


def test_requests_that_cannot_be_met_are_one_sentence(
    runs, sample, network, trained, tiny_wan, tiny_pipeline, tmp_path
):
    with pytest.raises(UserError, match="difference is the change of a Value embedding from frame to frame"):
        sample("-cf", runs[0], "--embedding_sampling", "difference")
    base = outcome(network)
    with pytest.raises(UserError, match="scope: value takes Values past LoRAs"):
        customize(network, [(load_checkpoint(runs[0]), 1.0)], highway=HighwaySettings("value"))
    assert torch.equal(outcome(network), base)
    unet = trained(method="motion_inversion", embeddings={"learning_rate": 0.5}, appearance_highway={"use": "off"})
    with pytest.raises(UserError, match="trained on U-Net of .* the model has diffusion transformer of 2 layers"):
        sample("-cf", unet, "--model", tiny_wan)
    with pytest.raises(UserError, match="trained on diffusion transformer of .* the model has U-Net of channels"):
        sample("-cf", runs[0], "--model", tiny_pipeline)
    with pytest.raises(UserError, match="embeddings of a U-Net's temporal .*, and blocks.0.* write them as ours"):
        convert("release", runs[0], tmp_path / "theirs", None, str(tiny_wan), None)
    assert not (tmp_path / "theirs").exists()


def test_a_training_goes_on_to_the_bit(tiny_wan, clip_file, tmp_path, runs):
    given = INVERSION | {"embeddings": {"learning_rate": 0.5}, "validation_steps": 100, "checkpointing_steps": 1}
    first = train.run(config_of(tiny_wan, clip_file, tmp_path, given | {"max_train_steps": 1}))
    again = train.run(config_of(tiny_wan, clip_file, tmp_path, given | {"resume_from_checkpoint": str(first)}))
    whole, resumed = (load_checkpoint(run, 2).motion for run in (runs[0], again))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
