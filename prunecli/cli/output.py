"""Results on stdout: what a person reads, or one JSON document."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol


class Result(Protocol):
    """What a command's function returns: `text()` for people, `data()` for programs."""

    def text(self) -> str: ...

    def data(self) -> dict[str, Any]: ...


def emit(result: Result, as_json: bool) -> None:
    """Print a result."""
    sys.stdout.write((json.dumps(result.data(), indent=1) if as_json else result.text()).rstrip("\n") + "\n")
