"""The configuration that a file carries: a checkpoint's header, a sidecar, a training state.

It passes the same schema as the command line (configs/fields.py), key by key, and stays as it is written: `${...}` is
text and is never looked up, so a file cannot read the environment of whoever opens it.
"""

from collections.abc import Mapping
from typing import Any

from configs.checks import checked, listed, of_type, text
from configs.errors import UserError, shown
from configs.fields import CHOSEN, KEYS, SECTIONS
from configs.legacy_keys import modernise
from configs.plain import read_yaml

ADVICE = "the file is damaged or of another version of this project; use another"


def stored_config(source: Any, origin: str) -> dict[str, Any]:
    """The keys that a stored configuration holds, as plain nested dicts of checked values.

    `source` is YAML text or plain data that was read before; `chosen` lists the keys that somebody set. Keys that it
    does not hold are not filled in, so that nobody's default passes for its choice. Raises UserError, naming `origin`,
    for anything outside the schema.
    """
    values = read_yaml(source, f"{origin}: its configuration") if isinstance(source, str) else source
    origin = f"{origin}: its configuration"
    if not isinstance(values, Mapping):
        raise UserError(f"{origin} is {shown(values)} in place of keys and values; {ADVICE}")
    found: dict[str, Any] = {}
    for path, value in _leaves(values, origin).items():
        if path == CHOSEN:
            named = checked({path: value}, {path: listed(text())}, origin, advice=ADVICE)[path]
            today = [key for name in named for key in _today(name, None, origin)]
            found |= checked({path: today}, {path: listed(text(choices=tuple(KEYS)))}, origin, advice=ADVICE)
            continue
        for key, current in _today(path, value, origin).items():
            if key not in KEYS:
                raise UserError(f"{origin}: {shown(key)} is no key of this project; {ADVICE}")
            kept = checked({key: current}, {key: of_type(KEYS[key].type, KEYS[key].metadata)}, origin, advice=ADVICE)
            section, _, name = key.rpartition(".")
            (found.setdefault(section, {}) if section else found)[name] = kept[key]
    return found


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key in a configuration of nested sections, None where it has none."""
    section, _, name = key.rpartition(".")
    inside = (config.get(section) or {}) if section else config
    return inside.get(name)


def _leaves(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Dotted key -> value, sections opened."""
    found = {}
    for name, value in values.items():
        if name not in SECTIONS:
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif value is not None:
            raise UserError(f"{origin}: {name} is {shown(value)} in place of the section's own keys; {ADVICE}")
    return found


def _today(path: str, value: Any, origin: str) -> dict[str, Any]:
    """What a key of an older version means today: the same, another key, or nothing."""
    try:
        old = modernise(path, value)
    except (ValueError, TypeError) as error:
        raise UserError(f"{origin}: {path}: {error}") from None
    return {path: value} if old is None else old[0]
