import json
import re
import shutil
import subprocess
import sys
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from PIL import Image, ImageDraw

import train
from configs.errors import UserError, command
from configs.files import atomic_path
from infer import batch, options, pictures, request, settings, sidecar
from infer import generate as sampling
from infer.generate import _attention, generate, load_backbone
from infer.jobs import read_jobs
from infer.video import read_frames, safe_name, write_video
from models.backbone import Backbone
from models.backbones import wan
from models.hooks import Patch
from models.outline import skeleton

from conftest import ROOT


@pytest.fixture(scope="module")
def trained(tiny_pipeline, clip_file, tmp_path_factory):
    """A run folder with checkpoints 1 and 2, its adapters far enough from zero to change a video."""
    from configs.schema import from_dict

    folder = tmp_path_factory.mktemp("run")
    return train.run(
        from_dict(
            {
                "pretrained_model_path": str(tiny_pipeline),
                "output_dir": str(folder),
                "cache_dir": str(folder / "cache"),
                "mixed_precision": "no",
                "gradient_checkpointing": False,
                "lora_rank": 4,
                "max_train_steps": 2,
                "checkpointing_steps": 1,
                "learning_rate": 0.05,
                "inversion_steps": 3,
                "logger": "none",
                "device": "cpu",
                "train_data": {
                    "width": 64,
                    "height": 64,
                    "n_sample_frames": 4,
                    "single_video_path": str(clip_file),
                    "single_video_prompt": "a car is running",
                },
                "validation_data": {"sample_preview": False, "num_inference_steps": 3, "guidance_scale": 3.0},
            }
        )
    )


def sampled(trained, folder, *words, prompt="a horse", seed="5") -> list[torch.Tensor]:
    arguments = ["-cf", str(trained), "-p", prompt, "-r", seed, "-o", str(folder), "--quality", "10", *words]
    return [read_frames(path) for path in generate(options.parse(arguments))]


