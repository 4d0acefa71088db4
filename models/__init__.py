"""The frozen text-to-video backbone and everything that is attached to it."""
