"""Strategies for values that a file or a command line should not hold, and for files that were damaged."""

import json
from typing import Any

from hypothesis import strategies as st

SECRET = "FUZZ_SECRET"  # a variable of the environment that nothing may print
YAML_BOMB = "a: &a [x,x,x]\n" + "".join(f"{c}: &{c} [*{b},*{b},*{b}]\n" for b, c in zip("abcdefgh", "bcdefghi"))
NASTY = [
    "", " ", "x", "null", "nan", "inf", "-inf", "1e999", "1e300", "0", "-1", "-7", "0.5", "1_000", "0x10", "1:30",
    "yes", "2020-99-99", "9" * 400, "9" * 5000, "x" * 3000, "../../x", "/etc/passwd", "/proc/x", "~/x", "CON",
    "a\0b", "a\nb", "\ud800",
    "\x1b[31m", "\u202e", "été", "🐎", "[", "[[[[", "{", "{}", "[]", "]", "a: b", "- a", "&a", "*a",
    "!!x y",
    "!!python/object/apply:os.system ['touch executed']", "!!timestamp 2020-99-99", "!!int x", YAML_BOMB,
    "${oc.env:" + SECRET + "}", "\\${oc.env:" + SECRET + "}", "${seed}", "${nope}", "${" * 500,
    "<script>", "$(touch x)",
]  # fmt: skip

texts = st.one_of(st.sampled_from(NASTY), st.text(max_size=30))
numbers = st.one_of(
    st.integers(-3, 70),
    st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**12, 10**30, -(10**12), 8, 64, 1000]),
    st.floats(allow_nan=True, allow_infinity=True),
)
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)


def json_text(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[str]:
    """What `strategy` gives as JSON, or text that is none, is nested too deep, or holds an endless number."""
    broken = [
        "",
        "[" * 100_000,
        '{"a":' * 5000,
        "1" * 5000,
        '"\\ud800"',
        "{'a': 1}",
        "[1, 2",
        "NaN",
        '{"a": 1e999}',
        "\ufeff{}",
    ]
    return st.one_of(strategy.map(json.dumps), strategy.map(json.dumps), st.sampled_from(broken), texts)


def changes(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of `keys` with other values: their own strategy's, or anything."""
    pairs = [st.tuples(st.just(key), strategy | values) for key, strategy in keys.items()]
    return st.lists(st.one_of(pairs), min_size=1, max_size=3).map(dict)


# (share of the file that is left, bits to flip as (share of the file, bit))
damage = st.tuples(
    st.one_of(st.just(1.0), st.floats(0, 1)), st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 7)), max_size=6)
)


def damaged(content: bytes, case: tuple[float, list[tuple[float, int]]]) -> bytes:
    """`content` with a case of `damage` done to it."""
    share, flips = case
    spoiled = bytearray(content)
    for place, bit in flips:
        spoiled[int(place * len(spoiled))] ^= 1 << bit
    return bytes(spoiled[: int(len(spoiled) * share)])
