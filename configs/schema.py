"""From command-line words to a checked configuration, and back to YAML.

YAML files given with --config are merged in order over the defaults of configs/fields.py, `key=value` words after
them. Every error is collected and reported at once. Imports neither torch nor diffusers, so that --help is quick.
`python -m configs.schema` prints the tables of configs/README.md.
"""

import os
import re
from pathlib import Path
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import UserError, shown
from configs.fields import CHOSEN, KEYS, SECTIONS, Config
from configs.key import default_of, type_words
from configs.layers import BASE, FALLBACK, MODEL, brief, leaves, read_chains, with_fallback
from configs.legacy_keys import BATCH_SIZE, batch_size, modernise
from configs.limits import beyond, contradictions, did_you_mean, unfit, without_effect
from configs.paths import locate
from configs.plain import dump_yaml, read_yaml
from configs.runtime import note
from configs.tables import help_text, markdown_tables
from configs.words import nearest_keys, parse_cli, together

__all__ = ["KEYS", "from_dict", "help_text", "load", "parse_cli", "to_yaml"]

INPUT_PATHS = (
    MODEL,
    "cached_latent_dir",
    "resume_from_checkpoint",
    "train_data.single_video_path",
    "train_data.path",
    "train_data.json_path",
    "train_data.image_dir",
)
CLIP, CAPTION = "train_data.single_video_path", "train_data.single_video_prompt"
OUTPUT_PATHS = ("output_dir", "cache_dir")
# YAML reads no/off as false
YAML_BOOLEANS = {"mixed_precision": "no", "appearance_highway.use": "off", "report_to": "none", "compile": "off"}
FOLLOWS = {
    f"validation_data.{name}": f"train_data.{source}"
    for name, source in (("num_frames", "n_sample_frames"), ("width", "width"), ("height", "height"))
}
LISTS = ("list[str]", "list[str] or null")
NO_TRAINING = "guidance needs no training; sample with `python infer/infer.py --guide CLIP --prompt ...`"


def load(argv: list[str], *, description: str) -> tuple[DictConfig, bool]:
    """The configuration asked for by `argv`, and whether it is a dry run.

    Takes `--config FILE` (repeatable, merged in order), `key=value` words (dots for nested keys; they win over every
    file), `--dry-run` and `--help` (prints `description` with the table of keys, and exits). Raises UserError naming
    every wrong key, value and file at once.
    """
    files, words, dry_run = parse_cli(argv, description=description)
    merge = _Merge()
    asked = merge.words(words)
    layers = read_chains(files, unread := [])
    if MODEL not in asked and not (FALLBACK in asked and asked[FALLBACK] is None):
        layers, warning = with_fallback(layers, unread, default_of(KEYS[MODEL]))
        if warning:
            note(warning)
    for layer in layers:
        merge.add(layer.values, layer.origin)
    merge.add(asked, "command line")
    merge.errors[:0] = unread
    return merge.finish(asked=True, whole=not unread), dry_run


def from_dict(values: dict[str, Any]) -> DictConfig:
    """The checked configuration stored in a checkpoint's header or built by a test. Raises UserError as `load` does.

    Nothing in it is looked up: `${...}` is text in a prompt and an error anywhere else. A key without effect is
    accepted, since a training that was made with it can still be sampled and evaluated.
    """
    merge = _Merge()
    if isinstance(values, dict):
        merge.add(leaves(values), "stored configuration")
    else:
        merge.errors.append(f"stored configuration: holds {type(values).__name__} in place of keys and values")
    return merge.finish()


def to_yaml(cfg: DictConfig) -> str:
    """Every key with its value, ready to be stored and read back by `from_dict(read_yaml(...))`."""
    return dump_yaml(OmegaConf.to_container(cfg, resolve=True))  # resolved is only how `${` is written inside OmegaConf


