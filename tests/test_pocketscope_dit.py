"""PocketScope-DiT: Wan's parts built from nothing, what its pretraining minimises, and the shipped folder."""

import json
import math
import signal

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d
from safetensors.torch import load_file

from data.world import render, sample_scene, vocabulary
from scripts import pretrain_pocketscope as pretraining
from scripts.pocket import wan_abilities as abilities
from scripts.pocket.abilities import FRAMES, fresh_prompts, token_ids
from scripts.pocket.architecture import TEXT_LENGTH
from scripts.pocket.flow import FlowMatching, Padding
from scripts.pocket.trainer import Phase
from scripts.pocket.wan_parts import FrameCodec, build, encode_captions, skip_earlier_frames
from scripts.pocket.wan_pretraining import NATIVE, PHASES, measure_latents

SHIPPED = pretraining.SHIPPED["dit"]
shipped = pytest.mark.skipif(
    not (SHIPPED / "model_index.json").exists(), reason="PocketScope-DiT is not pretrained yet"
)
CAPTION = "a red circle moves left over a mint background"


@pytest.fixture(scope="module")
def parts():
    return build(vocabulary(), seed=0)


@pytest.fixture(scope="module")
def frames():
    return torch.stack([render(sample_scene(seed)).frames[3] for seed in range(4)]) / 127.5 - 1


@pytest.fixture(scope="module")
def video():
    return render(sample_scene(2)).frames / 127.5 - 1


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_every_word_of_the_world_is_one_token_and_others_are_unknown(parts):
    tokenizer = parts["tokenizer"]
    for word in vocabulary():
        assert len(tokenizer(word).input_ids) == 2, word  # the word, the end
        assert tokenizer(word).input_ids[0] != tokenizer.unk_token_id
    assert tokenizer("a dog").input_ids[1:] == [tokenizer.unk_token_id, tokenizer.eos_token_id]
    longest = max((sample_scene(seed, decorated=1.0).caption for seed in range(100)), key=len)
    assert len(tokenizer(longest).input_ids) <= TEXT_LENGTH


def test_the_same_seed_builds_the_same_parts(parts):
    again, other = build(vocabulary(), seed=0), build(vocabulary(), seed=1)
    for name in ("vae", "transformer", "text_encoder"):
        mine, same, different = (list(p[name].state_dict().values()) for p in (parts, again, other))
        assert all(torch.equal(a, b) for a, b in zip(mine, same))
        assert not all(torch.equal(a, b) for a, b in zip(mine, different))


def test_captions_are_encoded_as_the_stock_pipeline_encodes_them(parts):
    stock, _ = WanPipeline(**parts).encode_prompt(CAPTION, max_sequence_length=TEXT_LENGTH)
    ours = encode_captions(parts["text_encoder"], token_ids(parts["tokenizer"], [CAPTION]))
    torch.testing.assert_close(ours, stock, atol=1e-6, rtol=0)
    assert ours[0, 9].abs().max() > 0 and ours[0, 10].abs().max() == 0  # nine words and the end, then nothing


def test_the_vae_starts_as_a_working_codec(parts, frames):
    codec = FrameCodec(parts["vae"])
    with torch.no_grad():
        latents = codec.encode(frames).latent_dist.mean
        decoded = codec.decode(latents).sample
    averaged = torch.nn.functional.avg_pool2d(frames, 8)
    assert (latents[:, :3] - averaged).abs().mean() < 0.1
    assert (decoded - frames).abs().mean() < 0.5 * (frames - frames.mean((0, 2, 3), keepdim=True)).abs().mean()


def assert_codes_frames_alone(vae, video):
    """The stock class on a video [f 3 h w] gives what the codec gives on its frames."""
    codec = FrameCodec(vae)
    with torch.no_grad():
        latents = codec.encode(video).latent_dist.mean
        nine = torch.cat([video, video[:1]])  # the stock encoder reads one frame and then fours
        stock = vae.encode(nine.transpose(0, 1)[None]).latent_dist.mean[0].transpose(0, 1)
        torch.testing.assert_close(stock[:FRAMES], latents, atol=1e-4, rtol=0)
        stock = vae.decode(latents.transpose(0, 1)[None]).sample[0].transpose(0, 1)
        assert len(stock) == FRAMES
        torch.testing.assert_close(stock, codec.decode(latents).sample.clamp(-1, 1), atol=1e-4, rtol=0)


def test_every_frame_is_coded_on_its_own_by_the_stock_class(parts, video):
    assert_codes_frames_alone(parts["vae"], video)


