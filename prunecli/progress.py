"""What a run tells the person who waits: lines on stderr, and on a terminal a status line that rewrites itself."""

from __future__ import annotations

import os
import sys
import time
from typing import Protocol, TextIO


class Say(Protocol):
    """Receives progress. `say(text)` is a line that stays; `say.status(text)` is replaced by whatever comes next.

    `say.clear()` removes a status before anything else is printed.
    """

    def __call__(self, text: str) -> None: ...

    def status(self, text: str) -> None: ...

    def clear(self) -> None: ...


class Silent:
    """Says nothing: the default of the Python API, and `--quiet`."""

    def __call__(self, text: str) -> None:
        pass

    def status(self, text: str) -> None:
        pass

    def clear(self) -> None:
        pass


silent = Silent()


class Stderr:
    """Lines on stderr; a status line, at most ten times a second, only when stderr is a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.live = self.stream.isatty()
        self.shown = 0.0
        self.dirty = False

    def __call__(self, text: str) -> None:
        self.clear()
        print(text, file=self.stream, flush=True)

    def status(self, text: str) -> None:
        now = time.monotonic()
        if self.live and now - self.shown >= 0.1:
            self.shown, self.dirty = now, True
            self.stream.write("\r\x1b[2K" + text[: self._width() - 1])
            self.stream.flush()

    def clear(self) -> None:
        if self.dirty:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()
            self.dirty = False

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 120
        except OSError:
            return 120


def short(value: float) -> str:
    """Three digits, and from a thousand to a trillion k, M or G: 0.0123, 61.7k."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if 1e12 > value >= 0.9995 * size:
            return f"{value / size:.3g}{unit}" if value < 999.5 * size else f"{value / size:.0f}{unit}"
    return f"{value:.3g}"
