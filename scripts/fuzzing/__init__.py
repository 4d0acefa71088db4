"""Malformed inputs of every kind, the functions of the commands they are given to, and what must hold afterwards.

tests/test_fuzz.py tries a few hundred of them, the same each time; scripts/fuzz.py as many as there are minutes.
"""
