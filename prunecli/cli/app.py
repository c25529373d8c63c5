"""The typer app: one command a row of `COMMANDS`, its parameters made from the command's option dataclass."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from importlib import import_module
from typing import Annotated, Any, NamedTuple, get_type_hints

import msgspec
import typer

from prunecli.cli.config import read_config
from prunecli.cli.output import emit
from prunecli.errors import UsageError
from prunecli.options.export import ExportOptions
from prunecli.options.prune import PruneOptions
from prunecli.options.report import ReportOptions
from prunecli.options.rewind import RewindOptions
from prunecli.options.scratch import ScratchOptions
from prunecli.options.train import FinetuneOptions, TrainOptions
from prunecli.progress import Stderr, silent


class Row(NamedTuple):
    """A command: its options, what the list of commands says of it, and an example that runs after those above it."""

    options: type[Any]
    summary: str
    example: str


COMMANDS = {
    "train": Row(
        TrainOptions,
        "Train a network from new or given weights.",
        "prunecli train --arch lenet5 --data digits --epochs 15 --keep 0,2 -o base.safetensors",
    ),
    "prune": Row(
        PruneOptions,
        "Cut units off, or mask single weights.",
        "prunecli prune base.safetensors --method l1 --sparsity 0.5 -o cut.safetensors",
    ),
    "finetune": Row(
        FinetuneOptions,
        "Train a checkpoint on.",
        "prunecli finetune cut.safetensors --epochs 5 -o small.safetensors",
    ),
    "rewind": Row(
        RewindOptions,
        "Set a pruned network back to an earlier moment.",
        "prunecli rewind cut.safetensors --to base.epoch2.safetensors -o ticket.safetensors",
    ),
    "scratch": Row(
        ScratchOptions,
        "Train the pruned architecture from new weights.",
        "prunecli scratch cut.safetensors --budget B -o scratch.safetensors",
    ),
    "export": Row(
        ExportOptions,
        "Write a checked ONNX file.",
        "prunecli export small.safetensors -o small.onnx",
    ),
    "report": Row(
        ReportOptions,
        "Show what checkpoints cost and achieve.",
        "prunecli report base.safetensors small.safetensors --html report.html",
    ),
}

app = typer.Typer(
    name="prunecli",
    help="Prune neural networks by operating on checkpoint files.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: readable in 80 columns, and rich need not be imported
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from prunecli import __version__

        typer.echo(f"prunecli {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None: ...


def _parameter(field: Field[Any], kind: Any) -> inspect.Parameter:
    """One typer parameter. Options default to None, which means not given: config file and dataclass come next."""
    meta = field.metadata
    if meta.get("parse"):
        kind = str | None
    if kind == tuple[str, ...]:
        kind = list[str]
    if meta.get("argument"):
        marker = typer.Argument(help=meta["help"], metavar=meta["metavar"] or field.name.upper())
        # of many there may be none, which is for the command to judge
        annotation, default = (
            (Annotated[kind | None, marker], None)
            if meta["many"]
            else (Annotated[kind, marker], inspect.Parameter.empty)
        )
    else:
        flags = (meta["flag"] or "--" + field.name.replace("_", "-")).split("/")
        if kind is bool and field.default is False:
            flags = ["--" + field.name.replace("_", "-")] if not meta["flag"] else flags
        elif kind in (bool, bool | None):
            flags = [flags[0] + "/--no-" + flags[0].removeprefix("--")]
        text = meta["help"]
        if field.default not in (None, MISSING, False, (), ""):
            text = f"{text.removesuffix('.')} (default: {field.default})."
        marker = typer.Option(*flags, help=text, metavar=meta["metavar"], show_default=False)
        annotation, default = Annotated[kind | None, marker], None
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _own_first(options: type[Any]) -> list[Field[Any]]:
    """The fields of an options class: its own, then those of the classes that it shares with other commands."""
    rank = {
        name: depth
        for depth, c in reversed([*enumerate(options.__mro__)])
        for name in vars(c).get("__annotations__", {})
    }
    return sorted(fields(options), key=lambda field: rank[field.name])


def _shared(name: str, kind: Any, flags: str, help: str) -> inspect.Parameter:
    annotation = Annotated[kind, typer.Option(*flags.split("/"), help=help, metavar=None if kind is bool else "FILE")]
    default = False if kind is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _build(options: type[Any], values: dict[str, Any]) -> Any:
    """The options as their dataclass; the types of what a config file gives are checked here."""
    parsers = {field.name: field.metadata.get("parse") for field in fields(options)}
    values = {k: parse(v) if (parse := parsers.get(k)) and isinstance(v, str) else v for k, v in values.items()}
    try:
        return msgspec.convert(values, options)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$.")
        flag = "--" + where.rstrip("`").replace("_", "-")
        raise UsageError(f"{flag}: {reason}", "give the option a value of its type") from error


def _command(name: str, options: type[Any]) -> Callable[..., None]:
    """The function behind a command: options from flags, then the config file, then defaults; run; print the result."""
    hints = get_type_hints(options)
    described = [_parameter(field, hints[field.name]) for field in _own_first(options)]
    described.sort(key=lambda p: p.default is not inspect.Parameter.empty)
    described += [
        _shared("as_json", bool, "--json", "Print the result as one JSON document."),
        _shared("quiet", bool, "-q/--quiet", "No progress on stderr."),
        _shared("debug", bool, "--debug", "Show the traceback of an error."),
        _shared("config", str | None, "--config", "Read options from this TOML file; flags win."),
    ]

    def command(as_json: bool, quiet: bool, debug: bool, config: str | None, **given: Any) -> None:
        values = read_config(config, name, {n: {f.name for f in fields(row.options)} for n, row in COMMANDS.items()})
        values |= {key: value for key, value in given.items() if value is not None and value != []}
        say = silent if quiet else Stderr()
        built = _build(options, values)
        if as_json and (form := getattr(built, "form", "table")) != "table":
            raise UsageError(f"--json and --{form} are different forms of one result", "choose one")
        try:
            result = import_module(f"prunecli.commands.{name}").run(built, say)
        finally:
            say.clear()
        emit(result, as_json)
        if failure := getattr(result, "failure", None):  # a gate that was not met: shown, and failed nevertheless
            raise failure

    command.__name__ = name
    command.__signature__ = inspect.Signature(described)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in described}
    return command


for _name, _row in COMMANDS.items():
    _help = inspect.cleandoc(_row.options.__doc__ or "")
    app.command(_name, help=_help, short_help=_row.summary, epilog=f"Example: {_row.example}")(
        _command(_name, _row.options)
    )
