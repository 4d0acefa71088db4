"""The diffusion transformer as a backbone: the same commands, on a random model of exactly Wan's layout."""

import json
import re
import shutil
from contextlib import contextmanager
from itertools import chain
from unittest.mock import Mock

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import UMT5Config, UMT5EncoderModel

import train
from configs.errors import UserError
from configs.paths import ROOT
from configs.schema import load
from data.cache import read_folder
from infer import guidance, options
from infer.generate import _quicker, generate
from infer.inversion import ddim_invert
from infer.sampler import classifier_free_guidance, make_solver, sample
from infer.training.plan import check_sizes
from infer.video import read_frames
from models import backbones
from models.activation_checkpointing import checkpoint_activations
from models.backbone import Backbone, predictor
from models.backbones import index, unet3d, wan
from models.files.checkpoint import load_checkpoint
from models.hooks import Patch, wrap_forward
from models.lora import add_adapter
from models.outline import latent_size_of, scheduler_of, skeleton
from models.placement import visit_by_layers
from models.schedule import draw_timesteps, noised
from models.targets import targets
from models.training.objective import draw_step
from scripts.pocket import wan_parts

from conftest import PUBLISHED, WAN, config_of

PROMPT, NEGATIVE = "a car is running", "a horse"


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def backbone(tiny_wan):
    return Backbone.load(tiny_wan)


@pytest.fixture
def wan_config(tiny_wan, clip_file, tmp_path):
    """A function of overrides giving a configuration that trains two steps on five frames."""
    return lambda **given: config_of(tiny_wan, clip_file, tmp_path, {"train_data": {"n_sample_frames": 5}, **given})


@pytest.fixture(scope="module")
def wan_run(tiny_wan, clip_file, tmp_path_factory):
    """The run folder of such a training."""
    given = {"train_data": {"n_sample_frames": 5}}
    return train.run(config_of(tiny_wan, clip_file, tmp_path_factory.mktemp("run"), given))


def pipeline(folder) -> WanPipeline:
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stock(pipe, noise, steps, output="latent"):
    frames = pipe(
        PROMPT,
        NEGATIVE,
        latents=noise,
        height=8 * noise.shape[3],
        width=8 * noise.shape[4],
        num_inference_steps=steps,
        guidance_scale=4,
        max_sequence_length=24,
        output_type=output,
    )
    return frames.frames


def ours(backbone, noise, steps, solver="unipc"):
    text, negative = backbone.encode_text([PROMPT, NEGATIVE]).split(1)
    return sample(
        classifier_free_guidance(backbone.predict, text, negative, scale=4),
        backbone.scheduler,
        noise,
        steps=steps,
        solver=solver,
    )


def test_both_kinds_answer_to_the_same_names():
    names = {name for name in vars(unet3d) if not name.startswith("_")}
    known = {name for name in vars(wan) if not name.startswith("_")}
    documented = backbones.__doc__.split("\n\n")[1].replace(",", " ").split()
    assert documented.count("PRESETS") and all(
        name in names & known for name in documented if name.isidentifier() and name in names | known
    )


def test_the_sampler_gives_the_stock_pipelines_latents_and_pixels(backbone, tiny_wan):
    noise, pipe = normal(1, 4, 2, 8, 8), pipeline(tiny_wan)
    latents = ours(backbone, noise, steps=5)
    assert (latents - stock(pipe, noise, steps=5)).abs().max() < 1e-5
    frames = torch.from_numpy(stock(pipe, noise, steps=5, output="np")[0]).movedim(-1, 1)
    assert (backbone.decode_video(latents) / 255 - frames).abs().max() < 1.001 / 255  # integer part against rounding


def test_eulers_solver_is_the_stock_one(backbone, tiny_wan):
    pipe = pipeline(tiny_wan)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    noise = normal(1, 4, 2, 8, 8)
    assert (ours(backbone, noise, 4, "euler") - stock(pipe, noise, 4)).abs().max() < 1e-5


