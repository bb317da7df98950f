"""YAML and command-line overrides to a validated, frozen configuration, without importing torch."""

from fedmezo.config.load import Loaded, load_config
from fedmezo.config.overrides import as_overrides, flatten
from fedmezo.config.schema import Config

__all__ = ["Config", "Loaded", "as_overrides", "flatten", "load_config"]
