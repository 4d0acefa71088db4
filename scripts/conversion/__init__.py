"""What scripts/convert.py does: read any kind of adapter file, say what it is, write another kind."""