def test_the_flow_loss_is_that_of_diffusers_training_examples(backbone):
    """sigma looked up by index in a FlowMatchEulerDiscreteScheduler, x_t by its scale_noise, target noise - x."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clean, noise, places = normal(4, 4, 2, 4, 4), normal(4, 4, 2, 4, 4, seed=1), torch.tensor([0, 300, 700, 999])
    timesteps = theirs.timesteps[places]
    z_t, target = noised(backbone.scheduler, clean, noise, timesteps)
    assert torch.allclose(z_t, theirs.scale_noise(clean, timesteps, noise), atol=1e-6)
    assert torch.equal(target, noise - clean)


def test_timesteps_of_a_flow_lie_within_the_limits_and_lean_to_much_noise(backbone):
    draw = lambda low, high: draw_timesteps(backbone.scheduler, 4000, low, high, torch.Generator().manual_seed(0))
    assert draw(667, 899).min() >= 667 and draw(667, 899).max() <= 900
    everywhere = draw(0, 999)
    assert 0 <= everywhere.min() < 5 and 995 < everywhere.max() <= 1000
    assert (everywhere.median() - 750).abs() < 15  # u = 1/2 is sigma = 3/4 with a shift of 3
    step = draw_step(0, 1, normal(2, 4, 2, 4, 4), min_timestep=500, scheduler=backbone.scheduler)
    assert step.timestep.is_floating_point() and (step.timestep >= 500).all()


def test_an_inverted_flow_samples_its_clip_again(backbone):
    clip, empty = 0.5 * normal(1, 4, 2, 8, 8), backbone.encode_text([""])
    denoise = classifier_free_guidance(backbone.predict, empty)
    inverted = ddim_invert(denoise, backbone.scheduler, clip, 50)
    again = sample(denoise, backbone.scheduler, inverted, steps=50, solver="euler")
    assert (again - clip).abs().mean() < 0.02 < (inverted - clip).abs().mean()


def test_a_diffusions_solver_on_a_flow_names_the_flows(backbone):
    with pytest.raises(UserError, match="ddim solves a diffusion, and this model is a flow; use euler, unipc, dpm"):
        make_solver(backbone.scheduler, "ddim", 4)


def test_frames_become_latents_by_wans_rule(backbone):
    """Normal ones, as diffusers' WanVideoToVideoPipeline makes them."""
    frames, vae = torch.randint(0, 256, (9, 3, 32, 48), dtype=torch.uint8), backbone.vae
    latents, stills = backbone.encode_video(frames), backbone.encode_stills(frames)
    assert latents.shape == stills.shape == (1, 4, 3, 4, 6)
    assert torch.allclose(latents[:, :, 0], stills[:, :, 0], atol=1e-5) and not torch.allclose(latents, stills)
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std))
    clip = frames.movedim(0, 1)[None] / 127.5 - 1
    assert torch.allclose(latents, (vae.encode(clip).latent_dist.mode() - mean) * (1 / std), atol=1e-5)
    assert backbone.decode_video(latents).shape == frames.shape
    assert backbone.snap == backbone.sides == 16


def test_a_frame_larger_than_a_tile_goes_through_the_vae_in_tiles(backbone, monkeypatch):
    """Both ways, as `prepare` asks of a VAE with temporal compression; 256 pixels are one tile of the stock class."""
    seen = []
    for name in ("tiled_encode", "tiled_decode"):
        inner = getattr(AutoencoderKLWan, name)
        monkeypatch.setattr(
            AutoencoderKLWan, name, lambda *a, name=name, inner=inner, **k: (seen.append(name), inner(*a, **k))[1]
        )
    for width, expected in ((64, []), (272, ["tiled_encode", "tiled_decode"])):
        frames = torch.zeros(1, 3, 64, width, dtype=torch.uint8)
        assert backbone.decode_video(backbone.encode_video(frames)).shape == frames.shape and seen == expected


