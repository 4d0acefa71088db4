"""The appearance pass in a second process: the same run to the bit, and no trace of it however a training ends."""

import json
import os
import signal
import subprocess
import sys
import time
from operator import attrgetter as of

import psutil
import pytest
import torch

import train
from configs.errors import UserError
from configs.schema import to_yaml
from models import methods, threads
from models.files.checkpoint import list_checkpoints
from models.outline import skeleton
from models.training import beside
from models.training.beside import LINE, Passes
from models.training.processes import LostProcess
from scripts.artefacts import schedule
from scripts.artefacts.chain import Chain

from conftest import ROOT
from keys import Bench

CPU = torch.device("cpu")
QUICK = {"lora_unet_dropout": 0.0, "validation_data.sample_preview": False}
CLIPS = {
    "dataset_types": ["single_video", "folder", "image"],
    "train_data.path": of("other_clips"),
    "train_data.image_dir": of("image"),
}
# train.py's own command on a machine with two cores, whatever this one has
COMMAND = "from models import threads; threads._usable = lambda: 2; import train; train.main()"
linux = pytest.mark.skipif(sys.platform != "linux", reason="the second process is a fork, which only Linux does safely")
pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="no process forks where there is a GPU")


@pytest.fixture(autouse=True)
def two_cores(monkeypatch):
    """A machine with two cores and nothing in its environment; the other tests' threads are put back."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "_usable", lambda: 2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    return Bench(tmp_path_factory.mktemp("beside"))


@linux
@pytest.mark.parametrize(
    "keys",
    [
        {"gradient_accumulation_steps": 2, "spatial_path_probability": 0.5, "max_grad_norm": 1.0},
        {"single_spatial_lora": True, "timesteps_per_step": 2, "gradient_checkpointing": True},
        {"method": "motion_inversion", "embeddings.loss": "hybrid", "appearance_highway.use": "off"},
        {"appearance_highway.use": "training", "frozen_dropout": False, "lora_plus_ratio": 4.0},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_a_run_is_the_same_to_the_bit_with_a_second_process(keys, bench, capsys):
    """Learning from two videos and an image, and where it goes on from a checkpoint in the middle."""
    keys = {**QUICK, **CLIPS, **keys, "max_train_steps": 6, "checkpointing_steps": 3}
    alone = bench.train({**keys, "threads": 1})
    assert LINE not in capsys.readouterr().err
    apart = bench.train({**keys, "threads": 2})
    assert LINE in capsys.readouterr().err
    resumed = bench.train({**keys, "resume_from_checkpoint": str(alone["run"] / "checkpoint-3")})
    assert LINE in capsys.readouterr().err, "two cores are used without being asked for"
    for part in ("weights", "moments", "log"):
        assert alone[part] and alone[part] == apart[part]
    last = {name: part for name, part in alone["weights"].items() if "checkpoint-6" in name}
    assert last and last == resumed["weights"] and alone["log"] == resumed["log"]
    assert sum("spatial" in name for name in last) == (1 if "single_spatial_lora" in keys else 3)
    assert not psutil.Process().children(), "no process is left behind"


@linux
def test_a_transformers_run_is_the_same_to_the_bit(bench, tiny_wan, capsys):
    keys = {**QUICK, "pretrained_model_path": str(tiny_wan), "appearance_highway.use": "off", "max_train_steps": 3}
    alone, apart = (bench.train({**keys, "train_data.n_sample_frames": 5, "threads": count}) for count in (1, 2))
    assert capsys.readouterr().err.count(LINE) == 1
    assert all(alone[part] == apart[part] for part in ("weights", "moments", "log"))


@pytest.fixture
def fits(bench, tmp_path):
    """Whether a second process fits, for keys that differ: a function of those, and of what is known beside them."""

    def ask(keys, network=None, **given):
        cfg = bench.config(tmp_path, {**QUICK, **keys})
        method = methods.attach(network or skeleton(bench.model), cfg, clips=1, latent_size=(3, 4, 4))
        return beside.fits(cfg, method, **{"device": CPU, "frames": 3, **given})

    return ask


@linux
@pytest.mark.parametrize(
    ("keys", "given"),
    [
        ({"lora_unet_dropout": 0.1}, {}),
        ({"spatial_path_probability": 0.0}, {}),
        ({"train_temporal_lora": False}, {}),
        ({"compile": "blocks"}, {}),
        ({"threads": 1}, {}),
        ({"method": "motion_inversion", "appearance_highway.use": "off", "embeddings.loss": "debiased"}, {}),
        ({}, {"frames": 1}),
        ({}, {"processes": 2}),
        ({}, {"device": torch.device("cuda")}),
    ],
    ids=str,
)
def test_one_thing_that_is_otherwise_keeps_both_passes_in_one_process(keys, given, fits):
    assert fits({}) and not fits(keys, **given)


@linux
@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        (threads, "SMALL", 9),
        (threads, "_usable", lambda: 1),
        (beside.sys, "platform", "darwin"),
        (torch.accelerator, "is_available", lambda: True),
    ],
    ids=["large model", "one core", "another system", "accelerator"],
)
def test_so_does_another_machine_or_model(place, name, value, fits, monkeypatch):
    assert fits({})
    monkeypatch.setattr(place, name, value)
    assert not fits({})


@linux
def test_so_does_dropout_that_acts_on_a_single_frame(bench, fits):
    network = skeleton(bench.model)
    network.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.1").p = 0.1
    assert fits({}) and not fits({}, network)


def test_trainings_side_by_side_have_no_second_process_where_their_cores_are_taken(tmp_path, monkeypatch):
    """`reproduce.py --jobs N` shares out the cores, and leaves the number of threads to the size of the model."""
    environments = []

    class Ended:
        returncode = 0

        def __init__(self, *_, env, **options):
            environments.append(env)

        def wait(self): ...

    monkeypatch.setattr(schedule.subprocess, "Popen", Ended)
    for jobs, count in ((1, "2"), (2, "1"), (3, "1")):
        schedule.ChainProcesses(tmp_path, jobs)(Chain("chain", [], str(tmp_path / "chain"), 1, []), 0)
        assert environments[-1][threads.SHARE] == count and "OMP_NUM_THREADS" not in environments[-1]


def passes(work, count=2):
    """Passes apart that call `work(step)` in the second process alone."""

    def gradients(step, learn_appearance=True, learn_motion=True):
        if learn_appearance:
            work(step)
        return [{"spatial": 1.0} if learn_appearance else {"temporal": 2.0}], [7]

    return Passes(gradients, [torch.nn.Parameter(torch.ones(3)) for _ in range(count)], apart=True)


@linux
def test_both_processes_see_the_parameters_and_a_gradient_that_nothing_made_is_none():
    def work(step):
        both.parameters[0].grad = both.parameters[0].detach() * step

    with (both := passes(work)):
        for step in (2, 3):
            assert both(step) == ([{"spatial": 1.0, "temporal": 2.0}], [7])
            first, second = both.parameters
            assert torch.equal(first.grad, first.detach() * step) and second.grad is None
            with torch.no_grad():
                first.mul_(10)


@linux
def test_what_is_raised_in_the_second_process_is_raised_here_and_says_where_it_was():
    def work(step):
        raise UserError("the appearance pass found something")

    with pytest.raises(UserError, match="the appearance pass found something") as raised, passes(work) as both:
        both(1)
    assert (
        "in the process of the appearance pass" in raised.value.__notes__[0] and "in work" in raised.value.__notes__[0]
    )


@linux
def test_the_second_process_prints_nothing_and_its_cpu_seconds_are_told(capfd):
    def work(step):
        for stream in (1, 2):
            os.write(stream, b"a word")
        until = time.process_time() + 0.2 * step
        while time.process_time() < until:
            pass

    with passes(work) as both:
        for step in (1, 3):
            both(step)
            assert 0.2 * step <= both.cpu_seconds < 0.2 * step + 0.15
    assert capfd.readouterr() == ("", "")


@linux
def test_the_log_counts_the_cpu_seconds_of_both_processes(bench, tmp_path, monkeypatch):
    call = Passes.__call__

    def told(self, step):
        result = call(self, step)
        self.cpu_seconds += 1000
        return result

    monkeypatch.setattr(Passes, "__call__", told)
    folder = train.run(bench.config(tmp_path, {**QUICK, "max_train_steps": 2}))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(1000 < row["cpu_seconds"] < 1100 and row["seconds"] < 100 for row in rows)


@linux
def test_a_second_process_that_cannot_start_is_told_with_what_would_do(monkeypatch):
    monkeypatch.setattr(
        os, "fork", lambda: (_ for _ in ()).throw(BlockingIOError(11, "Resource temporarily unavailable"))
    )
    with pytest.raises(UserError, match=r"could not be started \(Resource temporarily unavailable\); set threads=1"):
        with Passes(print, [torch.nn.Parameter(torch.ones(1))], apart=True):
            pass


@linux
def test_a_second_process_that_is_gone_is_a_lost_one_and_threads_are_put_back():
    torch.set_num_threads(2)
    with passes(lambda step: time.sleep(60)) as both:
        assert torch.get_num_threads() == 1
        both.process.kill()
        for _ in range(2):  # while it is waited for, and when it is told the next step
            with pytest.raises(LostProcess, match="appearance pass has ended"):
                both(1)
    assert torch.get_num_threads() == 2 and not psutil.Process().children()


@linux
def test_broken_numbers_of_the_second_process_end_a_run_as_they_always_did(bench, tmp_path):
    told = []
    for count in (1, 2):
        keys = {**QUICK, "learning_rate": 1e30, "max_train_steps": 20, "threads": count}
        with pytest.raises(UserError, match="no weight was moved in this step") as raised:
            train.run(bench.config(tmp_path / f"{count}", keys))
        (folder,) = (tmp_path / f"{count}/train").iterdir()
        told.append(str(raised.value).replace(str(folder), "FOLDER"))
    assert told[0] == told[1] and "spatial loss is nan" in told[0]


def test_a_dry_run_tells_of_the_second_process(bench, tmp_path):
    assert (LINE in train.dry_run(bench.config(tmp_path, QUICK))) == (sys.platform == "linux")
    assert LINE not in train.dry_run(bench.config(tmp_path, {**QUICK, "threads": 1}))


@pytest.fixture
def training(bench, tmp_path):
    """A long training with a second process, after its second checkpoint: (it, the second process)."""
    path = tmp_path / "config.yaml"
    keys = {**QUICK, "max_train_steps": 5000, "checkpointing_steps": 1, "checkpoints_total_limit": 3}
    path.write_text(to_yaml(bench.config(tmp_path, keys)))
    words = [sys.executable, "-c", COMMAND, "--config", str(path)]
    process = subprocess.Popen(
        words, cwd=ROOT, text=True, stdout=-1, stderr=-1, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("train/*/checkpoint-2")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    (second,) = psutil.Process(process.pid).children()
    yield process, second
    if process.poll() is None:
        process.kill()
        process.communicate()


@linux
def test_a_lost_second_process_ends_the_run_with_one_sentence(training, tmp_path):
    process, second = training
    second.kill()
    stdout, stderr = process.communicate(timeout=30)
    (folder,) = (tmp_path / "train").iterdir()
    (sentence,) = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and stdout == "" and "Traceback" not in stderr
    assert "the process that runs its appearance pass has ended during step" in sentence
    last = max(list_checkpoints(folder))
    assert sentence.endswith(f"the last checkpoint is kept: resume_from_checkpoint={folder}/checkpoint-{last}")


@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_both_processes_saves_and_says_how_to_go_on(number, training, tmp_path):
    """As a terminal's Ctrl-C and a launcher's SIGTERM reach them."""
    process, second = training
    os.killpg(process.pid, number)
    stdout, stderr = process.communicate(timeout=60)
    (folder,) = (tmp_path / "train").iterdir()
    assert process.returncode == 128 + number and stdout == "" and "Traceback" not in stderr
    assert stderr.count("finishing this step") == (number == signal.SIGINT)
    assert f"stopped after step {max(list_checkpoints(folder))}; go on with: resume_from_checkpoint={folder}" in stderr
    assert not second.is_running()


@linux
def test_a_training_that_is_killed_leaves_no_process_behind(training):
    process, second = training
    process.kill()
    process.communicate(timeout=10)
    second.wait(timeout=10)
