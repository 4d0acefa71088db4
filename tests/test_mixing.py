"""Sampling with several checkpoints through infer.py's functions: strength, mixing, appearance, noise, odd files."""

import functools
import shutil
from types import SimpleNamespace

import imageio.v3 as iio
import pytest
import torch
from diffusers import UNet3DConditionModel

from configs.errors import UserError
from infer import generate, options, request
from infer.video import read_frames
from models import customization, merge
from models.backbone import Backbone
from models.customization import customize
from models.files import release
from models.files.checkpoint import load_checkpoint
from models.highway import HighwaySettings

LORA = {"temporal_preset": "tap", "learning_rate": 0.05, "max_train_steps": 3}
DIRECTOR = {
    "temporal_preset": "motiondirector",
    "learning_rate": 0.05,
    "seed": 1,
    "spatial_path_probability": 1.0,
    "max_train_steps": 3,
    "appearance_highway": {"use": "off"},
}
EMBEDDINGS = {"method": "motion_inversion", "embeddings": {"learning_rate": 0.5}, "appearance_highway": {"use": "off"}}
KINDS = pytest.mark.parametrize("kind", [LORA, EMBEDDINGS], ids=["lora", "embeddings"])
INPUTS = (
    torch.randn(1, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
    torch.tensor(500),
    torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)),
)


@functools.cache
def loaded(path, *_):
    return Backbone.load(path)


@pytest.fixture
def sample(tmp_path, monkeypatch):
    """A function of infer.py's words giving the frames of each video, uint8 [f c h w], in 64x64 and two steps.

    One loaded model serves every call of every test, so a call that left a trace would show in the next.
    """
    calls = iter(range(99))
    monkeypatch.setattr(generate, "Backbone", SimpleNamespace(load=loaded))

    def run(*words, seed=(3,), prompts=("a car is running",)):
        words = [
            "--format",
            "frames",
            "-s",
            "2",
            "-W",
            "64",
            "-H",
            "64",
            "-T",
            "4",
            "-g",
            "2",
            "-d",
            "cpu",
            "-p",
            *prompts,
            "--seed",
            *map(str, seed),
            "-o",
            tmp_path / f"call{next(calls)}",
            *words,
        ]
        return [read_frames(path) for path in generate.generate(options.parse([str(word) for word in words]))]

    return run


@pytest.fixture
def backbone(tiny_pipeline):
    return loaded(str(tiny_pipeline))


@torch.no_grad()
def outcome(unet):
    return unet(*INPUTS).sample


@KINDS
def test_strength_zero_is_the_base_model_to_the_bit(trained, sample, tiny_pipeline, kind):
    run = trained(**kind)
    (plain,) = sample("--model", tiny_pipeline)
    (still,) = sample("-cf", run, "--lora_scale", 0)
    assert torch.equal(still, plain)
    (asked,) = sample("-cf", run, "--lora_scale", 0, "--highway", "all")
    assert not torch.equal(asked, plain), "what is asked for by name is done"


@KINDS
def test_the_strength_dial_acts_below_and_above_one(trained, sample, kind):
    videos = [sample("-cf", trained(**kind), "-np", 0, "-ls", strength)[0] for strength in (0, 0.5, 1, 1.5)]
    assert all(not torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])


@KINDS
def test_the_four_noises_work_with_every_method(trained, sample, kind):
    words = ("-cf", trained(**kind), "--noise_strategy")
    videos = [sample(*words, strategy, "-np", 0.5)[0] for strategy in ("blend", "frequency", "blend_frequency", "fft")]
    videos += sample(*words, "fft", "-np", 0)
    assert not any(torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])


@KINDS
def test_pli_gives_the_last_steps_to_the_plain_model_in_every_batch(trained, sample, tiny_pipeline, kind):
    words = ("-cf", trained(**kind), "-np", 0)
    plain = sample("--model", tiny_pipeline, seed=(3, 4))
    assert all(map(torch.equal, sample(*words, "--pli_threshold", 999, seed=(3, 4)), plain))
    adapted = sample(*words, seed=(3, 4))
    phased = sample(*words, "--pli_threshold", 400, seed=(3, 4))
    assert all(not torch.equal(video, other) for videos in (plain, adapted) for video, other in zip(phased, videos))
    (alone,) = sample(*words, "--pli_threshold", 400, seed=(4,))
    assert torch.equal(phased[1], alone), "the second batch starts adapted again"
    together = sample(*words, "--pli_threshold", 400, "-B", 2, seed=(3, 4))
    assert all((a.int() - b.int()).abs().max() <= 1 for a, b in zip(together, phased))


