"""What scripts/app.py serves: one page from a clip to videos, made of the same commands that a terminal runs."""