@pytest.mark.parametrize(("frames", "nearest"), [(16, 17), (6, 5), (3, 5)])
def test_a_length_that_the_vae_cannot_take_names_the_nearest(tiny_wan, backbone, frames, nearest):
    with pytest.raises(UserError, match=rf"frames: {frames} cannot be encoded.* takes 4n\+1; use {nearest} frames"):
        latent_size_of(tiny_wan, frames, 32, 32)
    with pytest.raises(UserError, match=f"use {nearest} frames"):
        backbone.encode_video(torch.zeros(frames, 3, 32, 32, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"train_data": {"width": 72}}, "train_data.width: 72 is not a multiple of 16, .*; use 64"),
        ({"train_data": {"height": 40, "use_bucketing": False}}, "train_data.height: 40 is not a multiple of 16"),
        ({"validation_data": {"height": 72, "num_frames": 5}}, "validation_data.height: 72 is not a multiple of 16"),
        ({"train_data": {"n_sample_frames": 6}}, "frames: 6 cannot be encoded"),
        ({"validation_data": {"num_frames": 6}}, "frames: 6 cannot be encoded"),
    ],
)
def test_a_size_that_the_model_cannot_take_is_found_before_weights_are_loaded(
    tiny_wan, clip_file, tmp_path, monkeypatch, given, sentence
):
    monkeypatch.setattr(Backbone, "load", None)
    given = given | {"train_data": {"n_sample_frames": 5} | given.get("train_data", {})}
    cfg = config_of(tiny_wan, clip_file, tmp_path, given)
    for command in (train.dry_run, train.run):
        with pytest.raises(UserError, match=sentence):
            command(cfg)


@pytest.mark.parametrize(("presets", "adapted"), [
    ("tap tap_temporal tap_pure", "q k"), ("tap_key", "k"), ("query", "q"), ("value", "v"), ("out", "o"),
    ("ff", "1 2"), ("release", "k o"), ("qk_out", "q k o"), ("effivmt", "q k v"), ("value_out_ff", "v o 1 2"),
    ("motiondirector appearance", "q k v o 1 2"),
])  # fmt: skip
def test_a_preset_adapts_these_layers_of_every_block(backbone, presets, adapted):
    spelled = {"o": "attn1.to_out.0", "1": "ffn.net.0.proj", "2": "ffn.net.2"} | {x: f"attn1.to_{x}" for x in "qkv"}
    expected = [f"blocks.{block}.{spelled[x]}" for block in range(WAN["num_layers"]) for x in adapted.split()]
    for preset in presets.split():
        assert targets(skeleton(backbone.path), preset) == expected


def test_every_preset_of_a_transformer_is_among_those_above():
    cases = test_a_preset_adapts_these_layers_of_every_block.pytestmark[0].args[1]
    assert sorted(preset for presets, _ in cases for preset in presets.split()) == sorted(wan.PRESETS)


def test_a_fresh_adapter_changes_nothing_and_leaves_nothing(tiny_wan):
    network = Backbone.load(tiny_wan).network
    given = normal(1, 4, 2, 4, 4), torch.tensor([500.0]), normal(1, 5, 64)
    before = network(*given).sample
    adapter = add_adapter(network, "motion", "tap", 4)
    with adapter.acting():
        assert torch.equal(network(*given).sample, before)
    for parameter in adapter.parameters():
        parameter.data.normal_()
    with adapter.acting():
        assert not torch.allclose(network(*given).sample, before)
    adapter.remove()
    assert torch.equal(network(*given).sample, before)


