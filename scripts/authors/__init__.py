"""Agreement with the authors' code: their numbers, and the cases that are compared with them."""
