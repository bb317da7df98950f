"""Sums that show no part of themselves, and noise that hides whoever is in them: secure sums, clipping, accounting."""
