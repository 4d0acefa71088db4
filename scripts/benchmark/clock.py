"""Measuring one piece of work on a device: seconds, floating-point operations, and what the device could do at best."""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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


class _FlopByDtype(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            dtype = next(x.dtype for x in tree_leaves(args) if isinstance(x, torch.Tensor))
            self.counted[str(dtype).removeprefix("torch.")] += formula(*args, **(kwargs or {}), out_val=result)
        return result


def count_flop_by_dtype(work: Work) -> dict[str, int]:
    """Floating-point operations of `work` by the precision they run in, such as {"bfloat16": ..., "float32": ...}.

    Matrix products, convolutions and attention are counted, forward and backward, and so is what is computed twice.
    """
    with _FlopByDtype() as mode:
        work()
    return dict(mode.counted)
