"""Cases that once broke the property, by area: each is tried again on every run."""

from typing import Any

FOUND: dict[str, list[Any]] = {}
