"""The options of every command, as frozen dataclasses, from which the command line and the Python API are both made.

A field is `argument(help)` (positional) or `option(default, help)`; its flag is its name with dashes. Ranges are
checked in `__post_init__`, so that a wrong value fails the same way from a shell and from Python. Nothing here imports
torch.
"""

from prunecli.options.fields import argument, check, choice, option
from prunecli.options.shared import Execution, Recipe
from prunecli.options.values import Amount, parse_amount, parse_pairs

__all__ = [
    "Amount", "Execution", "Recipe", "argument", "check", "choice", "option", "parse_amount", "parse_pairs",
]  # fmt: skip
