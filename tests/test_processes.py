"""Several processes on a CPU: they learn as one, print one sentence, and do not outlive each other."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest
import torch

import train
from configs import runtime
from configs.errors import UserError
from configs.runtime import one_voice
from configs.schema import to_yaml
from models.files.checkpoint import list_checkpoints, load_checkpoint
from models.training import processes
from models.training.journal import mean_losses
from models.training.processes import LostProcess, Processes

from conftest import ROOT

QUICK = {"validation_data": {"sample_preview": False}}
# train.py's own command, and a line on stderr about what each process holds at the end
REPORTING = """
import hashlib, json, sys
import train

loop = train.loop

def reporting(training, folder, *others):
    loop(training, folder, *others)
    digest = hashlib.sha256(b"".join(t.numpy().tobytes() for t in training.method.state()[0].values()))
    processes = training.processes
    report = {"rank": processes.rank, "count": processes.count, "sha256": digest.hexdigest(), "folder": str(folder)}
    print(f"\\nreport {json.dumps(report)}\\n", end="", file=sys.stderr, flush=True)

train.loop = reporting
train.main()
"""


def start(words, config, tmp_path):
    """A command in a process of its own, with one thread: sums of another thread count differ in their last digits."""
    path = tmp_path / f"{config.output_dir.rsplit('/', 1)[-1]}.yaml"
    path.write_text(to_yaml(config))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *map(str, words), "--config", str(path)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    )


def torchrun(script, config, tmp_path):
    return start(["-m", "torch.distributed.run", "--nproc_per_node", "2", script], config, tmp_path)


def weights(folder, step):
    found = load_checkpoint(folder, step)
    return [*found.motion.values(), *(t for state in found.appearance for t in state.values())]


def errors(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def test_two_processes_learn_as_one_with_both_their_draws(tiny_config, tmp_path):
    """By plain torchrun and device=auto, on a cold cache: equal to the bit, dropout included."""
    settings = dict(QUICK, max_train_steps=3, device="auto" if not torch.cuda.is_available() else "cpu")
    script = tmp_path / "reporting.py"
    script.write_text(REPORTING)
    config = tiny_config(**settings, output_dir=str(tmp_path / "two"), cache_dir=str(tmp_path / "cold"))
    process = torchrun(script, config, tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    reports = [json.loads(line.partition(" ")[2]) for line in stderr.splitlines() if line.startswith("report ")]
    assert sorted(report["rank"] for report in reports) == [0, 1] and {report["count"] for report in reports} == {2}
    assert len({report["sha256"] for report in reports}) == 1, "both hold the same weights"
    folder = type(tmp_path)(stdout.strip())
    assert [str(folder)] * 2 == [report["folder"] for report in reports] and stdout.count("\n") == 1
    assert stderr.count("clip 0:") == 1, "the plan of the clip is printed once"

    config = tiny_config(**settings, gradient_accumulation_steps=2, output_dir=str(tmp_path / "one"))
    stdout, stderr = start(["train.py"], config, tmp_path).communicate(timeout=300)
    alone = type(tmp_path)(stdout.strip())
    assert all(torch.equal(a, b) for a, b in zip(weights(alone, 3), weights(folder, 3), strict=True))
    logs = [[json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()] for run in (alone, folder)]
    for one, two in zip(*logs, strict=True):  # losses are the mean over processes, not the first one's
        numbers = {key for key in one if key.startswith(("loss_", "grad_norm_"))}
        assert {key: one[key] for key in numbers} == pytest.approx({key: two[key] for key in numbers}, rel=1e-6)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_with_one_sentence(tiny_config, tmp_path, victim):
    process = torchrun(ROOT / "train.py", tiny_config(**QUICK, max_train_steps=5000, checkpointing_steps=1), tmp_path)
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("train/*/checkpoint-2")) and time.monotonic() < deadline:
        time.sleep(0.05)
    workers = psutil.Process(process.pid).children()
    next(worker for worker in workers if worker.environ().get("RANK") == str(victim)).kill()
    killed = time.monotonic()
    stdout, stderr = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    (folder,) = (tmp_path / "train").iterdir()
    assert len(errors(stderr)) == 1, stderr
    (sentence,) = errors(stderr)
    last = max(list_checkpoints(folder))
    assert "another of its processes has ended" in sentence
    assert sentence.endswith(f"the last checkpoint is kept: resume_from_checkpoint={folder}/checkpoint-{last}")
    assert "gloo" not in stderr and stdout == ""


def test_broken_numbers_in_every_process_are_one_sentence_naming_one_folder(tiny_config, tmp_path):
    process = torchrun(ROOT / "train.py", tiny_config(**QUICK, learning_rate=1e30, max_train_steps=20), tmp_path)
    _, stderr = process.communicate(timeout=300)
    (folder,) = (tmp_path / "train").iterdir()
    assert len(errors(stderr)) == 1, stderr
    (sentence,) = errors(stderr)
    assert "nan at step" in sentence and str(folder) in sentence and "no weight was moved in this step" in sentence


@pytest.mark.parametrize(
    ("environment", "asked"),
    [
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}, "several"),  # accelerate launch --cpu
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "2"),
    ],
)
def test_a_launcher_that_starts_one_process_in_place_of_two_is_an_error(monkeypatch, environment, asked):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    Processes("cpu")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"asked for {asked} and only 1 trains here.*torchrun --nproc_per_node"):
        processes._check_launcher(1)


def test_accelerate_launch_on_a_cpu_says_what_to_use(tiny_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(tiny_config(**QUICK)))
    words = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "train.py", "--config", str(path)]
    done = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, text=True, capture_output=True, timeout=200)
    assert done.returncode != 0 and not (tmp_path / "train").exists()
    (sentence,) = errors(done.stderr)
    assert "torchrun --nproc_per_node" in sentence


def test_an_error_of_the_first_exchange_is_itself_and_a_later_one_is_told(monkeypatch, waits, capsys):
    """NCCL is set up in the first exchange, where two processes on one GPU are found out."""
    words = iter(["Duplicate GPU detected", "no route", "[/pytorch/gloo/pair.cc:547] Connection closed by peer"])

    def fail(*_):
        raise torch.distributed.DistBackendError(next(words))

    state = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu"))
    monkeypatch.setattr(processes, "PartialState", lambda **_: state)
    monkeypatch.setattr(processes.dist, "all_gather_object", fail)
    with pytest.raises(UserError, match="processes: two of them were given the same GPU"):
        Processes("cpu")
    with pytest.raises(torch.distributed.DistBackendError, match="no route"):
        Processes("cpu")
    joined = Processes.__new__(Processes)
    joined.count, joined.rank, joined.pids = 2, 0, [("here", 1), ("here", 2)]
    with pytest.raises(LostProcess, match=r"^training: another .* has ended \(Connection closed by peer\)$"):
        joined.gather(None)
    assert capsys.readouterr().err == "\n", "the lost process's bar has left its line without an end"


def test_words_travel_by_gloo_once_the_processes_have_met(monkeypatch):
    """NCCL would wait for a process that is gone, and be deaf to signals meanwhile."""
    groups = []
    state = SimpleNamespace(num_processes=2, process_index=0, device=torch.device("cpu"))
    monkeypatch.setattr(processes, "PartialState", lambda **_: state)
    monkeypatch.setattr(processes.dist, "new_group", lambda backend, timeout: f"a group of {backend}")
    monkeypatch.setattr(processes.dist, "all_gather_object", lambda values, value, group: groups.append(group))
    Processes("cpu").gather("a word")
    assert groups == [None, "a group of gloo"]


def test_a_fault_of_this_gpu_is_itself_and_no_lost_process():
    joined = Processes.__new__(Processes)
    joined.count, joined.rank, joined.pids = 2, 0, [("here", 1), ("here", 2)]
    with pytest.raises(torch.AcceleratorError, match="illegal memory access"), joined._talking():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    processes._check_device("cuda:1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    processes._check_device("cuda")
    with pytest.raises(UserError, match="device: cuda:1 is one GPU, .* CUDA_VISIBLE_DEVICES"):
        Processes("cuda:1")


@pytest.mark.parametrize(("ending", "left"), [(None, 1), (SystemExit(143), 1), (UserError("a full disk"), 0)])
def test_the_group_is_left_together_and_not_by_one_that_met_an_error(ending, left, tiny_config, monkeypatch):
    """NCCL would wait there for the others, which wait for this one's next exchange."""
    calls = []

    def trained(*_):
        if ending:
            raise ending

    monkeypatch.setattr(train, "_train", trained)
    monkeypatch.setattr(Processes, "leave", lambda self: calls.append(self))
    with pytest.raises(type(ending)) if ending else nullcontext():
        train.run(tiny_config())
    assert len(calls) == left


