"""Prints the reference page of the configuration: python -m fedmezo.config > docs/config.md."""

from fedmezo.config.describe import reference_page

print(reference_page(), end="")
