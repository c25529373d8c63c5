"""The one place that prints errors and chooses exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from prunecli.errors import PruneError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `prunecli` program."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an error becomes one `error:` and one `hint:` line on stderr."""
    with _signals() as received:
        try:
            code = _carry_out(arguments)
        except BaseException as error:
            # code that the signal broke into may have made another error of it
            code = 1 if received else _explain(error, debug="--debug" in arguments)
        if code and received:
            _print("interrupted", "files that were not finished are as they were before; run the command again")
            return 128 + received[-1]
        return code


def _carry_out(arguments: list[str]) -> int:
    from prunecli.cli import settings
    from prunecli.cli.app import app

    if settings.asked(arguments):
        settings.show(arguments)
        return 0
    code = app(arguments, prog_name="prunecli", standalone_mode=False)
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM interrupt what is going on, whatever that is, and are listed in what this yields.

    A run in progress handles the first one itself, in order to save itself (`training.interrupt`).
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        received.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # as of Ctrl-C for what a shell runs in the background
                signal.signal(number, interrupt)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: BaseException, *, debug: bool) -> int:
    """Print an error that is no bug, and return its exit code. Raises the others again."""
    if debug and isinstance(error, PruneError | OSError):
        traceback.print_exception(error)
    if isinstance(error, PruneError):
        _print(error.message, error.hint)
        return error.exit_code
    if isinstance(error, BrokenPipeError):  # the reader of our stdout went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        _print(f"{where}{error.strerror or error}", "check the path, its permissions and the space left on the disk")
        return 1
    if _is_out_of_memory(error):
        _print(f"out of memory: {error}", "use a smaller --batch-size")
        return 1
    # typer's own usage errors carry format_message(); their classes moved between its versions
    if hasattr(error, "format_message"):
        context = getattr(error, "ctx", None)
        _print(error.format_message(), f"see '{context.command_path if context else 'prunecli'} --help'")
        return 2
    raise error


def _is_out_of_memory(error: BaseException) -> bool:
    """Python's error, or torch's: of its own class on a GPU, a plain RuntimeError on the CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _print(message: str, hint: str) -> None:
    for kind, text in (("error", message), ("hint", hint)):
        print(f"{kind}: {' '.join(text.split())}", file=sys.stderr)
