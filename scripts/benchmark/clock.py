"""Measuring one piece of work on a device: its seconds, and the rate that the device reaches at best."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

Work = Callable[[], object]


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


def device_seconds(work: Work, device: torch.device) -> float | None:
    """How long CUDA's kernels ran in one run of `work`, by the profiler; None on other devices.

    The wall time beyond it is time in which the device waited for the host.
    """
    if device.type != "cuda":
        return None
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        timed(work, device)
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The device's best measured rate of a large square matrix product, in FLOP per second."""
    n = 8192 if device.type == "cuda" else 1024
    a = torch.randn(n, n, device=device, dtype=dtype)
    return 2 * n**3 / min(timed(lambda: a @ a, device).wall for _ in range(5))