def test_checkpointed_activations_give_the_same_gradients(tiny_wan):
    network = Backbone.load(tiny_wan).network
    adapter, calls = add_adapter(network, "motion", "motiondirector", 4), []
    network.blocks[0].attn1.register_forward_hook(lambda *_: calls.append(1))

    def gradients():
        with adapter.training():
            predictor(network)(normal(1, 4, 2, 4, 4), torch.tensor([500.0]), normal(1, 5, 64)).square().sum().backward()
        found = [p.grad for p in adapter.parameters()]
        for parameter in adapter.parameters():
            parameter.grad = None
        return found

    plain, once = gradients(), len(calls)
    with checkpoint_activations(network):
        again = gradients()
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert (once, len(calls)) == (1, 3), "the block was computed again in the backward pass"


def test_training_and_sampling_are_the_same_commands(wan_run, tmp_path):
    checkpoint = load_checkpoint(wan_run)
    assert checkpoint.preset == "tap" and len(checkpoint.motion) == 2 * 2 * WAN["num_layers"]
    assert len(checkpoint.appearance) == 1 and any(".attn1.to_v." in name for name in checkpoint.appearance[0])
    assert checkpoint.config["appearance_highway"]["use"] == "off"
    assert checkpoint.config["validation_data"]["solver"] == "unipc"
    (clip,) = read_folder(wan_run / "cached_latents")
    assert clip.latents.shape == clip.stills.shape == clip.inversion.shape == (1, 4, 2, 8, 8)
    words = [
        "-cf",
        wan_run,
        "-p",
        "a horse",
        "-s",
        2,
        "-g",
        2,
        "-o",
        tmp_path / "out",
        "--seed",
        1,
        "--noise_prior",
        0.5,
    ]
    (video,) = generate(options.parse([str(word) for word in words]))
    record = json.loads(video.with_suffix(".json").read_text())
    assert record["settings"]["solver"] == "unipc" and record["settings"]["num_frames"] == 5


@pytest.mark.parametrize("target", ["predicted", "clean_latent"])
def test_a_clip_guides_a_flow_through_the_command_and_each_update_lowers_its_loss(
    tiny_wan, clip_file, tmp_path, monkeypatch, target
):
    losses = []
    objective = guidance.objective
    monkeypatch.setattr(guidance, "objective", lambda *given: losses.append(objective(*given)) or losses[-1])
    words = ["--model", tiny_wan, "-p", "a horse", "-r", 5, "-W", 64, "-H", 64, "-T", 5, "-s", 3, "-g", 3, "-d", "cpu"]

    def sampled(name, *more):
        (path,) = generate(options.parse([*map(str, words), "-o", str(tmp_path / name), *more]))
        return read_frames(path)

    plain = sampled("plain")
    assert not losses
    settings = ("--guide_steps", "2", "--guide_updates", "4", "--guide_rate", "0.05", "--guide_target", target)
    assert not torch.equal(plain, sampled("guided", "--guide", str(clip_file), *settings))
    assert len(losses) == 2 * 4
    for step in (losses[:4], losses[4:]):
        assert all(after < before for before, after in zip(step, step[1:])) and step[-1] < 0.98 * step[0]


def test_the_appearance_pass_sees_single_frames(wan_config, tiny_wan, monkeypatch):
    seen = []
    inner = WanTransformer3DModel.forward
    monkeypatch.setattr(
        WanTransformer3DModel, "forward", lambda self, x, *a, **k: (seen.append(x.shape[2]), inner(self, x, *a, **k))[1]
    )
    train.run(wan_config(max_train_steps=1, spatial_path_probability=1.0, inversion_steps=1))
    assert seen == [2, 1, 2]  # inversion, appearance, motion


