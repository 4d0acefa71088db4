"""All keys as text: below --help, and as the tables of configs/README.md."""

from typing import Any

from configs.fields import KEYS, SECTIONS
from configs.key import default_text, type_words

GROUPS = {  # the first key of each group of keys that stand outside any section
    "pretrained_model_path": "Model and data",
    "method": "Method",
    "max_train_steps": "Training",
    "mixed_precision": "Precision and device",
    "output_dir": "Folders, checkpoints and previews",
}


def help_text() -> str:
    """What --help prints below a command's description."""
    rows = [
        f"  {name}: {type_words(entry)} = {default_text(entry)}\n      {entry.metadata['help']}"
        for name, entry in KEYS.items()
    ]
    return (
        "  --config FILE    YAML file with the keys below; may be repeated, later files win\n"
        "  key=value        sets one key over every file, for example train_data.fps=4\n"
        "  --dry-run        print the resolved configuration and what would be patched, then stop\n"
        "  --help           this text\n\nkeys:\n" + "\n".join(rows)
    )


def markdown_tables() -> str:
    """The tables of configs/README.md, a heading and a table a group: every key with type, default, limits and help."""
    groups: dict[str, list[str]] = {}
    group = ""
    for name in KEYS:
        group = GROUPS.get(name, group)
        section = name.rpartition(".")[0]
        heading = f"`{section}`: {SECTIONS[section]}" if section else group
        groups.setdefault(heading, []).append(name)
    return "\n\n".join(f"## {heading}\n\n{_table(names)}" for heading, names in groups.items())


def _table(names: list[str]) -> str:
    rows = [
        f"| `{name}` | {type_words(entry).replace(' | ', ', ')} | `{default_text(entry)}` | {limits_text(entry)} | "
        f"{entry.metadata['help']} |"
        for name, entry in ((name, KEYS[name]) for name in names)
    ]
    return "\n".join(["| key | type | default | limits | what it does |", "|---|---|---|---|---|", *rows])


def limits_text(entry: Any) -> str:
    """A key's limits in words, such as `1 to 999`; empty where it has none."""
    limits = {
        name: f"{edge:,}" if isinstance(edge, int) else f"{edge:g}"
        for name, edge in entry.metadata.items()
        if name in ("low", "high", "above", "multiple")
    }
    if limits.get("high") == f"{2**63 - 1:,}":
        limits["high"] = "2^63 - 1"
    low = limits.get("low") or (f"above {limits['above']}" if "above" in limits else "")
    words = f"{low} to {limits['high']}" if "low" in limits and "high" in limits else low
    if "above" in limits and "high" in limits:
        words = f"{low}, at most {limits['high']}"
    return words + (f", in steps of {limits['multiple']}" if "multiple" in limits else "")
