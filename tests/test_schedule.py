"""Chains side by side, as processes and as jobs: what is done is not run again, and failures leave a sentence."""

import subprocess
import sys
import threading
import time
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.errors import UserError
from infer import generate
from scripts.artefacts import schedule
from scripts.artefacts.chain import Chain, work
from scripts.artefacts.samples import Samples


@pytest.fixture
def done(tmp_path):
    """A chain whose training is finished and from which nothing is sampled."""
    (tmp_path / "done" / "train_1" / "checkpoint-1").mkdir(parents=True)
    return Chain("done", [], str(tmp_path / "done"), 1, [])


def test_chains_run_side_by_side_and_failures_do_not_stop_the_others(done, tmp_path):
    chains = [Chain(f"c{i}", [], str(tmp_path / f"nowhere{i}"), 1, []) for i in range(4)]
    workers, printed = set(), []

    def launch(chain, worker):
        workers.add(worker)
        return "broke" if chain.name == "c2" else None

    assert schedule.run_all([done, *chains], 2, launch, printed.append) == {"c2": "broke"}
    assert workers <= {0, 1} and printed[0].startswith("1 of 5") and sum("to go" in line for line in printed) == 4


def test_nothing_is_started_once_chains_were_told_to_stop(done, tmp_path, monkeypatch):
    """A worker that was about to start one must not leave it running behind the command that has ended."""
    launch = schedule.ChainProcesses(tmp_path)
    launch.stop()
    monkeypatch.setattr(schedule.subprocess, "Popen", None)
    assert launch(done, 0) == "stopped before it began"


def test_a_chain_that_is_being_started_is_stopped_too(done, tmp_path, monkeypatch):
    launch, original, stopping = schedule.ChainProcesses(tmp_path), subprocess.Popen, threading.Event()

    def popen(*_, **options):
        process = original([sys.executable, "-c", "import time; time.sleep(30)"])
        stopping.set()
        time.sleep(0.3)  # until it is known, it runs unseen
        return process

    monkeypatch.setattr(schedule.subprocess, "Popen", popen)
    monkeypatch.setattr(schedule, "reason", lambda *_: "stopped")
    with ThreadPoolExecutor(1) as pool:
        worker = pool.submit(launch, done, 0)
        stopping.wait()
        launch.stop()
        assert worker.result(timeout=5) == "stopped"


def test_a_failed_process_leaves_its_last_sentence(tmp_path):
    log = tmp_path / "x.log"
    log.write_text("train: 50%\nerror: 2 things are wrong:\n  the disk is full\n  it rains\nbye\n")
    assert schedule.reason(log, 2) == "2 things are wrong: the disk is full; it rains"
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("Traceback\nKeyError: 'x'\n")
    # not what an earlier process printed
    assert schedule.reason(log, 1, start) == f"the command ended by itself with code 1 (KeyError: 'x'); see {log}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cluster=nowhere"], "--slurm"),
        (["cluster=slurm"], "--slurm"),
        (["cluster=local", "speed=9"], "use names such as"),
    ],
)
def test_a_wrong_cluster_is_one_sentence(words, sentence, tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="submitit is not installed: it is needed for --slurm only")
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun here, wherever this runs
    with pytest.raises(UserError, match=sentence):
        schedule.slurm_executor(tmp_path, dict(word.split("=") for word in words))


@pytest.mark.parametrize("stopped_at", ["second submission", "waiting"])
def test_stopping_cancels_the_jobs_that_were_submitted(stopped_at, tmp_path, monkeypatch):
    """A fake in place of submitit: jobs that nobody waits for any more must not go on."""
    helpers, cancelled = types.ModuleType("submitit.helpers"), []
    helpers.CommandFunction = lambda words, verbose: words[-1]
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    monkeypatch.setitem(sys.modules, "submitit.helpers", helpers)

    class Job:
        def __init__(self, file):
            self.name = Path(file).stem

        def exception(self):
            if self.name == "c1":
                raise KeyboardInterrupt

        def cancel(self, check):
            cancelled.append(self.name)

    class Executor:
        def submit(self, file):
            if stopped_at == "second submission" and file.endswith("c1.json"):
                raise KeyboardInterrupt
            return Job(file)

    chains = [Chain(f"c{i}", [], str(tmp_path / f"nowhere{i}"), 1, []) for i in range(3)]
    with pytest.raises(KeyboardInterrupt):
        schedule.run_on_slurm(chains, tmp_path, Executor(), lambda line: None)
    assert cancelled == (["c0"] if stopped_at == "second submission" else ["c0", "c1", "c2"])


def test_a_refusal_of_one_row_leaves_the_others_of_its_training(tmp_path, monkeypatch):
    sampled = []

    def sample(request, backbone):
        sampled.append(Path(request.output_dir).name)
        if sampled[-1] != "good":
            raise UserError(f"{sampled[-1]} cannot work")
        return ()

    monkeypatch.setattr(generate, "generate", sample)
    monkeypatch.setattr(generate, "load_backbone", lambda request: "loaded")
    (tmp_path / "run" / "train_1" / "checkpoint-1").mkdir(parents=True)
    rows = [Samples(str(tmp_path / name), [], ["a"]) for name in ("first", "good", "last")]
    damaged = tmp_path / "good" / "a_seed0.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    chain = Chain("c", ["pretrained_model_path=model"], str(tmp_path / "run"), 1, rows)
    assert list(rows[1].missing()) == [(0, ["a"])] and damaged.exists()  # looking deletes nothing
    with pytest.raises(UserError, match="^first cannot work; last cannot work$"):
        work(chain)
    assert sampled == ["first", "good", "last"] and not damaged.exists()


def test_chains_run_as_jobs_of_submitit(done, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed: it is needed for --slurm only")
    broken = Chain("broken", ["--config", "nowhere.yaml"], str(tmp_path / "run"), 1, [])
    printed = []
    executor = schedule.slurm_executor(tmp_path, {"cluster": "local", "timeout_min": "5"})
    problems = schedule.run_on_slurm([done, broken], tmp_path, executor, printed.append)
    assert list(problems) == ["broken"] and "nowhere.yaml" in problems["broken"] and "submitted 1 jobs" in printed[0]
