"""Measuring work on a device: its seconds, its memory, and the rate that the device reaches at best."""

import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

Work = Callable[[], object]


class Numbered(NamedTuple):
    """Work that is called with the number of its run; `inside` makes the context around it, which is not timed."""

    work: Callable[[int], object]
    inside: Callable[[], AbstractContextManager] = nullcontext


@dataclass(frozen=True)
class Timing:
    """Seconds of one run: on the wall, until the host had queued the work, and of this process's CPU."""

    wall: float
    host: float
    cpu: float

    def comparable(self, device: torch.device) -> float:
        """The seconds to compare by: CPU time on a CPU, which other programs do not stretch, else wall time."""
        return self.cpu if device.type == "cpu" else self.wall


def wait_for(device: torch.device) -> None:
    """Return once the device has done all that was queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Work, device: torch.device) -> Timing:
    """Run `work` once. The device is idle when the clock starts and when it stops."""
    wait_for(device)
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    host = time.perf_counter() - wall
    wait_for(device)
    return Timing(time.perf_counter() - wall, host, time.process_time() - cpu)


def median_seconds(work: Work, device: torch.device, repeats: int) -> float:
    """The median wall time of `repeats` runs after one that warms up."""
    work()
    return statistics.median(timed(work, device).wall for _ in range(repeats))


def alternated(works: Mapping[str, Numbered], device: torch.device, repeats: int) -> dict[str, list[Timing]]:
    """Name -> timings of `repeats` runs, after run 0, which warms up.

    The works take turns, so that what disturbs the machine meets all of them.
    """
    times: dict[str, list[Timing]] = {name: [] for name in works}
    for number in range(repeats + 1):
        for name, (work, inside) in works.items():
            with inside():
                times[name].append(timed(partial(work, number), device))
            print(f"{name} {number}: {times[name][-1].wall:.3f} s", file=sys.stderr)
    return {name: found[1:] for name, found in times.items()}


def median_timing(timings: list[Timing]) -> Timing:
    """The median of each of the three seconds by itself."""
    return Timing(*(statistics.median(getattr(timing, name) for timing in timings) for name in vars(timings[0])))


def ratio(one: list[Timing], other: list[Timing], device: torch.device) -> float:
    """How many times as long `one` takes as `other`, by `Timing.comparable`: the median over pairs of runs."""
    pairs = zip(one, other, strict=True)
    return statistics.median(a.comparable(device) / b.comparable(device) for a, b in pairs)


def peak_bytes(work: Work, device: torch.device) -> int | None:
    """The most bytes that the device held at once while `work` ran, by CUDA's allocator; None on other devices."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    work()
    return torch.cuda.max_memory_allocated(device)


def device_seconds(work: Work, device: torch.device) -> float | None:
    """How long CUDA's kernels ran in one run of `work`, by the profiler; None on other devices.

    The wall time beyond it is time in which the device waited for the host.
    """
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        timed(work, device)
    kernels = (event for event in profile.key_averages() if not event.key.startswith(("Memcpy", "Memset")))
    return sum(event.self_device_time_total for event in kernels) / 1e6


def device_name(device: torch.device) -> str:
    """The name of the device: of a GPU its maker's, of a CPU its instructions and the number of its cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"cpu, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores"
    return device.type


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The device's best measured rate of a large square matrix product, in FLOP per second (on a CPU of its time)."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / min(timed(lambda: a @ a, device).comparable(device) for _ in range(5))
