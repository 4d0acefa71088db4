"""Running chains (scripts/artefacts/chain.py): several at once where there are several GPUs, or as SLURM jobs.

Every chain is a process of its own with a log. One that fails leaves a sentence, and the others continue. Stopping
this process stops them after their current step, with a checkpoint, so that the same command continues; jobs of SLURM
are cancelled, and continue from the last checkpoint that they had saved.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Lock

import torch

from configs.errors import UserError, sentence_in, why_ended
from configs.paths import ROOT
from models.threads import SHARE, cores
from scripts.artefacts.chain import Chain

Launch = Callable[[Chain, int], str | None]  # (chain, number of the worker) -> what went wrong


class ChainProcesses:
    """Starts chains as processes that write into `folder`: NAME.json (the request) and NAME.log."""

    def __init__(self, folder: Path, jobs: int = 1):
        self.folder, self.jobs, self.running = folder, jobs, set()
        self._starting, self._stopped = Lock(), False

    def __call__(self, chain: Chain, worker: int) -> str | None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        environment[SHARE] = str(max(1, cores() // self.jobs))  # of which a small model takes one for its threads
        if gpus := torch.cuda.device_count():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[worker % gpus]
        log = self.folder / f"{chain.name}.log"
        start = log.stat().st_size if log.exists() else 0
        words = command_of(chain, self.folder)
        with log.open("a", encoding="utf-8") as stream:
            with self._starting:  # so that `stop` finds every process that was started
                if self._stopped:
                    return "stopped before it began"
                # a session of its own: Ctrl-C must reach it once, through `stop`; twice would mean "without saving"
                process = subprocess.Popen(words, stdout=stream, stderr=stream, env=environment, start_new_session=True)
                self.running.add(process)
            process.wait()
            self.running.discard(process)
        return None if process.returncode == 0 else reason(log, process.returncode, start)

    def stop(self) -> None:
        with self._starting:
            self._stopped = True
        for process in list(self.running):
            process.send_signal(signal.SIGTERM)
        for process in list(self.running):
            process.wait()


def command_of(chain: Chain, folder: Path) -> list[str]:
    return [
        sys.executable,
        str(ROOT / "scripts" / "artefacts" / "chain.py"),
        str(chain.write(folder / f"{chain.name}.json")),
    ]


def reason(log: Path, code: int, start: int = 0) -> str:
    """The sentence that a failed process left in its log, which begins at byte `start`."""
    words = log.read_bytes()[start:].decode(errors="replace")
    return sentence_in(words) or f"{why_ended(words, code)}; see {log}"


def run_all(chains: list[Chain], jobs: int, launch: Launch, log: Callable[[str], None]) -> dict[str, str]:
    """Run the chains that are not done, `jobs` at a time. Returns chain name -> what went wrong."""
    waiting = [chain for chain in chains if not chain.is_done]
    if len(waiting) < len(chains):
        log(f"{len(chains) - len(waiting)} of {len(chains)} trainings with their videos are finished already")
    workers: SimpleQueue[int] = SimpleQueue()
    for worker in range(jobs):
        workers.put(worker)
    problems: dict[str, str] = {}

    def run(chain: Chain) -> str | None:
        worker = workers.get()
        try:
            log(f"{chain.name}: {'sampling' if chain.run_folder else 'training and sampling'}")
            return launch(chain, worker)
        finally:
            workers.put(worker)

    began, pool = time.monotonic(), ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(run, chain): chain for chain in waiting}
        for number, future in enumerate(as_completed(futures), 1):
            name, problem = futures[future].name, future.result()
            if problem:
                problems[name] = problem
            left = (time.monotonic() - began) / number * (len(waiting) - number)
            log(f"[{number}/{len(waiting)}] {name}: {problem or 'done'}; about {left / 60:.0f} min to go")
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        getattr(launch, "stop", lambda: None)()
        raise
    pool.shutdown()
    return problems


def slurm_executor(folder: Path, parameters: dict[str, str]):
    """submitit's executor with `parameters`; its logs go to `folder`.

    The parameter `cluster` picks the executor (slurm, or local to try it out). Raises UserError without submitit and
    for parameters that it does not know.
    """
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--slurm: submitit is not installed; run `pip install submitit`, or leave --slurm out"
        ) from None
    settings = dict(parameters)
    try:
        executor = submitit.AutoExecutor(folder, cluster=settings.pop("cluster", "slurm"))
        executor.update_parameters(**{key: int(v) if v.isdecimal() else v for key, v in settings.items()})
    except NameError as error:
        raise UserError(f"--slurm: {error}; use names such as slurm_partition, timeout_min, gpus_per_node") from None
    except (RuntimeError, ValueError) as error:  # no srun on this machine, or an unknown cluster
        raise UserError(f"--slurm: {error}; run it on a machine of the cluster, or leave --slurm out") from None
    return executor


def run_on_slurm(chains: list[Chain], folder: Path, executor, log: Callable[[str], None]) -> dict[str, str]:
    """Submit one job for each chain that is not done, and wait for all of them. Returns chain name -> what went wrong.

    Stopping this process cancels the jobs; what they had made by their last checkpoint stays.

    `folder` keeps the requests; `executor` is `slurm_executor`'s.
    """
    from submitit.helpers import CommandFunction

    os.environ["PYTHONPATH"] = str(ROOT)
    waiting = [chain for chain in chains if not chain.is_done]
    jobs, problems = {}, {}
    try:
        for chain in waiting:
            jobs[chain.name] = executor.submit(CommandFunction(command_of(chain, folder), verbose=False))
        log(f"submitted {len(jobs)} jobs; their logs are in {folder}")
        for number, (name, job) in enumerate(jobs.items(), 1):
            error = job.exception()
            if error is not None:
                problems[name] = sentence_in(str(error)) or f"job {job.job_id} failed, see {folder}"
            log(f"[{number}/{len(jobs)}] {name}: {problems.get(name, 'done')}")
    except BaseException:
        for job in jobs.values():
            job.cancel(check=False)  # one that has ended cannot be cancelled, and need not be
        raise
    return problems
