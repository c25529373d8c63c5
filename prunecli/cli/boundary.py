"""The one place that prints errors and chooses exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from prunecli.errors import Interrupted, PruneError


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `prunecli` program."""
    sys.exit(run(sys.argv[1:] if arguments is None else list(arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; an error becomes one `error:` and one `hint:` line on stderr."""
    from prunecli.cli.app import app

    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(arguments, prog_name="prunecli", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except PruneError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        _print(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        _print("interrupted", "nothing was written; run the command again")
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our stdout went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if "--debug" in arguments:
            traceback.print_exc()
        where = f"{error.filename}: " if error.filename else ""
        _print(f"{where}{error.strerror or error}", "check the path, its permissions and the space left on the disk")
        return 1
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
            _print(f"out of memory: {error}", "use a smaller --batch-size")
            return 1
        # typer's own usage errors carry format_message(); their classes moved between its versions
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        _print(error.format_message(), f"see '{context.command_path if context else 'prunecli'} --help'")
        return 2


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Interrupted("terminated", "nothing was written; run the command again", number)


def _print(message: str, hint: str) -> None:
    for kind, text in (("error", message), ("hint", hint)):
        print(f"{kind}: {' '.join(text.split())}", file=sys.stderr)
