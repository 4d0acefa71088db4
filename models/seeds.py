"""Where every random number comes from: a generator seeded by what it is for."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """One generator seed for a tuple such as (seed, step, micro); unlike sums, different tuples do not collide."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest(), "big")
