"""The page's sampler: which request loads a model, and what several threads at once do to the process's stderr."""

import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from configs.errors import UserError
from data import sources
from infer import generate, options
from infer.measure import evaluation
from infer.request import read_request
from models import backbone
from scripts.conversion import writing
from scripts.studio import takeaway
from scripts.studio.places import Places
from scripts.studio.runs import Run
from scripts.studio.sampling import Sampler, parse

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


def test_two_threads_that_read_flags_at_once_leave_stderr_as_it_was(monkeypatch):
    inside, told = threading.Event(), {}

    def refuse(words):
        inside.set()
        time.sleep(0.2)
        print(f"error: {words[0]} is wrong", file=sys.stderr)
        raise SystemExit(2)

    def ask(name):
        with pytest.raises(UserError) as error:
            parse(["infer/infer.py", name])
        told[name] = str(error.value)

    monkeypatch.setattr(options, "parse", refuse)
    before = sys.stderr
    monkeypatch.setattr(sys, "stderr", before)  # so that a failure here spoils no other test
    threads = [threading.Thread(target=ask, args=(name,)) for name in "ab"]
    threads[0].start()
    assert inside.wait(10)
    time.sleep(0.1)  # in the middle of the first, the second begins
    threads[1].start()
    for thread in threads:
        thread.join(10)
    assert sys.stderr is before and told == {"a": "a is wrong", "b": "b is wrong"}


def test_a_refused_flag_is_the_sentence_alone(monkeypatch):
    """What another thread printed meanwhile is no part of it."""

    def refuse(words):
        print("sample: 10%|#\nerror: argument --beta: 7 is wrong; --help lists the flags", file=sys.stderr)
        raise SystemExit(2)

    monkeypatch.setattr(options, "parse", refuse)
    with pytest.raises(UserError, match="^argument --beta: 7 is wrong; --help lists the flags$"):
        parse(["infer/infer.py"])


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
