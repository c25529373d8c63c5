"""Code named on the command line runs only when its module is trusted by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from prunecli.errors import UsageError
from prunecli.trust import is_spec, load_object


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder that leaves a file behind when it is imported."""
    (tmp_path / "trust_example.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\n"
        "class Nested:\n    value = 3\ndef answer():\n    return 42\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "trust_example", raising=False)
    return "trust_example"


def test_trusted_module_of_the_current_folder_is_imported(module: str) -> None:
    before = list(sys.path)
    assert load_object(f"{module}:answer", {module})() == 42
    assert load_object(f"{module}:Nested.value", [module]) == 3
    assert sys.path == before


@pytest.mark.parametrize("trust", [(), ("trust",), ("trust_example.other",), ("os",)])
def test_untrusted_module_is_not_run(module: str, trust: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        load_object(f"{module}:answer", trust)
    assert "--trust trust_example" in caught.value.hint
    assert not Path("imported").exists()
    assert module not in sys.modules


@pytest.mark.parametrize(
    "path", ["os", "os.system", "system", "tool", "Nested.run", "answer.__globals__", "__loader__"]
)
def test_what_a_trusted_module_imports_is_not_trusted_with_it(module: str, path: str) -> None:
    """A checkpoint may name anything in a module that the user trusts, such as os.system with an argument."""
    with Path("trust_example.py").open("a") as file:
        file.write(
            "import functools, os, subprocess\nfrom os import system\ntool = functools.partial(system, 'touch ran')\n"
            "Nested.run = subprocess.run\n"
        )
    with pytest.raises(UsageError, match=r"only imports|no public"):
        load_object(f"{module}:{path}", {module})
    assert load_object(f"{module}:answer", {module})() == 42


def test_missing_object_names_the_nearest(module: str) -> None:
    with pytest.raises(UsageError, match="'anwser'") as caught:
        load_object(f"{module}:anwser", {module})
    assert "'answer'" in caught.value.hint


def test_missing_and_broken_modules_are_usage_errors(module: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no_such_module_here"):
        load_object("no_such_module_here:f", {"no_such_module_here"})
    (tmp_path / "trust_broken.py").write_text("raise RuntimeError('broken inside')\n")
    with pytest.raises(UsageError, match="RuntimeError: broken inside"):
        load_object("trust_broken:f", {"trust_broken"})


def test_file_in_the_current_folder_does_not_replace_the_standard_library(module: str, tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("rgb_to_hsv = 'stray'\n")
    assert callable(load_object("colorsys:rgb_to_hsv", {"colorsys"}))


@pytest.mark.parametrize("spec", ["", "module", "module:", ":f", "a b:c", "a..b:c", "a/b:c", "a:b c", "1a:b", "a:b:c"])
def test_other_forms_are_refused(spec: str) -> None:
    assert not is_spec(spec)
    with pytest.raises(UsageError):
        load_object(spec, {spec, spec.partition(":")[0]})
