"""The number of CPU threads: asked for, given by the environment, or chosen by the size of the model."""

import pytest
import torch

from models import threads
from models.threads import SMALL, use_threads


@pytest.fixture(autouse=True)
def the_threads_of_the_other_tests():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def model(parameters):
    with torch.device("meta"):
        return torch.nn.Linear(parameters, 1, bias=False)


CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(("parameters", "device", "count"), [(SMALL - 1, CPU, 1), (SMALL, CPU, 2), (9, CUDA, 2)])
def test_a_small_model_on_a_cpu_takes_one_thread(parameters, device, count, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "DEFAULT", 2)
    assert use_threads(model(parameters), device) == torch.get_num_threads() == count


@pytest.mark.parametrize(("share", "large", "cores"), [
    ("1", 1, 1), ("2", 2, 2), ("64", 4, 4), ("0", 4, 4), ("abc", 4, 4), ("2.5", 4, 4), ("", 4, 4),
])  # fmt: skip
def test_one_of_several_processes_keeps_to_its_share_of_the_cores(share, large, cores, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv(threads.SHARE, share)
    monkeypatch.setattr(threads, "DEFAULT", 64)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(4), raising=False)
    assert (use_threads(model(9), CPU), use_threads(model(SMALL), CPU), threads.cores()) == (1, large, cores)


def test_a_large_model_has_no_more_threads_than_a_containers_quota(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "DEFAULT", 64)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(64), raising=False)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    threads.QUOTA.write_text("150000 100000")
    assert use_threads(model(SMALL), CPU) == 1


def test_a_process_that_serves_two_models_gives_each_its_own_number(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "DEFAULT", 2)
    counts = [use_threads(model(n), CPU, asked) for n, asked in ((9, None), (SMALL, None), (SMALL, 3), (SMALL, None))]
    assert counts == [1, 2, 3, 2]


def test_what_is_asked_for_wins_over_the_environment_and_that_over_the_size(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(threads, "DEFAULT", 2)
    assert use_threads(model(9), CPU) == 2
    assert use_threads(model(9), CPU, asked=3) == torch.get_num_threads() == 3


@pytest.mark.parametrize("asked", [1, 2])
def test_the_key_and_the_flag_reach_torch(asked, tiny_config, trained, tmp_path, monkeypatch):
    import train
    from infer import generate, options

    seen = []
    monkeypatch.setattr(threads.torch, "set_num_threads", lambda count: seen.append(count))
    train.run(tiny_config(threads=asked, max_train_steps=1, validation_data={"sample_preview": False}))
    run = trained(max_train_steps=1)
    words = ["-cf", str(run), "--prompt", "a car", "-s", "1", "-o", str(tmp_path), "--threads", str(asked)]
    list(generate.generate(options.parse(words)))
    assert seen.count(asked) >= 2


@pytest.mark.parametrize(("asked", "environment", "usable", "count"), [
    (None, None, 4, 4), (2, None, 4, 2), (9, None, 4, 4), (None, 3, 4, 3), (None, 9, 4, 4), (1, 3, 4, 1),
    (2, None, 1, 1),
])  # fmt: skip
def test_cores_are_those_that_are_asked_for_given_and_there(asked, environment, usable, count, monkeypatch):
    monkeypatch.setattr(threads, "_usable", lambda: usable)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", str(environment))
        torch.set_num_threads(environment)
    assert threads.cores(asked) == count


@pytest.mark.parametrize(("quota", "count"), [
    ("max 100000", 4), ("150000 100000", 1), ("250000 100000", 2), ("50000 100000", 1), ("6400000 100000", 4), ("", 4),
    (None, 4),
])  # fmt: skip
def test_a_containers_share_of_the_cores_time_counts(quota, count, tmp_path, monkeypatch):
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        threads.QUOTA.write_text(f"{quota}\n")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.cores() == count
