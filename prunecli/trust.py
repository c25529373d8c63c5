"""Importing what a user or a checkpoint names, `package.module:function`, only where the user trusts the module."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from prunecli.errors import UsageError, nearest

SPEC = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_spec(text: str) -> bool:
    """Whether `text` has the form `package.module:function`."""
    return SPEC.fullmatch(text) is not None


def load_object(spec: str, trust: Collection[str]) -> Any:
    """The object that `spec` names, such as `package.module:function`; its module must be in `trust`, exactly.

    The current folder is importable while the module is imported, after everything installed: a stray file there never
    stands in for the standard library. What a trusted module has itself imported (`mine:os.system`) is not trusted with
    it. Raises `UsageError` for a name of another form, a module that is not trusted, one that cannot be imported, and
    one without the object.
    """
    if not is_spec(spec):
        raise UsageError(f"{spec!r} names no object", "write it as package.module:function")
    module_name, _, path = spec.partition(":")
    if module_name not in trust:
        raise UsageError(
            f"{spec} is code outside prunecli, and importing it would run it",
            f"add --trust {module_name} if you trust it",
        )
    found: Any = _import(module_name)
    for part in path.split("."):
        if part.startswith("_") or not hasattr(found, part):
            raise UsageError(f"{spec}: there is no public {part!r} in {module_name}", nearest(part, _public(found)))
        found = getattr(found, part)
        _refuse_foreign(found, spec, module_name)
    return found


def _refuse_foreign(found: Any, spec: str, module_name: str) -> None:
    """Raise `UsageError` for a module, and for code that was defined in another package than the trusted one."""
    is_module = isinstance(found, ModuleType)
    owner = found.__name__ if is_module else str(getattr(found, "__module__", None))
    if is_module or (callable(found) and owner.partition(".")[0] != module_name.partition(".")[0]):
        raise UsageError(
            f"{spec} is code of {owner}, which {module_name} only imports",
            f"name it by its own module, or define a function in {module_name} that calls it",
        )


def _import(name: str) -> Any:
    folder = str(Path.cwd())
    sys.path.append(folder)
    try:
        return importlib.import_module(name)
    except Exception as error:  # a foreign module may raise anything while it is imported
        raise UsageError(
            f"importing {name} failed: {type(error).__name__}: {error}",
            "run the command in the folder that holds the module, or install its package",
        ) from error
    finally:
        sys.path.remove(folder)


def _public(owner: Any) -> list[str]:
    return [name for name in dir(owner) if not name.startswith("_")]
