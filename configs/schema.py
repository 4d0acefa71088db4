"""From command-line words to a checked configuration, and back to YAML.

YAML files given with --config are merged in order over the defaults of configs/fields.py, `key=value` words after
them. Every error is collected and reported at once. Imports neither torch nor diffusers, so that --help is quick.
`python -m configs.schema` prints the table of keys that the README holds.
"""

import difflib
import os
import sys
from pathlib import Path
from typing import Any, get_args

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import UserError
from configs.fields import KEYS, SECTIONS, Config, default_of, default_text, kind_of
from configs.legacy_keys import BATCH_SIZE, batch_size, modernise
from configs.limits import beyond, contradictions, did_you_mean

ROOT = Path(__file__).resolve().parents[1]
INPUT_PATHS = (
    "pretrained_model_path",
    "cached_latent_dir",
    "resume_from_checkpoint",
    "train_data.single_video_path",
    "train_data.path",
    "train_data.json_path",
    "train_data.image_dir",
)
OUTPUT_PATHS = ("output_dir", "cache_dir")
# YAML reads no/off as false
YAML_BOOLEANS = {"mixed_precision": "no", "appearance_highway.use": "off", "logger": "none"}


def locate(path: str | Path) -> Path:
    """A path as given when it exists from the working directory, else under the repository's root when it is there."""
    path = Path(os.path.expanduser(path))  # an unknown ~name stays as it is, and is then said to be missing
    return ROOT / path if not path.exists() and (ROOT / path).exists() else path


def load(argv: list[str], *, description: str) -> tuple[DictConfig, bool]:
    """The configuration asked for by `argv`, and whether it is a dry run.

    Takes `--config FILE` (repeatable, merged in order), `key=value` words (dots for nested keys; they win over every
    file), `--dry-run` and `--help` (prints `description` with the table of keys, and exits). Raises UserError naming
    every wrong key, value and file at once.
    """
    files, words, dry_run = parse_cli(argv, description=description)
    merge = _merged(files, with_fallback=False)
    asked = [_word(word, merge) for word in words]
    model_given = any("pretrained_model_path" in values for values in asked)
    model = merge.cfg.pretrained_model_path
    if merge.cfg.fallback and not model_given and not locate(model).exists():
        print(
            f"warning: no model folder at {model}; falling back to {merge.cfg.fallback}: a small model that shows the"
            " road, not the paper's quality (README: The real ZeroScope)",
            file=sys.stderr,
        )
        merge = _merged(files, with_fallback=True)
    for values in asked:
        merge.add(values, "command line")
    return merge.finish(), dry_run


def _merged(files: list[str], with_fallback: bool) -> "_Merge":
    """The files in order; a fallback goes directly over the file that names it, so that later files still win."""
    merge = _Merge()
    for file in files:
        before = merge.cfg.fallback
        merge.file(file)
        if with_fallback and merge.cfg.fallback and merge.cfg.fallback != before:
            merge.file(merge.cfg.fallback)
    return merge


def from_dict(values: dict[str, Any]) -> DictConfig:
    """The checked configuration stored in a checkpoint's header or built by a test. Raises UserError as `load` does."""
    merge = _Merge()
    merge.add(values, "stored configuration")
    return merge.finish()


def to_yaml(cfg: DictConfig) -> str:
    """Every key with its value, ready to be stored and read back by `from_dict(yaml.safe_load(...))`."""
    return OmegaConf.to_yaml(cfg)


def parse_cli(argv: list[str], *, description: str) -> tuple[list[str], list[str], bool]:
    """Split words into config files, key=value words and the dry-run switch; --help prints and exits."""
    files, words, errors, dry_run = [], [], [], False
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word in ("-h", "--help"):
            print(f"{description}\n\n{help_text()}")
            sys.exit(0)
        elif word == "--dry-run":
            dry_run = True
        elif word == "--config" and rest:
            files.append(rest.pop(0))
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        elif word == "--config":
            errors.append("--config: no file after it; give a YAML file such as configs/car.yaml")
        elif "=" in word:
            words.append(word.removeprefix("--"))
        else:
            close = difflib.get_close_matches(word, ["--config", "--dry-run", "--help"], 1, 0.5)
            errors.append(f"{word}: not understood{did_you_mean(close)}; give --config FILE or key=value")
    if errors:
        raise UserError(_together(errors))
    return files, words, dry_run


def help_text() -> str:
    """What --help prints below a command's description."""
    rows = [
        f"  {name}: {kind_of(entry)} = {default_text(entry)}\n      {entry.metadata['help']}"
        for name, entry in KEYS.items()
    ]
    return (
        "  --config FILE    YAML file with the keys below; may be repeated, later files win\n"
        "  key=value        sets one key over every file, for example train_data.fps=4\n"
        "  --dry-run        print the resolved configuration and what would be patched, then stop\n"
        "  --help           this text\n\nkeys:\n" + "\n".join(rows)
    )


def markdown_table() -> str:
    """The README's table of configuration keys."""
    rows = [
        f"| `{name}` | {kind_of(entry).replace(' | ', ', ')} | `{default_text(entry)}` | {entry.metadata['help']} |"
        for name, entry in KEYS.items()
    ]
    return "\n".join(["| key | type | default | what it does |", "|---|---|---|---|", *rows])


