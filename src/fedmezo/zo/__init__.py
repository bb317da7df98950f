"""Zeroth-order mathematics on flat torch vectors: directions, estimates and exact replay. No models, no files."""
