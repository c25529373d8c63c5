"""The report as one HTML page that refers to nothing outside itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prunecli.exporting.write import write
from prunecli.reporting import columns, pictures
from prunecli.reporting.model import Report
from prunecli.reporting.pictures import Picture
from prunecli.reporting.structure import brief
from prunecli.reporting.terminal import value


def write_page(report: Report, path: str | Path) -> None:
    """Write the page, replacing `path` as a whole. Raises `PruneError` when the system refuses."""
    write(path, page(report).encode())


def page(report: Report) -> str:
    """The page; the same report gives the same text."""
    environment = Environment(
        loader=PackageLoader("prunecli.reporting"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for function in (columns.count, columns.size, columns.share, columns.milliseconds, brief):
        environment.filters[function.__name__] = function
    drawn = [(picture, Markup(picture.svg)) for picture in _pictures(report)]  # our own SVG, its text escaped
    return environment.get_template("report.html").render(
        report=report, columns=columns.overview(report.rows), pictures=drawn, value=value
    )


def _pictures(report: Report) -> Iterator[Picture]:
    for draw in (
        pictures.tradeoff, pictures.layers, pictures.curves, pictures.pruning, pictures.numbers, pictures.weights,
    ):  # fmt: skip
        drawn = draw(report.rows)
        if drawn:
            yield drawn
    yield from pictures.structures(report.rows)
