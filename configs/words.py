"""The words of train.py's command line: which are files, which are keys, and what a wrong one may have meant."""

import difflib
import re
import sys

from configs.errors import UserError
from configs.fields import KEYS
from configs.layers import brief
from configs.limits import did_you_mean
from configs.tables import help_text

MOST_ERRORS = 20


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
            hint = did_you_mean(_meant(word, rest))
            errors.append(f"{brief(word)}: not understood{hint}; give --config FILE or key=value")
    if errors:
        raise UserError(together(errors))
    return files, words, dry_run


def _meant(word: str, rest: list[str]) -> list[str]:
    """What somebody may have meant by `word`: a flag, or, as in `--threads 2`, a key with the value behind it.

    That value is taken off `rest`, the words that follow.
    """
    if close := difflib.get_close_matches(word[:80], ["--config", "--dry-run", "--help"], 1, 0.7):
        return close
    named = word[:80].removeprefix("--").replace("-", "_")
    near = [named] if named in KEYS else nearest_keys(named)
    if not near or not word.startswith("--"):
        return []
    return [f"{near[0]}={rest.pop(0) if rest and not re.match('--|.*=', rest[0]) else 'VALUE'}"]


def nearest_keys(path: str) -> list[str]:
    """The keys that somebody who wrote `path` may have meant, the nearest first."""
    last = path.split(".")[-1]
    return (
        [name for name in KEYS if name.split(".")[-1] == last][:2]
        or difflib.get_close_matches(path, KEYS, 1, 0.7)
        or [name for name in KEYS if difflib.get_close_matches(last, [name.split(".")[-1]], 1, 0.75)][:1]
    )


def together(errors: list[str]) -> str:
    """All of the sentences as one text: the only one as it is, several as a list with their number."""
    rest = [f"and {len(errors) - MOST_ERRORS} more"] if len(errors) > MOST_ERRORS else []
    lines = [f"{len(errors)} things are wrong:", *errors[:MOST_ERRORS], *rest]
    return errors[0] if len(errors) == 1 else "\n  ".join(lines)
