"""The model card of a finished run: a README.md that a hub shows beside the weights, ready to be uploaded.

Captions and prompts are other people's text: they are escaped for Markdown, and the configuration stands in a fence
that nothing in it can close.
"""

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from configs.files import atomic_path
from configs.paths import HUB, is_hub_id
from configs.schema import to_yaml
from models.files.modelspec import run_name

CARD = "README.md"
PICTURE, VIDEO = "side_by_side.webp", "side_by_side.mp4"
UNKNOWN = "unknown"  # the hub's word for a license that nobody named
PAPER = "https://arxiv.org/abs/2501.16714"


def write_card(
    run: Path, cfg: Any, info: Mapping[str, Any], caption: str, measures: Mapping[str, str], *, clips: int = 1
) -> Path:
    """Write the card into the folder `run` and return its path.

    `info` is what the checkpoint's header says of the method, `measures` what was measured, by name; `caption` is that
    of the only one, or of the representative one, of `clips` reference clips. Picture, video and previews are named
    where they lie in `run`.
    """
    facts = yaml.safe_dump(_facts(cfg, info, caption), sort_keys=False, allow_unicode=True)
    tried = any(run.glob("previews/step-[1-9]*/*.mp4"))
    prompts = list(cfg.validation_data.prompt)[:2] if tried else []
    is_lora, step = "preset" in info, cfg.max_train_steps
    shape = info["preset"] if is_lora else "motion embeddings"
    model = escaped(_base(cfg) or Path(cfg.pretrained_model_path).name)
    origin = f"one clip ({escaped(caption)})" if clips == 1 else f"{clips} clips (such as: {escaped(caption)})"
    # a checkpoint's own word is followed to a folder, never to the hub
    known = f"--model {shlex.quote(cfg.pretrained_model_path)} " if is_hub_id(cfg.pretrained_model_path) else ""
    convert = "python scripts/convert.py diffusers RUN OUT   # a file for diffusers' load_lora_weights\n"
    parts = [
        f"---\n{facts}---",
        f"# {escaped(run_name(cfg))}: a motion for {model}",
        *_shown(run),
        f"The motion of {origin}, learned as `{shape}` in {step:,} steps. What a video shows is said by its prompt. The"
        f" method: [Separate Motion from Appearance]({PAPER}).",
        "## Use\n\nFrom the repository that trained it, with this folder as RUN:\n\n```bash\n"
        f'python infer/infer.py --checkpoint_folder RUN {known}--prompt "..."\n'
        f"{convert if is_lora else ''}```",
        "It was tried with:\n\n" + "\n".join(f"- {escaped(prompt)}" for prompt in prompts) if prompts else "",
        "## Measures\n\n| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in measures.items()),
        f"## Configuration\n\n{fenced(to_yaml(cfg), 'yaml')}",
        f"## License\n\n{_license(cfg)}",
    ]
    with atomic_path(run / CARD) as part:
        part.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return run / CARD


def _facts(cfg: Any, info: Mapping[str, Any], caption: str) -> dict[str, Any]:
    """The front matter, with the hub's own words."""
    facts = {
        "license": cfg.license or UNKNOWN,
        "library_name": "peft" if "preset" in info else None,
        "pipeline_tag": "text-to-video",
        "base_model": _base(cfg),
        "tags": ["text-to-video", "motion-customization", *(["lora"] if "preset" in info else [])],
        "instance_prompt": caption,
    }
    return {name: value for name, value in facts.items() if value}


def _base(cfg: Any) -> str | None:
    """The base model's id on the hub, where it has one that can be known."""
    model = cfg.pretrained_model_path
    return model if is_hub_id(model) else HUB.get(Path(model).name)


def _shown(run: Path) -> list[str]:
    picture = [f"![reference clip, base model and customized model]({PICTURE})"] if (run / PICTURE).is_file() else []
    link = "The same as a video" if picture else "Reference clip, base model and customized model, as a video"
    return picture + ([f"[{link}]({VIDEO})"] if (run / VIDEO).is_file() else [])


def _license(cfg: Any) -> str:
    if cfg.license:
        return f"`{cfg.license}`, for the weights in this folder; the base model has terms of its own."
    return "Not named yet: set `license` in the first lines. Base model and reference clip have terms of their own."


def escaped(text: str) -> str:
    """Any text as plain words of one line of Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$-])", r"\\\1", " ".join(text.split()))


def fenced(text: str, language: str) -> str:
    """`text` as a block of code, inside a fence longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
