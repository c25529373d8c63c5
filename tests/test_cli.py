"""The command line as people and Makefiles meet it: help, errors, exit codes, configuration, what goes where."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from prunecli.cli.app import COMMANDS
from prunecli.cli.boundary import run
from prunecli.errors import VerificationError

TRAIN = ["train", "--arch", "lenet5", "--data", "digits", "--epochs", "0", "--threads", "1"]


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_lines(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """The two lines that every error is."""
    captured = capsys.readouterr()
    assert captured.out == ""
    error, hint = captured.err.splitlines()[-2:]
    assert error.startswith("error: ")
    assert hint.startswith("hint: ")
    assert "Traceback" not in captured.err
    return error, hint


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option_and_gives_a_real_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "--help"]) == 0
    text = capsys.readouterr().out
    example = COMMANDS[command].example
    assert example.split()[:2] == ["prunecli", command]
    assert f"Example: prunecli {command}" in " ".join(text.split())
    for field in fields(COMMANDS[command].options):
        assert field.metadata["help"].strip(), field.name


@pytest.mark.parametrize("command", ["train", "prune"])
def test_the_settings_of_a_method_are_listed_without_data_or_output(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--method-arg", "help", "--method", "sss"]) == 0
    table = capsys.readouterr().out
    text = " ".join(table.split())  # as wide as the terminal is
    assert "(Huang and Wang 2018)" in text
    assert "--only --skip, and as --method-arg KEY=VALUE" in text
    rows = {line.split()[0]: line.split("   ") for line in table.splitlines() if line.strip()}
    assert [cell.strip() for cell in rows["gamma"] if cell.strip()][:3] == ["gamma", "0.01", "above 0"]
    assert "0 to below 1" in table
    assert run([command, "--method=greg1", "--method-arg=help", "--json", "--quiet"]) == 0
    settings = {s["name"]: s for s in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["k_u"] == {
        "name": "k_u",
        "default": 10,
        "values": "whole, 1 and more",
        "meaning": "number of steps between two increments of the penalty factor",
    }
    assert settings["pick"]["values"] == "l1, max, obd, random"
    assert run([command, "--method", "l1", "--method-arg", "help"]) == 2
    error, hint = error_lines(capsys)
    assert "--method l1 has no settings" in error
    assert "swd" in hint


def test_the_examples_of_the_help_run_one_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    for command, row in COMMANDS.items():
        arguments = shlex.split(row.example)[1:]
        if command == "train":
            arguments += ["--threads", "1", "--quiet"]
            arguments[arguments.index("--epochs") + 1] = "3"
        if command in ("finetune", "scratch"):
            arguments += ["--epochs", "1", "--threads", "1", "--quiet"]
        assert run(arguments) == 0, (row.example, capsys.readouterr().err)
    assert {"base.safetensors", "cut.safetensors", "small.safetensors", "small.onnx", "report.html"} <= {
        path.name for path in Path().iterdir()
    }


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TRAIN, "-o", "x.safetensors", "--epochs", "1", "--json"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["params"] == 61_706
    assert result["macs"] == 416_520
    assert captured.err.startswith("epoch 1/1")
    assert run([*TRAIN, "-o", "x.safetensors", "--epochs", "1", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--no-such-option"], 2, "no-such-option"),
        (["nonsense"], 2, "nonsense"),
        (["train", "--data", "digits", "-o", "x.safetensors"], 2, "--arch"),
        (["train", "--arch", "lenet5", "-o", "x.safetensors"], 2, "--data"),
        ([], 2, "prunecli --help"),
        ([*TRAIN], 2, "--output is missing"),
        (["prune", "x.safetensors", "--method", "l1", "--sparsity", "0.5"], 2, "--output is missing"),
        (["rewind", "x.safetensors"], 2, "--output is missing"),
        ([*TRAIN, "-o", "x.pt"], 2, ".safetensors"),
        (["train", "--arch", "lenet6", "--data", "digits", "-o", "x.safetensors"], 2, "lenet5"),
        (["train", "--arch", "lenet5", "--data", "digit", "-o", "x.safetensors"], 2, "digits"),
        (["train", "--arch", "lenet5", "--data", "mnist:nowhere", "-o", "x.safetensors"], 3, "nowhere"),
        (["train", "--arch", "mine:net", "--data", "digits", "-o", "x.safetensors"], 2, "--trust mine"),
        ([*TRAIN, "-o", "x.safetensors", "--lr", "-1"], 2, "--lr"),
        ([*TRAIN, "-o", "x.safetensors", "--epochs", "ten"], 2, "--epochs"),
        ([*TRAIN, "-o", "x.safetensors", "--optimizer", "sdg"], 2, "'sgd'"),
        (["finetune", "x.safetensors", "--resume", "-o", "./x.safetensors"], 2, "another name"),
        ([*TRAIN, "-o", "x.safetensors", "--init", "x.safetensors", "--resume"], 2, "another name"),
        ([*TRAIN, "-o", "x.safetensors", "--nesterov", "--momentum", "0"], 2, "--momentum"),
        ([*TRAIN, "-o", "x.safetensors", "--schedule", "multistep"], 2, "--milestones is missing"),
        ([*TRAIN, "-o", "x.safetensors", "--schedule", "step"], 2, "--step-size is missing"),
        ([*TRAIN, "-o", "x.safetensors", "--milestones", "2,3"], 2, "add --schedule multistep"),
        ([*TRAIN, "-o", "x.safetensors", "--schedule", "step", "--step-size", "3", "--min-lr", "0"], 2, "--min-lr"),
        ([*TRAIN, "-o", "x.safetensors", "--betas", "0.9,0.99"], 2, "add --optimizer adam"),
        ([*TRAIN, "-o", "x.safetensors", "--optimizer", "adamw", "--momentum", "0.9"], 2, "--momentum means nothing"),
        ([*TRAIN, "-o", "x.safetensors", "--device", "cuda"], 2, "--device cpu"),
        ([*TRAIN, "-o", "x.safetensors", "--device", "cuda:one"], 2, "--device cpu"),
        ([*TRAIN, "-o", "x.safetensors", "--keep", "9"], 2, "--keep"),
        ([*TRAIN, "-o", "x.safetensors", "--arch-arg", "width"], 2, "key=value"),
        ([*TRAIN, "-o", "x.safetensors", "--arch-arg", "width=3"], 2, "width"),
        ([*TRAIN, "-o", "x.safetensors", "--init", "nowhere.pt"], 3, "nowhere.pt"),
        ([*TRAIN, "-o", "no/such/folder/x.safetensors"], 1, "no/such/folder"),
        ([*TRAIN, "-o", "x.safetensors", "--config", "nowhere.toml"], 2, "nowhere.toml: No such file"),
        (["finetune", "nowhere.safetensors", "-o", "x.safetensors"], 3, "nowhere.safetensors"),
    ],
)
def test_bad_input_is_two_lines_and_the_right_code(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[-1:] == ["cuda"]:
        import torch

        if torch.cuda.is_available():
            pytest.skip("a CUDA GPU is here: --device cuda is no error")
    assert run(arguments) == code
    assert words in " ".join(error_lines(capsys))
    assert not list(Path().glob("*.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        ("train --arch lenet5 --data digits", "base.safetensors"),
        ("prune base.safetensors --method l1 --sparsity 0.5", "cut.safetensors"),
        ("prune base.safetensors --method sfp --sparsity 0.5", "cut.safetensors"),
        ("finetune cut.safetensors", "small.safetensors"),
        ("scratch cut.safetensors", "scratch.safetensors"),
    ],
)
def test_the_hint_about_a_missing_output_is_not_the_input(
    arguments: str, example: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments.split()) == 2
    assert capsys.readouterr().err == f"error: --output is missing\nhint: say what to write: -o {example}\n"


def test_config_gives_options_and_flags_win(capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.toml").write_text(
        'data = "digits"\nthreads = 1\n[train]\narch = "lenet5"\nepochs = 0\n'
        "batch-size = 32\nlr = 0.5\n[finetune]\nlr = 0.001\n"
    )
    assert run(["train", "--config", "study.toml", "--lr", "0.25", "-o", "x.safetensors"]) == 0
    written = json.loads(Path("x.json").read_bytes())["training"]
    assert (written["batch_size"], written["lr"]) == (32, 0.25)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[train]\nepoch = 3\n", "'epochs'"),
        ("learning = 1\n", "learning"),
        ("[tran]\nlr = 1\n", "'train'"),
        ("lr = ", "TOML"),
    ],
)
def test_a_wrong_config_is_refused(content: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.toml").write_text(content)
    assert run([*TRAIN, "--config", "study.toml", "-o", "x.safetensors"]) == 2
    assert words in " ".join(error_lines(capsys))


def test_a_config_value_of_the_wrong_type_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("study.toml").write_text('[train]\nlr = "fast"\n')
    assert run([*TRAIN, "--config", "study.toml", "-o", "x.safetensors"]) == 2
    assert "lr" in error_lines(capsys)[0]


def test_a_gate_that_is_not_met_fails_after_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*TRAIN, "-o", "x.safetensors", "--quiet"]) == 0
    capsys.readouterr()
    assert run(["report", "x.safetensors", "--fail-over", "params=100k"]) == 0
    capsys.readouterr()
    assert run(["report", "x.safetensors", "--json", "--fail-over", "params=50k"]) == 6
    captured = capsys.readouterr()
    assert json.loads(captured.out)["checkpoints"][0]["params"] == 61_706
    assert captured.err.startswith("error: ")
    assert "params" in captured.err


class Stubborn:
    """A result whose text a signal breaks into, in code that catches everything."""

    def __init__(self, number: signal.Signals, error: Exception | None) -> None:
        self.number, self.error = number, error

    def text(self) -> str:
        try:
            signal.raise_signal(self.number)
        except BaseException as error:
            if self.error is None:
                raise
            raise self.error from error
        return ""


@pytest.mark.parametrize("error", [None, ImportError("a module"), VerificationError("not so", "look")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_two_lines_and_its_code_whatever_it_breaks_into(
    number: signal.Signals,
    error: Exception | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("prunecli.commands.report.run", lambda options, say: Stubborn(number, error))
    before = signal.getsignal(number)
    assert run(["report", "--schema"]) == 128 + number
    assert error_lines(capsys)[0] == "error: interrupted"
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", ["prune", "export", "report"])
def test_an_interrupted_command_leaves_nothing_behind(command: str, number: signal.Signals) -> None:
    assert run([*TRAIN, "-o", "x.safetensors", "--quiet"]) == 0
    arguments = {
        "prune": ["--method", "l1", "--sparsity", "0.5", "-o", "y.safetensors"],
        "export": ["-o", "y.onnx"],
        "report": ["--latency", "--repeats", "1000000"],
    }[command]
    before = sorted(Path().iterdir())
    # the signal comes from inside, when the checkpoint is read: work has begun and no output is there
    code = (
        "import signal, sys\n"
        "from prunecli import encoding\n"
        "from prunecli.cli.boundary import run\n"
        "real = encoding.decode\n"
        "def decode(raw):\n"
        f"    signal.raise_signal({int(number)})\n"
        "    return real(raw)\n"
        "encoding.decode = decode\n"
        "sys.exit(run(sys.argv[1:]))\n"
    )
    line = [sys.executable, "-c", code, command, "x.safetensors", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 128 + number
    assert done.stderr.splitlines()[0] == "error: interrupted"
    assert len(done.stderr.splitlines()) == 2
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    "error", [MemoryError("4 GiB"), RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4 GiB")]
)
def test_out_of_memory_is_two_lines(
    error: Exception, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(options: object, say: object) -> None:
        raise error

    monkeypatch.setattr("prunecli.commands.report.run", fail)
    assert run(["report", "--schema"]) == 1
    assert "out of memory" in error_lines(capsys)[0]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("prunecli ")


def test_help_imports_no_torch() -> None:
    code = "import sys; from prunecli.cli.boundary import run; run(['--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{shlex.quote(sys.executable)} -m prunecli report --schema | head -c 10"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert len(done.stdout) == 10
    assert done.stderr == ""
