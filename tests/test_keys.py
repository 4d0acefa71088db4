"""Every configuration key and every sampling flag does something: changed alone, it shows in a training or a video.

A key without a case fails, and so does a case in whose part of the run nothing changes. `EXEMPT` holds what cannot show
on this machine, each with its reason.
"""

from importlib.util import find_spec
from operator import attrgetter as of

import pytest

from configs import schema
from configs.fields import KEYS
from infer import options

from keys import IMAGES, Bench, Case

PREVIEW = {"validation_steps": 1}
TWO = {"max_train_steps": 2}
MI = {"method": "motion_inversion", "appearance_highway.use": "off"}
FOLDER = {"dataset_types": ["folder"], "train_data.path": of("clips")}
JSON = {"dataset_types": ["json"], "train_data.json_path": of("json")}
PACKAGE = None if find_spec("prodigyopt") else "prodigyopt"  # without it, its name stands in the refusal
WIDE = {"train_data.single_video_path": of("wide")}


def previewed(value, **given) -> Case:
    return Case(value, "video", {**PREVIEW, **given})


CASES: dict[str, Case | list[Case]] = {
    "pretrained_model_path": Case(of("other_model")),
    "dataset_types": Case(["single_video", "image"], "files", {"train_data.image_dir": of("image")}),
    "train_data.width": Case(40, "latents", {"train_data.use_bucketing": False}),
    "train_data.height": Case(40, "latents", {"train_data.use_bucketing": False}),
    "train_data.use_bucketing": Case(False, "latents", WIDE),
    "train_data.sample_start_idx": Case(4, "latents"),
    "train_data.fps": Case(4, "latents"),
    "train_data.frame_step": Case(2, "latents"),
    "train_data.n_sample_frames": Case(2, "latents"),
    "train_data.single_video_path": Case(of("other_clip")),
    "train_data.single_video_prompt": Case("a red horse"),
    "train_data.path": Case(of("other_clips"), given=FOLDER),
    "train_data.fallback_prompt": Case("a red horse", given=FOLDER),
    "train_data.json_path": Case(of("other_json"), given=JSON),
    "train_data.image_dir": Case(of("other_image"), given=IMAGES),
    "train_data.single_img_prompt": Case("red", given=IMAGES),
    "validation_data.prompt": previewed(["a red car"]),
    "validation_data.negative_prompt": previewed("a red car"),
    "validation_data.sample_preview": Case(False, "files", PREVIEW),
    "validation_data.sample_at_first": Case(True, "files"),
    "validation_data.side_by_side": Case(True, "files"),
    "validation_data.num_frames": previewed(2),
    "validation_data.width": previewed(16),
    "validation_data.height": previewed(16),
    "validation_data.num_inference_steps": previewed(3),
    "validation_data.solver": [previewed("unipc"), previewed("dpm")],
    "validation_data.guidance_scale": previewed(9.0),
    "validation_data.guidance_rescale": previewed(1.0),
    "validation_data.guidance_interval": previewed([700, 900]),
    "validation_data.spatial_scale": previewed(1.0),
    "validation_data.noise_prior": previewed(1.0),
    "method": Case("motion_inversion"),
    "temporal_preset": Case("tap_key"),
    "block_range": Case([0, 0.5], refused="block_range"),  # a transformer's; test_in_place_of_skips
    "include_patterns": Case([r".*\.attn1\.to_v"]),
    "exclude_patterns": Case([r".*\.attn2\..*"]),
    "lora_rank": Case(3),
    "lora_alpha": Case(9.0, "moments"),
    "lora_unet_dropout": Case(0.0),
    "lora_dropout_placement": Case("peft"),
    "frozen_dropout": Case(False),
    "single_spatial_lora": Case(True, "files", IMAGES),
    "train_temporal_lora": Case(False, "log"),
    "appearance_highway.use": [previewed("off"), Case("training", "log")],
    "appearance_highway.scope": previewed("plain"),
    "appearance_highway.beta": previewed(1.9),
    "pli_threshold": previewed(999),
    "spatial_path_probability": Case(0.0),
    "debias_beta": Case(0.0, "log"),
    "embeddings.blocks": Case(["up"], given=MI),
    "embeddings.widths": Case([32], given={**MI, "embeddings.blocks": ["mid", "up"]}),
    "embeddings.max_frames": Case(5, given=MI),
    "embeddings.loss": [Case("debiased", "log", MI), Case("hybrid", "log", MI)],
    "embeddings.sampling": [previewed("difference", **MI), previewed("drop_value", **MI)],
    "embeddings.learning_rate": Case(0.9, given=MI),
    "initial_noise.strategy": previewed("fft"),
    "initial_noise.cutoff": previewed(0.9, **{"initial_noise.strategy": "fft"}),
    "inversion_steps": Case(3, "latents"),
    "max_train_steps": Case(2, "log"),
    "learning_rate": Case(0.01),
    "optimizer": Case("prodigy", given={"learning_rate": 1.0}, refused=PACKAGE),
    "lora_plus_ratio": Case(4.0),
    "lr_scheduler": Case("linear", "log", TWO),
    "lr_warmup_steps": Case(2, given={"lr_scheduler": "constant_with_warmup", **TWO}),
    "gradient_accumulation_steps": Case(2),
    "timesteps_per_step": Case(2),
    "min_timestep": Case(999, "log"),
    "max_timestep": Case(0, "log"),
    "adam_beta1": Case(0.1, "moments"),
    "adam_beta2": Case(0.1, "moments"),
    "adam_epsilon": Case(0.9),
    "adam_weight_decay": Case(9.0),
    "max_grad_norm": Case(1e-3, "moments"),
    "use_8bit_adam": Case(True, refused="use_8bit_adam"),
    "seed": Case(1),
    "gradient_checkpointing": Case(True, "kept"),
    "memory": Case("small", given={"gradient_checkpointing": True}),
    "compile": Case("step", refused="compile: step replays CUDA graphs"),
    "device": Case("cuda:77", refused="device"),
    "threads": Case(3, "threads"),
    "output_dir": Case("elsewhere", "places"),
    "cache_dir": Case("elsewhere", "places"),
    "cached_latent_dir": Case(lambda bench: str(bench.train(WIDE)["run"] / "cached_latents")),
    "checkpointing_steps": Case(1, "files", TWO),
    "checkpoints_total_limit": Case(1, "files", {"checkpointing_steps": 1, **TWO}),
    "resume_from_checkpoint": Case(lambda bench: str(bench.train({})["run"]), "places"),
    "validation_steps": Case(1, "files"),
    "report_to": Case("tensorboard", "files"),
}
EXEMPT = {
    "base": "read from files only, and merged away; test_layers",
    "fallback": "read from files only; test_layers",
    "license": "is text in headers and in the card; test_modelspec",
    "mixed_precision": "a CPU computes in fp32 throughout; test_gpu, and test_backbone for the choice",
}