def test_training_on_frames_leaves_the_taps_on_earlier_frames_at_zero(frames):
    vae = build(vocabulary(), seed=0)["vae"]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-2, weight_decay=0.0)
    codec, before = FrameCodec(vae), vae.encoder.conv_in.weight.detach().clone()
    with skip_earlier_frames(vae):
        (codec.decode(codec.encode(frames).latent_dist.mean).sample - frames).square().mean().backward()
    optimizer.step()
    assert not torch.equal(vae.encoder.conv_in.weight, before)
    kernels = [m.weight for m in vae.modules() if isinstance(m, WanCausalConv3d)]
    assert all(not kernel[:, :, :-1].any() for kernel in kernels)


def test_skipping_earlier_frames_changes_nothing_on_single_frames(parts, frames):
    vae = parts["vae"]
    codec = FrameCodec(vae)
    with torch.no_grad():
        whole = codec.encode(frames).latent_dist.parameters
        with skip_earlier_frames(vae):
            skipped = codec.encode(frames).latent_dist.parameters
            assert not torch.equal(skipped, whole)  # another kernel, so other last bits: the patch was there
        again = codec.encode(frames).latent_dist.parameters
    torch.testing.assert_close(skipped, whole, atol=1e-5, rtol=1e-5)
    assert torch.equal(again, whole)


