"""Prompt files: a prompt a line, and options of its own behind it, as people write them for other trainers.

    a red car drives away
    a boat on a lake --w 384 --h 256 --f 24 --d 42 --s 20 --g 3 --n "blurred, dark"

Empty lines and those that begin with # are skipped. A line's options stand over the command's flags. Only ` --` and a
letter begins an option: for a prompt that holds these signs write `\\--`. Imports nothing slow.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.checks import written
from configs.errors import UserError, printable, shown
from configs.plain import read_text
from infer.choices import check_of

OPTIONS = {  # option -> the flag of infer/infer.py that it stands for
    "w": "width",
    "h": "height",
    "f": "num_frames",
    "d": "seed",
    "s": "num_steps",
    "g": "guidance_scale",
    "n": "negative_prompt",
}
BEGINS = re.compile(r"(?:^|(?<=\s))--([A-Za-z][\w-]*)(?:=|(?=\s|$))")  # `\--` does not, and neither does ` -- `


@dataclass(frozen=True)
class Line:
    """A prompt with the flags that its line sets; `seed` among them is one number."""

    prompt: str
    flags: dict[str, Any] = field(default_factory=dict)


def read_prompt_file(path: str) -> list[Line]:
    """The lines of the file `path` that hold prompts. Raises UserError, naming file and line, for any other option."""
    origin = f"--prompt_file: {printable(path)}"
    lines = [line.strip() for line in read_text(Path(path), origin).split("\n")]
    found = [
        _read(line, f"{origin}, line {number}")
        for number, line in enumerate(lines, 1)
        if line and not line.startswith("#")
    ]
    if not found:
        raise UserError(f"{origin} holds no prompt ({len(lines)} lines, empty or with #); write one a line")
    return found


def _read(line: str, where: str) -> Line:
    prompt, *rest = BEGINS.split(line)  # prompt, name, value, name, value, ...
    flags: dict[str, Any] = {}
    for name, value in zip(rest[::2], rest[1::2], strict=True):
        if name not in OPTIONS:
            raise UserError(
                f"{where}: --{shown(name)[1:-1]} is no option{_nearest(name)} For a prompt with these signs write \\--"
            )
        flag = OPTIONS[name]
        if flag in flags:
            raise UserError(f"{where}: --{name} is given twice; keep one")
        try:
            check = check_of(flag)
            flags[flag] = check(_unquoted(value)) if name == "n" else written(check)(value)
        except ValueError as error:
            raise UserError(f"{where}: --{name} is {shown(value.strip())}, {error}; correct it") from None
    if not prompt.strip():
        raise UserError(f"{where}: options without a prompt before them; say what the video shows")
    return Line(_plain(prompt), flags)


def _unquoted(value: str) -> str:
    value = value.strip()
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return _plain(value[1:-1] if quoted else value)


def _plain(words: str) -> str:
    return words.strip().replace("\\--", "--")


def _nearest(name: str) -> str:
    named = {flag: option for option, flag in OPTIONS.items()} | {option: option for option in OPTIONS}
    near = difflib.get_close_matches(name.replace("-", "_")[:40], named, 1, 0.5)
    return f"; did you mean --{named[near[0]]}?" if near else f"; there are --{', --'.join(OPTIONS)}."


def grouped(lines: list[Line]) -> Iterator[tuple[dict[str, Any], list[Line]]]:
    """Neighbouring lines with the same flags but for their seeds, and those flags."""
    group: list[Line] = []
    for line in lines:
        if group and _shared(group[0]) != _shared(line):
            yield _shared(group[0]), group
            group = []
        group.append(line)
    if group:
        yield _shared(group[0]), group


def _shared(line: Line) -> dict[str, Any]:
    return {name: value for name, value in line.flags.items() if name != "seed"}
