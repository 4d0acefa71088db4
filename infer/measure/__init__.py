"""What measures finished videos; nothing that samples or trains imports it."""
