"""Runs made visible: videos of a run for some prompts, and pictures that put them beside the reference clip."""
