"""The section of RESULTS.md that holds one device's timings: one row for each model, replaced when timed again."""

import re
import time
from pathlib import Path

from scripts.artefacts.provenance import commit
from scripts.artefacts.results_file import markdown, markdown_code, markdown_table, put_section, read_sections

MS, GB = (lambda value: f"{1000 * value:.1f} ms"), (lambda value: f"{value / 1e9:.2f} GB")
COLUMNS = {  # heading -> (key of the JSON document, how it is written)
    "model": ("model", str),
    "precision": ("dtype", str),
    "training step": ("train_step_s", MS),
    "host": ("train_host_s", MS),
    "device busy": ("train_device_s", MS),
    "in fp16": ("train_step_fp16_s", MS),
    "share of matmul rate": ("train_share", lambda value: f"{100 * value:.0f} %"),
    "baseline": ("baseline", str),
    "ratio": ("baseline_ratio", lambda value: f"{value:.2f}"),
    "peak": ("peak_bytes", GB),
    "sampling step": ("sample_s", MS),
    "inversion step": ("inversion_step_s", MS),
    "text": ("text_encoder_s", MS),
    "VAE encodes": ("vae_encode_s", MS),
    "VAE decodes": ("vae_decode_s", MS),
    "a video": ("video_s", lambda value: f"{value:.1f} s"),
    "made": ("made", str),
}


def keep_timings(path: Path, numbers: dict, command: str) -> None:
    """Replace or add the row of `numbers` (the JSON document of scripts/bench.py) in its device's section of `path`."""
    key = ("bench", re.sub(r"[^\w.-]+", "_", numbers["device"]))
    numbers = numbers | {"made": f"{time.strftime('%Y-%m-%d')}, commit {commit()}"}
    row = [write(numbers[name]) if numbers.get(name) is not None else "–" for name, write in COLUMNS.values()]
    header, rule, line = markdown_table([list(COLUMNS), row]).splitlines()
    kept = [old for old in read_sections(path).get(key, "").splitlines() if old.startswith("| ")][1:]
    kept = [old for old in kept if old.split(" | ")[0] != line.split(" | ")[0]]
    table = "\n".join([header, rule, *sorted([*kept, line])])
    body = (
        "Medians on random weights of the architecture's size. `pocket`, `mid` and `zeroscope` are described in "
        f"`scripts/bench.py --help`.\n\n{table}\n\nCommand of the newest row: {markdown_code(command)}\n"
    )
    put_section(path, key, f"Speed: {markdown(numbers['device'])}", body)
