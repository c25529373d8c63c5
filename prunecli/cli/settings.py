"""`--method-arg help`: the settings of a method, as a table or with `--json`, whatever else is on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from prunecli.cli.output import emit
from prunecli.errors import UsageError, nearest
from prunecli.methods.gradual import GRADUAL, Setting, settings_of


@dataclass(frozen=True)
class Settings:
    """What a method takes."""

    method: str
    settings: tuple[Setting, ...]

    def data(self) -> dict[str, Any]:
        """The result for programs."""
        row = GRADUAL[self.method]
        settings = [asdict(setting) for setting in self.settings]
        return {"method": self.method, "summary": row.summary, "options": self._options(), "settings": settings}

    def text(self) -> str:
        """The result for people."""
        from prunecli.reporting.terminal import settings

        title = f"{self.method}: {GRADUAL[self.method].summary}"
        return settings(f"{title}\n{' '.join(self._options())}, and as --method-arg KEY=VALUE", self.settings)

    def _options(self) -> list[str]:
        return ["--" + key.replace("_", "-") for key in GRADUAL[self.method].takes]


def asked(arguments: Sequence[str]) -> bool:
    """Do the arguments of `prunecli` have `--method-arg help`?"""
    return arguments[:1] in (["train"], ["prune"]) and "help" in _values(arguments, "--method-arg")


def show(arguments: Sequence[str]) -> None:
    """Print the settings of their `--method`. Raises `UsageError` for one without."""
    names = _values(arguments, "--method")
    if not names or names[-1] not in GRADUAL:
        problem = f"--method {names[-1]} has no settings" if names else "--method is missing"
        raise UsageError(f"--method-arg help: {problem}", nearest(names[-1] if names else "", GRADUAL))
    emit(Settings(names[-1], settings_of(names[-1])), as_json="--json" in arguments)


def _values(arguments: Sequence[str], flag: str) -> list[str]:
    """What follows a flag, in `--flag value` and `--flag=value`."""
    after = [value for key, value in pairwise(arguments) if key == flag]
    return after + [word.removeprefix(f"{flag}=") for word in arguments if word.startswith(f"{flag}=")]
