"""The command line that the benchmarks with a table of runs on MNIST share: it goes on where it was stopped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Case = tuple


def main(
    script: str,
    about: str | None,
    cases: Sequence[Case],
    make: Callable[[Path, str, Case], None],
    table: Callable[[Path], str],
) -> None:
    """Run the `cases` of a script, and write its table after each."""
    results = Path(script).parent / "results" / Path(script).with_suffix(".md").name
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", metavar="DIR", help="folder of the data set")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where checkpoints go")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--table", action="store_true", help="train nothing")
    options = parser.parse_args()
    if not options.table and not options.mnist:
        sys.exit("--mnist is missing")
    options.out.mkdir(parents=True, exist_ok=True)
    for case in [] if options.table else cases:
        make(options.out, options.mnist, case)
        write(options.results, table(options.out))
    write(options.results, table(options.out))


def write(results: Path, text: str) -> None:
    """Write the table; sections below it, which people wrote, stay."""
    _, heading, sections = results.read_text("utf-8").partition("\n## ") if results.exists() else ("", "", "")
    results.write_text(text + heading + sections, encoding="utf-8")
