"""Examples, who holds which of them, and their tokens."""