def test_the_appearance_pass_learns_from_frames_that_were_encoded_alone(wan_config, monkeypatch):
    """Without noise its input is the still, scaled; the second latent of the clip mixes four frames."""
    seen, inner, draw = [], WanTransformer3DModel.forward, train.objective.draw_step
    record = lambda self, x, *a, **k: (seen.append(x.detach()), inner(self, x, *a, **k))[1]
    monkeypatch.setattr(WanTransformer3DModel, "forward", record)
    without = lambda *a, **k: (found := draw(*a, **k))._replace(noise=0 * found.noise, frame=1, spatial=True)
    monkeypatch.setattr(train.objective, "draw_step", without)
    run = train.run(wan_config(max_train_steps=1, max_timestep=900, validation_data={"noise_prior": 0.0}))
    (clip,) = read_folder(run / "cached_latents")
    likeness = lambda a, b: torch.cosine_similarity(a.float().flatten(), b.float().flatten(), dim=0).item()
    (still,) = (x for x in seen if x.shape[2] == 1)
    assert likeness(still, clip.stills[:, :, 1:]) > 0.9999 > 0.99 > likeness(still, clip.latents[:, :, 1:])


def test_a_dry_run_counts_memory_without_weights(wan_config):
    text = train.dry_run(wan_config(gradient_checkpointing=True))
    assert "tap: 4 layers, 2 blocks" in text and "GB for a training step" in text and "highway     off" in text


@pytest.mark.parametrize("wanted, sentence", [
    ({"width": 40}, "validation_data.width: 40 is not a multiple of 16, .* use 32"),
    ({"num_frames": 4}, "frames: 4 cannot be encoded"),
])  # fmt: skip
def test_previews_that_the_model_cannot_make_are_refused_at_the_start(wan_config, monkeypatch, wanted, sentence):
    monkeypatch.setattr(train, "prepare_clips", lambda *_, **__: pytest.fail("the training has begun"))
    for start in (train.dry_run, train.run):
        with pytest.raises(UserError, match=sentence):
            start(wan_config(validation_data=wanted))
    for nobody in ({"prompt": []}, {"sample_preview": False}):
        check_sizes(wan_config(validation_data={**wanted, **nobody}))


def test_a_highway_that_was_asked_for_says_what_there_is_in_its_place(wan_config, tmp_path):
    with pytest.raises(UserError, match="diffusion transformer has no skip connections to move; .*pli_threshold"):
        train.run(wan_config(appearance_highway={"use": "sampling"}))


def test_an_adapter_of_the_other_kind_names_both(trained, tiny_wan, tiny_pipeline, wan_run):
    with pytest.raises(
        UserError, match="trained on U-Net of channels .* the model has diffusion transformer of 2 layers"
    ):
        load_checkpoint(trained(), network=skeleton(tiny_wan))
    with pytest.raises(UserError, match="trained on diffusion transformer of .* the model has U-Net of channels"):
        load_checkpoint(wan_run, network=skeleton(tiny_pipeline))


def test_another_wans_width_names_both(wan_run, tiny_wan, tmp_path):
    other = tmp_path / "other" / "transformer"
    shutil.copytree(tiny_wan / "transformer", other)
    shutil.copy(tiny_wan / "model_index.json", other.parent)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(settings | {"num_attention_heads": 3}))
    with pytest.raises(UserError, match="2 heads of 12.* the model has .* 3 heads of 12"):
        load_checkpoint(wan_run, network=skeleton(other.parent))


@pytest.fixture(scope="module")
def two_experts(tiny_wan, tmp_path_factory):
    """A folder of Wan 2.2's layout: the tiny model, and another expert for timesteps below 875."""
    folder = tmp_path_factory.mktemp("experts") / "wan"
    torch.manual_seed(1)
    parts = {**pipeline(tiny_wan).components, "transformer_2": WanTransformer3DModel(**WAN)}
    WanPipeline(**parts, boundary_ratio=0.875).save_pretrained(folder)
    return folder


def test_two_experts_predict_on_either_side_of_their_boundary(tiny_wan, two_experts, tmp_path):
    folder = shutil.copytree(two_experts, tmp_path / "experts")
    backbone, noise = Backbone.load(folder), normal(1, 4, 2, 8, 8)
    assert backbone.boundary == 0.875
    latents = ours(backbone, noise, steps=5)
    assert (latents - stock(pipeline(folder), noise, steps=5)).abs().max() < 1e-5
    assert (latents - ours(Backbone.load(tiny_wan), noise, steps=5)).abs().max() > 1e-3

    shutil.rmtree(folder / "transformer_2")
    with pytest.raises(UserError, match="has no transformer_2, the expert for timesteps below 875 that its index asks"):
        Backbone.load(folder)


