"""The commands that the page shows, executed: the same files, byte for byte, as the page made."""

import json
import re
import runpy
import shlex
import sys
import zipfile
from pathlib import Path

import pytest

import train
from configs.errors import UserError
from configs.schema import load
from scripts.studio.desk import Choice, Desk
from scripts.studio.recipe import go_on
from scripts.studio.runs import Run
from scripts.studio.sampling import FLAGS, Wish

from conftest import ROOT

CLIP = "pocket_there_and_back.mp4"
PROMPTS = "a blue square moves right over a pink background\na green circle moves right over a white background"
LESS = ["inversion_steps=2", "validation_data.num_inference_steps=2", "validation_data.sample_preview=false"]
CHOICE = Choice(CLIP, 0, 1, "a red square moves right over a sand background", "tap", 2, PROMPTS)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A desk whose queue only writes down; its two trainings are run here, without the costs of a process."""
    desk = Desk(tmp_path_factory.mktemp("page"), str(ROOT / "models/pocketscope"))
    desk.trainings.close()
    yield desk


@pytest.fixture(scope="module")
def runs(desk):
    """Keys of two runs that were trained with the words that the page put into its queue."""
    keys = []
    for number in range(2):
        shown = desk.command(CHOICE)
        key = desk.train(CHOICE)
        training = desk.trainings.all[number]
        assert shlex.split(shown) == ["python", *training.words], "the command that is shown is the one that runs"
        folder = train.run(load([*training.words[1:], *LESS], description="")[0])
        training.stop()  # the queue must not think that it still waits
        assert training.run == folder and desk.view(key).key == Run(folder, desk.places.train).name
        keys.append(desk.view(key).key)
    return keys


def execute(words, capsys):
    """Run a shown command in this process; returns stdout's lines."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = words[1:]
    capsys.readouterr()
    try:
        runpy.run_path(str(ROOT / words[1]), run_name="__main__")
    except SystemExit as end:
        assert not end.code, capsys.readouterr().err
    finally:
        sys.argv, sys.path[:] = argv, path
    return capsys.readouterr().out.splitlines()


def shown(desk, key, script):
    return [words for line in desk.commands(key).splitlines() if (words := shlex.split(line))[1:2] == [script]]


def elsewhere(words, folder):
    """The same command with another output folder."""
    return [str(folder) if words[number - 1] == "--output_dir" else word for number, word in enumerate(words)]


DIALS = dict(
    noise_prior=0.3, pli_threshold=200, highway="release", beta=1.2, solver="unipc", num_steps=3, guidance_scale=3.0
)


def test_shown_commands_make_the_same_videos(desk, runs, tmp_path, capsys, monkeypatch):
    """With every dial turned, another motion mixed in and another run's appearance."""
    monkeypatch.chdir(ROOT)
    key, other = runs
    assert set(DIALS) == set(FLAGS)
    wish = desk.wish(key, PROMPTS.splitlines()[0], 5, None, 1.3, DIALS, (other, 0.5), (other, 0.7))
    html = list(desk.sample(wish))[-1]
    assert html.count("<video") == 3 and html.count("motion learned") == 2
    commands = shown(desk, key, "infer/infer.py")
    assert len(commands) == 2
    for number, words in enumerate(commands):
        made = execute(elsewhere(words, tmp_path / str(number)), capsys)
        folder = Path(words[words.index("--output_dir") + 1])
        assert [Path(path).read_bytes() for path in made] == [path.read_bytes() for path in folder.glob("*.mp4")]
    assert "--motion" in commands[1] and "--motion" not in commands[0]


def test_a_dial_that_says_what_the_checkpoint_says_is_no_flag(desk, runs):
    own = desk.own_dials(runs[0])
    assert set(own) == set(FLAGS)
    wish = desk.wish(runs[0], PROMPTS, 1, None, 1.0, own)
    words = wish.customized_words(desk.places, desk.sampler.own_dials(wish.run))
    assert not set(words) & {*FLAGS.values(), "--lora_scale", "--motion"}
    changed = desk.wish(runs[0], PROMPTS, 1, None, 0.5, own | {"highway": "off"})
    words = changed.customized_words(desk.places, desk.sampler.own_dials(wish.run))
    assert "--beta" not in words and words[words.index("--highway") + 1] == "off" and "--lora_scale" in words


def test_base_videos_are_made_once(desk, runs):
    run = Run(desk.places.train / runs[0], desk.places.train)
    wish = Wish(run, ("a red ring moves right over a sky background",), dials={"num_steps": 2})
    (first,) = desk.sampler.sample(wish)
    before = first.base.stat().st_mtime_ns
    (second,) = desk.sampler.sample(Wish(run, wish.prompts, strength=0.5, dials=wish.dials))
    assert second.base == first.base and second.base.stat().st_mtime_ns == before
    assert second.customized != first.customized


def content(data):
    """A file's bytes; of a safetensors file its header as values, because the order of its texts is not fixed."""
    length = int.from_bytes(data[:8], "little")
    is_tensors = 8 + length <= len(data) and data[8:9] == b"{"
    return (json.loads(data[8 : 8 + length]), data[8 + length :]) if is_tensors else data


def test_shown_commands_make_the_same_loras(desk, runs, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    key = runs[0]
    files = desk.files(key, ["ours", "diffusers", "release", "config"])
    for words, file in zip(shown(desk, key, "scripts/convert.py"), files):
        words = [f"{word}-again" if word == words[4] else word for word in words]
        execute(words, capsys)
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            assert any(name.endswith((".safetensors", ".pt")) for name in names)
            assert all(content(archive.read(name)) == content(Path(words[4], name).read_bytes()) for name in names)
    assert Path(files[3]).read_text() == (desk.places.train / key / "config.yaml").read_text()
    assert all(desk.places.serves(file) for file in files)


def test_a_stopped_run_goes_on_by_the_shown_command(desk, runs, monkeypatch, capsys):
    """From its own config.yaml, in its own folder; here to one step more."""
    monkeypatch.chdir(ROOT)
    run = desk.places.train / runs[1]
    words = go_on(run)
    assert shown(desk, runs[1], "train.py")[1] == ["python", *words]
    assert execute(["python", *words, "max_train_steps=3"], capsys) == [str(run)]
    assert Run(run, desk.places.train).checkpoints() == [1, 2, 3]
    view = desk.view(runs[1])
    assert "Done: 3 steps" in view.status and view.checkpoints == (1, 2, 3) and not view.can_go_on


def test_what_is_no_longer_there_is_one_sentence(desk, runs):
    for act in (
        lambda: desk.wish("../..", PROMPTS, 1, None, 1, {}),
        lambda: desk.wish(runs[0], PROMPTS, 1, 77, 1, {}),
        lambda: desk.wish(runs[0], PROMPTS, 1, None, 1, {}, mixed=("/etc", 1)),
        lambda: desk.wish(runs[0], PROMPTS, 1.5, None, 1, {}),
        lambda: desk.files(runs[0], ["/etc/passwd"]),
        lambda: desk.files(None, ["ours"]),
        lambda: desk.open_clip("/etc/passwd"),
        lambda: desk.steps("slow"),
    ):
        with pytest.raises(UserError) as error:
            act()
        assert re.fullmatch(r"[a-z]+( on)?: .+", str(error.value))


def test_a_model_that_does_not_load_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    desk = Desk(tmp_path / "outputs", str(tmp_path / "empty"))
    try:
        assert "does not load" in desk.model_problem()
        with pytest.raises(UserError, match="does not load"):
            desk.train(CHOICE)
    finally:
        desk.close()