class _Merge:
    """A configuration in the making: values from several origins, and every error met on the way."""

    def __init__(self) -> None:
        self.cfg = OmegaConf.structured(Config)
        self.chosen: set[str] = set()
        self.errors: list[str] = []
        self.notes: list[str] = []
        self.batch_size = 1

    def words(self, words: list[str]) -> dict[str, Any]:
        """The values of `key=value` words."""
        found = {}
        for word in words:
            name, _, text = word.partition("=")
            name = name.strip()
            try:
                value = _as_text(name, text) if _takes_text(name, text) else read_yaml(text, brief(name))
                found |= leaves({name: value})
            except UserError as error:
                self.errors.append(f"command line: {error}")
        if BASE in found:
            self.errors.append(f"command line: {BASE}: only a file has one; give --config FILE twice, the base first")
            del found[BASE]
        if CHOSEN in found:
            self.errors.append(f"command line: {CHOSEN}: the program writes this list by itself; leave it out")
            del found[CHOSEN]
        if found.get(FALLBACK) is not None:
            self.errors.append(f"command line: {FALLBACK}: only null, which turns it off, can be given here")
        return found

    def add(self, values: dict[str, Any], origin: str) -> None:
        """Set the dotted keys `values`, old ones as what they mean today, and note that they were chosen.

        A stored configuration holds every key; of these only the ones in its `chosen` list count as chosen.
        """
        listed, now, replacements = values.get(CHOSEN), {}, {}
        if listed is not None and not (
            isinstance(listed, list) and all(isinstance(name, str) and name in values for name in listed)
        ):
            self.errors.append(f"{origin}: {CHOSEN}: the program writes this list by itself; take it out of the file")
            listed = None
        for path, value in values.items():
            try:
                if path == CHOSEN:
                    continue
                if path == BATCH_SIZE:
                    self.batch_size = batch_size(value)
                    continue
                old = modernise(path, value)
            except ValueError as error:
                self.errors.append(f"{origin}: {path}: {error}")
                continue
            if old is None:
                now[path] = value
                continue
            replacement, reason = old
            replacements |= replacement
            if reason:
                self.notes.append(f"note: {path} ({origin}): {reason}")
        now |= replacements  # after the rest: an old key may refine what today's key says
        self._leave_out_caption(now, origin)
        written = {path for path, value in now.items() if self._set(path, value, origin)}
        self.chosen = (self.chosen - now.keys()) | (written if listed is None else written & set(listed))

    def _leave_out_caption(self, now: dict[str, Any], origin: str) -> None:
        """Forget the caption of an earlier origin's clip where this one names another clip and no caption for it."""
        data, clip = self.cfg.train_data, now.get(CLIP)
        if CAPTION in now or not (data.single_video_prompt and data.single_video_path and isinstance(clip, str)):
            return
        if os.path.realpath(locate(clip)) != os.path.realpath(locate(data.single_video_path)):
            self.notes.append(
                f"note: {origin} names another clip, so the caption {shown(data.single_video_prompt)} is left out; "
                f"give {CAPTION}, or write a .txt beside the clip"
            )
            data.single_video_prompt = ""
            self.chosen.discard(CAPTION)

    def _set(self, path: str, value: Any, origin: str) -> bool:
        """Whether the key now has that value, and not its default or an error."""
        if path in SECTIONS:
            if value is not None:  # an empty section is written as `validation_data:` and keeps its defaults
                self.errors.append(f"{origin}: {path}: {shown(value)} in place of the section's own keys")
            return False
        if path not in KEYS:
            near = did_you_mean(nearest_keys(path[:80])) or "; --help lists the keys"
            self.errors.append(f"{origin}: {brief(path)}: unknown key{near}")
            return False
        if path == BASE and value is not None:
            self.errors.append(f"{origin}: {BASE}: only a file has one; set the keys themselves")
            return False
        if (path, value) == ("method", "guidance"):  # alone: nothing else that a training lacks matters then
            raise UserError(f"{origin}: method: {NO_TRAINING}")
        entry, given = KEYS[path], value is not None
        if value is False and path in YAML_BOOLEANS:
            value = YAML_BOOLEANS[path]
        if isinstance(value, str) and type_words(entry) in LISTS:
            value = [value]
        if value is None and type(None) not in get_args(entry.type):
            value = default_of(entry)
        elif value is None:
            given = True
        if reason := unfit(entry, value):
            self.errors.append(f"{origin}: {path}: {reason}")
            return False
        try:
            OmegaConf.update(self.cfg, path, _escaped(value))
        except (OmegaConfBaseException, ValueError, TypeError, OverflowError):
            self.errors.append(
                f"{origin}: {path}: {shown(value)} cannot be read as {type_words(entry)}; give such a value"
            )
            return False
        return given

    def finish(self, asked: bool = False, whole: bool = True) -> DictConfig:
        """Fill in what follows from other keys, check limits, and raise every error together.

        A key without effect is an error only in what a person has `asked` for now, and keys that contradict each other
        only in a `whole` configuration: where a file could not be read, what it says is missing.
        """
        cfg, chosen = self.cfg, self.chosen
        for text in self.notes:
            note(text)
        if self.batch_size > 1:
            cfg.gradient_accumulation_steps *= self.batch_size
            chosen.add("gradient_accumulation_steps")
            count = cfg.gradient_accumulation_steps
            note(f"note: {BATCH_SIZE}: clips are accumulated: gradient_accumulation_steps is {count}")
        followed = set()
        for path, source in FOLLOWS.items():
            if OmegaConf.select(cfg, path) is None:
                OmegaConf.update(cfg, path, OmegaConf.select(cfg, source))
                followed.add(path)  # an error of the source is reported there
                chosen.discard(path)  # where null was chosen, it stands for whatever the source holds
                if source in chosen:
                    chosen.add(path)
        for path in INPUT_PATHS:
            if value := OmegaConf.select(cfg, path):
                located = locate(value)
                OmegaConf.update(cfg, path, value if located == Path(value) else str(located))
        for path in OUTPUT_PATHS:
            cfg[path] = os.path.expanduser(cfg[path])
        for path, entry in KEYS.items():
            if path not in followed:
                self.errors += beyond(path, OmegaConf.select(cfg, path), entry.metadata)
        if whole:
            self.errors += contradictions(cfg) + (without_effect(cfg) if asked else [])
        if self.errors:
            raise UserError(together(self.errors))
        cfg[CHOSEN] = [path for path in KEYS if path in chosen]
        return cfg


def _takes_text(name: str, text: str) -> bool:
    """Whether a word's text is meant as it is, because its key takes text (a caption may hold any sign)."""
    kind = type_words(KEYS[name]) if name in KEYS else ""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    listed = kind in LISTS and text.startswith("[") and text.endswith("]")
    return kind in ("str", "str or null", *LISTS) and not (quoted or listed or text in ("", "null"))


def _as_text(name: str, text: str) -> str | list[str]:
    return [text] if type_words(KEYS[name]) in LISTS else text


def _escaped(value: Any) -> Any:
    """`value` as OmegaConf must be given it to hold it literally: a `${` that it is to leave alone gets a backslash."""
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:
        return re.sub(r"(\\*)\$\{", lambda found: 2 * found[1] + "\\${", value)
    return value


if __name__ == "__main__":
    print(markdown_tables())