def test_a_schedulers_settings_that_are_no_object_are_one_sentence(tiny_wan, tmp_path):
    folder = shutil.copytree(tiny_wan, tmp_path / "wan")
    (folder / "scheduler" / "scheduler_config.json").write_text("[]")
    for read in (scheduler_of, Backbone.load):
        with pytest.raises(UserError, match="scheduler_config.json: holds a list in place of keys and values"):
            read(folder)


def test_both_experts_are_compiled_for_sampling(two_experts, monkeypatch):
    backbone, args, asked = Backbone.load(two_experts), options.parse(["-p", "a car", "--compile", "blocks"]), []
    monkeypatch.setattr(
        "infer.generate.attach_quicker", lambda network, mode, *_, **__: asked.append((network, mode)) or Patch()
    )
    with _quicker(backbone, args):
        assert asked == [(backbone.network, "blocks"), (backbone.second, "blocks")]


def test_each_clip_of_a_batch_goes_to_the_expert_of_its_timestep(two_experts):
    backbone = Backbone.load(two_experts)
    z_t, timesteps, text = normal(3, 4, 2, 4, 4), torch.tensor([900.0, 500.0, 875.0]), normal(3, 5, 64)
    apart = [backbone.predict(*(x[i : i + 1] for x in (z_t, timesteps, text))) for i in range(3)]
    assert torch.allclose(backbone.predict(z_t, timesteps, text), torch.cat(apart), atol=1e-6)


def test_the_second_expert_is_on_the_device_for_inversion_and_previews_alone(two_experts, wan_config, monkeypatch):
    """The meta device stands for a card, where its weights would be copies."""
    backbone = Backbone.load(two_experts, device="meta", second_waits=True)
    places = lambda: {tensor.device.type for tensor in backbone.second.parameters()}
    before = list(backbone.second.parameters())
    assert backbone.network.device.type == "meta" and places() == {"cpu"}
    with backbone.both_experts():
        assert places() == {"meta"}
    assert all(a is b for a, b in zip(backbone.second.parameters(), before, strict=True))

    there, asked, load = [False], [], Backbone.load

    @contextmanager
    def visit(module, device):
        there[0] = True
        yield
        there[0] = False

    def loaded(*args, **kwargs):
        found = load(*args, **kwargs)
        wrap_forward(found.second, lambda forward, *x, **y: (asked.append(there[0]), forward(*x, **y))[1])
        return found

    monkeypatch.setattr("models.backbone.copied_to", visit)
    monkeypatch.setattr(Backbone, "load", loaded)
    wanted = {"sample_preview": True, "num_inference_steps": 3, "prompt": ["a car"]}
    given = dict(pretrained_model_path=str(two_experts), inversion_steps=3, validation_steps=1)
    assert list(train.run(wan_config(**given, validation_data=wanted)).glob("previews/*/*.mp4"))
    assert len(asked) > 3 and all(asked)