GUIDE = ["--guide", "--guide_steps", 2, "--guide_rate", 2]  # enough to move the pixels of a tiny model
FLAGS: dict[str, tuple] = {  # flag: (words on both sides, words that change, part, keys of the training, refusal)
    "model": ([], ["--model", of("other_model")], "video"),
    "prompt": ([], ["--prompt", "a red car"], "video"),
    "prompt_file": ([], ["--prompt_file", of("prompts")], "video"),
    "negative_prompt": ([], ["--negative-prompt", "a red car"], "video"),
    "width": ([], ["--width", 16], "video"),
    "height": ([], ["--height", 16], "video"),
    "num_frames": ([], ["--num-frames", 2], "video"),
    "num_steps": ([], ["--num-steps", 3], "video"),
    "solver": ([], ["--solver", "unipc"], "video"),
    "guidance_scale": ([], ["--guidance-scale", 9], "video"),
    "guidance_rescale": ([], ["--guidance_rescale", 1], "video"),
    "guidance_interval": ([], ["--guidance_interval", 700, 900], "video"),
    "fps": ([], ["--fps", 16], "rate"),
    "checkpoint_folder": ([], ["--checkpoint_folder", of("other_run")], "video"),
    "checkpoint_index": ([], ["--checkpoint_index", 1], "video", {"checkpointing_steps": 1, **TWO}),
    "lora_scale": ([], ["--lora_scale", 0.3], "video"),
    "motion": ([], ["--motion", of("other_run"), 1], "video"),
    "spatial_path_folder": ([], ["--spatial_path_folder", of("run")], "video"),
    "spatial_path_scale": (["--spatial_path_folder", of("run")], ["--spatial_path_scale", 0.3], "video"),
    "temporal_path_folder": ([], ["--temporal_path_folder", of("other_run")], "video"),
    "temporal_path_scale": ([], ["--temporal_path_scale", 0.3], "video"),
    "clip": (["--spatial_path_folder", of("two_clips")], ["--clip", 1], "video", IMAGES),
    "spatial_path_clip": (["--spatial_path_folder", of("two_clips")], ["--spatial_path_clip", 1], "video", IMAGES),
    "seed": ([], ["--seed", 6], "video"),
    "repeat_num": ([], ["--repeat_num", 2], "files"),
    "noise_prior": ([], ["--noise_prior", 1], "video"),
    "noise_strategy": (["--noise_prior", 0.5], ["--noise_strategy", "fft"], "video"),
    "noise_cutoff": (["--noise_prior", 0.5, "--noise_strategy", "fft"], ["--noise_cutoff", 0.9], "video"),
    "highway": ([], ["--highway", "off"], "video"),
    "beta": ([], ["--beta", 1.9], "video"),
    "freeu": (["--highway", "release"], ["--freeu", "[1.9,0.5,1,1]"], "video"),
    "pli_threshold": ([], ["--pli_threshold", 999], "video"),
    "embedding_sampling": ([], ["--embedding_sampling", "difference"], "video", MI),
    "guide": ([], ["--guide"], "video"),
    **{
        f"guide_{name}": (GUIDE, [f"--guide_{name}", *words], "video")
        for name, words in (
            ("steps", [1]),
            ("rate", [5]),
            ("updates", [1]),
            ("weights", [1, 1]),
            ("across", [1]),
            ("target", ["clean_latent"]),
        )
    },
    "threads": ([], ["--threads", 3], "threads"),
    "format": ([], ["--format", "gif"], "files"),
    "quality": ([], ["--quality", 1], "bytes"),
    "memory": ([], ["--memory", "small"], "video"),
    "compile": ([], ["--compile", "step"], "compile: step replays CUDA graphs"),
    "device": ([], ["--device", "cuda:77"], "device"),
    "lora_rank": ([], ["--lora_rank", 31], "rank"),
    "xformers": ([], ["--xformers"], "xformers"),
}
REFUSED = {"compile", "device", "lora_rank", "xformers"}
EXEMPT_FLAGS = {
    "output_dir": "the place of every video that this file looks at; test_infer",
    "batch_size": "gives the same videos, only faster; test_mixing",
    "precision": "a CPU computes in fp32 throughout; test_gpu",
    "sdp": "names what is the default anyway",
    "temporal_preset": "for files without names only; test_checkpoint",
}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("keys"))


