"""Federated fine-tuning of language models with zeroth-order optimisation."""

__version__ = "0.1.0"
