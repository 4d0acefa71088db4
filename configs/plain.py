"""The gate for everything that is read from a file: plain data of bounded size, then values of the expected type.

`read_json`, `read_yaml` and `read_csv` give texts, numbers, booleans, None, lists and dicts by text, nothing else: no
tags, no aliases, no interpolation, and no text that a path or a terminal cannot hold. `checked` then compares them
with a schema, a dict from key to one of the checks below (`whole`, `real`, `text`, ...). Everything that is wrong is a
`UserError` that names the file and the key. Imports nothing slow.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from configs.errors import UserError, printable, shown

MOST_BYTES = 16 << 20  # of JSON and CSV; a list of a hundred thousand clips
MOST_YAML = 256 << 10  # its parser takes seconds for this; a configuration has 4 KB
MOST_DEPTH = 40
MOST_DIGITS = 200  # of one number, which is then a float too; Python refuses 4300
MOST_COUNT = 2**53  # whole numbers up to here are exact in every format

NO_TEXT = re.compile("[\0\ud800-\udfff]")  # what no path and no UTF-8 file can hold
EXPONENT = re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+")  # 1e-3, which YAML 1.1 takes for a text

Check = Callable[[Any], Any]  # a value in, the checked value out; ValueError with the rest of "key is x, ..."


def read_text(path: Path, origin: str | None = None, most: int = MOST_BYTES) -> str:
    """The UTF-8 text of a regular file of at most `most` bytes; a byte order mark is dropped."""
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
        return content.decode("utf-8-sig")
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


def to_yaml(data: Any) -> str:
    """Plain data as YAML text that `read_yaml` reads back to the same values."""
    return yaml.dump(data, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


def shown_error(error: Exception) -> str:
    """A library's message on one line of at most 160 characters."""
    text = printable(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= 160 else f"{text[:157]}..."


# ---- checks of single values ----


def whole(low: int = -MOST_COUNT, high: int = MOST_COUNT, multiple: int = 1) -> Check:
    """A whole number from `low` to `high`."""

    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high or value % multiple:
            steps = f" in steps of {multiple}" if multiple > 1 else ""
            raise ValueError(f"no whole number from {low} to {high}{steps}")
        return value

    return check


def real(low: float = -1e30, high: float = 1e30, above: float | None = None) -> Check:
    """A finite number from `low` (or above `above`) to `high`, as a float."""

    def check(value: Any) -> float:
        fits = type(value) in (int, float) and math.isfinite(value) and low <= value <= high
        if not fits or (above is not None and value <= above):
            edge = f"above {above:g}" if above is not None else f"from {low:g}"
            raise ValueError(f"no finite number {edge} to {high:g}")
        return float(value)

    return check


def text(most: int = 100_000, choices: tuple[str, ...] = ()) -> Check:
    """A text of at most `most` characters, one of `choices` where there are any."""

    def check(value: Any) -> str:
        if choices and value not in choices:
            raise ValueError(f"none of {', '.join(choices)}")
        if not isinstance(value, str) or len(value) > most:
            raise ValueError(f"no text of at most {most:,} characters")
        return value

    return check


def flag(value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("neither true nor false")
    return value


def listed(check: Check, least: int = 0, most: int = 100_000) -> Check:
    """A list of `least` to `most` values that pass `check`."""

    def check_all(value: Any) -> list:
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= most:
            raise ValueError(f"no list of {least} to {most:,} values")
        return [check(item) for item in value]

    return check_all


def maybe(check: Check) -> Check:
    """None, or what passes `check`."""
    return lambda value: None if value is None else check(value)


def either(*checks: Check) -> Check:
    """What passes the first of `checks` that it passes."""

    def check_any(value: Any) -> Any:
        reasons = []
        for check in checks:
            try:
                return check(value)
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(" and ".join(reasons))

    return check_any


def written(check: Check) -> Check:
    """A number that is written as a text, as the headers of safetensors files hold everything."""

    def check_text(value: Any) -> Any:
        if isinstance(value, str) and len(value) <= MOST_DIGITS:
            for kind in (int, float):
                try:
                    number = kind(value)
                except ValueError:
                    continue
                return check(number)
        return check(None)

    return check_text


def of_type(kind: Any, limits: Mapping[str, Any] = {}) -> Check:  # noqa: B006 (never changed)
    """The check for a dataclass field of type `kind` with the limits of its metadata (configs/fields.py)."""
    if kind is bool:
        return flag
    if kind is int:
        low = limits.get("low", limits["above"] + 1 if "above" in limits else -MOST_COUNT)
        return whole(low, limits.get("high", MOST_COUNT), limits.get("multiple", 1))
    if kind is float:
        return real(limits.get("low", -1e30), limits.get("high", 1e30), limits.get("above"))
    if kind is str:
        return text()
    if get_origin(kind) is Literal:
        return text(choices=get_args(kind))
    if get_origin(kind) is list:
        return listed(of_type(get_args(kind)[0], limits))
    parts = [part for part in get_args(kind) if part is not type(None)]
    if not parts:
        raise TypeError(f"no check for the type {kind}")
    check = either(*(of_type(part, limits) for part in parts))
    return maybe(check) if type(None) in get_args(kind) else check


def checked(
    values: Any,
    schema: Mapping[str, Check],
    origin: str,
    *,
    needed: tuple[str, ...] = (),
    advice: str = "copy it again from where it came from",
) -> dict[str, Any]:
    """The keys of `schema` that `values` holds, each after its check; other keys are left out.

    Raises UserError where `values` is no dict, a `needed` key is missing, or a value does not pass.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{origin}: holds a {type(values).__name__} in place of keys and values; {advice}")
    if missing := [key for key in needed if key not in values]:
        raise UserError(f"{origin}: has no {', '.join(missing)}; {advice}")
    found = {}
    for key, check in schema.items():
        if key in values:
            try:
                found[key] = check(values[key])
            except ValueError as error:
                raise UserError(f"{origin}: {key} is {shown(values[key])}, {error}; {advice}") from None
    return found


# ---- what keeps the data plain ----


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
    """Quotes exactly the texts that _PlainLoader would read as something else."""


_DROPPED = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
_RESOLVERS = {
    first: [(tag, pattern) for tag, pattern in pairs if tag not in _DROPPED]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_PlainLoader.yaml_implicit_resolvers = _PlainDumper.yaml_implicit_resolvers = _RESOLVERS
_PlainLoader.add_implicit_resolver("tag:yaml.org,2002:float", EXPONENT, list("-+.0123456789"))
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
