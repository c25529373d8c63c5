"""Finding the files of a data set in the folder that the user named or in its usual subfolders."""

from __future__ import annotations

from pathlib import Path

from prunecli.data.base import Request
from prunecli.errors import DamagedError, UsageError


def folder_of(request: Request) -> Path:
    """The folder that was named. Raises `UsageError` for none, `DamagedError` where there is none."""
    if request.directory is None:
        raise UsageError(f"data source {request.name} needs a folder", f"write --data {request.name}:DIR")
    if not request.directory.is_dir():
        raise DamagedError(
            f"{request.directory}: there is no such folder",
            f"write --data {request.name}:DIR with the folder of its files",
        )
    return request.directory


def first_with(folder: Path, subfolders: tuple[str, ...], names: tuple[str, ...]) -> Path | None:
    """The first of `folder` and its `subfolders` that holds a file of one of `names`."""
    for place in (folder, *(folder / subfolder for subfolder in subfolders)):
        if any((place / name).is_file() for name in names):
            return place
    return None
