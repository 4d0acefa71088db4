"""What steps and methods cost: seconds, bytes and floating-point operations, on random weights."""