@pytest.mark.parametrize("solver", ["unipc", "dpm"])
def test_every_solver_takes_every_noise_the_highway_and_phased_integration(trained, sample, tiny_pipeline, solver):
    words = ("-cf", trained(**LORA), "--solver", solver, "-s", 3)
    videos = [
        sample(*words, "--noise_strategy", s, "-np", 0.5)[0] for s in ("blend", "frequency", "blend_frequency", "fft")
    ]
    videos += sample(*words, "-np", 0)
    videos += sample(*words, "-np", 0, "--highway", "off")
    videos += sample(*words, "-np", 0, "--pli_threshold", 400)
    videos += (plain := sample("--model", tiny_pipeline, "--solver", solver, "-s", 3))
    assert not any(torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])
    assert torch.equal(sample(*words, "-np", 0, "--pli_threshold", 999)[0], plain[0])


def test_loras_of_two_presets_are_added_into_the_weights(trained, backbone):
    motions = [(load_checkpoint(trained(**LORA)), 0.7), (load_checkpoint(trained(**DIRECTOR)), 0.4)]
    name = "transformer_in.transformer_blocks.0.attn1.to_q"
    linear = backbone.network.get_submodule(name)
    before = linear.weight.clone()
    deltas = [s * c.motion[f"{name}.lora_B.weight"] @ c.motion[f"{name}.lora_A.weight"] for c, s in motions]
    with customize(backbone.network, motions) as patch:
        torch.testing.assert_close(linear.weight, before + sum(deltas))
        assert patch.notes == [
            "motion LoRA tap: 68 layers, merged at 0.7",
            "motion LoRA motiondirector: 170 layers, merged at 0.4",
        ]
    assert torch.equal(linear.weight, before)


def test_embeddings_of_equal_shapes_are_added_up(trained, backbone):
    checkpoint, other = (load_checkpoint(trained(**EMBEDDINGS, seed=seed)) for seed in (0, 5))
    halves = [(checkpoint, 0.5), (checkpoint, 0.25), (checkpoint, 0.25)]
    with customize(backbone.network, [(checkpoint, 1.0)]):
        whole = outcome(backbone.network)
    with customize(backbone.network, halves):
        torch.testing.assert_close(outcome(backbone.network), whole, atol=1e-5, rtol=1e-4)
    with customize(backbone.network, [(checkpoint, 1.0), (other, 0.0)]):
        assert torch.equal(outcome(backbone.network), whole)
    with customize(backbone.network, [(checkpoint, 1.0), (other, 1.0)]):
        assert not torch.allclose(outcome(backbone.network), whole, atol=1e-5)


def test_what_can_not_be_mixed_says_why(trained, sample):
    embeddings, lora = trained(**EMBEDDINGS), trained(**LORA)
    with pytest.raises(UserError, match="learned against the pretrained query and key projections"):
        sample("-cf", embeddings, "--motion", lora, 0.5)
    longer = trained(**EMBEDDINGS, train_data={"n_sample_frames": 6})
    with pytest.raises(UserError, match="trained on 4 frames of 8x8 latents and on 6 frames of 8x8"):
        sample("-cf", embeddings, "--motion", longer, 0.5)
    wider = trained(**{**EMBEDDINGS, "embeddings": {"learning_rate": 0.5, "widths": [64, 96]}})
    with pytest.raises(UserError, match="motion 2 cannot be mixed with motion 1, they differ in"):
        sample("-cf", embeddings, "--motion", wider, 0.5)
    with pytest.raises(UserError, match="strength 'much' is no finite number"):
        sample("-cf", lora, "--motion", lora, "much")


def test_motions_mix_through_the_command(trained, sample, capsys):
    lora, director = trained(**LORA), trained(**DIRECTOR)
    (mixed,) = sample("-cf", lora, "-np", 0, "--motion", director, 0.5)
    told = capsys.readouterr().err
    (one,) = sample("-cf", lora, "-np", 0)
    assert not torch.equal(mixed, one)
    assert "motion LoRA tap: 68 layers, merged at 1\nmotion LoRA motiondirector: 170 layers, merged at 0.5" in told


def positional(run, folder, unet):
    """The run's checkpoint as MotionDirector writes it: run/checkpoint-N/{temporal,spatial}/lora/N_unet.pt."""
    found = load_checkpoint(run)
    (folder / "checkpoint-300").mkdir(parents=True)
    release.write_lora(folder / "checkpoint-300", 300, unet, found.preset, found.motion, found.appearance)
    return folder / "checkpoint-300"


