"""Typed configuration and the errors a person can act on. Imports neither torch nor diffusers."""
