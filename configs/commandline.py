"""The parser of every command's flags. Imports nothing slow."""

import argparse
import difflib

from configs.errors import printable

MOST_LETTERS = 300  # of a refused flag's message


class Parser(argparse.ArgumentParser):
    """Wrong flags end in one line with the nearest right one and exit code 2, not in the list of all.

    The description keeps its lines, so that a command's docstring can be one.
    """

    def __init__(self, *args, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs):
        super().__init__(*args, formatter_class=formatter_class, **kwargs)

    def error(self, message: str):
        wrong = [word for word in message.split() if word.startswith("-")] if "unrecognized" in message else []
        near = difflib.get_close_matches(wrong[0], self._option_string_actions, 1) if wrong else []
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
        hint = "give one of the two" if "not allowed with" in message else hint
        message = printable(message if len(message) <= MOST_LETTERS else f"{message[:MOST_LETTERS]}...")
        self.exit(2, f"error: {message}; {hint}\n")
