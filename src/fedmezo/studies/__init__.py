"""Measurements around a run: which eps and rate suit it, and the theory's constants on it."""