@pytest.fixture
def waits(monkeypatch, capsys):
    """What was printed by the time a process began to wait for its end, for each of those that waited."""
    found = []
    monkeypatch.setattr(time, "sleep", lambda seconds: found.append((seconds, capsys.readouterr().err)))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    return found


def test_only_the_first_process_prints_what_all_of_them_found(monkeypatch, waits):
    for rank, waited in (("0", []), ("1", [(runtime.GRACE, "")])):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError), one_voice():
            raise UserError("a clip is missing")
        assert waits == waited
    with pytest.raises(SystemExit), one_voice():
        raise LostProcess("another printed it", silent=True)
    with pytest.raises(LostProcess), one_voice():  # the first survivor speaks at once, whatever its rank
        raise LostProcess("nobody else prints it", silent=False)
    assert len(waits) == 1


@pytest.mark.parametrize("words", [["sed=1"], ["train_batch_size=2", "earlystep=5", "sed=1"]])
def test_a_wrong_configuration_and_its_notes_are_printed_by_the_first_process_only(words, monkeypatch, waits, capsys):
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    for rank, waited in (("0", []), ("1", [(runtime.GRACE, "")])):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            train.main()
        printed = capsys.readouterr().err
        assert ended.value.code == 2 and waits == waited and len(errors(printed)) == 1
        assert ("note:" in printed) == (len(words) > 1 and rank == "0")


def test_losses_are_the_mean_over_all_that_ran():
    found = [{"spatial": 1.0, "temporal": 2.0}, {"temporal": 4.0}]
    assert mean_losses(found) == {"spatial": 1.0, "temporal": 3.0}
