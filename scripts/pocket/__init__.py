"""How the pocket model and the rendered example clips are made."""
