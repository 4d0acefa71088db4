"""What a training run tells: a progress bar, log.jsonl, TensorBoard curves and the loss plot.

One record a step: step, losses, learning rate, timestep, seconds, memory. The bar and the file show the same numbers.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from configs.files import atomic_path


def peak_memory_gb(device: torch.device) -> float:
    """Peak memory in GB (1e9 bytes): of the CUDA allocator, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS and in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def read_log(file: Path) -> list[dict]:
    """The records of a log.jsonl; a line that a crash cut short is left out."""
    records = []
    for line in file.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Journal:
    """Opened for a run folder; `log` once a step. A resumed run goes on in the same files, from `start`."""

    def __init__(self, folder: Path, start: int, total: int, device: torch.device, tensorboard: bool):
        self.file, self.device = folder / "log.jsonl", device
        self._forget_after(start)
        self._stream = self.file.open("a")
        self._curves = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter  # two seconds of imports, only for those who want it

            self._curves = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self.bar = tqdm(total=total, initial=start, desc="train", unit="step", dynamic_ncols=True)
        self._last = time.perf_counter()

    def log(self, step: int, losses: dict[str, float], *, timestep: int, learning_rate: float) -> None:
        now = time.perf_counter()
        record = {
            "step": step,
            **{f"loss_{name}": value for name, value in losses.items()},
            "timestep": timestep,
            "lr": learning_rate,
            "seconds": round(now - self._last, 4),
            "memory_gb": round(peak_memory_gb(self.device), 3),
        }
        self._last = now
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        for name, value in losses.items():
            if self._curves:
                self._curves.add_scalar(f"loss/{name}", value, step)
        self.bar.set_postfix(
            {name: f"{value:.3f}" for name, value in losses.items()}
            | {"s/step": f"{record['seconds']:.2f}", "GB": f"{record['memory_gb']:.1f}"},
            refresh=False,
        )
        self.bar.update()

    def pause(self) -> None:
        """Do not count what follows (a preview, a checkpoint) as part of the next step's time."""
        self._last = time.perf_counter()

    def close(self) -> Path | None:
        """Finish the files and draw the loss plot; returns its path, or None when no step was logged."""
        self.bar.close()
        self._stream.close()
        if self._curves:
            self._curves.close()
        records = read_log(self.file)
        return loss_plot(self.file.with_name("loss.png"), records) if records else None

    def _forget_after(self, start: int) -> None:
        """Drop records of steps after the checkpoint that a run resumes from: they will be made again."""
        if self.file.exists():
            kept = [json.dumps(record) + "\n" for record in read_log(self.file) if record["step"] <= start]
            with atomic_path(self.file) as temporary:
                temporary.write_text("".join(kept))


def loss_plot(path: Path, records: list[dict]) -> Path:
    """Plot every loss of a run's log over its steps, with a running mean that shows what the noise hides."""
    from matplotlib.figure import Figure  # the slowest import of all, needed once a run

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in sorted({key for record in records for key in record if key.startswith("loss_")}):
        steps, values = zip(*[(r["step"], r[name]) for r in records if name in r])
        (line,) = axes.plot(steps, values, alpha=0.25, linewidth=0.8)
        window = max(1, len(values) // 20)
        mean = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], mean, color=line.get_color(), label=name.removeprefix("loss_"))
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path
