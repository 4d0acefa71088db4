"""What a training run logs: a progress bar, log.jsonl, the loss plot, and a tracker where one is asked for.

One record a step: step, losses, gradient norms, fp16's loss scale, learning rate, timestep, seconds and memory. Losses
and `timestep` are means over all clips of the step and the noised copies of each (timesteps_per_step). The bar and the
file show the same numbers.
"""

import json
import math
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm

from configs.files import atomic_path
from models.training.optimizer import Moved
from models.training.trackers import Tracker


def memory_gb(device: torch.device) -> float:
    """GB (1e9 bytes): on CUDA the allocator's peak since the last call, elsewhere what this process holds now."""
    if device.type != "cuda":
        return psutil.Process().memory_info().rss / 1e9
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def mean_losses(found: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each loss over the clips of a step, all processes' together; a pass that did not run has none."""
    names = dict.fromkeys(name for losses in found for name in losses)
    return {name: torch.tensor([losses[name] for losses in found if name in losses]).mean().item() for name in names}


def read_log(file: Path) -> list[dict]:
    """The records of a log.jsonl; a line that a crash cut short is left out."""
    records = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Journal:
    """Opened for a run folder; `log` once a step. A resumed run goes on in the same files, from `start`."""

    def __init__(self, folder: Path, start: int, total: int, device: torch.device, tracker: Tracker | None = None):
        self.file, self.device = folder / "log.jsonl", device
        self._forget_after(start)
        self._stream = self.file.open("a", encoding="utf-8")
        self.tracker = tracker
        self.bar = tqdm(total=total, initial=start, desc="train", unit="step", dynamic_ncols=True)
        self.skipped = 0
        self.pause()  # encoding and inversion are not the first step's

    def log(
        self,
        step: int,
        losses: dict[str, float],
        moved: Moved,
        *,
        timestep: float,
        learning_rate: float,
        cpu_beside: float = 0.0,
    ) -> None:
        """Log a step; `cpu_beside` are the CPU seconds that another process spent on it (beside.py)."""
        now, cpu_now = time.perf_counter(), time.process_time()
        norms = {path: norm if math.isfinite(norm) else None for path, norm in moved.norms.items()}  # None: overflowed
        half = {} if moved.scale is None else {"fp16_scale": moved.scale, "fp16_skipped": moved.skipped}
        self.skipped += moved.skipped
        record = {
            "step": step,
            **{f"loss_{name}": value for name, value in losses.items()},
            **{f"grad_norm_{path}": norm for path, norm in norms.items()},
            **half,
            "timestep": timestep,
            "lr": learning_rate,
            "seconds": round(now - self._last, 4),
            "cpu_seconds": round(cpu_now - self._cpu_last + cpu_beside, 4),  # of all threads: more telling if busy
            "memory_gb": round(memory_gb(self.device), 3),
        }
        self._last, self._cpu_last = now, cpu_now
        self._stream.write(json.dumps(record) + "\n")
        self._stream.flush()
        if self.tracker:
            curves = {f"loss/{name}": value for name, value in losses.items()}
            curves |= {f"grad_norm/{path}": norm for path, norm in norms.items() if norm is not None}
            self.tracker.log(step, curves | {name: record[name] for name in ("lr", "seconds", "memory_gb")})
        shown = {name: f"{value:.3f}" for name, value in losses.items()}
        shown["grad"] = "/".join("inf" if norm is None else f"{norm:.2g}" for norm in norms.values())
        if half:
            shown |= {"scale": f"{moved.scale:g}", "skipped": self.skipped}
        shown |= {"s/step": f"{record['seconds']:.2f}", "GB": f"{record['memory_gb']:.1f}"}
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update()

    def previews(self, step: int, videos: dict[str, Path]) -> None:
        """Pass on the preview videos of a step, by prompt."""
        if self.tracker and videos:
            self.tracker.videos(step, videos)

    def pause(self) -> None:
        """Do not count what came before (a preview, a checkpoint) as part of the next step's time and memory."""
        memory_gb(self.device)
        self._last, self._cpu_last = time.perf_counter(), time.process_time()

    def measures(self) -> dict[str, str]:
        """What a model card says of the training, by name: the losses of its last tenth, and what a step costs."""
        records = read_log(self.file)
        if not records:
            return {}
        last = records[-max(1, len(records) // 10) :]
        found = mean_losses([{key: r[key] for key in r if key.startswith("loss_")} for r in last])
        words = {f"{name.removeprefix('loss_')} loss, last tenth": f"{value:.4f}" for name, value in found.items()}
        seconds, memory = np.median([r["seconds"] for r in records]), max(r["memory_gb"] for r in records)
        return words | {"seconds a step": f"{seconds:.2f}", "memory, GB": f"{memory:.1f}"}

    def close(self) -> Path | None:
        """Finish the files and draw the loss plot; returns its path, or None when no step was logged.

        The tracker comes last, and its errors are only printed: they must not hide what has ended the training.
        """
        self.bar.close()
        self._stream.close()
        try:
            records = read_log(self.file)
            return loss_plot(self.file.with_name("loss.png"), records) if records else None
        finally:
            if self.tracker:
                self.tracker.close()

    def _forget_after(self, start: int) -> None:
        """Drop records of steps after the checkpoint that a run resumes from: they will be made again."""
        if self.file.exists():
            kept = [json.dumps(record) + "\n" for record in read_log(self.file) if record["step"] <= start]
            with atomic_path(self.file) as temporary:
                temporary.write_text("".join(kept), encoding="utf-8")


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