def test_the_command_as_the_readme_writes_it(trained, tiny_pipeline, tmp_path):
    """From another directory, with every flag of the one-line command."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "infer/infer.py"),
            "--model",
            str(tiny_pipeline),
            "--prompt",
            "a horse is running",
            "--checkpoint_folder",
            str(trained),
            "--checkpoint_index",
            "2",
            "--seed",
            "3",
            "--output_dir",
            "outputs/infer/",
        ],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    video = tmp_path / line
    assert read_frames(video).shape == (4, 3, 64, 64)
    sidecar = json.loads(video.with_suffix(".json").read_text())
    assert sidecar["prompt"] == "a horse is running" and sidecar["seed"] == 3 and sidecar["settings"]["num_steps"] == 3
    assert list(video.parent.glob("sheet_*.png"))


def test_help_answers_at_once():
    """Half a second without torch; the limit here leaves room for a busy machine."""
    for script in ("train.py", "infer/infer.py"):
        code = (
            f"import sys, runpy; sys.argv = [{script!r}, '--help']\n"
            f"try: runpy.run_path({str(ROOT / script)!r}, run_name='__main__')\n"
            "except SystemExit as e: assert not e.code\n"
            "assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
        assert done.returncode == 0 and "--help" in done.stdout, done.stderr


def test_the_same_seed_gives_the_same_video_and_another_seed_another(trained, tmp_path):
    (a,), (b,), (c,) = (
        sampled(trained, tmp_path / name, seed=seed) for name, seed in (("a", "5"), ("b", "5"), ("c", "6"))
    )
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_the_checkpoint_index_matters_and_defaults_to_the_latest(trained, tmp_path):
    (latest,), (second,), (first,) = (
        sampled(trained, tmp_path / n, *w)
        for n, w in (("latest", []), ("second", ["-ci", "2"]), ("first", ["-ci", "1"]))
    )
    assert torch.equal(latest, second) and not torch.equal(first, second)


@pytest.mark.parametrize(
    "words",
    [
        ["-ls", "0.5"],
        ["-np", "0"],
        ["-g", "1"],
        ["-s", "2"],
        ["-n", "a road"],
        ["--highway", "release"],
        ["--beta", "1.5"],
        ["--freeu", "[1.4,1.,1,1]"],
        ["--pli_threshold", "400"],
        ["--guidance_rescale", "0.9"],
        ["--guidance_interval", "400", "1000"],
        ["--solver", "unipc"],
        ["--solver", "dpm"],
        ["--noise_strategy", "fft"],
    ],
    ids=" ".join,
)
def test_every_choice_changes_the_video(trained, tmp_path, words):
    (plain,), (changed,) = sampled(trained, tmp_path / "plain"), sampled(trained, tmp_path / "changed", *words)
    assert plain.shape == changed.shape and not torch.equal(plain, changed)


def test_size_and_length_may_differ_from_the_reference(trained, tmp_path):
    (video,) = sampled(trained, tmp_path, "-W", "96", "-H", "64", "-T", "6")
    assert video.shape == (6, 3, 64, 96)


def test_phased_integration_above_every_timestep_is_the_plain_model(trained, tiny_pipeline, tmp_path):
    (plain,) = (
        read_frames(p)
        for p in generate(
            options.parse(
                [
                    "-m",
                    str(tiny_pipeline),
                    "-p",
                    "a horse",
                    "-r",
                    "5",
                    "-o",
                    str(tmp_path / "plain"),
                    "-W",
                    "64",
                    "-H",
                    "64",
                    "-T",
                    "4",
                    "-s",
                    "3",
                    "-g",
                    "3",
                    "--quality",
                    "10",
                ]
            )
        )
    )
    (phased,) = sampled(trained, tmp_path / "phased", "--pli_threshold", "999", "-np", "0")
    (zero,) = sampled(trained, tmp_path / "zero", "-ls", "0", "-np", "0", "--highway", "off")
    assert torch.equal(phased, plain) and torch.equal(zero, plain)


def test_batches_prompts_seeds_and_repeats_multiply(trained, tmp_path):
    words = ["-cf", str(trained), "-p", "a horse", "a car", "-r", "1", "8", "-rn", "2", "-B", "3", "-o", str(tmp_path)]
    paths = list(generate(options.parse(words)))
    assert [p.name for p in paths] == [f"{p}_seed{s}.mp4" for p in ("a_horse", "a_car") for s in (1, 2, 8, 9)]


def test_prompts_come_from_a_file(trained, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("# two prompts\na horse\n\na car\n")
    words = ["-cf", str(trained), "--prompt_file", str(file), "-r", "1", "-s", "1", "-o", str(tmp_path)]
    assert len(list(generate(options.parse(words)))) == 2


@pytest.mark.parametrize("kind", ["gif", "frames"])
def test_other_formats(trained, tmp_path, kind):
    words = ["-cf", str(trained), "-p", "a horse", "-r", "1", "-s", "1", "-o", str(tmp_path), "--format", kind]
    (path,) = generate(options.parse(words))
    assert read_frames(path).shape[0] == 4 and path.with_suffix(".json").exists()


def test_a_video_of_other_settings_is_never_overwritten(trained, tmp_path):
    first, again, other = (
        next(
            iter(
                generate(
                    options.parse(["-cf", str(trained), "-p", "a horse", "-r", "1", "-s", steps, "-o", str(tmp_path)])
                )
            )
        )
        for steps in "112"
    )
    assert first == again != other and first.exists() and other.exists()


@pytest.mark.parametrize(
    "prompt",
    ["../../etc/passwd", "/abs/olute", "🐎🐎🐎", "a\nb\0c", "." * 5, "x" * 1000, "CON", "a/b\\c:d*e?", "A horse"],
)
def test_any_prompt_makes_a_safe_file_name(prompt, tmp_path):
    name = safe_name(prompt)
    assert name.replace("_", "").isalnum() and len(name) <= 80
    path = write_video(tmp_path / f"{name}.mp4", torch.zeros(2, 3, 16, 16, dtype=torch.uint8), fps=8)
    assert path.resolve().parent == tmp_path.resolve()
    assert len({name, *(safe_name(prompt + end) for end in ("!", ".", "..."))}) == 4


@pytest.mark.parametrize("quality, limit", [(10, 0), (8, 6)])
def test_a_written_video_reads_back(tmp_path, quality, limit):
    ramp = torch.linspace(0, 255, 64).to(torch.uint8).expand(3, 3, 64, 64).contiguous()
    path = write_video(tmp_path / "v.mp4", ramp, fps=8, quality=quality)
    assert (read_frames(path).int() - ramp.int()).abs().max() <= limit


@pytest.mark.parametrize(
    "words, told",
    [
        (["-ci", "7"], "no checkpoint-7; there are 1, 2"),
        (["-lr", "32"], "rank"),
        (["--clip", "3"], "reference clips 0 to 0"),
        (["--freeu", "[1,1,1,1]", "--highway", "all"], "--freeu"),
        (["-m", "nowhere/at/all"], "nowhere/at/all"),
    ],
)
def test_bad_requests_are_one_sentence(trained, tmp_path, words, told):
    with pytest.raises(UserError) as error:
        sampled(trained, tmp_path / "out", *words)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists(), "nothing half-written"


@pytest.mark.parametrize(
    "words",
    [
        ["-s", "2000"],
        ["-W", "60"],
        ["-s", "0"],
        ["--noise_cutoff", "0"],
        ["--quality", "0"],
        ["--beta", "-1"],
        ["-r", str(2**70)],
        ["-np", "2"],
        ["-np", "nan"],
        ["-T", "x"],
        ["--freeu", "[1,2]"],
        ["--format", "avi"],
    ],
    ids=" ".join,
)
def test_a_value_out_of_range_is_refused_before_anything_is_loaded(words):
    with pytest.raises(UserError, match=words[0]):
        options.parse(["-p", "x", *words])


def test_an_output_folder_that_is_a_file_is_refused_before_sampling(trained, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("")
    with pytest.raises(UserError, match="taken is a file"):
        sampled(trained, taken / "deeper")


def test_another_quality_does_not_replace_the_video(trained, tmp_path):
    first, other = (
        next(
            iter(
                generate(
                    options.parse(
                        [
                            "-cf",
                            str(trained),
                            "-p",
                            "a horse",
                            "-r",
                            "1",
                            "-s",
                            "1",
                            "-o",
                            str(tmp_path),
                            "--quality",
                            q,
                        ]
                    )
                )
            )
        )
        for q in "58"
    )
    assert first != other and first.exists() and other.exists()


def test_a_wrong_flag_exits_with_2_and_no_traceback(trained):
    done = subprocess.run([sys.executable, "infer/infer.py", "--promt", "x"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    done = subprocess.run(
        [sys.executable, "infer/infer.py", "-cf", str(trained)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "no prompt" in done.stderr and "Traceback" not in done.stderr


def test_a_full_disk_is_one_sentence(capsys):
    import errno

    from configs.errors import command

    @command
    def main():
        raise OSError(errno.ENOSPC, "No space left on device", "video.mp4")

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "no space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--lora_scael", "1"], "did you mean --lora_scale?"),
        (["--sed=1234567"], "did you mean --seed?"),
        (["--prom", "y"], "did you mean --prompt?"),  # no abbreviations
        (["--beta", "1.5", "--freeu", "[1.1,1,1,1]"], "--freeu: not allowed with argument --beta; give one of the two"),
        (["--lora_scale", "nan"], "'nan' is no finite number from -100 to 100"),
        (["--output_dir", ""], "--output_dir: is empty"),
        (["--freeu", "(" * 10_000], "((..."),
        (["--freeu", f"[1{'0' * 400},1,1,1]"], "argument --freeu: '[1000"),
        (["--freeu", "[1e999,1,1,1]"], "is not four numbers"),
        (["--guidance-scale", "-5"], "'-5' is no finite number from 0 to 1000"),
        (["--width", "0"], "'0' is no whole number from 8 to 8192 in steps of 8"),
        (
            ["-cf", "a", "--temporal_path_folder", "b"],
            "--temporal_path_folder: not allowed with argument --checkpoint_",
        ),
        (["--temporal_path_scale", "2", "-ls", "1"], "-ls: not allowed with argument --temporal_path_scale; give one"),
        (["--sdp", "-x"], "-x: not allowed with argument --sdp/-S; give one of the two"),
    ],
)
def test_a_wrong_flag_is_one_sentence(words, sentence, capsys):
    with pytest.raises(UserError) as refused:
        options.parse(["--prompt", "x", *words])
    assert sentence in str(refused.value) and str(refused.value).isprintable()
    assert "".join(capsys.readouterr()) == ""


def test_empty_prompts_are_refused(tmp_path):
    with pytest.raises(UserError, match="one is empty"):
        read_jobs(options.parse(["--prompt", "a cat", " "]))
    (tmp_path / "none.txt").write_text("# nothing yet\n\n")
    with pytest.raises(UserError, match="holds no prompt"):
        read_jobs(options.parse(["--prompt_file", str(tmp_path / "none.txt")]))


def test_damaged_native_values_and_a_strength_that_is_no_number_are_one_sentence(tmp_path):
    for text, sentence in (
        ("{", "not valid JSON"),
        ("[1]", "holds a list in place of keys and values"),
        ('{"num_step": 5}', "'num_step' is no sampling value; did you mean num_steps"),
        ('{"width": "wide"}', "width is 'wide', no whole number"),
        ('{"num_steps": -3}', "num_steps is -3, no whole number from 1"),
        ('{"guidance_scale": 1e999}', "guidance_scale is inf, no finite number"),
        ('{"guidance_interval": [800, 200]}', "sampling.json: guidance_interval: [800.0, 200.0] is not a range"),
        ('{"solver": "heun"}', "solver is 'heun', none of ddim, euler, unipc, dpm"),
    ):
        (tmp_path / "sampling.json").write_text(text)
        with pytest.raises(UserError, match=re.escape(sentence)):
            settings.read_native(tmp_path)
    (tmp_path / "sampling.json").write_text('{"width": null, "height": null, "num_steps": 4}')
    assert settings.read_native(tmp_path) == {"num_steps": 4}, "null says nothing"
    for strength in ("nan", "much", "1e300"):
        with pytest.raises(UserError, match="is no finite number from -100 to 100; write --motion FOLDER 0.5"):
            request._number(strength)
    assert request._number("0.5") == 0.5


def test_a_path_that_can_not_be_used_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        command(lambda: (tmp_path / "file" / "folder").mkdir())()
    assert stop.value.code == 2 and "not a directory; give another path" in capsys.readouterr().err


# ---- many videos, one model ----


@pytest.fixture
def backbone(tiny_pipeline):
    return Backbone.load(str(tiny_pipeline))


def asked(trained, folder, *words):
    return options.parse(["-cf", str(trained), "-s", "1", "-o", str(folder), "--quality", "10", *words])


def test_a_loaded_model_serves_many_requests_and_is_left_as_it_was(trained, backbone, tmp_path, monkeypatch):
    words = ("-p", "a horse", "-r", "5", "--sdp")
    before = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    (own,) = generate(asked(trained, tmp_path / "own", *words))
    loaded = load_backbone(asked(trained, tmp_path, *words))
    assert (loaded.path, loaded.dtype, loaded.device) == (backbone.path, backbone.dtype, backbone.device)
    monkeypatch.setattr(Backbone, "load", lambda *_: pytest.fail("the model is loaded again"))
    for place in ("first", "second"):
        (lent,) = generate(asked(trained, tmp_path / place, *words), backbone)
        assert torch.equal(read_frames(lent), read_frames(own))
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.network.state_dict().items())


def test_a_loaded_model_may_be_named_by_another_path_to_it(trained, backbone, tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tiny_pipeline)
    assert list(generate(asked(trained, tmp_path / "out", "-p", "x", "-m", "."), backbone))


def test_another_model_than_the_one_asked_for_is_refused(trained, backbone, tiny_pipeline, tmp_path):
    elsewhere = shutil.copytree(tiny_pipeline, tmp_path / "pipeline")
    with pytest.raises(
        UserError,
        match="float32 on cpu, memory default, and the request asks for .*pipeline in float32 on cpu, memory default;",
    ):
        list(generate(asked(trained, tmp_path / "out", "-p", "x", "-m", str(elsewhere)), backbone))
    backbone.network.half()
    with pytest.raises(UserError, match="float16 on cpu, memory default, and the request asks for .* float32 on cpu"):
        list(generate(asked(trained, tmp_path / "out", "-p", "x"), backbone))
    assert not (tmp_path / "out").exists()


def test_all_prompts_are_encoded_in_one_visit_and_only_small_strips_are_kept(
    trained, backbone, tmp_path, monkeypatch, capsys
):
    visits, held, texts = [], weakref.WeakSet(), []
    encode, decode, draw = backbone.encode_text, backbone.decode_videos, ImageDraw.ImageDraw.text

    def decoded(latents):
        videos = decode(latents)
        held.update(videos)
        assert len(held) <= 2, "frames of earlier videos are kept"
        return videos

    monkeypatch.setattr(backbone, "encode_text", lambda prompts: visits.append(prompts) or encode(prompts))
    monkeypatch.setattr(backbone, "decode_videos", decoded)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *a, **k: texts.append(a[2]) or draw(*a, **k))
    for module in (sampling, pictures):
        monkeypatch.setattr(module, "MOST_ROWS", 3)
    words = ("-p", "a horse", "a car", "a horse", "-n", "a road", "-r", "1", "2", "3")
    paths = list(generate(asked(trained, tmp_path, *words), backbone))
    assert len(paths) == 9 and visits == [["a horse", "a car", "a road"]]
    assert texts == [*(f"a horse (seed {seed})" for seed in (1, 2, 3)), "and 6 more"]
    (sheet,) = tmp_path.glob("sheet_*.png")
    height = 3 * (128 + pictures.TEXT_HEIGHT + pictures.MARGIN) + pictures.MARGIN + pictures.TEXT_HEIGHT
    assert Image.open(sheet).height == height and f"contact sheet: {sheet}" in capsys.readouterr().err


def test_a_huge_request_holds_the_embeddings_of_a_part_of_it(trained, backbone, tmp_path, monkeypatch):
    visits, encode = [], backbone.encode_text
    monkeypatch.setattr(backbone, "encode_text", lambda prompts: visits.append(prompts) or encode(prompts))
    monkeypatch.setattr(sampling, "ENCODED_AT_ONCE", 2)
    paths = list(generate(asked(trained, tmp_path, "-p", "a horse", "a car", "a road", "-r", "1"), backbone))
    assert len(paths) == 3 and visits == [["a horse", "a car", ""], ["a road", ""]]


def test_prompts_wait_on_the_cpu_until_their_batch_is_sampled(trained, backbone, tmp_path, monkeypatch):
    """The meta device stands for a card."""
    encode, rows = backbone.kind.encode_text, []
    brought = lambda *given: SimpleNamespace(cpu=lambda: rows.append(encode(*given)) or rows[-1])
    monkeypatch.setattr(backbone.kind, "encode_text", brought)
    text, negative = backbone.encode_text(["a horse", "a car"]).split(1)
    assert len(rows) == 2

    class Asked(Exception):
        pass

    def ask(predict, *texts, **_):
        raise Asked([text.device.type for text in texts])

    monkeypatch.setattr(backbone, "device", torch.device("meta"))
    monkeypatch.setattr(batch, "classifier_free_guidance", ask)
    with pytest.raises(Asked, match="meta.*meta"):
        chosen = request.read_request(asked(trained, tmp_path, "--noise_prior", "0")).settings
        batch.sample_videos(backbone, Patch(), chosen, text, negative, seeds=[1])


def test_what_fails_before_the_first_step_leaves_no_motion_on_a_model_that_others_share(
    trained, backbone, tmp_path, monkeypatch
):
    before = {name: parameter.clone() for name, parameter in backbone.network.named_parameters()}

    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(batch, "initial_noise", fails)
    with pytest.raises(MemoryError):
        list(generate(asked(trained, tmp_path, "-p", "a horse", "-r", "1"), backbone))
    after = dict(backbone.network.named_parameters())
    assert all(torch.equal(after[name], parameter) for name, parameter in before.items())


@pytest.mark.parametrize("kind", ["mp4", "frames"])
def test_an_interrupt_while_writing_leaves_nothing_behind(trained, backbone, tmp_path, monkeypatch, kind):
    def interrupted(path, *_, **__):
        with atomic_path(path) as unfinished:
            unfinished.write_bytes(b"half a video")
            raise KeyboardInterrupt

    base = {name: tensor.clone() for name, tensor in backbone.network.state_dict().items()}
    monkeypatch.setattr(sidecar, "write_video", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(generate(asked(trained, tmp_path / "out", "-p", "a horse", "-r", "1", "--format", kind), backbone))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr(backbone, "decode_videos", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(generate(asked(trained, tmp_path / "out", "-p", "a horse", "-r", "1"), backbone))
    assert not (tmp_path / "out").exists()
    assert all(torch.equal(tensor, base[name]) for name, tensor in backbone.network.state_dict().items())


def test_a_checkpoint_that_overflows_is_one_sentence(trained, backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(Backbone, "predict", property(lambda self: lambda z, t, text: z * float("inf")))
    with pytest.raises(UserError, match="sampling: the latents are not finite after 1 steps"):
        list(generate(asked(trained, tmp_path / "out", "-p", "a horse", "-r", "1"), backbone))
    assert not (tmp_path / "out").exists()


def test_files_that_nobody_describes_are_kept(tmp_path):
    (tmp_path / "a_cat_seed1.mp4").write_text("somebody's")
    (tmp_path / "a_cat_seed1").mkdir()
    (tmp_path / "a_cat_seed1" / "mine.txt").touch()
    frames = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    for kind, name in (("mp4", "a_cat_seed1_2.mp4"), ("frames", "a_cat_seed1_3")):
        record = {"file": {"format": kind, "quality": 5}, "settings": {"fps": 8}}
        assert sidecar.write(tmp_path, "a cat", 1, frames, record, {}).name == name
    assert (tmp_path / "a_cat_seed1.mp4").read_text() == "somebody's"
    assert (tmp_path / "a_cat_seed1" / "mine.txt").exists()


def test_the_choice_of_attention_comes_off_again_and_both_experts_have_it(tiny_wan):
    """diffusers writes it into a transformer's own processors."""
    networks = [skeleton(tiny_wan), skeleton(tiny_wan)]
    backends = lambda: {str(p._attention_backend) for n in networks for p in n.attn_processors.values()}
    for network in networks:
        network.enable_xformers_memory_efficient_attention = partial(set_backend, network)
    held = SimpleNamespace(network=networks[0], second=networks[1], kind=wan)
    before = backends()
    with _attention(held, options.parse(["--prompt", "x", "--xformers"])):
        assert backends() == {"told"}
    assert backends() == before and "told" not in before


