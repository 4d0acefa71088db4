"""The page's sampler: which request loads a model, what it refuses, and that it leaves the process's stderr alone."""

import sys
from types import SimpleNamespace

import pytest
import torch

from configs.errors import UserError
from data import sources
from data.world import reference_clip
from infer import generate
from infer.measure import evaluation
from infer.measure.world_scores import ReferenceClips
from infer.request import read_request
from infer.video import write_video
from models import backbone
from scripts.conversion import writing
from scripts.studio import sampling, takeaway
from scripts.studio.places import Places
from scripts.studio.runs import Run
from scripts.studio.sampling import Sampler

from conftest import ROOT

MODEL = str(ROOT / "models/pocketscope")


@pytest.fixture
def places(tmp_path):
    found = Places.below(tmp_path / "outputs")
    found.prepare()
    return found


def test_a_model_that_sampling_would_refuse_is_loaded_again(places, monkeypatch):
    """On a GPU, which is played here: a CPU has one precision. Nothing is loaded or computed."""

    def device(asked="auto"):
        return torch.device("cuda" if asked == "auto" else asked)

    def load(args):
        return SimpleNamespace(
            path=read_request(args).model,
            dtype=backbone.choose_dtype(args.precision, device(args.device)),
            device=device(args.device),
            memory=args.memory,
        )

    def sample(args, held):
        asked = load(args)
        generate._check_backbone(held, asked.path, asked.dtype, asked.device, asked.memory)
        used.append(held)
        return iter(())

    for module in (backbone, generate):
        monkeypatch.setattr(module, "choose_device", device)
    monkeypatch.setattr(generate, "load_backbone", load)
    monkeypatch.setattr(generate, "generate", sample)
    sampler, used = Sampler(places), []
    for more in (
        ["--precision", "fp16"],
        ["--precision", "fp16", "--seed", "2"],
        ["--precision", "bf16"],
        ["--precision", "bf16", "--memory", "small"],
        ["--precision", "bf16", "--memory", "small", "--device", "cuda:1"],
    ):
        list(sampler._videos(["infer/infer.py", "--model", MODEL, "--prompt", "a", *more]))
    assert used[0] is used[1] and len({id(held) for held in used}) == 4


def test_a_wide_video_has_no_measures_of_the_toy_world(places, monkeypatch, tmp_path):
    clip = reference_clip("there_and_back", 3)
    monkeypatch.setattr(sampling, "reference_of_run", lambda run: ReferenceClips((clip.frames,), (clip.prompt,)))
    run = Run(places.train / "train_1", places.train)
    for width, measured in ((64, True), (96, False)):
        frames = torch.nn.functional.pad(clip.frames, (0, width - 64))
        video = write_video(tmp_path / f"{width}.mp4", frames, fps=8)
        assert bool(Sampler(places).measure(run, clip.prompt, video)) == measured


def test_a_refused_flag_is_the_sentence_alone(places, capsys):
    words = ["infer/infer.py", "--model", MODEL, "--prompt", "a", "--beta", "wide"]
    refused = "^argument --beta: 'wide' is no finite number above 0 to 100; --help lists the flags$"
    with pytest.raises(UserError, match=refused):
        list(Sampler(places)._videos(words))
    assert "".join(capsys.readouterr()) == ""


def test_reading_a_reference_clip_takes_stderr_from_nobody(monkeypatch, capsys):
    """And prints nothing: the training has told how the clips are cut."""
    seen = []

    def read(path, cut, prompt):
        seen.append(sys.stderr)
        return SimpleNamespace(frames=torch.zeros(2, 3, 8, 8), prompt=prompt, source=path)

    planned = sources.Planned(ROOT, None, "a car", read)
    monkeypatch.setattr(sources, "plan_clips", lambda *_, **__: [planned])
    config = {
        "pretrained_model_path": MODEL,
        "train_data": {"single_video_path": "clip.mp4", "single_video_prompt": "a car"},
    }
    assert evaluation.reference_of(config).captions == ("a car",)
    assert seen == [sys.stderr] and capsys.readouterr().err == ""


def test_converting_takes_stderr_from_nobody(places, monkeypatch):
    seen = []

    def convert(kind, source, out, *_):
        seen.append(sys.stderr)
        out.mkdir(parents=True)
        (out / "weights").write_text("")

    monkeypatch.setattr(writing, "convert", convert)
    run = Run(places.train / "train_1", places.train)
    archive = takeaway.prepare("ours", run, 1, places)
    assert seen == [sys.stderr] and list(places.lora.glob("*/weights"))

    def refuse(*_):
        raise UserError("damaged")

    monkeypatch.setattr(writing, "convert", refuse)
    with pytest.raises(UserError, match="damaged"):
        takeaway.prepare("ours", run, 1, places)
    assert list(places.lora.glob("*/weights")) and archive.exists(), "what was made before stays"
