"""What a value out of a file must be: of its type, finite and within limits.

A check is a function from a value to the checked value that raises ValueError with the end of the sentence "key is x,
...". A schema is a dict from key to check, and `checked` applies one; `of_type` makes the check of a configuration
key from its field (configs/fields.py), so that files and the command line share one schema. Imports nothing slow.
"""

from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from configs.errors import UserError, shown

MOST_COUNT = 2**53  # whole numbers up to here are exact in every format
MOST_DIGITS = 200  # of a number that is written as a text

Check = Callable[[Any], Any]


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
        fits = type(value) in (int, float) and low <= value <= high  # which NaN is not
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
    """A value that passes at least one of `checks`; the first that accepts it converts it."""

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
    """A number that is written as a text, as on a command line and everywhere in the headers of safetensors files.

    Whatever is no number goes to `check` as None, which it must refuse.
    """

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


def single(kind: Any) -> Any:
    """The type of one value of a dataclass field: without null, and of a list that of its items."""
    if get_origin(kind) not in (list, Union, UnionType):
        return kind
    (part,) = (part for part in get_args(kind) if part is not type(None))
    return single(part)


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


def no_interval(ends: Sequence[float]) -> str | None:
    """Why `ends` are no guidance interval, the end of a sentence; None for two timesteps, 0 <= low <= high <= 1000."""
    if len(ends) == 2 and 0 <= ends[0] <= ends[1] <= 1000:
        return None
    return (
        f"{shown(list(ends))} is not a range of timesteps from low to high inside 0 to 1000; 0 1000 guides every step"
    )
