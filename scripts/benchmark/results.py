"""The section of RESULTS.md that holds one device's timings: one row for each model, replaced when timed again."""

import re
import time
from pathlib import Path

from scripts.artefacts.provenance import commit
from scripts.artefacts.results_file import markdown, markdown_code, markdown_table, put_section, read_sections

NONE = "–"
MS, GB = (lambda value: f"{1000 * value:.1f} ms"), (lambda value: f"{value / 1e9:.2f} GB")
SECONDS, RATIO, SHARE = "{:.1f} s".format, "{:.2f}".format, lambda value: f"{100 * value:.0f} %"
FLOP = lambda counts: ", ".join(f"{count:.3g} in {dtype}" for dtype, count in counts.items())  # noqa: E731
COLUMNS = {  # heading -> (key of the JSON document, how it is written)
    "model": ("model", str),
    "compile": ("compile", str),
    "memory": ("memory", str),
    "recomputes": ("checkpointing", lambda given: "yes" if given else "no"),
    "baseline": ("baseline", str),
    "precision": ("dtype", str),
    "threads": ("threads", str),
    "training step": ("train_step_s", MS),
    "its CPU time": ("train_step_cpu_s", MS),
    "host": ("train_host_s", MS),
    "device busy": ("train_device_s", MS),
    "in fp16": ("train_step_fp16_s", MS),
    "compiling": ("compile_s", SECONDS),
    "share of matmul rate": ("train_share", SHARE),
    "its step / ours": ("baseline_ratio", RATIO),
    "peak": ("peak_bytes", GB),
    "sampling step": ("sample_s", MS),
    "sampling's CPU time": ("sample_cpu_s", MS),
    "its host": ("sample_host_s", MS),
    "its device busy": ("sample_device_s", MS),
    "its share of matmul rate": ("sample_share", SHARE),
    "the baseline's / ours": ("sample_ratio", RATIO),
    "ours / the plain model's": ("customized_ratio", RATIO),
    "inversion step": ("inversion_step_s", MS),
    "text": ("text_encoder_s", MS),
    "VAE encodes": ("vae_encode_s", MS),
    "VAE decodes": ("vae_decode_s", MS),
    "a video": ("video_s", SECONDS),
    "targets": ("targets", "; ".join),
    "made": ("made", str),
    "operations of a training step": ("train_flop_by_dtype", FLOP),
}
SETUP = ("model", "compile", "memory", "recomputes", "threads", "baseline")  # a row of the same replaces the one before


def keep_timings(path: Path, numbers: dict, command: str) -> None:
    """Replace or add the row of `numbers` (the JSON document of scripts/bench.py) in its device's section of `path`."""
    key = ("bench", re.sub(r"[^\w.-]+", "_", numbers["device"]))
    numbers = numbers | {"made": f"{time.strftime('%Y-%m-%d')}, commit {commit()}"}
    written = [write(numbers[name]) if numbers.get(name) is not None else NONE for name, write in COLUMNS.values()]
    header, rule, line = markdown_table([list(COLUMNS), written]).splitlines()
    row = _cells([header, line])[0]
    kept = [
        old for old in _cells(read_sections(path).get(key, "").splitlines()) if any(old[x] != row[x] for x in SETUP)
    ]
    rows = sorted([*kept, row], key=lambda found: [found[name] for name in SETUP])
    table = "\n".join([header, rule, *(f"| {' | '.join(found.values())} |" for found in rows)])
    body = (
        "Medians on random weights of the architecture's size. `pocket`, `mid` and `zeroscope` are described in "
        "`scripts/bench.py --help`; ratios and shares are in CPU time on a CPU. Where a step took much longer than its "
        "CPU time, other programs ran beside it, and the other seconds of its row are stretched as well.\n\n"
        f"{table}\n\n"
        f"Command of the newest row: {markdown_code(command)}\n"
    )
    put_section(path, key, f"Speed: {markdown(numbers['device'])}", body)


def _cells(lines: list[str]) -> list[dict[str, str]]:
    """The rows of a table as heading -> cell, by today's headings; what an older table does not have is "–"."""
    found = [line[2:-2].split(" | ") for line in lines if line.startswith("| ")]
    return [{name: dict(zip(found[0], row)).get(name, NONE) for name in COLUMNS} for row in found[1:]]