def cases_of(key: str) -> list[Case]:
    found = CASES[key]
    return found if isinstance(found, list) else [found]


def check(bench: Bench, name: str) -> None:
    """Fail unless every case of the key `name` shows."""
    for case in cases_of(name):
        bench.check_key(name, case)


def test_every_key_has_a_case_or_a_reason():
    assert not CASES.keys() & EXEMPT.keys()
    assert CASES.keys() | EXEMPT.keys() == KEYS.keys()


@pytest.mark.parametrize("key", CASES)
def test_the_key_does_something(bench, key):
    check(bench, key)


STEADY = [key for key in CASES if KEYS[key].metadata["shapes"] == "nothing" and key != "max_train_steps"]


@pytest.mark.parametrize("key", STEADY)
def test_a_key_that_shapes_nothing_of_a_training_leaves_its_steps_as_they_are(bench, key):
    for case in cases_of(key):
        base, changed = bench.train(case.given), bench.train({**case.given, key: case.value})
        both = base["weights"].keys() & changed["weights"].keys()
        assert both and all(base["weights"][name] == changed["weights"][name] for name in both)
        assert base["log"] and base["log"] == changed["log"]


def test_every_sampling_flag_has_a_case_or_a_reason():
    assert not FLAGS.keys() & EXEMPT_FLAGS.keys()
    assert FLAGS.keys() | EXEMPT_FLAGS.keys() == vars(options.parse([])).keys()


@pytest.mark.parametrize("flag", FLAGS)
def test_the_sampling_flag_does_something(bench, flag):
    words, change, part, *trained = FLAGS[flag]
    trained = trained[0] if trained else {}
    if flag in REFUSED:
        with pytest.raises(schema.UserError, match=part):
            bench.sample([*words, *change], trained)
        return
    base, changed = bench.sample(words, trained), bench.sample([*words, *change], trained)
    assert base[part] and base[part] != changed[part], f"--{flag}: {change} changes nothing in the {part}"


def test_the_same_configuration_twice_shows_the_same_in_every_part(bench):
    """Without this, any difference could be chance."""
    first, second = bench.train(PREVIEW), bench.train({**PREVIEW, "device": "cpu"})
    assert first["run"] != second["run"]
    assert all(first[part] == second[part] and first[part] for part in first if part not in ("run", "places"))