def test_two_experts_learn_in_the_range_of_the_first(two_experts, wan_config):
    own = wan_config(pretrained_model_path=str(two_experts), temporal_preset="tap_temporal", timesteps_per_step=2)
    assert backbones.settled(own, two_experts).min_timestep == 875 and own.min_timestep == 0
    lines = (train.run(own) / "log.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "loss_temporal" in line]
    assert len(steps) == 2 and all(line["timestep"] >= 875 for line in steps)
    for key in ("min_timestep", "max_timestep"):
        for command in (train.run, train.dry_run):
            with pytest.raises(UserError, match=f"{key}: 500 belongs to transformer_2 of .* give 875 or more"):
                command(wan_config(pretrained_model_path=str(two_experts), **{key: 500}))


@pytest.mark.parametrize(("memory", "experts"), [("default", 1), ("small", 1), ("smallest", 2)])
def test_a_dry_run_counts_the_second_expert_only_where_it_is_streamed(
    two_experts, tiny_wan, wan_config, monkeypatch, memory, experts
):
    counted = []
    monkeypatch.setattr("models.training.memory.training_bytes", lambda model_bytes, *_: counted.append(model_bytes))
    for folder in (tiny_wan, two_experts):
        train.dry_run(wan_config(pretrained_model_path=str(folder), memory=memory, gradient_checkpointing=True))
    assert counted[1] == experts * counted[0] > 0


@pytest.fixture
def nothing_kept():
    """No index of a hub id is known yet, and none stays known."""
    index._of_hub.cache_clear()
    index._failed.clear()
    yield
    index._of_hub.cache_clear()
    index._failed.clear()


def test_a_hub_id_is_read_as_a_folder_is(two_experts, monkeypatch, nothing_kept):
    """What diffusers would download is patched; its own reading of a folder stands in for it."""
    for cls in (DiffusionPipeline, AutoencoderKLWan, WanTransformer3DModel):
        load = cls.load_config
        monkeypatch.setattr(cls, "load_config", lambda _, load=load, **given: load(two_experts, **given))
    assert backbones.kind_of_model("somebody/wan") is wan
    plain = wan.defaults("somebody/wan")  # precision and guidance of Wan's own example
    assert plain["mixed_precision"] == "bf16" and plain["validation_data.guidance_scale"] == 5.0
    assert wan.boundary_of("somebody/wan") == 0.875 and wan.defaults("somebody/wan")["min_timestep"] == 875
    assert wan.parts("somebody/wan")["transformer_2"] is WanTransformer3DModel
    assert latent_size_of("somebody/wan", 9, 32, 48) == (3, 4, 6)


def test_the_index_of_a_hub_id_is_asked_for_once_and_that_of_a_folder_every_time(monkeypatch, nothing_kept, tmp_path):
    answers = Mock(side_effect=[OSError("no network"), {"_class_name": "WanPipeline", "boundary_ratio": 0.875}])
    monkeypatch.setattr(DiffusionPipeline, "load_config", answers)
    for _ in range(2):
        assert index.read_index("somebody/wan") == {}, "whoever loads it words this"
    assert answers.call_count == 1, "without a network every request takes its time"
    monkeypatch.setattr(index, "PATIENCE", 0)
    for _ in range(3):
        assert backbones.kind_of_model("somebody/wan") is wan and wan.boundary_of("somebody/wan") == 0.875
    assert answers.call_count == 2, "a failure may be over the next time"
    index.read_index("somebody/wan").clear()
    assert wan.boundary_of("somebody/wan") == 0.875
    for name, kind in (("WanPipeline", wan), ("TextToVideoSDPipeline", unet3d)):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
        assert backbones.kind_of_model(tmp_path) is kind


def test_the_real_architecture_needs_less_than_ten_gigabytes(tmp_path, monkeypatch):
    """Wan 2.1's 1.3 B on the meta device: 33 frames in bf16, every layer counted, by the command as it is written."""
    for part, settings in PUBLISHED.items():
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text(json.dumps(settings))
    for part in ("text_encoder", "tokenizer"):
        (tmp_path / part).mkdir()  # a dry run looks for them and reads nothing in them
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    wan_parts.build_scheduler().save_pretrained(tmp_path / "scheduler")
    monkeypatch.setattr("infer.training.dry_run.choose_dtype", lambda *_: torch.bfloat16)  # what a GPU would be given
    files = ["--config", "configs/car.yaml", "--config", "configs/wan.yaml"]
    readme = " ".join((ROOT / "README.md").read_text().split())
    for width, height, told in ((480, 272, "GB for 33 frames of 480x272"), (832, 480, "GB at 832x480")):
        size = [f"train_data.width={width}", f"train_data.height={height}"]
        cfg, _ = load([*files, f"pretrained_model_path={tmp_path}", *(size if width > 480 else [])], description="")
        assert (cfg.lora_rank, cfg.learning_rate, cfg.train_data.width, cfg.train_data.fps) == (32, 2e-4, width, 16)
        text = train.dry_run(cfg)
        assert "33 frames of 2.1 s" in text and "tap: 60 layers, 30 blocks, 5,898,240 parameters" in text
        assert f"{float(re.search(r'memory +([0-9.]+) GB', text)[1]):.1f} {told}" in readme


def test_an_image_to_video_model_is_refused(tiny_wan, tmp_path):
    folder = tmp_path / "i2v"
    shutil.copytree(tiny_wan, folder)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_dim": 1280}))
    with pytest.raises(UserError, match="image-to-video"):
        Backbone.load(folder)


def test_a_text_encoder_too_large_for_the_device_visits_layer_by_layer(backbone, tiny_wan, monkeypatch):
    asked, real = [], visit_by_layers
    monkeypatch.setattr("models.backbone._free_bytes", lambda _: 0)
    monkeypatch.setattr("models.backbone.visit_by_layers", lambda *given: asked.append(given) or real(*given))
    by_layers, expected = Backbone.load(tiny_wan), backbone.encode_text([PROMPT, NEGATIVE])
    assert asked == [(by_layers.text_encoder, torch.device("cpu"))]
    monkeypatch.setattr("models.backbone._visiting", lambda *_: pytest.fail("the whole encoder moved"))
    assert by_layers.text_by_layers and not backbone.text_by_layers
    assert torch.equal(by_layers.encode_text([PROMPT, NEGATIVE]), expected)


def test_each_layer_of_the_text_encoder_is_on_the_device_alone_and_its_home_stays_as_it_is(tiny_wan):
    """The meta device stands for a card; the first embedding is one tensor under two names."""
    encoder, visits = Backbone.load(tiny_wan).text_encoder, []
    assert encoder.shared.weight is encoder.encoder.embed_tokens.weight
    everything = lambda: dict(chain(encoder.named_parameters(remove_duplicate=False), encoder.named_buffers()))
    homes = [(tensor, tensor.clone()) for tensor in everything().values()]

    def look(forward, *args, **kwargs):
        visits.append([name for name, tensor in everything().items() if tensor.device.type == "meta"])
        return forward(*args, **kwargs)

    with visit_by_layers(encoder, torch.device("meta")):
        for layer in encoder.modules():
            if layer._parameters or layer._buffers:
                wrap_forward(layer, look, innermost=True)
        found = encoder(torch.zeros(1, 5, dtype=torch.long, device="meta")).last_hidden_state
    assert found.device.type == "meta" and {len(visit) for visit in visits} == {1}
    assert {name for (name,) in visits} == everything().keys() - {"shared.weight"}
    assert all(x is home and torch.equal(x, kept) for x, (home, kept) in zip(everything().values(), homes))


def test_the_largest_layer_of_its_text_encoder():
    """UMT5-XXL on the meta device: 11.4 GB in bf16, of which the layer with the most holds 2.1."""
    sizes = dict(d_model=4096, d_ff=10240, d_kv=64, num_layers=24, num_heads=64, vocab_size=256384)
    with torch.device("meta"):
        encoder = UMT5EncoderModel(UMT5Config(**sizes, feed_forward_proj="gated-gelu")).to(torch.bfloat16)
    largest = max(sum(p.nbytes for p in layer.parameters(recurse=False)) for layer in encoder.modules())
    assert 11.3e9 < sum(p.nbytes for p in encoder.parameters()) < 11.5e9 and 2.0e9 < largest < 2.2e9
