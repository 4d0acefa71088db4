"""The gate for everything that is read from a file: plain data of bounded size, before any value is used.

`read_json`, `read_yaml` and `read_csv` give texts, numbers, booleans, None, lists and dicts by text, nothing else: no
tags, no aliases, no interpolation, and no text that a path cannot hold. What the values must be is written with the
checks of configs/checks.py. Everything that is wrong is a `UserError` that names the file. Imports nothing slow.
"""

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from configs.errors import UserError, printable, shown

MOST_BYTES = 16 << 20  # of JSON and CSV; a list of a hundred thousand clips
MOST_YAML = 256 << 10  # its parser takes seconds for this; a configuration has 4 KB
MOST_DEPTH = 40
MOST_DIGITS = 200  # of one number, which is then a float too; Python refuses 4300

NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what no path and no UTF-8 file can hold
EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+")  # 1e-3, which YAML 1.1 takes for a text


def read_text(path: Path, origin: str | None = None, most: int = MOST_BYTES) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes, without a byte order mark, its lines ending in \\n."""
    origin = origin or printable(str(path))
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise UserError(f"{origin}: is {'a folder' if path.is_dir() else 'no regular file'}; point it at a file")
        with open(path, "rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{origin}: cannot be read ({error.strerror}); point it at an existing file") from None
    except ValueError as error:  # a path that no file can have
        raise UserError(f"{origin}: cannot be read ({error}); point it at an existing file") from None
    if len(content) > most:
        size = max(len(content), os.path.getsize(path))
        raise UserError(f"{origin}: has {size:,} bytes, more than the {most:,} that are read; give a smaller file")
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        raise UserError(f"{origin}: not a text file in UTF-8; save it as UTF-8 text") from None


def read_json(source: Path | str, origin: str | None = None, most: int = MOST_BYTES) -> Any:
    """Plain data from a JSON file (a Path) or from JSON text (a str), named `origin` in messages."""
    text, origin = _text(source, origin, most)
    try:
        return _plain(json.loads(text, parse_int=_integer), origin)
    except RecursionError:
        raise UserError(f"{origin}: is nested more than {MOST_DEPTH} levels deep; give a flatter file") from None
    except ValueError as error:
        raise UserError(f"{origin}: not valid JSON ({shown_error(error)}); correct it, or copy it again") from None


def read_yaml(source: Path | str, origin: str | None = None, most: int = MOST_YAML) -> Any:
    """Plain data from a YAML file (a Path) or from YAML text (a str), named `origin` in messages."""
    text, origin = _text(source, origin, most)
    try:
        return _plain(yaml.load(text, _PlainLoader), origin)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{origin}: not plain YAML ({shown_error(error)}); correct it, or copy it again") from None


def read_csv(source: Path | str, origin: str | None = None, most: int = MOST_BYTES) -> list[dict[str, str]]:
    """The rows of a CSV file with a heading line, by column; cells without a column or a value are left out."""
    text, origin = _text(source, origin, most)
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise UserError(f"{origin}: not valid CSV ({shown_error(error)}); correct it there") from None
    return _plain([{key: v for key, v in row.items() if key is not None and v is not None} for row in rows], origin)


def dump_yaml(data: Any) -> str:
    """Plain data as YAML text that `read_yaml` reads back to the same values."""
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


def shown_error(error: Exception) -> str:
    """A library's message on one line of at most 160 characters."""
    text = printable(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= 160 else f"{text[:157]}..."


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, merge keys, tags and dates, nested at most MOST_DEPTH levels."""

    depth = 0

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not read; write the value out")
        if getattr(event, "tag", None) is not None:
            raise ValueError(f"the tag {shown(event.tag, 60)} is not read; write plain values")
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise ValueError(f"nested more than {MOST_DEPTH} levels deep")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_yaml_int(self, node):
        if len(node.value) > MOST_DIGITS:
            raise ValueError(f"a number of {len(node.value)} digits")
        return super().construct_yaml_int(node)


class _PlainDumper(yaml.SafeDumper):
    """Quotes the texts that _PlainLoader, or any other reader of YAML 1.1, would read as something else."""


_DROPPED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _DROPPED]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.yaml_implicit_resolvers = _RESOLVERS
for _side in (_PlainLoader, _PlainDumper):
    _side.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def _text(source: Path | str, origin: str | None, most: int) -> tuple[str, str]:
    if isinstance(source, Path):
        return read_text(source, origin, most), origin or printable(str(source))
    if len(source) > most:
        raise UserError(f"{origin}: has {len(source):,} characters, more than the {most:,} that are read")
    return source, origin or "the text"


def _integer(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _plain(data: Any, origin: str) -> Any:
    """`data` if it is plain throughout. Walks without recursion, so that depth cannot hurt."""
    level = [data]
    for _ in range(MOST_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if wrong := [key for key in value if not isinstance(key, str)]:
                    raise UserError(f"{origin}: {shown(wrong[0])} is no key; keys are texts")
                below += [*value, *value.values()]
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str):
                if NO_TEXT.search(value):
                    raise UserError(f"{origin}: {shown(value)} holds a character that is no text; remove it")
            elif not isinstance(value, (bool, int, float, type(None))):
                raise UserError(f"{origin}: {shown(value)} is a {type(value).__name__}, no plain value")
        if not below:
            return data
        level = below
    raise UserError(f"{origin}: is nested more than {MOST_DEPTH} levels deep; give a flatter file")
