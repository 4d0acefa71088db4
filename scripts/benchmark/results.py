"""The section of RESULTS.md that holds one device's timings: one row for each model, replaced when timed again."""

import re
import time
from pathlib import Path

from scripts.artefacts.provenance import commit
from scripts.artefacts.results_file import markdown, markdown_code, markdown_table, put_section, read_sections

MS, GB = (lambda value: f"{1000 * value:.1f} ms"), (lambda value: f"{value / 1e9:.2f} GB")
SECONDS, RATIO, SHARE = "{:.1f} s".format, "{:.2f}".format, lambda value: f"{100 * value:.0f} %"
FLOP = lambda counts: ", ".join(f"{count:.3g} in {dtype}" for dtype, count in counts.items())  # noqa: E731
COLUMNS = {  # heading -> (key of the JSON document, how it is written)
    "model": ("model", str),
    "compile": ("compile", str),
    "precision": ("dtype", str),
    "threads": ("threads", str),
    "training step": ("train_step_s", MS),
    "its CPU time": ("train_step_cpu_s", MS),
    "host": ("train_host_s", MS),
    "device busy": ("train_device_s", MS),
    "in fp16": ("train_step_fp16_s", MS),
    "compiling": ("compile_s", SECONDS),
    "share of matmul rate": ("train_share", SHARE),
    "baseline": ("baseline", str),
    "its step / ours": ("baseline_ratio", RATIO),
    "peak": ("peak_bytes", GB),
    "sampling step": ("sample_s", MS),
    "sampling's CPU time": ("sample_cpu_s", MS),
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
    "operations of a training step": ("train_flop_by_dtype", FLOP),  # last: rows of before end with the date
}


def keep_timings(path: Path, numbers: dict, command: str) -> None:
    """Replace or add the row of `numbers` (the JSON document of scripts/bench.py) in its device's section of `path`."""
    key = ("bench", re.sub(r"[^\w.-]+", "_", numbers["device"]))
    numbers = numbers | {"made": f"{time.strftime('%Y-%m-%d')}, commit {commit()}"}
    row = [write(numbers[name]) if numbers.get(name) is not None else "–" for name, write in COLUMNS.values()]
    header, rule, line = markdown_table([list(COLUMNS), row]).splitlines()
    kept = [old for old in read_sections(path).get(key, "").splitlines() if old.startswith("| ")][1:]
    kept = [old for old in kept if old.split(" | ")[:2] != line.split(" | ")[:2]]  # of another model or compile
    table = "\n".join([header, rule, *sorted([*kept, line])])
    body = (
        "Medians on random weights of the architecture's size. `pocket`, `mid` and `zeroscope` are described in "
        "`scripts/bench.py --help`; ratios and shares are in CPU time on a CPU. Where a step took much longer than its "
        "CPU time, other programs ran beside it, and the other seconds of its row are stretched as well.\n\n"
        f"{table}\n\n"
        f"Command of the newest row: {markdown_code(command)}\n"
    )
    put_section(path, key, f"Speed: {markdown(numbers['device'])}", body)
