"""The networks: a file a family, found by name through one table. Importing this loads no torch."""

from prunecli.models.registry import build, describe, input_shape, names, options

__all__ = ["build", "describe", "input_shape", "names", "options"]
