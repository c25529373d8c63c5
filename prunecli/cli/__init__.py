"""The command line: an app made from the option dataclasses, and the one boundary that prints errors."""

from prunecli.cli.boundary import main

__all__ = ["main"]