def test_the_latents_statistics_travel_in_the_configuration(frames):
    vae = build(vocabulary(), seed=0)["vae"]
    measure_latents(vae, frames)
    with torch.no_grad():
        latents = FrameCodec(vae).encode(frames).latent_dist.mean
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    normalised = (latents - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(normalised.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_the_stock_pipeline_samples_eight_frames_from_eight_latents_or_when_asked_for_seven(parts):
    pipe = WanPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64, "num_inference_steps": 1, "max_sequence_length": TEXT_LENGTH}
    given = pipe(CAPTION, latents=normal(1, 4, FRAMES, 8, 8), **options).frames
    assert given.shape == (1, FRAMES, 64, 64, 3)
    assert [pipe(CAPTION, num_frames=asked, **options).frames.shape[1] for asked in (7, 8)] == [8, 9]


def world_of(parts, count=6):
    """A world of random latents with real captions."""
    captions = [sample_scene(seed).caption for seed in range(count)]
    return {
        "latents": 3 + 2 * normal(count, 4, FRAMES, 8, 8),
        "weights": torch.ones(count, FRAMES, 8, 8),
        "captions": token_ids(parts["tokenizer"], captions),
    }


def test_the_loss_is_that_of_diffusers_flow_matching_training(parts):
    world, flow = world_of(parts), FlowMatching(parts, world_of(parts), torch.float32, compiled=False)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    picked = torch.tensor([900, 500, 20])
    torch.testing.assert_close(flow.shifted((1000 - picked) / 1000), scheduler.sigmas[picked], atol=1e-6, rtol=0)
    latents, captions, noise = world["latents"][:3], world["captions"][:3], normal(3, 4, FRAMES, 8, 8, seed=1)
    noisy = scheduler.scale_noise(latents, scheduler.timesteps[picked], noise)
    with torch.no_grad():
        text = encode_captions(parts["text_encoder"], captions)
        predicted = parts["transformer"](noisy, scheduler.timesteps[picked], text).sample
        ours = flow.error(latents, world["weights"][:3], captions, scheduler.sigmas[picked], noise)
    torch.testing.assert_close(ours, (predicted - (noise - latents)).square().mean(), atol=1e-5, rtol=1e-5)
    flow.padding.remove()


def test_the_loss_sees_normalised_latents(parts):
    vae = parts["vae"]
    mean, std = vae.config.latents_mean, vae.config.latents_std
    vae.register_to_config(latents_mean=[3.0] * 4, latents_std=[2.0] * 4)
    flow = FlowMatching(parts, world_of(parts), torch.float32, compiled=False)
    torch.testing.assert_close(flow.world["latents"], normal(6, 4, FRAMES, 8, 8), atol=1e-6, rtol=0)
    vae.register_to_config(latents_mean=mean, latents_std=std)
    flow.padding.remove()


def test_the_same_generator_gives_the_same_loss_and_another_another(parts):
    flow = FlowMatching(parts, world_of(parts), torch.float32, compiled=False)
    with torch.no_grad(), flow.padding:
        losses = [flow.loss(2, single, torch.Generator().manual_seed(seed)) for single in (0, 1) for seed in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2] and losses[3] == losses[4] != losses[5] and losses[0] != losses[3]


def test_counting_padding_several_times_is_padding_longer(parts):
    transformer, ids = parts["transformer"], token_ids(parts["tokenizer"], [CAPTION, ""])
    text, padded = encode_captions(parts["text_encoder"], ids), ids.eq(parts["tokenizer"].pad_token_id)
    latents, step = normal(1, 4, 2, 8, 8), torch.tensor([500])
    for row, longer in enumerate((100, 512)):
        one, spots = text[row : row + 1], padded[row : row + 1]
        times = (longer - (~spots).sum(1)) / spots.sum(1)
        with torch.no_grad():
            plain = transformer(latents, step, one).sample
            wanted = transformer(latents, step, torch.nn.functional.pad(one, (0, 0, 0, longer - TEXT_LENGTH))).sample
            with Padding(transformer) as padding:
                padding.set(spots, times)
                counted = transformer(latents, step, one).sample
            assert torch.equal(transformer(latents, step, one).sample, plain)
        torch.testing.assert_close(counted, wanted, atol=1e-5, rtol=0)
        assert (plain - wanted).abs().max() > 1e-4


def test_attention_can_be_kept_to_one_frame_or_one_place(parts):
    transformer, text, step = parts["transformer"], normal(1, TEXT_LENGTH, 64), torch.tensor([500])
    latents = normal(1, 4, FRAMES, 8, 8)
    changed = latents.clone()
    changed[:, :, 3, :2, :2] += 1  # the first place of the fourth frame

    def touched():
        """Which frames, and which places of the fourth frame, see the change."""
        with torch.no_grad():
            moved = (transformer(changed, step, text).sample - transformer(latents, step, text).sample).abs() > 1e-6
        frames = moved.any(-1).any(-1).any(1)[0]
        places = torch.nn.functional.max_pool2d(moved[:, :, 3].any(1).float(), 2)[0].bool()
        return frames.sum().item(), places.sum().item()

    assert touched() == (8, 16)
    for name, expected in (("frame", (1, 16)), ("place", (8, 1)), ("frame or place", (8, 16))):
        with abilities.attend_only(transformer, name):
            assert touched() == expected
    assert touched() == (8, 16)


def heads(which):
    """bool [layers heads], True for each (layer, head) of `which`."""
    found = torch.zeros(6, 6, dtype=torch.bool)
    for layer, head in which:
        found[layer, head] = True
    return found


def test_heads_are_switched_off_by_kind_and_by_layer():
    temporal = heads([(0, 1), (4, 2), (4, 3)])
    groups = abilities.head_groups(temporal)
    assert len(groups) == 8 and torch.equal(groups["the 3 temporal heads"], temporal)
    assert torch.equal(groups["the 33 spatial heads"], ~temporal)
    assert torch.equal(groups["the heads of layer 4"], heads([(4, head) for head in range(6)]))


def test_the_card_names_the_temporal_heads_of_the_shipped_model_their_margin_and_agreement():
    found = abilities.heads_in_rendered_clips(str(SHIPPED), "cpu", seed=1)
    card = " ".join((SHIPPED / "README.md").read_text().split())
    assert f"{found.is_temporal.sum()} of the {found.is_temporal.numel()} see the same place" in card
    margin, agreement = 2 ** found.ratio.abs().median(), found.agreement
    assert (
        f"by a factor of {margin:.1f} in the median, and two clips agree on {100 * agreement:.0f} % of the heads"
        in card
    )
    near = (found.ratio.abs() < math.log2(1.01)).sum()
    assert (
        f"{ ({1: 'one', 2: 'two', 3: 'three'}[near.item()]) } of them are within 1 % of being of the other kind" in card
    )


def test_a_head_that_is_switched_off_adds_nothing_and_comes_back(parts):
    transformer, text, step = parts["transformer"], normal(1, TEXT_LENGTH, 64), torch.tensor([500])
    latents, output = normal(1, 4, 2, 8, 8), transformer.blocks[1].attn1.to_out[0]
    seen = []
    handle = output.register_forward_hook(lambda module, args, result: seen.append(result))
    with torch.no_grad():
        whole = transformer(latents, step, text).sample
        with abilities.without_heads(transformer, heads([(1, head) for head in range(6)])):
            none = transformer(latents, step, text).sample
        with abilities.without_heads(transformer, heads([(1, 2)])):
            most = transformer(latents, step, text).sample
        again = transformer(latents, step, text).sample
    handle.remove()
    assert torch.equal(whole, again) and not torch.equal(whole, most) and not torch.equal(most, none)
    torch.testing.assert_close(seen[1], output.bias.expand_as(seen[1]), atol=0, rtol=0)
    lost = (seen[0] - seen[2]).abs().amax((0, 1))
    assert lost.max() > 1e-4 and not torch.equal(seen[2], seen[1])


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The output folder of a smoke run, and the phases that it reported."""
    out = tmp_path_factory.mktemp("dit")
    pretraining.main(["--model", "dit", "--smoke", "--out", str(out)])
    return out


def test_pretraining_runs_all_phases_and_ships_a_small_folder_that_stock_code_opens(smoke):
    assert {f"{name}.safetensors" for name in PHASES} <= {path.name for path in smoke.iterdir()}
    assert sum(path.stat().st_size for path in (smoke / "model").rglob("*") if path.is_file()) < 20e6
    pipe = WanPipeline.from_pretrained(smoke / "model", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    trained = load_file(smoke / "video.safetensors")
    for name, weight in pipe.transformer.state_dict().items():
        torch.testing.assert_close(weight, trained[name], atol=1e-3, rtol=1e-3)
    assert pipe.vae.config.latents_std != [1.0] * 4
    frames = pipe(
        CAPTION, latents=normal(1, 4, 8, 8, 8), num_inference_steps=2, max_sequence_length=24, output_type="pt"
    ).frames
    assert frames.shape == (1, 8, 3, 64, 64) and frames.isfinite().all()


def test_a_run_in_pieces_ends_in_the_same_weights(smoke, tmp_path, monkeypatch):
    for name in ("vae", "latents"):
        (tmp_path / f"{name}.safetensors").symlink_to(smoke / f"{name}.safetensors")
    rate, steps = Phase.rate, []

    def interrupted(phase, step):  # SIGTERM once in the phase of single frames and once in that of video
        steps.append(step)
        if len(steps) in (2, 5):
            signal.raise_signal(signal.SIGTERM)
        return rate(phase, step)

    monkeypatch.setattr(Phase, "rate", interrupted)
    command = ["--model", "dit", "--smoke", "--out", str(tmp_path)]
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            pretraining.main(command)
        assert ended.value.code == 130 and (tmp_path / "state.safetensors").exists()
    pretraining.main(command)
    assert steps == [0, 1, 2, 0, 1, 2]
    whole, pieces = (load_file(folder / "video.safetensors") for folder in (smoke, tmp_path))
    # Not to the bit: on some CPUs a product rounds by where its operands lie, and Adam enlarges what is near zero.
    apart = {name: (whole[name] - pieces[name]).abs().mean().item() for name in whole}
    assert max(apart.values()) < 1e-6  # without its moments it is 2e-3


def test_measuring_needs_a_model(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        pretraining.main(["--model", "dit", "--evaluate", "2", "--export", str(tmp_path)])
    assert stop.value.code == 2 and "no model_index.json" in capsys.readouterr().err


@pytest.fixture(scope="module")
def shipped_parts():
    components = WanPipeline.from_pretrained(SHIPPED, dtype=torch.float32).components
    return {name: part for name, part in components.items() if part is not None}


@shipped
def test_the_shipped_folder_is_small_and_half_precision():
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) < 20e6
    weights = load_file(SHIPPED / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}


@shipped
def test_the_shipped_vae_codes_every_frame_on_its_own(shipped_parts, video):
    assert_codes_frames_alone(shipped_parts["vae"], video)


@shipped
def test_the_shipped_model_draws_what_the_prompt_says(shipped_parts):
    facts, _ = abilities.measure(shipped_parts, fresh_prompts(8, seed=3), seed=3)
    assert min(facts[key] for key in ("background", "colour", "shape", "motion")) >= 0.75


@shipped
def test_the_shipped_model_does_not_mind_the_pipelines_default_padding(shipped_parts):
    facts, _ = abilities.measure(shipped_parts, fresh_prompts(8, seed=3), seed=3, text_length=512)
    assert min(facts[key] for key in ("background", "colour", "shape", "motion")) >= 0.75


@shipped
def test_without_attention_between_frames_nothing_moves_as_asked(shipped_parts):
    prompts = [prompt for prompt in fresh_prompts(12, seed=3) if "moves" in prompt]
    with abilities.attend_only(shipped_parts["transformer"], "frame"):
        facts, _ = abilities.measure(shipped_parts, prompts, seed=3)
    assert facts["motion"] <= 0.25 and facts["background"] >= 0.75


@shipped
def test_the_shipped_folder_tells_its_native_sampling():
    native = json.loads((SHIPPED / "sampling.json").read_text())
    assert native == NATIVE, "as it would be exported"
    assert native["num_steps"] == abilities.SAMPLE_STEPS and native["guidance_scale"] == abilities.GUIDANCE
    assert (native["guide_steps"], native["guide_rate"], native["guide_target"]) == (8, 0.2, "clean_latent")