def test_motiondirectors_mixing_command_takes_the_appearance_from_one_and_motion_from_another(
    trained, sample, backbone, tiny_pipeline, tmp_path, capsys
):
    ours, director = trained(**LORA), trained(**DIRECTOR)
    theirs = positional(director, tmp_path / "director", backbone.network)
    scales = ("--spatial_path_scale", 0.8, "--temporal_path_scale", 0.9, "-np", 0)
    (expected,) = sample("--spatial_path_folder", director, "--temporal_path_folder", ours, *scales)
    assert "appearance LoRA: 96 layers, merged at 0.8" in capsys.readouterr().err
    latest = max(ours.glob("checkpoint-*"))
    for appearance in (
        theirs / "spatial" / "lora",
        f"{theirs}/spatial/",
        theirs,
        director / "checkpoint-3" / "spatial" / "0",
    ):
        (video,) = sample(
            "--spatial_path_folder",
            appearance,
            "--temporal_path_folder",
            latest / "temporal",
            *scales,
            "--model",
            tiny_pipeline,
        )
        assert torch.equal(video, expected)
    (motion_only,) = sample("--temporal_path_folder", ours, *scales[2:])
    assert not torch.equal(motion_only, expected)


def test_a_folder_of_appearance_alone_gives_appearance_but_no_motion(
    trained, sample, backbone, tiny_pipeline, tmp_path
):
    director = trained(**DIRECTOR)
    theirs = positional(director, tmp_path / "theirs", backbone.network)
    shutil.rmtree(theirs / "temporal")
    ours = shutil.copytree(director, tmp_path / "ours")
    for folder in ours.glob("checkpoint-*"):
        shutil.rmtree(folder / "temporal")
    words = ("--model", tiny_pipeline, "--spatial_path_folder")
    (expected,) = sample(*words, director)
    for folder in (theirs, ours):
        assert torch.equal(sample(*words, folder)[0], expected)
        with pytest.raises(UserError, match="no motion weights there .found .*spatial"):
            sample("-cf", folder, "--model", tiny_pipeline)
    with pytest.raises(UserError, match="holds no appearance adapter; use a run of method=lora"):
        sample(*words, trained(**EMBEDDINGS))


def test_images_are_a_source_of_appearance(trained, sample, tmp_path_factory, clip_file, capsys):
    images = tmp_path_factory.mktemp("images")
    for i, frame in enumerate(read_frames(clip_file)[:2]):
        iio.imwrite(images / f"{i}.png", frame.permute(1, 2, 0).numpy())
    run = trained(
        dataset_types=["image"],
        learning_rate=0.05,
        max_train_steps=4,
        validation_steps=4,
        train_data={"image_dir": str(images), "single_img_prompt": "a car"},
    )
    assert not any(t.any() for name, t in load_checkpoint(run).motion.items() if "lora_B" in name), "no motion to learn"
    words = (
        "-cf",
        trained(
            **DIRECTOR,
            dataset_types=["single_video", "image"],
            train_data={"image_dir": str(images), "single_img_prompt": "a car"},
        ),
        "-np",
        0,
    )
    videos = [
        sample(*words, *appearance)[0]
        for appearance in ((), ("--spatial_path_folder", run), ("--spatial_path_folder", run, "--clip", 1))
    ]
    (chosen,) = sample(*words, "--spatial_path_folder", run, "--spatial_path_clip", 1, "--clip", 0)
    assert torch.equal(chosen, videos[2]), "the motion's clip is another question"
    assert not any(torch.equal(a, b) for i, a in enumerate(videos) for b in videos[:i])
    capsys.readouterr()
    sample("-cf", run)
    assert "from the absence of an inversion: noise_prior 0.0" in capsys.readouterr().err
    with pytest.raises(UserError, match="that clip is an image; use 0"):
        sample("-cf", run, "-np", 0.3)
    with pytest.raises(UserError, match="holds the appearance of clips 0 to 1, number 5 was asked for"):
        sample("--spatial_path_folder", run, "--clip", 5)


def test_motion_inversions_own_file_is_sampled_without_knowing_its_size(
    trained, sample, tiny_pipeline, tmp_path, capsys
):
    run = trained(**EMBEDDINGS)
    (expected,) = sample("-cf", run, "-np", 0)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    release.write_embeddings(load_checkpoint(run).motion, theirs / "motion_embed.pt")
    (video,) = sample("-cf", theirs, "--model", tiny_pipeline)
    assert torch.equal(video, expected)
    assert "interpolated" not in capsys.readouterr().err
    sample("-cf", theirs, "--model", tiny_pipeline, "-W", 96, "-H", 64)
    assert "interpolated in space from 8x8 to 12x8 latents" in capsys.readouterr().err


