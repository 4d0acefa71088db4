"""What scripts/convert.py does: read any kind of adapter file, describe it, write another kind."""
