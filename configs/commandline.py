"""The parser of the flags of every command but train.py, which takes key=value words. Imports nothing slow."""

import argparse
import difflib
from itertools import chain
from typing import NoReturn

from configs.errors import UserError, printable

MOST_LETTERS = 300  # of a refused flag's message


class Parser(argparse.ArgumentParser):
    """Raises UserError for a wrong flag, with one sentence that names the nearest flag there is.

    argparse itself would print every flag and exit; this way the caller decides, and `configs.errors.command` ends with
    one line. `--help` prints and exits. Flags cannot be abbreviated. The description keeps its line breaks, so that a
    command's docstring can be one.
    """

    def __init__(self, *args, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs):
        super().__init__(*args, formatter_class=formatter_class, allow_abbrev=allow_abbrev, **kwargs)

    def error(self, message: str) -> NoReturn:
        """Raises UserError: `message` on one line, with what to do. argparse comes here with all that it refuses."""
        shown = printable(message if len(message) <= MOST_LETTERS else f"{message[:MOST_LETTERS]}...")
        raise UserError(f"{shown}; {self._advice(message)}")

    def _advice(self, message: str) -> str:
        if "not allowed with" in message:
            return "give one of the two"
        wrong = [word.partition("=")[0] for word in message.split() if word.startswith("-")]
        if message.startswith("unrecognized arguments") and wrong:
            if near := difflib.get_close_matches(wrong[0], self._flags(), 1):
                return f"did you mean {near[0]}?"
        return "--help lists the flags"

    def _flags(self) -> list[str]:
        """Its own flags and those of its subcommands, whose unknown flags argparse reports here."""
        subcommands = (a.choices.values() for a in self._actions if isinstance(a, argparse._SubParsersAction))
        return [flag for parser in (self, *chain(*subcommands)) for flag in parser._option_string_actions]
