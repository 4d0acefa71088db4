"""Eleven defects of one wrong word each, put in alone: `python tests/mutants.py` prints which check catches each.

All are of one kind, a key of the configuration that no longer reaches what it is for. The sources are copied to a
temporary folder, a defect is an edit of the copy, and a process of its own then asks the checks of tests/test_keys.py
whether the key still does something. They must say yes for the unedited copy, and no for the edited one. The slow
imports happen once: every process is a fork of this one, which loads no file of the project itself.
"""

import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads starve each other on CI machines
ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("configs", "data", "models", "infer", "scripts", "tests")
OUTPUT = {"*.safetensors", "*.mp4", "*.png", "*.gif", "*.webp", "__pycache__", "golden"}


@dataclass(frozen=True)
class Mutant:
    """`edits`: pattern -> replacement, each of which must be found in `where`; `keys`: whose checks must fail."""

    name: str
    edits: dict[str, str]
    keys: tuple[str, ...]
    where: tuple[str, ...] = ("train.py", "models", "infer")


MUTANTS = (
    Mutant("debias_beta is ignored", {r"\bcfg\.debias_beta\b": "1.0"}, ("debias_beta",)),
    Mutant("timesteps_per_step is ignored", {r"\bcfg\.timesteps_per_step\b": "1"}, ("timesteps_per_step",)),
    Mutant(
        "lora_dropout_placement is ignored",
        {r"\bcfg\.lora_dropout_placement\b": '"release"'},
        ("lora_dropout_placement",),
    ),
    Mutant(
        "AdamW has values of its own",
        {r"\bcfg\.adam_beta2\b": "0.5", r"\bcfg\.adam_epsilon\b": "1e-3", r"\bcfg\.adam_weight_decay\b": "0.3"},
        ("adam_beta2", "adam_epsilon", "adam_weight_decay"),
    ),
    Mutant("the highway is never attached in training", {r'== "training"': '== "never"'}, ("appearance_highway.use",)),
    Mutant("single_spatial_lora is ignored", {r"\bcfg\.single_spatial_lora\b": "False"}, ("single_spatial_lora",)),
    Mutant(
        "previews ignore spatial_scale and the negative prompt",
        {r"\b\w+\.spatial_scale\b": "0.0", r"\b\w+\.negative_prompt\b": '""'},
        ("validation_data.spatial_scale", "validation_data.negative_prompt"),
        where=("infer/training/preview.py",),
    ),
    Mutant(
        "the limits of timesteps are ignored",
        {r"\bcfg\.min_timestep\b": "0", r"\bcfg\.max_timestep\b": "999"},
        ("min_timestep", "max_timestep"),
    ),
    Mutant("lora_alpha is ignored", {r"\bcfg\.lora_alpha\b": "None"}, ("lora_alpha",)),
    Mutant("max_grad_norm is ignored", {r"\bcfg\.max_grad_norm\b": "None"}, ("max_grad_norm",)),
    Mutant("train_temporal_lora is ignored", {r"\bcfg\.train_temporal_lora\b": "True"}, ("train_temporal_lora",)),
)


def copy_sources(folder: Path) -> Path:
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*OUTPUT))
    shutil.copy(ROOT / "train.py", folder)
    return folder


def edit(folder: Path, mutant: Mutant) -> None:
    """Put the defect into the copy in `folder`. Raises LookupError when there is nothing to edit any more."""
    files = [file for place in mutant.where for file in ([folder / place] if place.endswith(".py") else
                                                         sorted((folder / place).rglob("*.py")))]  # fmt: skip
    for pattern, replacement in mutant.edits.items():
        count = 0
        for file in files:
            text, found = re.subn(pattern, replacement, file.read_text())
            count += found
            if found:
                file.write_text(text)
        if not count:
            raise LookupError(f"{mutant.name}: {pattern} is found nowhere in {', '.join(mutant.where)}; write it anew")


def ask(sources: Path, keys: list[str], work: Path) -> dict[str, str]:
    """Key -> what its check says about `sources`, empty where it passes. In a process of its own."""
    answer = work / f"{sources.name}.json"
    if (child := os.fork()) == 0:
        status = 1
        try:
            sys.path[:0] = [str(sources), str(sources / "tests")]
            os.chdir(sources)
            with open(work / f"{sources.name}.log", "w") as log:  # progress bars and paths of runs
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            import test_keys

            import keys as bench_of

            shutil.copytree(work / "bench", work / f"{sources.name}_bench", dirs_exist_ok=True)
            bench = bench_of.Bench(work / f"{sources.name}_bench")
            verdicts = {}
            for key in keys:
                try:
                    test_keys.check(bench, key)
                    verdicts[key] = ""
                except AssertionError as error:
                    verdicts[key] = str(error).splitlines()[0]
            if not (work / "bench/model_0").exists():  # the first process makes the models for all
                for name in ("model_0", "model_1"):
                    shutil.copytree(bench.folder / name, work / "bench" / name)
            answer.write_text(json.dumps(verdicts))
            status = 0
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.waitpid(child, 0)
    if not answer.exists():
        raise RuntimeError((work / f"{sources.name}.log").read_text()[-2000:])
    return json.loads(answer.read_text())


def main() -> int:
    import diffusers  # noqa: F401  the slow imports, for every process
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))
    missed = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "bench").mkdir()
        plain = copy_sources(work / "unedited")
        verdicts = ask(plain, [key for mutant in MUTANTS for key in mutant.keys], work)
        if wrong := [verdict for verdict in verdicts.values() if verdict]:
            print("without any defect:", *wrong, sep="\n", file=sys.stderr)
            return 1
        print("| defect | caught by the check of | which says |\n|---|---|---|")
        for number, mutant in enumerate(MUTANTS):
            sources = copy_sources(work / f"mutant_{number}")
            edit(sources, mutant)
            verdicts = ask(sources, list(mutant.keys), work)
            missed += [f"{mutant.name} ({key})" for key, verdict in verdicts.items() if not verdict]
            for key, verdict in verdicts.items():
                print(f"| {mutant.name} | `{key}` | {verdict or '**not caught**'} |", flush=True)
            shutil.rmtree(sources)
    if missed:
        print("not caught: " + "; ".join(missed), file=sys.stderr)
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