def set_backend(network):
    for processor in network.attn_processors.values():
        processor._attention_backend = "told"


def test_a_sidecar_that_is_no_object_does_not_stop_a_video(trained, backbone, tmp_path):
    (tmp_path / "a_horse_seed1.json").write_text("[1]")
    (path,) = generate(asked(trained, tmp_path, "-p", "a horse", "-r", "1"), backbone)
    assert path.name == "a_horse_seed1_2.mp4"


def test_two_that_sample_into_one_folder_at_once_keep_both_videos(tmp_path, monkeypatch):
    """The same prompt and seed by two strengths: the second to come gets a number, whoever that is."""
    slowly = lambda path, *_, **__: (time.sleep(0.2), path.write_bytes(b"video"))
    monkeypatch.setattr(sidecar, "write_video", slowly)
    record = {"file": {"format": "mp4", "quality": 5}, "settings": {"fps": 8}}
    asked = [{**record, "strength": strength} for strength in (0.5, 1.0)]
    with ThreadPoolExecutor() as pool:
        made = set(pool.map(lambda one: sidecar.write(tmp_path, "a cat", 1, torch.zeros(1), one, {}), asked))
    assert {path.name for path in made} == {"a_cat_seed1.mp4", "a_cat_seed1_2.mp4"}
    strengths = {json.loads(path.with_suffix(".json").read_text())["strength"] for path in made}
    assert strengths == {0.5, 1.0}
