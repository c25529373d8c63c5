"""`--config FILE.toml`: options by name, at the top level for every command or in a table named after one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunecli.errors import UsageError, nearest


def read_config(path: str | None, command: str, known: dict[str, set[str]]) -> dict[str, Any]:
    """The options that `path` gives for `command`; `known` lists the options of every command.

    A top-level key counts for the commands that have such an option; a table's keys must all be that command's.
    Raises `UsageError` for a missing or malformed file and for keys that no command has.
    """
    if path is None:
        return {}
    import tomllib

    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        problem = getattr(error, "strerror", None) or error
        raise UsageError(f"--config {path}: {problem}", "give a readable TOML file") from error
    tables = {key: value for key, value in content.items() if isinstance(value, dict)}
    everything = set().union(*known.values())
    for table, values in tables.items():
        if table not in known:
            raise UsageError(f"--config {path}: no command named {table!r}", nearest(table, known))
        _refuse_unknown(path, values, known[table])
    plain = {key: value for key, value in content.items() if key not in tables}
    _refuse_unknown(path, plain, everything)
    merged = plain | tables.get(command, {})
    return {key.replace("-", "_"): value for key, value in merged.items() if key.replace("-", "_") in known[command]}


def _refuse_unknown(path: str, values: dict[str, Any], known: set[str]) -> None:
    for key in values:
        if key.replace("-", "_") not in known:
            raise UsageError(f"--config {path}: no option {key!r}", nearest(key, {k.replace("_", "-") for k in known}))
