"""Clips: where they come from, how they are cut, what is computed from them once."""