def test_a_size_that_is_no_square_is_taken_from_what_is_sampled(trained, sample, tiny_pipeline, tmp_path, capsys):
    run = trained(**EMBEDDINGS, train_data={"width": 96, "use_bucketing": False})
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    release.write_embeddings(load_checkpoint(run).motion, theirs / "motion_embed.pt")
    (video,) = sample("-cf", theirs, "--model", tiny_pipeline, "-W", 96)
    assert torch.equal(video, sample("-cf", run, "-np", 0, "-W", 96)[0])
    with pytest.raises(
        UserError, match="does not say for which size it was made; .* of 6 pixels are neither square nor"
    ):
        sample("-cf", theirs, "--model", tiny_pipeline)


def test_other_sizes_and_lengths_say_what_is_interpolated(trained, sample, capsys):
    (video,) = sample("-cf", trained(**EMBEDDINGS), "-W", 96, "-H", 128, "-T", 6)
    assert video.shape == (6, 3, 128, 96)
    told = capsys.readouterr().err
    assert "embeddings interpolated in space from 8x8 to 12x16 latents and in time from 4 to 6 frames" in told


def test_sampling_strategies_are_one_flag(trained, sample):
    videos = [
        sample("-cf", trained(**EMBEDDINGS), "-np", 0, "--embedding_sampling", mode)[0]
        for mode in ("none", "difference", "drop_value")
    ]
    assert not torch.equal(videos[0], videos[1]) and not torch.equal(videos[1], videos[2])


@KINDS
def test_customize_leaves_nothing_behind_after_an_exception(trained, backbone, monkeypatch, kind):
    checkpoint, base = load_checkpoint(trained(**kind)), outcome(backbone.network)
    appearance = load_checkpoint(trained(**LORA))
    wrappers = [list(vars(module).get("_forward_wrappers", ())) for module in backbone.network.modules()]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(customization, "attach_highway", interrupted)
    with pytest.raises(KeyboardInterrupt):
        customize(backbone.network, [(checkpoint, 1.0)], [(appearance, 0, 1.0)], HighwaySettings("all", 1.0))
    monkeypatch.undo()
    assert torch.equal(outcome(backbone.network), base)
    assert [list(vars(module).get("_forward_wrappers", ())) for module in backbone.network.modules()] == wrappers


def test_a_merge_that_fails_halfway_is_taken_back(trained, backbone, monkeypatch):
    checkpoint, base, calls = load_checkpoint(trained(**LORA)), outcome(backbone.network), []
    apply = merge._apply_deltas

    def out_of_memory(linear, original, deltas):
        calls.append(linear)
        if len(calls) == 10:
            raise torch.OutOfMemoryError
        apply(linear, original, deltas)

    monkeypatch.setattr(merge, "_apply_deltas", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        customize(backbone.network, [(checkpoint, 1.0)])
    assert torch.equal(outcome(backbone.network), base)


def test_checkpoints_are_checked_against_their_model_before_it_is_loaded(
    trained, sample, tiny_pipeline, tmp_path, monkeypatch
):
    run = trained(**LORA)
    config = UNet3DConditionModel.load_config(tiny_pipeline, subfolder="unet")
    wide = UNet3DConditionModel.from_config({**config, "block_out_channels": [32, 32, 64, 64], "layers_per_block": 1})
    monkeypatch.setattr(UNet3DConditionModel, "load_config", lambda name, **_: dict(wide.config))
    with pytest.raises(UserError, match="does not fit this model: trained on U-Net of channels 32/64/96/96, 2 layers"):
        sample("-cf", run, "--model", "somebody/on_the_hub")
    moved = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    wide.save_config(moved / "unet")
    found = load_checkpoint(run)
    found.config["pretrained_model_path"] = str(moved)
    monkeypatch.setattr(request, "load_checkpoint", lambda *_, **__: found)
    with pytest.raises(UserError, match="does not fit this model"):
        sample("-cf", run)


def test_wrong_expectations_name_what_was_found(trained, sample):
    with pytest.raises(UserError, match="has the temporal preset tap, release was asked"):
        sample("-cf", trained(**LORA), "--temporal_preset", "release")
    with pytest.raises(UserError, match="has rank 4, rank 32 was asked"):
        sample("-cf", trained(**LORA), "-lr", 32)
    for words in (("--temporal_preset", "tap"), ("-lr", 4)):
        with pytest.raises(
            UserError, match="embeddings of Motion Inversion, which have no temporal preset and no rank"
        ):
            sample("-cf", trained(**EMBEDDINGS), *words)