class _Merge:
    """A configuration in the making: values from several origins, and every error met on the way."""

    def __init__(self) -> None:
        self.cfg = OmegaConf.structured(Config)
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.batch_size = 1

    def file(self, name: str) -> None:
        path = locate(name)
        try:
            values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
        except FileNotFoundError:
            known = difflib.get_close_matches(
                name, sorted(f"configs/{p.name}" for p in (ROOT / "configs").glob("*.yaml")), 1
            )
            self.errors.append(f"{name}: no such configuration file{did_you_mean(known)}")
        except (OSError, UnicodeDecodeError, yaml.YAMLError, OmegaConfBaseException) as error:
            self.errors.append(f"{name}: not a readable YAML file ({' '.join(str(error).split())})")
        else:
            self.add(values, name)

    def add(self, values: Any, origin: str) -> None:
        if not isinstance(values, dict):
            self.errors.append(
                f"{origin}: holds {type(values).__name__} in place of keys and values; write `key: value` lines"
            )
            return
        replacements = {}
        for path, value in _leaves(values):
            try:
                if path == BATCH_SIZE:
                    self.batch_size = batch_size(value)
                    continue
                old = modernise(path, value)
            except ValueError as error:
                self.errors.append(f"{origin}: {path}: {error}")
                continue
            if old is None:
                self._set(path, value, origin)
                continue
            replacement, note = old
            replacements |= replacement
            if note:
                self.notes.append(f"note: {path} ({origin}): {note}")
        for path, value in replacements.items():  # after the rest: an old key may refine what today's key says
            self._set(path, value, origin)

    def _set(self, path: str, value: Any, origin: str) -> None:
        if path in SECTIONS:
            if value is not None:  # an empty section is written as `validation_data:` and keeps its defaults
                self.errors.append(f"{origin}: {path}: {value!r} in place of the section's own keys")
            return
        if path not in KEYS:
            self.errors.append(
                f"{origin}: {path}: unknown key{did_you_mean(_nearest(path)) or '; --help lists the keys'}"
            )
            return
        if value is False and path in YAML_BOOLEANS:
            value = YAML_BOOLEANS[path]
        if isinstance(value, str) and kind_of(KEYS[path]).startswith("list"):
            value = [value]
        if value is None and type(None) not in get_args(KEYS[path].type):
            value = default_of(KEYS[path])
        try:
            OmegaConf.update(self.cfg, path, value)
        except OmegaConfBaseException as error:
            self.errors.append(f"{origin}: {path}: {str(error).splitlines()[0]}; it takes {kind_of(KEYS[path])}")

    def finish(self) -> DictConfig:
        """Fill in what follows from other keys, check limits, and raise every error together."""
        cfg = self.cfg
        for note in self.notes:
            print(note, file=sys.stderr)
        if self.batch_size > 1:
            cfg.gradient_accumulation_steps *= self.batch_size
            told = f"clips are accumulated: gradient_accumulation_steps is {cfg.gradient_accumulation_steps}"
            print(f"note: {BATCH_SIZE}: {told}", file=sys.stderr)
        for name, source in (("num_frames", "n_sample_frames"), ("width", "width"), ("height", "height")):
            if cfg.validation_data[name] is None:
                cfg.validation_data[name] = cfg.train_data[source]
        for path in INPUT_PATHS:
            if value := OmegaConf.select(cfg, path):
                located = locate(value)
                OmegaConf.update(cfg, path, value if located == Path(value) else str(located))
        for path in OUTPUT_PATHS:
            cfg[path] = os.path.expanduser(cfg[path])
        for path, entry in KEYS.items():
            self.errors += beyond(path, OmegaConf.select(cfg, path), entry.metadata)
        self.errors += contradictions(cfg)
        if self.errors:
            raise UserError(_together(self.errors))
        return cfg


def _word(word: str, merge: _Merge) -> dict[str, Any]:
    name, _, text = word.partition("=")
    name = name.strip()
    if (literal := _literal(name, text)) is not None:
        return {name: literal}
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"]))["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        merge.errors.append(f"command line: {name}: {text!r} is not a YAML value ({' '.join(str(error).split())})")
        return {}
    return {name: value}


def _literal(name: str, text: str) -> Any:
    """A word's text as it is where its key takes text (a caption may hold any sign); None where it is read as YAML."""
    kind = kind_of(KEYS[name]) if name in KEYS else ""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if (
        quoted
        or text in ("", "null")
        or kind not in ("str", "str or null", "list[str]")
        or (kind == "list[str]" and text.startswith("[") and text.endswith("]"))
    ):
        return None
    text = text.replace("${", "\\${")  # nothing is to be looked up
    return [text] if kind == "list[str]" else text


def _leaves(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found = []
    for name, value in values.items():
        path = f"{prefix}{name}"
        found += _leaves(value, f"{path}.") if path in SECTIONS and isinstance(value, dict) else [(path, value)]
    return found


def _nearest(path: str) -> list[str]:
    inside = [name for name in KEYS if name.split(".")[-1] == path.split(".")[-1]]
    return (
        inside[:2]
        or difflib.get_close_matches(path, KEYS, 1, 0.7)
        or [name for name in KEYS if difflib.get_close_matches(path.split(".")[-1], [name.split(".")[-1]], 1, 0.75)][:1]
    )


def _together(errors: list[str]) -> str:
    return errors[0] if len(errors) == 1 else "\n  ".join([f"{len(errors)} things are wrong:", *errors])


if __name__ == "__main__":
    print(markdown_table())
